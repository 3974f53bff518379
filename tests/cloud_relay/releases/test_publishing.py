"""Publishing: what is fit to be released, and what a node gets of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from cloud_relay.releases import chunking
from cloud_relay.releases.publishing import (
    description_of,
    list_release,
    publish,
    revoke,
    target_of,
    with_deltas,
)
from cloud_relay.releases.repository import ReleaseRepository
from meshnode.models.deltas import apply_delta
from protocols.base.errors import ModelInvalid, ReleaseInvalid, StorageError
from protocols.base.limits import MAX_CHUNK_BYTES, MAX_CHUNKS, MAX_CONTENT_BYTES, MAX_TEXT_CHARS
from protocols.releases.catalogue import (
    MAX_DESCRIPTION_BYTES,
    MAX_FILES,
    Content,
    Delta,
    Description,
    ReleasedFile,
)
from tests.tools.onnx_graphs import write_external
from tests.tools.publishable_fixture import SIZE, write_model
from tests.tools.release_fixture import Publisher, given_publisher

__all__ = ["given_publisher"]
ELSEWHERE = '[[golden]]\ninputs = { x = "a/b.npy" }\noutputs = { y = "out.npy" }\n'


@pytest.fixture
def repository(publisher: Publisher) -> Iterator[ReleaseRepository]:
    with publisher.changing() as repository:
        yield repository


def test_publish_model_with_manifest_and_vectors_is_described_and_complete(
    repository: ReleaseRepository, tmp_path: Path
) -> None:
    """A node can put the folder together again out of what the description leads to."""
    folder = write_model(tmp_path / "v1").parent
    made = publish(repository, folder, changelog="the first", runtime="1.17")
    assert (made.path, made.counter, made.model, made.licence) == ("models/plate", 1, "plate.onnx", "Apache-2.0")
    assert (made.changelog, made.runtime, made.breaks_signature, made.deltas) == ("the first", "1.17", False, ())
    assert {file.name: repository.shelf.read(file.content) for file in made.files} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert description_of(repository, "models/plate", 1) == made


def test_publish_weights_in_a_file_of_their_own_go_along(repository: ReleaseRepository, tmp_path: Path) -> None:
    """Many exporters write them so."""
    made = publish(repository, write_external(tmp_path / "plate.onnx", "plate.weights"))
    assert [file.name for file in made.files] == ["plate.onnx", "plate.weights"]


def test_publish_newer_release_counts_on_and_offers_a_delta(repository: ReleaseRepository, tmp_path: Path) -> None:
    """A few changed weights; the delta makes the very file."""
    old, new = write_model(tmp_path / "v1"), write_model(tmp_path / "v2", scale=2.001)
    first, second = publish(repository, old), publish(repository, new)
    assert second.counter == 2
    (delta,) = [each for each in second.deltas if each.name == "plate.onnx"]
    assert delta.base == first.files[0].content.sha256
    data = repository.shelf.read(delta.content)
    assert apply_delta(delta.method, old.read_bytes(), data, 1_000_000) == new.read_bytes()
    assert delta.content.size_bytes < 0.1 * second.files[0].content.size_bytes


def test_publish_with_more_deltas_than_releases_offers_one_from_each(
    repository: ReleaseRepository, tmp_path: Path
) -> None:
    """Two releases, and deltas from up to three: it offered one from the last release only."""
    before = [publish(repository, write_model(tmp_path / str(n), scale=2 + n / 1_000)) for n in (1, 2)]
    made = publish(repository, write_model(tmp_path / "3", scale=2.003), deltas=3)
    bases = {each.base for each in made.deltas if each.name == "plate.onnx"}
    assert bases == {each.files[0].content.sha256 for each in before}


def test_publish_runtime_that_is_too_long_is_refused(repository: ReleaseRepository, tmp_path: Path) -> None:
    """It ended in a traceback, after the whole model had been put on the shelf."""
    with pytest.raises(ReleaseInvalid, match=r"'x{101}' has 101 characters, and 100 can travel"):
        publish(repository, write_model(tmp_path / "v1"), runtime="x" * 101)
    assert list((repository.folder / "chunks").glob("*/*")) == []
    assert publish(repository, write_model(tmp_path / "v1"), runtime="x" * 100).runtime == "x" * 100


def test_publish_delta_afterwards_from_any_earlier_release(repository: ReleaseRepository, tmp_path: Path) -> None:
    """Vehicles that were away have older releases."""
    for counter in (1, 2, 3):
        publish(repository, write_model(tmp_path / str(counter), scale=2 + counter / 1_000), deltas=0)
    made = with_deltas(repository, description_of(repository, "models/plate", 3), 1)
    assert [each.name for each in made.deltas if each.name.endswith(".onnx")] == ["plate.onnx"]
    assert with_deltas(repository, made, 1) == made
    with pytest.raises(ReleaseInvalid, match="there is no release 9 of models/plate: the metadata lists 1, 2, 3"):
        with_deltas(repository, made, 9)


def test_publish_counter_that_was_used_is_refused_even_if_revoked(
    repository: ReleaseRepository, tmp_path: Path
) -> None:
    """Nodes may have it: a number means one thing for ever."""
    model = write_model(tmp_path / "v1")
    publish(repository, model, counter=5)
    revoke(repository, "models/plate", 5)
    for counter in (4, 5):
        with pytest.raises(ReleaseInvalid, match="is not above 5"):
            publish(repository, model, counter=counter)
    assert publish(repository, model).counter == 6


@pytest.mark.parametrize(
    ("io", "match"),
    [
        ({"takes": "z", "golden": False}, "it lacks the input 'x'; it needs the input 'z'"),
        ({"gives": "z", "golden": False}, "it lacks the output 'y'"),
        ({"shape": [1, SIZE]}, r"input 'x' is f4\[1, 64\] and was f4\[\?, 64\]"),
    ],
)
def test_publish_other_signature_is_refused_unless_declared(
    repository: ReleaseRepository, tmp_path: Path, io: dict[str, Any], match: str
) -> None:
    """Applications ask by the name of the model, and would fail."""
    publish(repository, write_model(tmp_path / "v1"))
    other = write_model(tmp_path / "v2", **io)
    with pytest.raises(ReleaseInvalid, match=match) as refused:
        publish(repository, other)
    assert "--breaks-signature" in str(refused.value)
    assert publish(repository, other, breaks_signature=True).breaks_signature
    after = publish(repository, other)
    assert (after.counter, after.signature_since, after.breaks_signature) == (3, 2, False)


def test_publish_wider_signature_is_taken(repository: ReleaseRepository, tmp_path: Path) -> None:
    """Whoever used the old one can use the new one; outputs may not become wider."""
    publish(repository, write_model(tmp_path / "v1", shape=[1, SIZE]))
    with pytest.raises(ReleaseInvalid, match=r"output 'y' is f4\[\?, 64\] and was f4\[1, 64\]"):
        publish(repository, write_model(tmp_path / "v2"))


def test_publish_model_that_computes_something_else_is_refused(repository: ReleaseRepository, tmp_path: Path) -> None:
    """The golden vectors of another training run."""
    model = write_model(tmp_path / "v1")
    np.save(tmp_path / "v1" / "out.npy", np.zeros((1, SIZE), "f4"))
    with pytest.raises(ReleaseInvalid, match=r"golden\[0\]: output 'y' is 128"):
        publish(repository, model)
    assert repository.paths() == []


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda folder: (folder / "plate.onnx").write_bytes(b"no model"), "is not an ONNX file"),
        (lambda folder: (folder / "plate.onnx").write_bytes(b""), "is empty"),
        (lambda folder: (folder / "plate.onnx").unlink(), "has 0 files"),
        (lambda folder: (folder / "b.onnx").write_bytes(b"x"), "has 2 files"),
        (lambda folder: (folder / "in.npy").unlink(), r"in\.npy is not beside"),
        (lambda folder: (folder / "plate.toml").write_text("licenze = 1"), "licenze"),
        (lambda folder: (folder / "plate.toml").write_text(ELSEWHERE), "a folder of its own"),
    ],
)  # fmt: skip
def test_publish_files_that_are_not_fit_are_named(
    repository: ReleaseRepository, tmp_path: Path, spoil: Any, match: str
) -> None:
    """Better here than at a thousand nodes."""
    folder = write_model(tmp_path / "v1").parent
    spoil(folder)
    with pytest.raises((ReleaseInvalid, ModelInvalid), match=match):
        publish(repository, folder)
    assert repository.paths() == []


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", "ü", "a" * 101])
def test_publish_name_that_can_not_be_one_is_refused(repository: ReleaseRepository, tmp_path: Path, name: str) -> None:
    """It would be part of paths and file names."""
    with pytest.raises(ReleaseInvalid):
        publish(repository, write_model(tmp_path / "v1"), name=name)


def test_publish_without_the_key_of_the_publisher_changes_nothing(publisher: Publisher, tmp_path: Path) -> None:
    """The key is on a stick that is not there."""
    before = publisher.bundle
    del publisher.signers["models"]
    with pytest.raises(ReleaseInvalid, match="key of models"), publisher.changing() as repository:
        publish(repository, write_model(tmp_path / "v1"))
    assert publisher.bundle == before


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        (1, 65_536),
        (65_536 * MAX_CHUNKS, 65_536),
        (65_536 * MAX_CHUNKS + 1, 131_072),
        (MAX_CONTENT_BYTES, MAX_CHUNK_BYTES),
    ],
)
def test_chunks_are_as_small_as_their_number_permits(size: int, chunk: int) -> None:
    """Small ones can be fetched from more neighbours."""
    assert chunking.chunk_bytes_of(size) == chunk


@pytest.mark.parametrize("size", [0, MAX_CONTENT_BYTES + 1])
def test_file_that_can_not_travel_is_refused(size: int) -> None:
    """An empty chunk means that there is none."""
    with pytest.raises(ReleaseInvalid, match=str(size)):
        chunking.chunk_bytes_of(size)


def test_shelf_without_room_says_so_and_lists_nothing(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: what is published stays."""
    before = publisher.bundle

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="make room"), publisher.changing() as repository:
        publish(repository, write_model(tmp_path / "v1"))
    assert publisher.bundle == before


def test_shelf_that_is_given_a_damaged_chunk_again_mends_it(repository: ReleaseRepository) -> None:
    """A file of the right size was taken for the chunk, so publishing again did not help."""
    digest = repository.shelf.keep(b"a chunk")
    (path,) = repository.folder.glob(f"chunks/*/{digest.hex()}")
    path.write_bytes(b"a chuck")
    assert repository.shelf.find(digest) is None
    assert repository.shelf.keep(b"a chunk") == digest
    assert repository.shelf.find(digest) == b"a chunk"


def test_description_of_the_largest_release_fits_into_a_chunk(repository: ReleaseRepository) -> None:
    """A node must be able to read what is published, in any script. Control characters take six bytes each in JSON."""
    content = Content(sha256="f" * 64, size_bytes=MAX_CONTENT_BYTES, chunk_bytes=MAX_CHUNK_BYTES, index="f" * 64)
    names, wide = [f"{number:0100}" for number in range(MAX_FILES)], "\N{GRINNING FACE}"
    largest = Description(
        path="models/" + "p" * 100, counter=2**31 - 1, model=names[0], runtime="r" * 100, changelog=wide * 4_000,
        licence=wide * MAX_TEXT_CHARS, files=tuple(ReleasedFile(name=name, content=content) for name in names),
        deltas=tuple(Delta(name=name, base="f" * 64, method="tensors", content=content) for name in names),
    )  # fmt: skip
    list_release(repository, largest)
    target = repository.target(target_of(largest.path, largest.counter))
    assert target is not None
    assert 0.95 * MAX_DESCRIPTION_BYTES < target.length <= MAX_DESCRIPTION_BYTES
    assert description_of(repository, largest.path, largest.counter) == largest
    with pytest.raises(ReleaseInvalid, match=f"bytes, and {MAX_DESCRIPTION_BYTES} can travel"):
        list_release(repository, replace(largest, counter=1, changelog="\x01" * 4_000))


def test_root_signed_by_a_stranger_as_well_is_refused(publisher: Publisher) -> None:
    """Nodes would refuse it: a signature that counts for nothing could have been added by anybody."""
    with pytest.raises(ReleaseInvalid, match="is no key of root"), publisher.changing() as repository:
        repository.sign_root([*publisher.root_signers[:2], publisher.signers["models"]])
