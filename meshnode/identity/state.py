"""The state folder of a node. Only its owner may enter it. It locks out other processes, and keeps an incarnation that
grows with every start."""

import fcntl
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from meshnode.identity.private_files import create_private, make_private_folder, narrow, write_private
from protocols.base.errors import StorageError
from protocols.base.ids import Incarnation
from protocols.base.sequences import MAX_INCARNATION, first_sequence, incarnation_at

_log = logging.getLogger(__name__)
_MAX_DIGITS: Final = 20
_WAY_OUT = "make it writable, free some disk, or set [node] state_dir to another folder"


class StateFolder:
    """The folder, locked for this process until it is closed."""

    def __init__(self, path: Path) -> None:
        """Create the folder if missing and lock it.

        :raises StorageError: when it can't be used, or another process uses it.
        """
        self.path = path
        self._file, self._kept = path / "incarnation", 0
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

    def next_incarnation(self, now_s: float | None = None) -> Incarnation:
        """A number above all earlier ones: seconds since 1970, or one more than the last when the clock went back.

        Written and synced before it is used, so that not even a crash repeats one. It says with which sequence the
        readings of this life begin. What is kept and can't be an incarnation is moved aside. ``now_s``: the clock;
        None: that of the host, which counts for nothing beyond ``MAX_INCARNATION``.

        :raises StorageError: when it can't be written.
        """
        clock_s = int(time.time() if now_s is None else now_s)
        self._write(max(self._last() + 1, clock_s if clock_s <= MAX_INCARNATION else 0))
        return Incarnation(self._kept)

    def reserve(self, sequence: int) -> None:
        """Keep the next life above the sequences that this one uses, of which ``sequence`` is the next. Nothing is
        written while more than half of those are left that begin with the incarnation that is kept.

        :raises StorageError: when it can't be written.
        """
        if (needed := self._needed(sequence)) > self._kept:
            self._write(needed)

    def is_reserved(self, sequence: int) -> bool:
        """Whether :meth:`reserve` would write nothing."""
        return self._needed(sequence) <= self._kept

    def _needed(self, sequence: int) -> int:
        incarnation = incarnation_at(sequence)
        middle = (first_sequence(incarnation) + first_sequence(incarnation + 1)) // 2
        return min(incarnation + (sequence >= middle), MAX_INCARNATION - 1)

    def _last(self) -> int:
        """The last incarnation, or 0 when none is kept."""
        try:
            with self._file.open("rb") as kept:
                text = kept.read(_MAX_DIGITS + 1)
            last = int(text)
            if 0 <= last < MAX_INCARNATION:
                return last
            reason = f"it says {last}, and the largest incarnation is {MAX_INCARNATION}"
        except FileNotFoundError:
            return 0
        except OSError as error:
            reason = f"it can't be read, {error.strerror}"
        except ValueError:
            reason = "it holds no number"
        aside = self._file.with_name(f"{self._file.name}.unusable")
        with suppress(OSError):
            self._file.replace(aside)
        _log.warning(
            "%s is not usable (%s) and was moved to %s: this life begins with the clock. Neighbours that remember a "
            "larger incarnation refuse this node until they have seen that its former life is over", self._file, reason,
            aside,
        )  # fmt: skip
        return 0

    def _write(self, incarnation: int) -> None:
        try:
            write_private(self._file, str(incarnation).encode())
        except OSError as error:
            raise StorageError(f"{self._file} can't be written ({error.strerror}): {_WAY_OUT}") from error
        self._kept = incarnation

    def close(self) -> None:
        """Release the folder for other processes. Idempotent."""
        self._lock.close()
