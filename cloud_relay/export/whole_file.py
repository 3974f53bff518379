"""A file that is there only when it is whole."""

import fcntl
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from types import FrameType
from typing import Final

from protocols.base.errors import LocalProtocolError, StorageError

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
_NAME_CHARS: Final = 60
"""Of the file's name in the one that it has meanwhile: file systems take 255 bytes, and a character has up to four."""


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[BufferedRandom]:
    """A file to write into and to read again, which gets its name, ``path``, at the end. When writing ends in any other
    way, by Ctrl-C or SIGTERM too, nothing is left; what a process left that was killed is removed by the next one that
    writes this file. Only its owner may read it. Call it on the main thread.

    :raises LocalProtocolError: there is a file of this name, and it may not be overwritten.
    :raises StorageError: it can't be written.
    """
    refuse_taken(path, overwrite=overwrite)
    fresh = path.with_name(f".{path.name[:_NAME_CHARS]}.{secrets.token_hex(4)}.part")
    try:
        with ends_by_signals():
            try:
                _remove_dead(path)
                with open(_locked_file(fresh), "w+b") as out:
                    yield out
                    out.flush()
                    os.fsync(out.fileno())
                    fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} can't be written ({error.strerror or error}): free space on that disk, or name another file"
        ) from error


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """:raises LocalProtocolError: there is a file of this name, and it may not be overwritten, or a folder."""
    if path.is_dir():
        raise LocalProtocolError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise LocalProtocolError(f"{path} is there already: name another file, or add --overwrite")


@contextmanager
def ends_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit meanwhile, as Ctrl-C raises KeyboardInterrupt, so that ``finally`` happens.
    Call it on the main thread."""
    before = {number: signal.signal(number, _end) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _locked_file(path: Path) -> int:
    """A new file with a lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a file system without locks: nobody takes it for that of a dead process then
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return descriptor
        os.close(descriptor)  # another process took it for that of a dead one, before it had its lock


def _remove_dead(path: Path) -> None:
    """Remove what processes left of this file that were killed. Who is writing it holds a lock."""
    beginning = f".{path.name[:_NAME_CHARS]}."
    for part in path.parent.iterdir():
        token = part.name.removeprefix(beginning).removesuffix(".part")
        if part.name != f"{beginning}{token}.part" or len(token) != 8:
            continue
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # it became whole just now, or belongs to somebody else
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)
        except OSError:
            pass  # it is being written, or there are no locks that would say so
        finally:
            os.close(descriptor)


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
