"""The store of chunks: what it takes is right and stays right, within its bounds and those of the disk."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.failing_disk import LOSSES_OF_POWER, FailingDisk, Fault, PowerLost
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.disk import Disk
from protocols.base import limits
from protocols.base.errors import StorageError
from tests.tools.released_fixture import MIB, Published, publish

CHUNK = limits.PIECE_BYTES


def opened(folder: Path, max_bytes: int = 64 * MIB) -> ChunkStore:
    store = ChunkStore(folder, max_bytes)
    store.open()
    return store


def some(seed: int, size_bytes: int) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size_bytes)


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def content_of(published: Published) -> tuple[bytes, int, int]:
    """Index, size and size of a chunk of the only file."""
    content = published.description.files[0].content
    return bytes.fromhex(content.index), content.size_bytes, content.chunk_bytes


def test_chunk_with_another_digest_is_not_kept(tmp_path: Path) -> None:
    """A neighbour that lies must not get anything onto this disk."""
    store = opened(tmp_path)
    assert not store.put(digest_of(b"right"), b"wrong")
    assert store.get(digest_of(b"right")) is None
    assert store.put(digest_of(b"right"), b"right")
    assert store.get(digest_of(b"right")) == b"right"
    assert opened(tmp_path).get(digest_of(b"right")) == b"right"


def test_chunk_that_was_damaged_on_the_disk_is_forgotten_and_told(tmp_path: Path) -> None:
    """Memory cards forget: a neighbour must not get what they make of a model, and this node fetches it again."""
    file = publish(1, {"m.onnx": some(1, 3 * CHUNK + 5)})
    file.put_into(opened(tmp_path))
    index = content_of(file)[0]
    (path,) = (path for path in (tmp_path / "contents").iterdir() if path.name == index.hex())
    data = bytearray(path.read_bytes())
    data[CHUNK + 7] ^= 1
    path.write_bytes(data)
    store = opened(tmp_path)
    content = store.content(index)
    assert content is not None
    second = content.digests[1]
    assert store.has(second)
    assert store.get(second) is None
    assert not store.has(second)
    assert (store.take_lost(), store.take_lost(), store.damaged) == ([second], [], 1)
    assert bytes(opened(tmp_path).content(index).held) == b"\1\0\1\1"  # type: ignore[union-attr]
    assert store.put(second, file.chunks[second])
    assert content.digest() == file.description.files[0].content.sha256


def test_content_goes_on_after_a_restart_where_it_was(tmp_path: Path) -> None:
    """A vehicle is switched off in the middle of a transfer, every day."""
    file = publish(1, {"m.onnx": some(1, 5 * CHUNK)})
    index, size_bytes, chunk_bytes = content_of(file)
    store = opened(tmp_path)
    store.put(index, file.chunks[index])
    content = store.open_content(index, size_bytes, chunk_bytes)
    assert content is not None
    for digest in content.digests[:2]:
        store.put(digest, file.chunks[digest])
    again = opened(tmp_path)
    assert bytes(again.content(index).held) == b"\1\1\0\0\0"  # type: ignore[union-attr]
    assert set(again.held()) == {index, *content.digests[:2]}
    marks = tmp_path / "contents" / f"{index.hex()}.held"
    marks.write_bytes(marks.read_bytes()[:-2])  # cut off by a loss of power
    again = opened(tmp_path)
    assert bytes(again.content(index).held) == b"\1\0\0\0\0"  # type: ignore[union-attr]
    for digest in content.digests[1:3]:
        again.put(digest, file.chunks[digest])
    assert bytes(opened(tmp_path).content(index).held) == b"\1\1\1\0\0"  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", LOSSES_OF_POWER)
def test_chunk_that_counts_as_held_is_on_the_disk_wherever_the_power_fails(tmp_path: Path, fault: Fault) -> None:
    """What a node believes to hold it neither fetches again nor finds damaged before it needs it."""
    file = publish(1, {"m.onnx": some(1, 3 * CHUNK + 5)})
    index, size_bytes, chunk_bytes = content_of(file)

    def put(folder: Path, disk: FailingDisk) -> None:
        store = ChunkStore(folder, 64 * MIB, disk)
        store.open()
        file.put_into(store)

    disk = FailingDisk()
    put(tmp_path / "whole", disk)
    assert {"write_at", "append", "sync"} <= {step.split()[0] for step in disk.steps}
    for number, step in enumerate(disk.steps, 1):
        folder = tmp_path / str(number)
        with suppress(PowerLost):
            put(folder, FailingDisk(number, fault))
        store = opened(folder)
        lacking = [digest.hex()[:12] for digest in store.held() if store.get(digest) is None]
        assert not lacking, f"held and not there after {fault} at {number}, {step}"
        file.put_into(store)
        again = opened(folder).open_content(index, size_bytes, chunk_bytes)
        assert again is not None
        assert again.is_whole, f"what came afterwards is not known after {fault} at {number}, {step}"
        assert again.digest() == file.description.files[0].content.sha256


def test_room_of_a_content_is_there_before_its_first_chunk(tmp_path: Path) -> None:
    """Half a model on a full disk is worth nothing, and keeps others from theirs."""
    file = publish(1, {"m.onnx": some(1, 5 * CHUNK)})
    index, size_bytes, chunk_bytes = content_of(file)
    store = opened(tmp_path)
    store.put(index, file.chunks[index])
    content = store.open_content(index, size_bytes, chunk_bytes)
    assert content is not None
    store.put(content.digests[0], file.chunks[content.digests[0]])
    status = (tmp_path / "contents" / index.hex()).stat()
    assert (status.st_size, status.st_blocks * 512 >= size_bytes) == (size_bytes, True)


def test_content_takes_chunks_that_others_hold_already(tmp_path: Path) -> None:
    """Two releases of one model have most of their files in common: what is here needs no radio."""
    first, second = some(1, 2 * CHUNK), some(2, CHUNK)
    store = opened(tmp_path)
    publish(1, {"m.onnx": first}).put_into(store)
    file = publish(2, {"m.onnx": first + second})
    index, size_bytes, chunk_bytes = content_of(file)
    store.put(index, file.chunks[index])
    content = store.open_content(index, size_bytes, chunk_bytes)
    assert content is not None
    assert not store.fill(content)
    assert bytes(content.held) == b"\1\1\0"


def test_content_whose_index_does_not_fit_its_size_is_refused(tmp_path: Path) -> None:
    """A chunk may have the right digest and be no index."""
    file = publish(1, {"m.onnx": some(1, 5 * CHUNK)})
    index, size_bytes, chunk_bytes = content_of(file)
    store = opened(tmp_path)
    assert store.open_content(index, size_bytes, chunk_bytes) is None
    store.put(index, file.chunks[index])
    assert store.open_content(index, size_bytes + CHUNK, chunk_bytes) is None
    assert store.open_content(index, size_bytes, chunk_bytes) is not None


def test_what_no_release_needs_makes_room_and_what_one_needs_stays(tmp_path: Path) -> None:
    """A full store must not stop updates for ever, nor throw away the model that serves."""
    store = opened(tmp_path, max_bytes=10 * CHUNK)
    old, new = publish(1, {"m.onnx": some(1, 6 * CHUNK)}), publish(2, {"m.onnx": some(2, 7 * CHUNK)})
    old.put_into(store)
    store.needed = lambda: [content_of(old)[0]]
    index, size_bytes, chunk_bytes = content_of(new)
    store.put(index, new.chunks[index])
    content = store.open_content(index, size_bytes, chunk_bytes)
    assert content is not None
    digest = content.digests[0]
    with pytest.raises(StorageError, match=r"don't fit.*are needed. Raise \[releases\] store_mib"):
        store.put(digest, new.chunks[digest])
    store.needed = lambda: [index]
    assert store.put(digest, new.chunks[digest])
    lost = store.take_lost()
    assert set(old.chunks) - set(lost) == {content_of(old)[0]}, "its index is small, and goes only when it has to"
    assert store.size_bytes <= 10 * CHUNK
    store.forget([content_of(old)[0], index])
    assert (store.has(content_of(old)[0]), store.has(index)) == (False, True)


def test_new_content_leaves_a_release_with_the_same_file_alone(tmp_path: Path) -> None:
    """The file of the release that serves is a second name of a content: to begin that anew must not empty it."""
    file = publish(1, {"m.onnx": some(1, 2 * CHUNK)})
    store = opened(tmp_path)
    file.put_into(store)
    index, size_bytes, chunk_bytes = content_of(file)
    served = tmp_path / "served.onnx"
    os.link(tmp_path / "contents" / index.hex(), served)
    (tmp_path / "contents" / f"{index.hex()}.held").unlink()  # as after a loss of power
    again = opened(tmp_path)
    content = again.open_content(index, size_bytes, chunk_bytes)
    assert content is not None
    assert not any(content.held)
    again.put(content.digests[0], file.chunks[content.digests[0]])
    assert bytes(content.held) == b"\1\0"
    assert served.read_bytes() == some(1, 2 * CHUNK)


# --- full disks ------------------------------------------------------------------------------------------------------
class SmallDisk(Disk):
    """A file system of half a megabyte, which holds nothing but what lies beside the chunks."""

    def room(self, path: Path) -> tuple[int, int]:
        used = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        return MIB // 2 - used, MIB // 2


def test_what_no_release_needs_makes_room_on_a_disk_that_others_have_filled(tmp_path: Path) -> None:
    """Recordings take the disk long before releases take what they may. Then no release came any more, while the store
    was full of those that nobody needs."""
    store = ChunkStore(tmp_path, 64 * MIB, SmallDisk())
    store.open()
    chunks = [some(seed, 4 * CHUNK) for seed in range(20)]
    for data in chunks:
        assert store.put(digest_of(data), data)
    assert store.has(digest_of(chunks[-1]))
    assert len(store.take_lost()) == 20 - 7
    store.needed = lambda: [digest_of(data) for data in chunks]
    with pytest.raises(StorageError, match=r"the disk of .* has \d+ bytes left"):
        store.put(digest_of(some(30, 4 * CHUNK)), some(30, 4 * CHUNK))
    assert store.take_lost() == []


@pytest.fixture(name="disk")
def given_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.processes
def test_full_disk_is_told_before_anything_is_written(disk: Path) -> None:
    """The outbox of the node lies on the same disk: a release must leave it some room, and nothing half done."""
    store = opened(disk / "releases")
    file = publish(1, {"m.onnx": some(1, 100 * CHUNK)})
    index, size_bytes, chunk_bytes = content_of(file)
    assert store.put(index, file.chunks[index])
    other = disk / "other"
    other.write_bytes(bytes(MIB))
    content = store.open_content(index, size_bytes, chunk_bytes)
    assert content is not None
    with pytest.raises(StorageError, match=r"the disk of .* has \d+ bytes left, of which \d+ stay free. Make room"):
        store.put(content.digests[0], file.chunks[content.digests[0]])
    assert list((disk / "releases" / "contents").iterdir()) == []
    other.write_bytes(bytes(2 * MIB - os.statvfs(disk).f_bsize * 20))
    with pytest.raises(StorageError, match="Make room"):
        store.put(digest_of(some(3, 100_000)), some(3, 100_000))
    other.unlink()
    file.put_into(store)
    assert store.content(index).is_whole  # type: ignore[union-attr]


def test_content_with_sizes_that_no_chunk_bears_out_gives_way(tmp_path: Path) -> None:
    """Whoever first says how large a content is must not keep the true one from this node, nor from its next life."""
    file = publish(1, {"m.onnx": some(1, 4 * CHUNK)})
    index, size_bytes, chunk_bytes = content_of(file)
    store = opened(tmp_path)
    store.put(index, file.chunks[index])
    lie = store.open_content(index, 4 * size_bytes, 4 * chunk_bytes)
    assert lie is not None
    first = lie.digests[0]
    assert store.put(first, file.chunks[first])
    assert store.has(first)
    for again in (store, opened(tmp_path)):
        content = again.open_content(index, size_bytes, chunk_bytes)
        assert content is not None
        assert not again.fill(content)
        assert bytes(content.held) == b"\1\0\0\0"
        assert again.open_content(index, 4 * size_bytes, 4 * chunk_bytes) is None, "a chunk proves that it is not"
