"""Disks for nodes whose disks get full: small file systems in memory, each of which only one node's processes see.

Such a disk is mounted over the node's state folder in a mount namespace without a name. Like a network, it lives as
long as a descriptor or a process holds it, so the kernel removes it however the harness ends, and the host's own table
of mounts never shows it. A life of the node that ends leaves the disk as it is, as a crash does.

A full disk does to the node what it does to any program: each further page fails with ``ENOSPC``. A program can still
write over what it has, as SQLite does with a log that it begins anew.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Final

from sims.emulator.namespaces import STILL_WORKS
from sims.errors import EmulatorError

SIZE_BYTES: Final = 16 * 1024 * 1024
"""Memory is taken as it is used, and all of it while the disk is full. Outbox and entries of some minutes take a
tenth."""
_BALLAST: Final = "ballast"
_BLOCK: Final = bytes(256 * 1024)
_CLONE_NEWNS: Final = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 16384, 1 << 18


class RealDisk:
    """The disk of one node."""

    def __init__(self, folder: Path, size_bytes: int = SIZE_BYTES) -> None:
        """Mount a disk over ``folder``, which is made. :raises EmulatorError: when the kernel refuses; says what."""
        folder.mkdir(parents=True, exist_ok=True)
        self.namespace = self._folder = -1
        failed: list[Exception] = []

        def mount() -> None:
            try:
                self._mount(folder, size_bytes)
            except Exception as error:  # noqa: BLE001  told by whoever waits for this thread
                failed.append(error)

        # A thread that has left the mount namespace of its process has no way back, so this one ends with it.
        mounting = threading.Thread(target=mount, name="mount")
        mounting.start()
        mounting.join()
        if failed:
            self.close()
            raise EmulatorError(
                f"no disk of its own can be made for {folder.parent.name} ({failed[0]}): a container needs the "
                f"capability SYS_ADMIN; leave out the fault 'full-disk'; {STILL_WORKS}"
            ) from failed[0]

    def _mount(self, folder: Path, size_bytes: int) -> None:
        library = ctypes.CDLL(None, use_errno=True)

        def done(result: int, what: str) -> None:
            if result:
                raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

        done(library.unshare(_CLONE_NEWNS), "unshare")
        # Otherwise the host, whose mounts a distribution lets spread, would get the mount as well.
        done(library.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "making mounts private")
        flags, options = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, f"size={size_bytes},mode=0700".encode()
        done(library.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options), "mounting a tmpfs")
        self.namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def fill(self) -> None:
        """Take all room that is left. A further call takes what has become free since."""
        ballast = os.open(_BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600, dir_fd=self._folder)
        try:
            while True:
                os.write(ballast, _BLOCK)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(ballast)

    def empty(self) -> None:
        """Give back what :meth:`fill` took."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_BALLAST, dir_fd=self._folder)

    def lose(self) -> None:
        """Lose what its node stored. The disk stays as full as it was."""
        for name in os.listdir(self._folder):  # noqa: PTH208 - pathlib knows no descriptors
            if name == _BALLAST:
                continue
            try:
                os.unlink(name, dir_fd=self._folder)
            except IsADirectoryError:
                shutil.rmtree(name, dir_fd=self._folder)

    def free_bytes(self) -> int:
        """How many bytes can still be written."""
        found = os.fstatvfs(self._folder)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Let the disk go; the kernel removes it with the last process of the node."""
        for descriptor in (self.namespace, self._folder):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
