"""The contents of releases on disk: each is one file, made in its full size before its first chunk is written.

So the disk is reserved beforehand, a content takes its size once, and a file of a release is a second name of it.
Beside ``DIGEST`` (of its index) lies ``DIGEST.held``: four bytes with the size of a chunk, and then four with the
number of each chunk that is there. A number is added once its chunk is on the disk: after a loss of power a chunk may
be fetched again, and none is taken for held that is not. Every chunk that is read is checked; one that is damaged
counts as missing from then on.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from meshnode.releases.store.disk import Disk

_HELD: Final = ".held"
_NUMBER_BYTES: Final = 4
_HEX_DIGITS: Final = frozenset("0123456789abcdef")


class ContentFile:
    """One content. Its methods are called under the lock of the store."""

    def __init__(self, path: Path, digests: Sequence[bytes], size_bytes: int, chunk_bytes: int, disk: Disk) -> None:
        """``digests``: of its chunks, in order. Nothing is read or written yet."""
        self.path, self.digests, self.size_bytes, self.chunk_bytes = path, tuple(digests), size_bytes, chunk_bytes
        self._disk, self._marks = disk, path.with_name(path.name + _HELD)
        self.held = bytearray(len(self.digests))
        """One for each chunk that is there, else zero."""
        self.is_reserved = False
        """Whether it has its room on the disk."""

    def look(self) -> None:
        """Take up what is on the disk."""
        chunk_bytes, *numbers = _numbers(self._marks) or [0]
        if chunk_bytes != self.chunk_bytes or _size_on_disk(self.path) != self.size_bytes:
            return
        self.is_reserved = True
        for number in numbers:
            if number < len(self.held):
                self.held[number] = 1
        if (
            _size_on_disk(self._marks) or 0
        ) % _NUMBER_BYTES:  # cut off: what is appended would be read as other numbers
            with suppress(OSError):
                self._keep_marks()

    def reserve(self) -> None:
        """Make room for all of it on the disk. :raises OSError: there is no room."""
        remove_content(self.path, self._disk)  # a release may have the same file under another name
        try:
            self._disk.allocate(self.path, self.size_bytes)
            self._keep_marks()
        except OSError:
            with suppress(OSError):
                self._disk.remove(self.path)
            raise
        self.is_reserved = True

    @property
    def is_whole(self) -> bool:
        """Whether every chunk is there."""
        return all(self.held)

    @property
    def is_proven(self) -> bool:
        """Whether a chunk that is there bears out the sizes: that of the last one of several says nothing of them."""
        return any(self.held[:-1]) or self.held == b"\1"

    def put(self, number: int, data: bytes) -> None:
        """Write a chunk, whose digest was checked. :raises OSError: it can't be written."""
        if not self.held[number]:
            self._disk.write_at(self.path, number * self.chunk_bytes, data)
            self._disk.sync(self.path)
            self._disk.append(self._marks, number.to_bytes(_NUMBER_BYTES, "little"))
            self.held[number] = 1

    def get(self, number: int) -> bytes | None:
        """A chunk; None: it is not there, or it is damaged and was forgotten."""
        if not self.held[number]:
            return None
        try:
            with self.path.open("rb") as file:
                file.seek(number * self.chunk_bytes)
                data = file.read(self.chunk_bytes)
        except OSError:
            data = b""
        if hashlib.sha256(data).digest() == self.digests[number]:
            return data
        self.held[number] = 0
        with suppress(OSError):
            self._keep_marks()
        return None

    def size_of(self, number: int) -> int:
        """The bytes of a chunk."""
        return min(self.chunk_bytes, self.size_bytes - number * self.chunk_bytes)

    def digest(self) -> str:
        """SHA-256 of the whole file, as it is on the disk. :raises OSError: it can't be read."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self) -> int:
        """Read every chunk, and return how many were damaged and are forgotten now."""
        return sum(self.held[number] and self.get(number) is None for number in range(len(self.digests)))

    def _keep_marks(self) -> None:
        numbers = (self.chunk_bytes, *(number for number, is_held in enumerate(self.held) if is_held))
        self._disk.place(self._marks, b"".join(number.to_bytes(_NUMBER_BYTES, "little") for number in numbers))


def chunk_bytes_of(path: Path) -> int:
    """The size of a chunk of a content on the disk; 0: it is not known."""
    return next(iter(_numbers(path.with_name(path.name + _HELD))), 0)


def _size_on_disk(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _numbers(marks: Path) -> list[int]:
    """The numbers in a file of marks. What was cut off at its end is left out."""
    try:
        content = marks.read_bytes()
    except OSError:
        return []
    return [
        int.from_bytes(content[at : at + _NUMBER_BYTES], "little")
        for at in range(0, len(content) - _NUMBER_BYTES + 1, _NUMBER_BYTES)
    ]


def remove_content(path: Path, disk: Disk) -> None:
    """Remove a content from the disk. The marks go first: without them nothing of it counts as held."""
    disk.remove(path.with_name(path.name + _HELD))
    disk.remove(path)


def is_digest(name: str) -> bool:
    """Whether a file is called by a digest, and not one that lies beside it."""
    return len(name) == 64 and set(name) <= _HEX_DIGITS
