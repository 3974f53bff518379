"""Files and folders that only their owner may read: databases, and what a node or relay keeps across restarts.

Modes of what exists already are narrowed too, as far as it belongs to the user that this process runs as. Files of
another user are left alone: whoever made them so had a reason, or has to be asked.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_BESIDE: Final = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database. New ones get the mode of the database."""


def make_private_folder(path: Path) -> None:
    """Make a folder for its owner alone, or narrow the one that is there. :raises OSError: it can't be made."""
    path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    narrow(path)


def narrow(path: Path) -> None:
    """Let only its owner use a file or folder, if that is the user of this process."""
    with suppress(OSError):  # it is not there, or on a file system without modes
        status = path.stat()
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            path.chmod(stat.S_IMODE(status.st_mode) & ~0o077)


def create_private(path: Path) -> None:
    """Make an empty file for its owner alone if there is none. :raises OSError: it can't be made."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE))


def narrow_database(path: Path) -> None:
    """Let only their owner read an SQLite database and the files beside it."""
    for file in (path, *(path.with_name(path.name + ending) for ending in _BESIDE)):
        narrow(file)


def write_private(path: Path, content: bytes, owner: tuple[int, int] | None = None) -> None:
    """Write a file for its owner alone: the whole of it or nothing, and on disk when this returns. ``owner``: the
    numbers of a user and a group that get it, which only root can do; None: the user of this process.

    :raises OSError: it can't be written.
    """
    fresh = path.with_name(f"{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
    with open(descriptor, "wb") as out:
        os.fchmod(descriptor, _FILE_MODE)
        if owner is not None:
            os.fchown(descriptor, *owner)
        out.write(content)
        out.flush()
        os.fsync(descriptor)
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # without it a loss of power could bring the old file back
    finally:
        os.close(folder)
