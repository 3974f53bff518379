"""Keys that are exchanged: after a theft, or because they are old.

A key that was taken out of a role signs nothing that a node takes, as soon as the node has the new metadata. Root names
the keys of timestamp, snapshot and targets, so they change with a new root, and enough keys of root have to be at hand.
A node forgets timestamp and snapshot whose keys were changed: so it recovers from versions that a thief made too high.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Root

from cloud_relay.releases.repository import PUBLISHER_ROLE, TOP_ROLES, ReleaseRepository
from cloud_relay.releases.shown import ORDERS_ROLE
from protocols.base.errors import ReleaseInvalid

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_PATTERN = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._*?-]{0,99}")


def rotate_key(repository: ReleaseRepository, role: str, root_signers: Sequence[Signer]) -> Path:
    """Make a new key for a role, and let the old one sign no more; the caller commits. Returns the new key's file.

    :raises ReleaseInvalid: there is no such role, or too few keys of root were given for one that root names.
    """
    if role not in TOP_ROLES:
        repository.delegated(role)
    signer = CryptoSigner.generate_ed25519()
    repository.exchange_key(role, signer.public_key)
    if role in TOP_ROLES:
        repository.sign_root(root_signers)
    return repository.keep_key(role, signer)


def change_root_keys(
    repository: ReleaseRepository, signers: Sequence[Signer], added: Sequence[Signer], dropped: Sequence[str]
) -> None:
    """Add keys to root and take others out; the caller commits. ``signers``: keys of the root of before. ``dropped``:
    the beginnings of ids.

    :raises ReleaseInvalid: too few keys sign or would be left, or one that is dropped is not there.
    """
    root = repository.root
    for signer in added:
        root.add_key(signer.public_key, Root.type)
    for begin in dropped:
        found = [keyid for keyid in root.roles[Root.type].keyids if begin and keyid.startswith(begin)]
        if len(found) != 1:
            raise ReleaseInvalid(
                f"{len(found)} keys of root begin with {begin!r}: it has "
                f"{', '.join(keyid[:16] for keyid in root.roles[Root.type].keyids)}"
            )
        root.revoke_key(found[0], Root.type)
    left, threshold = len(root.roles[Root.type].keyids), root.roles[Root.type].threshold
    if left < threshold:
        raise ReleaseInvalid(f"{left} keys of root would be left, and {threshold} have to sign: add one with --add-key")
    repository.sign_root([*signers, *added])


def add_publisher(repository: ReleaseRepository, name: str, patterns: Sequence[str], kind: str = "models") -> Path:
    """Let a new publisher list releases of one kind, before the one that may list all models; the caller commits.
    ``patterns``: of the names of what it may release. Returns its key's file.

    :raises ReleaseInvalid: the name is taken, or a pattern can't be one.
    """
    if not _NAME.fullmatch(name):
        raise ReleaseInvalid(f"{name!r} can't be the name of a publisher: use lower-case letters, digits and '-'")
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ReleaseInvalid(f"{pattern!r} can't be a name in {kind}/ or a pattern, as in 'plate-*'")
    if name in repository.roles():
        raise ReleaseInvalid(f"there is a publisher {name!r}: choose another name")
    signer = CryptoSigner.generate_ed25519()
    before = PUBLISHER_ROLE if PUBLISHER_ROLE in repository.roles() else None
    repository.delegate(name, [f"{kind}/{pattern}/*.json" for pattern in patterns], signer.public_key, before)
    assert ORDERS_ROLE in repository.roles()
    return repository.keep_key(name, signer)
