"""Files made out of deltas: only what comes out right is kept."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from meshnode.models.deltas import make_delta
from meshnode.releases.install.patching import DeltaFailed, is_held, patch_files
from meshnode.releases.store.chunks import ChunkStore
from protocols.releases.catalogue import Content, Delta, Description
from tests.tools.released_fixture import MIB, Published, publish


def weights(seed: int) -> bytes:
    """Bytes that no compression helps, of which one percent depends on the seed."""
    data = np.random.default_rng(1).integers(0, 256, 200_000, "u1")
    data[:2_000] = np.random.default_rng(seed).integers(0, 256, 2_000, "u1")
    return data.tobytes()


@pytest.fixture(name="store")
def given_store(tmp_path: Path) -> ChunkStore:
    made = ChunkStore(tmp_path / "releases", 64 * MIB)
    made.open()
    return made


def with_delta(old: bytes, new: bytes, **more: Any) -> tuple[Published, Description]:
    """The chunks of the delta alone, and the release that it leads to."""
    method, data = make_delta(old, new)
    delta = publish(1, {"delta": data})
    made = Delta(name="m.onnx", base=hashlib.sha256(old).hexdigest(), method=method,
                 content=delta.description.files[0].content)  # fmt: skip
    release = publish(2, {"m.onnx": new}).description
    return delta, replace(release, deltas=(replace(made, **more),))


def test_file_is_made_of_the_one_before_and_its_chunks_can_be_given_on(store: ChunkStore) -> None:
    """A vehicle fetches one percent, and a neighbour without the old file gets the whole from it."""
    old, new = weights(1), weights(2)
    base = publish(1, {"m.onnx": old})
    base.put_into(store)
    delta, release = with_delta(old, new)
    delta.put_into(store)
    assert delta.description.size_bytes < 0.1 * len(new)
    contents = {base.description.files[0].content.sha256: base.description.files[0].content}
    assert patch_files(release, store, contents.get) == 1
    content = release.files[0].content
    assert is_held(store, content)
    assert set(publish(2, {"m.onnx": new}).chunks) <= set(store.held())
    assert patch_files(release, store, contents.get) == 0


def test_delta_that_makes_something_else_or_is_damaged_leaves_nothing(store: ChunkStore) -> None:
    """Then the file is fetched. The publisher may have made the delta of another file, or a disk may have damaged
    it."""
    old, new = weights(1), weights(2)
    base = publish(1, {"m.onnx": old})
    base.put_into(store)
    contents: dict[str, Content] = {base.description.files[0].content.sha256: base.description.files[0].content}
    delta, _ = with_delta(old, weights(3))
    delta.put_into(store)
    _, release = with_delta(old, new, content=delta.description.files[0].content)
    with pytest.raises(DeltaFailed, match="makes another file"):
        patch_files(release, store, contents.get)
    garbage = publish(1, {"delta": b"no delta" * 100})
    garbage.put_into(store)
    _, release = with_delta(old, new, content=garbage.description.files[0].content)
    with pytest.raises(DeltaFailed, match="can't be applied"):
        patch_files(release, store, contents.get)
    assert not is_held(store, release.files[0].content)


def test_delta_without_its_base_is_left_alone(store: ChunkStore) -> None:
    """The chunks of the file may still come."""
    delta, release = with_delta(weights(1), weights(2))
    delta.put_into(store)
    assert patch_files(release, store, lambda sha256: None) == 0
