"""What this node trusts about releases, kept on disk, and taken from bundles as a whole or not at all.

Invariants:

- ``trusted`` is one file with the last bundle that was found good and what it lists. It is replaced by one rename, so a
  crash at any moment leaves the old one or the new one.
- A bundle is checked in a folder of its own, on a copy of what is trusted. Nothing that was refused leaves a trace.
- Time only counts forward: a clock that shows a time long before the one at which metadata was taken last would bring
  metadata that has expired to life again, so nothing is taken then.
"""

import hashlib
import importlib.util
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from meshnode.identity.inspection import OLDEST_UTC_S
from meshnode.identity.private_files import make_private_folder, write_private
from protocols.base.errors import ConfigError, MetadataInvalid, StorageError
from protocols.base.limits import MAX_CHUNK_BYTES
from protocols.releases.bundle import unpack_untrusted_bundle
from protocols.releases.catalogue import ReleaseCatalogue

if TYPE_CHECKING:
    from meshnode.releases.trust.checking import CheckedMetadata

BACKWARDS: Final = timedelta(days=60)
"""A clock that was set back by less than this is taken as it is: metadata lives about as long."""
_MAX_FILE_BYTES: Final = 4 * MAX_CHUNK_BYTES
_PREFIX: Final = "checking-"


class _Kept(Struct, frozen=True):
    """The content of the file."""

    bundle: bytes
    bootstrap: bytes
    """SHA-256 of the root that it was checked against."""
    taken_utc_s: float
    expires_utc_s: float
    catalogue: ReleaseCatalogue


_decoder: Final = msgspec.msgpack.Decoder(_Kept)


class Trust:
    """What this node trusts. Its methods may be called from any thread, and block: a check takes some milliseconds for
    each kilobyte, and reads and writes files."""

    def __init__(self, folder: Path, root_path: Path) -> None:
        """``folder``: where it is kept; made if it is not there. ``root_path``: the root that the operator has put on
        this node, any version of it.

        :raises ConfigError: there is no root, or the library that checks metadata is not installed.
        :raises StorageError: the folder can't be used.
        """
        if importlib.util.find_spec("tuf") is None:
            raise ConfigError("releases need the library tuf: install meshnode[releases]")
        self._folder, self._path = folder, folder / "trusted"
        self._lock = threading.Lock()
        self._bootstrap = _read_root(root_path)
        try:
            make_private_folder(folder)
            for left in folder.glob(f"{_PREFIX}*"):  # of a process that was killed while it checked
                shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise StorageError(
                f"{folder} can't be used ({error.strerror}): name a folder that can be written"
            ) from error
        self._kept = self._read()

    @property
    def bundle(self) -> bytes | None:
        """The bundle that was taken last; None: none was."""
        kept = self._kept
        return None if kept is None else kept.bundle

    def current(self) -> ReleaseCatalogue | None:
        """What was taken last lists, with ``is_expired`` as of now; None: nothing was taken, or it was checked against
        another root than the one that the node has now."""
        kept = self._kept
        if kept is None or kept.bootstrap != hashlib.sha256(self._bootstrap).digest():
            return None
        return _as_of_now(kept)

    def verify(self, bundle: bytes) -> ReleaseCatalogue:
        """Check a bundle, and take it if it is as new as what is trusted or newer. What is trusted already is told as
        it is, also when it has expired: ``is_expired`` says that nothing may be installed by it.

        :raises MetadataInvalid: it must not be taken; ``attack`` names why. Nothing has changed.
        :raises StorageError: it was good, but can't be kept. Nothing has changed.
        """
        with self._lock:
            if (current := self.current()) is not None and self._kept is not None and bundle == self._kept.bundle:
                return current
            self._check_clock()
            files = unpack_untrusted_bundle(bundle)
            trusted = unpack_untrusted_bundle(self._kept.bundle) if self._kept is not None else {}
            from meshnode.releases.trust.checking import check_untrusted_bundle

            try:
                with self._workspace() as folder:
                    checked = check_untrusted_bundle(files, trusted, self._bootstrap, folder)
                kept = self._kept_of(bundle, files["timestamp.json"], checked)
                content = msgspec.msgpack.encode(kept)
                write_private(self._path, hashlib.sha256(content).digest() + content)
            except OSError as error:
                raise StorageError(
                    f"metadata of releases can't be kept in {self._folder} ({error.strerror}): make room there"
                ) from error
            self._kept = kept
            return kept.catalogue

    def _kept_of(self, bundle: bytes, timestamp: bytes, checked: "CheckedMetadata") -> _Kept:
        return _Kept(
            bundle=bundle,
            bootstrap=hashlib.sha256(self._bootstrap).digest(),
            taken_utc_s=datetime.now(UTC).timestamp(),
            expires_utc_s=checked.expires.timestamp(),
            catalogue=ReleaseCatalogue(
                root_version=checked.root_version,
                timestamp_version=checked.timestamp_version,
                timestamp=hashlib.sha256(timestamp).digest(),
                is_expired=False,
                releases=checked.releases,
                orders=checked.orders,
            ),
        )

    def _check_clock(self) -> None:
        now = datetime.now(UTC)
        earliest = datetime.fromtimestamp(OLDEST_UTC_S, UTC)
        if now < earliest:
            raise MetadataInvalid("clock", f"the clock of this node shows {now:%Y-%m-%d}, so it was never set: set it")
        if self._kept is not None and now < (taken := datetime.fromtimestamp(self._kept.taken_utc_s, UTC)) - BACKWARDS:
            raise MetadataInvalid(
                "clock", f"the clock of this node shows {now:%Y-%m-%d}, and metadata was taken on {taken:%Y-%m-%d}: "
                f"set it, or remove {self._path} if it was wrong then"
            )  # fmt: skip

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self) -> _Kept | None:
        """What is on disk; None: nothing, or what a damaged disk has made of it. The relay and the neighbours then give
        it again."""
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._path} can't be read ({error.strerror}): check who owns it") from error
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        try:
            return _decoder.decode(data[32:])
        except (msgspec.DecodeError, ValueError):
            return None  # another version wrote it


def _as_of_now(kept: _Kept) -> ReleaseCatalogue:
    is_expired = datetime.now(UTC).timestamp() >= kept.expires_utc_s
    return replace(kept.catalogue, is_expired=is_expired)


def _read_root(path: Path) -> bytes:
    data = b""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CHUNK_BYTES + 1)
        is_root = len(data) <= MAX_CHUNK_BYTES and msgspec.json.decode(data)["signed"]["_type"] == "root"
    except OSError as error:
        raise ConfigError(
            f"the root of releases {path} can't be read ({error.strerror}): copy 1.root.json of the relay there"
        ) from error
    except (ValueError, KeyError, TypeError, msgspec.DecodeError):
        is_root = False
    if not is_root:
        raise ConfigError(f"{path} is no root of releases: copy 1.root.json of the relay there")
    return data
