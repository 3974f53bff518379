"""The folder of one emulation: certificates, keys, configurations, journals. It is removed when the emulation ends.
If an emulation is killed, the next one removes its folder.

The process that uses a folder holds a lock on a file in it, which the kernel releases when the process ends. A process
id would not be as reliable, because another process may have got it since.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "meshsim-emulate-"
_LOCK = "lock"
_YOUNG_S = 30.0
"""A folder without a lock may be one that is just being made."""


@contextlib.contextmanager
def workplace(parent: Path | None = None) -> Iterator[Path]:
    """A new folder below ``parent`` (default: the folder for temporary files), which only root can read."""
    parent = parent or Path(tempfile.gettempdir())
    remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_leftovers(parent: Path) -> int:
    """Remove the folders of emulations that have ended. Returns how many."""
    removed = 0
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():  # anybody may make one in /tmp
            continue
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            if time.time() - found.st_mtime > _YOUNG_S:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        removed += 1
    return removed
