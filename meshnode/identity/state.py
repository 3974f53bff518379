"""The state folder of a node. Only its owner may enter it. It locks out other processes, and keeps an incarnation that
grows with every start."""

import fcntl
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from meshnode.identity.private_files import create_private, make_private_folder, narrow, write_private
from protocols.base.errors import StorageError
from protocols.base.ids import Incarnation

_WAY_OUT = "make it writable, free some disk, or set [node] state_dir to another folder"


class StateFolder:
    """The folder, locked for this process until it is closed."""

    def __init__(self, path: Path) -> None:
        """Create the folder if missing and lock it.

        :raises StorageError: when it can't be used, or another process uses it.
        """
        self.path = path
        try:
            make_private_folder(path)
            create_private(path / "lock")
            narrow(path / "lock")
            self._lock: IO[bytes] = (path / "lock").open("wb")
        except OSError as error:
            raise StorageError(f"the state folder {path} can't be used ({error.strerror}): {_WAY_OUT}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StorageError(
                f"the state folder {path} is in use by another process: stop that node, or give this one its own "
                "[node] state_dir"
            ) from error

    def next_incarnation(self) -> Incarnation:
        """A number above all earlier ones: seconds since 1970, or one more than the last when the clock went back.

        Written and synced before it is used, so that not even a crash repeats one. Its lowest 32 bits order readings.

        :raises StorageError: when it can't be written.
        """
        file = self.path / "incarnation"
        last = 0
        with suppress(OSError, ValueError):
            last = int(file.read_text())
        incarnation = max(last + 1, int(time.time()))
        try:
            write_private(file, str(incarnation).encode())
        except OSError as error:
            raise StorageError(f"{file} can't be written ({error.strerror}): {_WAY_OUT}") from error
        return Incarnation(incarnation)

    def close(self) -> None:
        """Release the folder for other processes. Idempotent."""
        self._lock.close()
