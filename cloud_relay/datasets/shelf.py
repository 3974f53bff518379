"""The folder of all datasets: one folder for each, with one for each of its versions.

    datasets/speeds/3/version.json      what is known of version 3 of ``speeds``
    datasets/speeds/3/members.jsonl.gz  its records
    datasets/speeds/3/removed           it was removed; the number is not used again
    datasets/speeds/.4f21ab08.part/     a version that is being made

A version gets its number when it is whole, by one change of a name, so several commands may make versions of one
dataset at once. Whoever makes one holds a lock in its folder; a folder without a lock belongs to a process that was
killed, and the next command removes it.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from cloud_relay.datasets.members import Member, members_in
from cloud_relay.datasets.names import VersionName
from cloud_relay.datasets.versions import FORM, DatasetVersion, VersionForm
from cloud_relay.export.whole_file import ends_by_signals
from meshnode.identity.private_files import make_private_folder, write_private
from protocols.base.errors import LocalProtocolError, StorageError

MAX_DATASETS: Final = 10_000
MAX_VERSIONS: Final = 10_000
"""Of one dataset."""
_MAX_VERSION_BYTES: Final = 16 * 1024 * 1024
_VERSION: Final = "version.json"
_MEMBERS: Final = "members.jsonl.gz"
_REMOVED: Final = "removed"
_LOCK: Final = "lock"
_PART: Final = ".part"


class DatasetShelf:
    """Datasets in one folder. Any number of processes may use it together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    # --- looking ---------------------------------------------------------------------------------------------------
    def names(self) -> list[str]:
        """All datasets that have a version, in the order of their names."""
        return sorted(
            path.name for path in _entries(self._folder) if not path.name.startswith(".") and self.numbers(path.name)
        )

    def numbers(self, name: str) -> list[int]:
        """The versions of a dataset, ascending; none: there is no such dataset."""
        return sorted(number for number in self._used(name) if not (self._at(name, number) / _REMOVED).exists())

    def found(self, wanted: VersionName) -> VersionName:
        """The version that is meant, by default the newest. :raises LocalProtocolError: there is none."""
        numbers = self.numbers(wanted.name)
        if not numbers:
            raise LocalProtocolError(f"there is no dataset {wanted.name!r}: 'cloud-relay dataset list' shows them")
        number = numbers[-1] if wanted.number is None else wanted.number
        if number not in numbers:
            listed = ", ".join(str(one) for one in numbers[-10:])
            raise LocalProtocolError(f"dataset {wanted.name!r} has no version {number}: it has {listed}")
        return VersionName(wanted.name, number)

    def version(self, wanted: VersionName) -> DatasetVersion:
        """What is known of a version. :raises StorageError: its file is damaged."""
        path = self._at(wanted.name, wanted.number) / _VERSION
        try:
            if path.stat().st_size > _MAX_VERSION_BYTES:
                raise StorageError(f"{path} is larger than {_MAX_VERSION_BYTES} bytes: restore a copy")
            data = path.read_bytes()
            form = msgspec.json.decode(data, type=VersionForm).form
            if form != FORM:
                raise StorageError(f"{path} has form {form}, this program knows {FORM}: start the newer program")
            return msgspec.json.decode(data, type=DatasetVersion)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageError(
                f"{path} can't be read as a version ({error}): restore a copy, or remove this version"
            ) from error

    def members(self, wanted: VersionName) -> Iterator[Member]:
        """The records of a version, in order. :raises StorageError: their list is damaged."""
        return members_in(self._at(wanted.name, wanted.number) / _MEMBERS)

    # --- changing --------------------------------------------------------------------------------------------------
    @contextmanager
    def making(self, name: str) -> Iterator["VersionBeingMade"]:
        """A version that is being made. It is there once ``finish`` was called; else nothing is left of it. Call it on
        the main thread.

        :raises StorageError: it can't be written.
        """
        if not self._used(name) and len(_entries(self._folder)) >= MAX_DATASETS:
            raise LocalProtocolError(f"there are {MAX_DATASETS} datasets: remove those that nobody uses")
        part = self._folder / name / f".{secrets.token_hex(4)}{_PART}"
        try:
            with ends_by_signals():
                try:
                    make_private_folder(self._folder)
                    with ExitStack() as held:
                        with _locked(self._folder):
                            make_private_folder(part.parent)
                            _remove_dead(self._folder)
                            _remove_dead(part.parent)
                            make_private_folder(part)
                            held.enter_context(_locked(part))
                        yield VersionBeingMade(self, name, part)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
                    with suppress(OSError):
                        part.parent.rmdir()  # if nothing else is in it
        except OSError as error:
            raise StorageError(
                f"dataset {name!r} can't be written to {self._folder} ({error.strerror or error}): free space on that "
                "disk, or name another folder"
            ) from error

    def remove(self, wanted: VersionName) -> int:
        """Remove a version, whose number is not used again, or without a number all of a dataset. Returns how many
        versions there were.

        :raises LocalProtocolError: there is none.
        """
        found = self.found(wanted)
        assert found.number is not None
        try:
            if wanted.number is None:
                count = len(self.numbers(wanted.name))
                gone = self._folder / f".{secrets.token_hex(4)}{_PART}"
                with _locked(self._folder):
                    (self._folder / wanted.name).rename(gone)
                shutil.rmtree(gone)
                return count
            at = self._at(wanted.name, found.number)
            write_private(at / _REMOVED, b"")
            for file in (_VERSION, _MEMBERS):
                (at / file).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{wanted} can't be removed ({error.strerror}): check who may write there") from error
        return 1

    def publish(self, name: str, part: Path) -> int:
        """Give a version its number. :raises OSError: it can't be done."""
        with _locked(self._folder):
            number = max(self._used(name), default=0) + 1
            if number > MAX_VERSIONS:
                raise LocalProtocolError(f"dataset {name!r} had {MAX_VERSIONS} versions: begin another one")
            part.rename(self._at(name, number))
        (self._at(name, number) / _LOCK).unlink()
        _sync(part.parent)
        return number

    def _used(self, name: str) -> list[int]:
        return [int(path.name) for path in _entries(self._folder / name) if path.name.isdecimal()]

    def _at(self, name: str, number: int | None) -> Path:
        assert number is not None, "found() says which version is meant"
        return self._folder / name / str(number)


class VersionBeingMade:
    """The files of a version that has no number yet."""

    def __init__(self, shelf: DatasetShelf, name: str, part: Path) -> None:
        self._shelf, self._name, self._part = shelf, name, part
        self.members = part / _MEMBERS
        """Where its list of records has to be written."""

    def finish(self, version: DatasetVersion) -> VersionName:
        """Make it a version, on disk when this returns."""
        with self.members.open("rb") as written:
            os.fsync(written.fileno())
        write_private(self._part / _VERSION, msgspec.json.format(msgspec.json.encode(version)))
        return VersionName(self._name, self._shelf.publish(self._name, self._part))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"the folder {folder} can't be read ({error.strerror}): check who may") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_dead(folder: Path) -> None:
    """Remove what processes left that were killed. Call it with the lock of all datasets, so that nobody is between
    making a folder and locking it."""
    for part in folder.glob(f".*{_PART}"):
        with suppress(FileNotFoundError):  # it became a version just now
            descriptor = os.open(part / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part, ignore_errors=True)
            except BlockingIOError:
                pass  # it is being made
            finally:
                os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
