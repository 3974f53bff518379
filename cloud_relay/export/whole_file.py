"""A file that is there only when it is whole."""

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Final

from protocols.base.errors import LocalProtocolError, StorageError

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file to write into, which gets its name, ``path``, at the end. When writing ends in any other way, by Ctrl-C or
    SIGTERM too, nothing is left. Only its owner may read it. Call it on the main thread.

    :raises LocalProtocolError: there is a file of this name, and it may not be overwritten.
    :raises StorageError: it can't be written.
    """
    if path.is_dir():
        raise LocalProtocolError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise LocalProtocolError(f"{path} is there already: name another file, or add --overwrite")
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    before = {number: signal.signal(number, _end) for number in _ENDING}
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} can't be written ({error.strerror or error}): free space on that disk, or name another file"
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
