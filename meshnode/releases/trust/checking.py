"""The check of a bundle of metadata: signatures, versions, expiry, and that its files belong together.

The order of trust is that of TUF's client workflow, and ``tuf.ngclient.Updater`` walks it: the root that this node was
given, each later root signed by the one before and by itself, the timestamp, the snapshot that it names by digest, the
targets and the delegated targets that the snapshot names by digest. The updater is fed from the bundle and works in a
folder of its own, on a copy of what is trusted.

Beyond that workflow a bundle must be whole and hold nothing else: every file in it was checked, so it can be kept and
handed on as it came, and for one timestamp there is one set of files.

Delegated targets that have expired are left out by themselves: a publisher that is gone does not keep others from
publishing. Everything else that is wrong spoils the whole bundle.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from meshnode.releases.trust.faults import fault_of
from meshnode.releases.trust.forms import check_root_forms, check_timestamp_form, same_content
from protocols.base.errors import MetadataInvalid
from protocols.base.limits import MAX_CHUNK_BYTES
from protocols.releases.bundle import MAX_BUNDLE_FILES, MAX_DELEGATED_ROLES, roots_in
from protocols.releases.catalogue import KINDS, MAX_DESCRIPTION_BYTES, MAX_ORDERS, MAX_RELEASES, Listed, ListedOrder

_BASE: Final = "bundle:///"
_RELEASE: Final = re.compile(rf"((?:{'|'.join(KINDS)})/[A-Za-z0-9][A-Za-z0-9._-]{{0,99}})/([1-9][0-9]{{0,9}})\.json")
_ORDER: Final = re.compile(r"rollouts/([1-9][0-9]{0,9})\.json")
_MAX_NUMBER: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CheckedMetadata:
    """What a bundle says, once it is believed."""

    root_version: int
    timestamp_version: int
    expires: datetime
    """The first end of root, timestamp, snapshot and targets; in UTC."""
    releases: tuple[Listed, ...]
    orders: tuple[ListedOrder, ...]


def check_untrusted_bundle(
    files: Mapping[str, bytes], trusted: Mapping[str, bytes], bootstrap: bytes, folder: Path
) -> CheckedMetadata:
    """Check the files of a bundle.

    ``trusted``: those of the bundle that was taken last; none: there was none. They count for nothing when they are of
    another mesh: when they have another root of the version of ``bootstrap``, the root that the node was given.
    ``folder``: an empty one to work in, which is left as it is.

    :raises MetadataInvalid: names the attack or the fault.
    :raises OSError: the folder can't be written to.
    """
    fetcher = _BundleFetcher(files)
    try:
        first, roots, known = Metadata[Root].from_bytes(bootstrap).signed.version, roots_in(files), roots_in(trusted)
        if first in known and not same_content(known[first], bootstrap):
            trusted, known = {}, {}  # the operator has put the root of another mesh on this node
        _check_roots(roots, known)
        _lay_out(trusted, known, folder)
        return _checked(files, roots, bootstrap, folder, fetcher)
    except (MetadataInvalid, OSError):
        raise
    except Exception as error:  # python-tuf parses before it checks a signature, and what it parses may be anything
        raise fault_of(error, fetcher.last, files, folder) from error


def _checked(
    files: Mapping[str, bytes], roots: Mapping[int, bytes], bootstrap: bytes, folder: Path, fetcher: "_BundleFetcher"
) -> CheckedMetadata:
    config = UpdaterConfig(
        max_root_rotations=MAX_BUNDLE_FILES, max_delegations=MAX_DELEGATED_ROLES, root_max_length=MAX_CHUNK_BYTES,
        timestamp_max_length=MAX_CHUNK_BYTES, snapshot_max_length=MAX_CHUNK_BYTES, targets_max_length=MAX_CHUNK_BYTES,
    )  # fmt: skip
    first = Metadata[Root].from_bytes(bootstrap).signed.version
    if first in roots and not same_content(roots[first], bootstrap):
        raise MetadataInvalid(
            "wrong keys", f"the bundle has another root {first} than the one that this node was given: it is of "
            "another mesh, or the file of the root has to be copied again"
        )  # fmt: skip
    if max(roots) < first:
        raise MetadataInvalid("rollback", f"the bundle ends at root {max(roots)}; this node was given root {first}")
    updater = Updater(str(folder), _BASE, fetcher=fetcher, config=config, bootstrap=bootstrap)
    updater.refresh()
    root = _read(Root, folder / "root.json")
    timestamp, snapshot = _read(Timestamp, folder / "timestamp.json"), _read(Snapshot, folder / "snapshot.json")
    targets = _read(Targets, folder / "targets.json")
    _check_numbers(root, timestamp)
    check_root_forms(roots)
    check_timestamp_form(files["timestamp.json"], root, (folder / "timestamp.json").read_bytes())
    _check_whole(files, folder, root, snapshot)
    delegated = dict(_delegated(updater, targets, folder))
    releases, orders = _listed(updater, [targets, *delegated.values()])
    return CheckedMetadata(
        root_version=root.version,
        timestamp_version=timestamp.version,
        expires=min(signed.expires for signed in (root, timestamp, snapshot, targets)),
        releases=releases,
        orders=orders,
    )


class _BundleFetcher(FetcherInterface):
    """Feeds the updater from a bundle that is complete: what is not in it does not exist."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self.last = ""
        """The file that was asked for last, which is the one that is being checked."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.last = url.removeprefix(_BASE)
        data = self._files.get(self.last)
        if data is None:
            raise DownloadHTTPError(f"the bundle lacks {self.last}", 404)
        return iter((data,))


# --- roots -----------------------------------------------------------------------------------------------------------
def _check_roots(roots: Mapping[int, bytes], known: Mapping[int, bytes]) -> None:
    """Whether the bundle holds all roots from the first one on, ends no earlier than what was taken before, and has no
    other root of a version that is trusted. A node can do without the roots before its own, but hands the bundle on."""
    missing = next(version for version in range(1, len(roots) + 2) if version not in roots)
    if missing <= max(roots, default=1):
        raise MetadataInvalid("withheld", f"the bundle lacks {missing}.root.json")
    for version, data in known.items():
        if version not in roots:
            raise MetadataInvalid(
                "rollback", f"the bundle ends at root {max(roots)}; root {version} is trusted already"
            )
        if not same_content(roots[version], data):
            raise MetadataInvalid("mix-and-match", f"the bundle has another root {version} than the trusted one")


def _lay_out(trusted: Mapping[str, bytes], known: Mapping[int, bytes], folder: Path) -> None:
    """Write what is trusted as the updater keeps it: roots by version, all other files without. Delegated targets are
    left out, so that one is there only once it was checked; the snapshot says which versions of them are too old."""
    (folder / "root_history").mkdir()
    for version, data in known.items():
        (folder / "root_history" / f"{version}.root.json").write_bytes(data)
    for name, data in trusted.items():
        role = name.removesuffix(".json").rpartition(".")[2]
        if role in (Timestamp.type, Snapshot.type, Targets.type):
            (folder / f"{role}.json").write_bytes(data)


def _read(kind: type[Any], path: Path) -> Any:
    """A file that the updater has checked and kept."""
    return Metadata[Any].from_bytes(path.read_bytes()).signed


# --- the set as a whole ----------------------------------------------------------------------------------------------
def _check_numbers(root: Root, timestamp: Timestamp) -> None:
    """Versions beyond any that a repository reaches would never be followed by a newer one."""
    for signed in (root, timestamp):
        version: object = signed.version  # python-tuf takes whatever the file has
        if not isinstance(version, int) or version > _MAX_NUMBER:
            raise MetadataInvalid(
                "fast-forward", f"the version of {signed.type} is {str(version)[:30]}, above {_MAX_NUMBER}: its "
                "keys are in wrong hands, rotate them with 'cloud-relay release rotate'"
            )  # fmt: skip


def _check_whole(files: Mapping[str, bytes], folder: Path, root: Root, snapshot: Snapshot) -> None:
    """Whether the bundle holds the files of this snapshot, each with the bytes that were named, and no other file."""
    file = f"{snapshot.version}.snapshot.json"
    if files.get(file) != (folder / "snapshot.json").read_bytes():
        raise MetadataInvalid("mix-and-match", f"the bundle has another {file} than the one that its timestamp names")
    wanted = {"timestamp.json", file}
    if len(snapshot.meta) > MAX_DELEGATED_ROLES + 1:
        raise MetadataInvalid("endless data", f"the snapshot names {len(snapshot.meta)} files of targets")
    for name, meta in snapshot.meta.items():
        file = f"{meta.version}.{name}"
        wanted.add(file)
        if file not in files:
            raise MetadataInvalid("withheld", f"the bundle lacks {file}, which its snapshot names")
        if meta.length is not None and len(files[file]) > meta.length:
            raise MetadataInvalid("endless data", f"{file} has {len(files[file])} bytes, and {meta.length} were signed")
        try:
            meta.verify_length_and_hashes(files[file])
        except RepositoryError as error:
            raise MetadataInvalid(
                "mix-and-match", f"{file} is not the file that the snapshot names: {error}"
            ) from error
    roots = roots_in(files)
    if max(roots) > root.version:
        raise MetadataInvalid(
            "extraneous data", f"the bundle has roots beyond root {root.version}, the newest valid one"
        )
    if further := sorted(files.keys() - wanted - {f"{version}.root.json" for version in roots}):
        raise MetadataInvalid("extraneous data", f"the bundle holds {further[0]}, which nothing names")


def _delegated(updater: Updater, targets: Targets, folder: Path) -> Iterator[tuple[str, Targets]]:
    """The delegated targets that can be believed, by role. The updater loads a role when it is asked for a path that
    may be in it."""
    roles = targets.delegations.roles if targets.delegations is not None else None
    for name, role in (roles or {}).items():
        for pattern in role.paths or ():
            try:
                updater.get_targetinfo(re.sub(r"[*?]", "-", pattern))
            except ExpiredMetadataError:
                continue
        if (folder / f"{name}.json").exists():
            yield name, _read(Targets, folder / f"{name}.json")


# --- targets ---------------------------------------------------------------------------------------------------------
def _listed(updater: Updater, loaded: list[Targets]) -> tuple[tuple[Listed, ...], tuple[ListedOrder, ...]]:
    """The releases and orders among the targets. The updater decides which role may list a target."""
    releases, orders = {}, {}
    for path in sorted({path for targets in loaded for path in targets.targets}):
        release, order = _RELEASE.fullmatch(path), _ORDER.fullmatch(path)
        if release is None and order is None:
            continue
        try:
            target = updater.get_targetinfo(path)
        except ExpiredMetadataError:
            continue
        digest = _digest_of(target)
        if target is None or digest is None:
            continue
        number = int(release[2] if release is not None else path.removeprefix("rollouts/").removesuffix(".json"))
        if number > _MAX_NUMBER:
            continue
        if release is not None:
            releases[release[1], number] = Listed(release[1], number, digest, target.length)
        else:
            orders[number] = ListedOrder(number, digest, target.length)
    if len(releases) > MAX_RELEASES:
        raise MetadataInvalid(
            "endless data", f"the metadata lists {len(releases)} releases, and a node looks at {MAX_RELEASES}: revoke "
            "old ones"
        )  # fmt: skip
    newest = sorted(orders)[-MAX_ORDERS:]
    return tuple(releases[key] for key in sorted(releases)), tuple(orders[serial] for serial in newest)


def _digest_of(target: TargetFile | None) -> bytes | None:
    """The SHA-256 of a target that can be a chunk; None: it can't be one."""
    if target is None or not 0 < target.length <= MAX_DESCRIPTION_BYTES:
        return None
    try:
        digest = bytes.fromhex(target.hashes.get("sha256", ""))
    except ValueError:
        return None
    return digest if len(digest) == 32 else None
