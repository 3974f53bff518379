"""What is put on the disk of a node from a stick, and what becomes of it."""

import shutil
from pathlib import Path

import msgspec
import pytest

from benchmarks.failing_disk import FailingDisk, PowerLost
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.disk import Disk
from meshnode.releases.store.incoming import FOLDER, put_in, take_in
from meshnode.releases.store.stick import BUNDLE
from protocols.base import limits
from protocols.base.errors import StorageError
from protocols.releases.bundle import pack_bundle
from tests.tools.release_fixture import Publisher, sha256
from tests.tools.released_fixture import MIB, Published, publish


@pytest.fixture(name="publisher")
def given_publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path / "repository")
    made.release(1)
    return made


def test_bundle_is_there_as_a_whole_or_not_at_all_whenever_the_power_fails(
    tmp_path: Path, publisher: Publisher
) -> None:
    """The node takes in what is there at its next start, and half a bundle says nothing about the chunks."""
    disk = FailingDisk()
    put_in(publisher.folder, tmp_path / "releases", disk=disk)
    assert (tmp_path / "releases" / FOLDER / BUNDLE).read_bytes() == publisher.bundle
    for number in range(1, len(disk.steps) + 1):
        shutil.rmtree(tmp_path / "releases", ignore_errors=True)
        with pytest.raises(PowerLost):
            put_in(publisher.folder, tmp_path / "releases", disk=FailingDisk(number, "power"))
        path = tmp_path / "releases" / FOLDER / BUNDLE
        assert not path.exists() or path.read_bytes() == publisher.bundle


def lying_stick(folder: Path, real: Published) -> Path:
    """A stick without a signature, on which the index of a real content belongs to one with larger chunks."""
    (file,) = real.description.files
    larger = msgspec.structs.replace(
        file.content, chunk_bytes=4 * limits.PIECE_BYTES, size_bytes=4 * limits.PIECE_BYTES * file.content.chunks
    )
    lie = msgspec.json.encode(
        msgspec.structs.replace(real.description, files=(msgspec.structs.replace(file, content=larger),))
    )
    targets = {"signed": {"targets": {"models/adder/1.json": {"hashes": {"sha256": sha256(lie).hex()}}}}}
    folder.mkdir()
    (folder / BUNDLE).write_bytes(pack_bundle({"1.targets.json": msgspec.json.encode(targets)}))
    for data in (lie, *real.chunks.values()):
        (folder / sha256(data).hex()).write_bytes(data)
    return folder


def test_stick_without_a_signature_leaves_no_trace_in_the_store(tmp_path: Path) -> None:
    """Anybody can write a stick. What it says of a content must not decide how a signed release is kept."""
    real = publish(1, {"m.onnx": bytes(range(256)) * 256})
    put_in(lying_stick(tmp_path / "stick", real), tmp_path / "releases")
    store = ChunkStore(tmp_path / "releases", 64 * MIB)
    store.open()
    assert take_in(tmp_path / "releases", store, lambda bundle: b"") == 0
    assert store.held() == {}
    assert not list((tmp_path / "releases" / FOLDER).iterdir())


def test_older_stick_still_brings_the_chunks_of_what_is_trusted_now(tmp_path: Path, publisher: Publisher) -> None:
    """Somebody walks by with last week's stick: the metadata is older, and most of the chunks are right."""
    put_in(publisher.folder, tmp_path / "releases")
    publisher.release(2, "sign")
    store = ChunkStore(tmp_path / "releases", 64 * MIB)
    store.open()
    assert take_in(tmp_path / "releases", store, lambda bundle: publisher.bundle) == 1
    assert len(store.held()) == 3, "description, index and chunk of the first release"


def test_stick_that_can_not_be_checked_now_waits(tmp_path: Path, publisher: Publisher) -> None:
    """A vehicle whose clock is not set yet must not throw away what somebody has brought to it."""
    put_in(publisher.folder, tmp_path / "releases")
    store = ChunkStore(tmp_path / "releases", 64 * MIB)
    store.open()
    assert take_in(tmp_path / "releases", store, lambda bundle: None) is None
    assert take_in(tmp_path / "releases", store, lambda bundle: bundle) == 1


class SmallDisk(Disk):
    """A disk with room for so many bytes below one folder."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._folder, self._size_bytes = folder, size_bytes

    def room(self, path: Path) -> tuple[int, int]:
        used = sum(each.stat().st_size for each in self._folder.rglob("*") if each.is_file())
        return self._size_bytes - used, self._size_bytes


def junk(folder: Path, count: int) -> None:
    """Chunks of 10,000 bytes that nobody has signed."""
    for number in range(count):
        data = bytes([number]) * 10_000
        (folder / sha256(data).hex()).write_bytes(data)


def test_stick_that_does_not_fit_is_left_out_as_a_whole(tmp_path: Path, publisher: Publisher) -> None:
    """What a stick holds must not take the room that the node needs to go on, or to go back to an older release."""
    junk(publisher.folder, 10)
    node = tmp_path / "releases"
    with pytest.raises(StorageError, match="stay free"):
        put_in(publisher.folder, node, disk=SmallDisk(node, 100_000))
    assert not list((node / FOLDER).iterdir())
    assert put_in(publisher.folder, node, disk=SmallDisk(node, 200_000)) > 10


def test_what_nobody_signed_goes_before_anything_is_taken_in(tmp_path: Path, publisher: Publisher) -> None:
    """On a full disk it would stay there for ever, because nothing can be taken in any more."""
    junk(publisher.folder, 10)
    node = tmp_path / "releases"
    put_in(publisher.folder, node)
    full = ChunkStore(node, 64 * MIB, SmallDisk(node, 10_000))
    full.open()
    with pytest.raises(StorageError, match="Make room"):
        take_in(node, full, lambda bundle: bundle)
    assert len(list((node / FOLDER).iterdir())) == 4, "the bundle, and the three chunks that it leads to"
    store = ChunkStore(node, 64 * MIB, SmallDisk(node, 100_000))
    store.open()
    assert take_in(node, store, lambda bundle: bundle) == 1
    assert not list((node / FOLDER).iterdir())
    put_in(publisher.folder, node)
    assert take_in(node, full, lambda bundle: b"") == 0, "none of it is signed"
    assert not list((node / FOLDER).iterdir())


def test_node_that_starts_while_somebody_imports_leaves_what_was_copied_alone(
    tmp_path: Path, publisher: Publisher
) -> None:
    """A stick takes minutes. What was copied before the node looked was gone, and nobody said so."""
    releases = tmp_path / "releases"
    store = ChunkStore(releases, 64 * MIB)
    store.open()
    looked: list[int | None] = []

    def look(size_bytes: int) -> None:
        looked.append(take_in(releases, store, lambda bundle: bundle))

    put_in(publisher.folder, releases, look)
    assert set(looked) == {None}
    assert take_in(releases, store, lambda bundle: bundle) == 1
    assert len(store.held()) == 4, "bundle, description, index and chunk"
