"""The repository of releases: TUF metadata that is signed here, and what it lists.

Invariants:

- The truth is one file, ``current.bundle``: all metadata, as nodes get it. It is replaced by one rename after
  everything that it names is on the shelf, so a process that is killed leaves the metadata of before.
- Versions only grow, and so do the counters of releases and the serials of orders: ``state.json`` remembers those
  that were taken out again.
- One process changes it at a time: it holds a lock from before it reads until after it has written. Whoever only reads
  it needs no lock.
- Nothing here decides what may be released; see :mod:`~.publishing` and :mod:`~.ordering`.

``metadata/`` holds the same files apart, for other tools that read TUF.
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from msgspec import Struct
from securesystemslib.signer import CryptoSigner, Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from cloud_relay.releases.shelf import ChunkShelf
from cloud_relay.releases.shown import BUNDLE_FILE, ORDERS_ROLE
from cloud_relay.releases.signing import keep_key, keys_in
from meshnode.identity.private_files import make_private_folder, write_private
from protocols.base.errors import MetadataInvalid, ReleaseInvalid, StorageError
from protocols.releases.bundle import MAX_DELEGATED_ROLES, pack_bundle, roots_in, unpack_untrusted_bundle

PUBLISHER_ROLE: Final = "models"
"""The first publisher, which may list every model."""
TOP_ROLES: Final = (Timestamp.type, Snapshot.type, Targets.type)
"""The roles whose keys root names, beside its own."""
_compact: Final = JSONSerializer(compact=True)


class Lifetimes(Struct, frozen=True):
    """How long signatures are good for, in days. Short ones would stop a mesh without its relay."""

    root: int = 730
    targets: int = 365
    online: int = 30
    """Of snapshot and timestamp."""


class RepositoryState(Struct):
    """What the metadata does not say."""

    lifetimes: Lifetimes = Lifetimes()

    counters: dict[str, int] = {}
    """The highest that was ever used, by path of releases."""
    serial: int = 0
    """The highest that was ever used for an order."""


def utc_now() -> datetime:
    """The clock, in UTC."""
    return datetime.now(UTC)


class ReleaseRepository:
    """The metadata, open for changes. What was changed is published by :meth:`commit`."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = utc_now) -> None:
        """An empty one: :meth:`create` or :meth:`load` follows. To change it, use :func:`opened`."""
        self.folder, self._clock = folder, clock
        self.shelf = ChunkShelf(folder / "chunks")
        self.state = RepositoryState()
        self.roots: dict[int, bytes] = {}
        self._delegated: dict[str, Metadata[Targets]] = {}
        self._signers: dict[str, Signer] = {}
        self._changed: set[str] = set()

    # --- what it holds -----------------------------------------------------------------------------------------------
    @property
    def root(self) -> Root:
        """The newest root."""
        return self._root.signed

    @property
    def targets(self) -> Targets:
        """The targets of the highest role, which delegate to publishers."""
        return self._targets.signed

    @property
    def timestamp(self) -> Timestamp:
        """What a node looks at first."""
        return self._timestamp.signed

    @property
    def snapshot(self) -> Snapshot:
        """The versions of all targets."""
        return self._snapshot.signed

    def roles(self) -> dict[str, DelegatedRole]:
        """The delegated roles, the one that counts first at the beginning."""
        delegations = self.targets.delegations
        return dict((delegations.roles if delegations is not None else None) or {})

    def delegated(self, role: str) -> Targets:
        """The targets of a publisher, or the orders. :raises ReleaseInvalid: there is no such role."""
        if role not in self._delegated:
            raise ReleaseInvalid(f"there is no publisher {role!r}: it is one of {', '.join(self._delegated)}")
        return self._delegated[role].signed

    def lists(self) -> dict[str, Targets]:
        """The targets of every role: those of the highest one, and those that it delegates."""
        return {Targets.type: self.targets} | {role: each.signed for role, each in self._delegated.items()}

    def role_of(self, path: str) -> str:
        """The role that may list a target. :raises ReleaseInvalid: none may."""
        for name, role in self.roles().items():
            if role.is_delegated_path(path):
                return name
        option = "--rules" if path.startswith("rules/") else "--model"
        raise ReleaseInvalid(
            f"no publisher may list {path}: permit one with 'cloud-relay release delegate NAME {option} …'"
        )

    def target(self, path: str) -> TargetFile | None:
        """What the metadata says of a target."""
        try:
            return self._delegated[self.role_of(path)].signed.targets.get(path)
        except ReleaseInvalid:
            return None

    def paths(self) -> list[str]:
        """All targets, of those roles that may list them."""
        return sorted(
            path for name, metadata in self._delegated.items() for path in metadata.signed.targets
            if self.role_of(path) == name
        )  # fmt: skip

    # --- changes -----------------------------------------------------------------------------------------------------
    def put(self, path: str, content: bytes) -> None:
        """List a target and put its content on the shelf. :raises ReleaseInvalid: no publisher may list it."""
        role = self.role_of(path)
        self.shelf.keep(content)
        self._delegated[role].signed.targets[path] = TargetFile.from_data(path, content, ["sha256"])
        self._changed.add(role)

    def remove(self, path: str) -> None:
        """List a target no more. :raises ReleaseInvalid: it is not listed."""
        role = self.role_of(path)
        if self._delegated[role].signed.targets.pop(path, None) is None:
            raise ReleaseInvalid(f"{path} is not listed: see 'cloud-relay release list'")
        self._changed.add(role)

    def delegate(self, name: str, patterns: Sequence[str], key: Key, before: str | None = None) -> None:
        """Let a publisher list targets whose paths match, and nobody behind it. ``before``: the role that it comes
        before. :raises ReleaseInvalid: the name is taken, or can't be that of a role."""
        if name in self._delegated or name in TOP_LEVEL_ROLE_NAMES:
            raise ReleaseInvalid(f"the role {name!r} exists: choose another name")
        if len(self._delegated) >= MAX_DELEGATED_ROLES:
            raise ReleaseInvalid(f"there are {len(self._delegated)} publishers, and nodes look at no more")
        delegations = self.targets.delegations or Delegations({}, {})
        roles = dict(delegations.roles or {})
        new = {name: DelegatedRole(name, [], 1, True, paths=list(patterns))}
        if before is not None and before in roles:
            at = list(roles).index(before)
            roles = dict([*list(roles.items())[:at], *new.items(), *list(roles.items())[at:]])
        else:
            roles |= new
        delegations.roles = roles
        self.targets.delegations = delegations
        self.targets.add_key(key, name)
        self._delegated[name] = Metadata(Targets())
        self._delegated[name].signed.version = 0  # the commit makes it 1
        self._changed |= {name, Targets.type}

    def undelegate(self, name: str) -> None:
        """Take a publisher out. Its name stays in the snapshot with an empty list: what a node has seen there once may
        not be missing later. :raises ReleaseInvalid: there is none of that name, or it is the role of orders."""
        if name == ORDERS_ROLE:
            raise ReleaseInvalid(
                f"{name} is the role that signs orders, and no publisher: give it another key with "
                f"'cloud-relay release rotate {name}'"
            )
        self.delegated(name).targets.clear()
        delegations = self.targets.delegations
        if delegations is not None and delegations.roles is not None:
            delegations.roles[name].paths = [f"{name}/-/-"]
        self._changed |= {name, Targets.type}

    def exchange_key(self, role: str, new: Key) -> None:
        """Let a role be signed by another key, and by the old ones no more. For a role of the root, :meth:`sign_root`
        has to follow. :raises ReleaseInvalid: there is no such role."""
        if role in TOP_ROLES:
            for keyid in list(self.root.roles[role].keyids):
                self.root.revoke_key(keyid, role)
            self.root.add_key(new, role)
            self._changed.add(role)
            return
        self.delegated(role)
        for keyid in list(self.roles()[role].keyids):
            self.targets.revoke_key(keyid, role)
        self.targets.add_key(new, role)
        self._changed |= {role, Targets.type}

    def sign_root(self, signers: Sequence[Signer]) -> None:
        """Make a new root of what was changed in it.

        :raises ReleaseInvalid: too few keys of the root before, or of the new one, have signed, or others have.
        """
        before = Metadata[Root].from_bytes(self.roots[max(self.roots)]).signed if self.roots else None
        self.root.version = 1 if before is None else before.version + 1
        self.root.expires = self._in_days(self.state.lifetimes.root)
        self._root.signatures.clear()
        known = {keyid for root in (before, self.root) if root is not None for keyid in root.roles[Root.type].keyids}
        for signer in signers:
            if signer.public_key.keyid not in known:
                raise ReleaseInvalid(f"{signer.public_key.keyid[:16]} is no key of root: leave it out, or add it first")
            self._root.sign(signer, append=True)
        result = self.root.get_root_verification_result(before, self._root.signed_bytes, self._root.signatures)
        if not result:
            lacking = [each for each in (result.first, result.second) if not each]
            raise ReleaseInvalid(
                f"root {self.root.version} is signed by {len(lacking[0].signed)} of {lacking[0].threshold} keys that "
                "it needs: name the others with --root-key"
            )
        self.roots[self.root.version] = self._root.to_bytes(_compact)
        self._changed.add(Root.type)

    def refresh(self, lists: Iterable[str] = ()) -> None:
        """Sign timestamp and snapshot anew, for another lifetime. ``lists``: roles whose targets are signed as well."""
        self._changed |= {Snapshot.type, *lists}

    def commit(self) -> None:
        """Sign what was changed, and publish it.

        :raises ReleaseInvalid: a key is missing. :raises BoundExceeded: the metadata would be too large to travel.
        :raises StorageError: it can't be written.
        """
        for role in sorted(self._changed & self._delegated.keys()):
            self._sign(self._delegated[role], role, self.state.lifetimes.targets)
            self.snapshot.meta[f"{role}.json"] = self._meta(self._delegated[role])
        if Targets.type in self._changed:
            self._sign(self._targets, Targets.type, self.state.lifetimes.targets)
            self.snapshot.meta["targets.json"] = self._meta(self._targets)
        if self._changed - {Root.type, Timestamp.type}:
            self._sign(self._snapshot, Snapshot.type, self.state.lifetimes.online)
            self.timestamp.snapshot_meta = self._meta(self._snapshot)
        self._sign(self._timestamp, Timestamp.type, self.state.lifetimes.online)
        files = self.files()
        bundle = pack_bundle(files)
        try:
            write_private(self.folder / "state.json", msgspec.json.encode(self.state))
            write_private(self.folder / BUNDLE_FILE, bundle)
            _mirror(self.folder / "metadata", files)
        except OSError as error:
            raise StorageError(f"{self.folder} can't be written ({error.strerror}): make room there") from error
        self._changed.clear()

    def files(self) -> dict[str, bytes]:
        """All metadata files by name."""
        files = {f"{version}.root.json": data for version, data in self.roots.items()}
        files["timestamp.json"] = self._timestamp.to_bytes(_compact)
        files[f"{self.snapshot.version}.snapshot.json"] = self._snapshot.to_bytes(_compact)
        files[f"{self.targets.version}.targets.json"] = self._targets.to_bytes(_compact)
        for role, metadata in self._delegated.items():
            files[f"{metadata.signed.version}.{role}.json"] = metadata.to_bytes(_compact)
        return files

    # --- opening -----------------------------------------------------------------------------------------------------
    def create(self, root_signers: Sequence[Signer], threshold: int, keys: Mapping[str, Signer]) -> None:
        """Begin anew. ``keys``: a signer for each of timestamp, snapshot, targets, and the two first delegated roles.

        :raises ReleaseInvalid: the root would be weaker than it must be.
        """
        different = len({signer.public_key.keyid for signer in root_signers})
        if threshold < 2 or different < threshold:
            raise ReleaseInvalid(
                f"root needs at least two different keys and a threshold of two, so that one stolen key is not enough: "
                f"it was given {different} and the threshold {threshold}"
            )
        root = Root(consistent_snapshot=True)
        for signer in root_signers:
            root.add_key(signer.public_key, Root.type)
        root.roles[Root.type].threshold = threshold
        for role in TOP_ROLES:
            root.add_key(keys[role].public_key, role)
        self._root = Metadata(root)
        self._targets = Metadata(Targets())
        self._snapshot = Metadata(Snapshot(meta={}))
        self._timestamp = Metadata(Timestamp())
        for each in (self._targets, self._snapshot, self._timestamp):
            each.signed.version = 0  # the commit makes it 1
        self.use_keys(keys.values())
        self.sign_root(root_signers)
        self.delegate(ORDERS_ROLE, [f"{ORDERS_ROLE}/*.json"], keys[ORDERS_ROLE].public_key)
        self.delegate(PUBLISHER_ROLE, ["models/*/*.json"], keys[PUBLISHER_ROLE].public_key)

    def load(self) -> Self:
        """Read what was committed last. :raises ReleaseInvalid: there is nothing, or it is damaged."""
        try:
            files = unpack_untrusted_bundle((self.folder / BUNDLE_FILE).read_bytes())
            self.roots = roots_in(files)
            named = {name.removesuffix(".json").rpartition(".")[2]: data for name, data in files.items()}
            self._root = Metadata.from_bytes(self.roots[max(self.roots)])
            self._timestamp = Metadata.from_bytes(named.pop(Timestamp.type))
            self._snapshot = Metadata.from_bytes(named.pop(Snapshot.type))
            self._targets = Metadata.from_bytes(named.pop(Targets.type))
            self._delegated = {role: Metadata.from_bytes(named[role]) for role in self.roles()}
            self.state = msgspec.json.decode((self.folder / "state.json").read_bytes(), type=RepositoryState)
        except FileNotFoundError as error:
            raise ReleaseInvalid(
                f"there is no repository of releases in {self.folder}: make one with 'cloud-relay release init'"
            ) from error
        except (OSError, RepositoryError, MetadataInvalid, msgspec.DecodeError, KeyError, ValueError) as error:
            raise ReleaseInvalid(f"the repository in {self.folder} is damaged ({error}): restore a copy") from error
        self._signers = keys_in([self.folder / "keys"])
        return self

    def keep_key(self, role: str, signer: CryptoSigner) -> Path:
        """Write a new key below the repository, and sign with it too. Returns its file.

        :raises StorageError: it can't be written.
        """
        self.use_keys([signer])
        return keep_key(self.folder / "keys", role, signer)

    def use_keys(self, signers: Iterable[Signer]) -> None:
        """Sign with these keys too."""
        self._signers |= {signer.public_key.keyid: signer for signer in signers}

    # --- signing -----------------------------------------------------------------------------------------------------
    def signers_of(self, role: str) -> list[Signer]:
        """The keys that are at hand and sign for a role other than root. :raises ReleaseInvalid: there are none."""
        keyids = self.root.roles[role].keyids if role in TOP_ROLES else self.roles()[role].keyids
        signers = [self._signers[keyid] for keyid in keyids if keyid in self._signers]
        if not signers:
            raise ReleaseInvalid(
                f"the key of {role} ({', '.join(keyid[:12] for keyid in keyids)}) is not in {self.folder / 'keys'}: "
                "name the folder that holds it with --keys"
            )
        return signers

    def _sign(self, metadata: Metadata[Any], role: str, days: int) -> None:
        signers = self.signers_of(role)
        metadata.signed.version += 1
        metadata.signed.expires = self._in_days(days)
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)

    def _in_days(self, days: int) -> datetime:
        return self._clock() + timedelta(days=days)

    @staticmethod
    def _meta(metadata: Metadata[Any]) -> MetaFile:
        return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(_compact), ["sha256"])


@contextmanager
def opened(folder: Path, clock: Callable[[], datetime] = utc_now) -> Iterator[ReleaseRepository]:
    """A repository that nobody else changes meanwhile. Call its ``create`` or ``load``, and ``commit``.

    :raises StorageError: the folder can't be written, or another process changes it just now.
    """
    try:
        make_private_folder(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} can't be used ({error.strerror}): name a folder that you may write to") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"another command changes the releases in {folder}: wait until it has ended") from error
        yield ReleaseRepository(folder, clock)
    finally:
        os.close(lock)


def _mirror(folder: Path, files: Mapping[str, bytes]) -> None:
    """The same files apart. Nothing here reads them, so nobody waits until they are on disk."""
    make_private_folder(folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for path in folder.glob("*.json"):
        if path.name not in files:
            with suppress(OSError):
                path.unlink()
