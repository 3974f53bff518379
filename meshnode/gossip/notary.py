"""Signs this node's gossip entries and readings, and checks those of others, by the certificates of the mesh.

Order of trust: the certificate of an author travels in its entry and has to be one of this mesh, see
:mod:`meshnode.identity.signatures`. An entry that fails any check is not trusted. A reading that was passed on is
checked by the certificate in its author's entry, which it names by a hash.

A certificate is checked once and then remembered. Its validity period is checked each time, by the wall clock. Entries
have the one signature with the lower s, so that nobody can make a second one out of the first.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from meshnode.identity.signatures import (
    CertifiedKey,
    SigningKey,
    read_authority,
    read_signing_key,
    untrusted_certified_key,
)
from meshnode.links.transport import CredentialFiles
from protocols.access import LINK_ROLES
from protocols.base.errors import IdentityError
from protocols.base.ids import MeshName, NodeId, Role
from protocols.gossip.entries import Seal
from protocols.readings.signing.seal import ReadingSeal
from protocols.wire.entries import entry_statement
from protocols.wire.gossip import Entry

_MAX_AUTHORS: Final = 1_024
"""Certificates remembered: a kilobyte each. One that was forgotten costs 100 µs more."""


@dataclass(frozen=True, slots=True)
class _Own:
    """The files of this node. A renewal replaces all of them at once."""

    key: SigningKey
    authority: x509.Certificate


class Notary:
    """Signs and checks the entries of one node. Methods may be called from any thread."""

    def __init__(self, credentials: CredentialFiles, mesh: MeshName) -> None:
        """:raises IdentityError: when a file can't be read."""
        self._mesh = mesh
        self._own = _read(credentials)
        self._authors: dict[bytes, CertifiedKey] = {}

    def seal(self) -> Seal:
        """Signing, checking and hashing, as the engine takes them."""
        return Seal(
            self.sign, self.verify, lambda data: hashlib.sha256(data).digest(), is_current=self.is_current
        )  # fmt: skip

    def reading_seal(self) -> ReadingSeal:
        """Signing and checking readings, as the engine takes them."""
        return ReadingSeal(self.sign_reading, self.role, self.has_signed)

    def renew(self, credentials: CredentialFiles) -> bool:
        """Sign with new files from now on. Returns whether the authority is another one, so that entries that were
        checked before have to be checked again. :raises IdentityError: when a file can't be read."""
        before, self._own = self._own, _read(credentials)
        self._authors = {}
        return before.authority != self._own.authority

    def sign(self, statement: bytes) -> tuple[bytes, bytes]:
        """The certificate of this node (DER), and its signature (ASN.1 DER, low s) of a statement."""
        key = self._own.key
        return key.certificate, key.sign(statement)

    def verify(self, entry: Entry) -> bool:
        """Whether the author named in the entry is one of this mesh and signed it, in the only accepted form."""
        author = self._author(entry.credential)
        if author is None or author.node != entry.author:
            return False
        return author.has_signed(entry_statement(entry), entry.signature)

    def is_current(self, entry: Entry) -> bool:
        """Whether the certificate in an entry that was verified is valid now."""
        author = self._author(entry.credential)
        return author is not None and author.is_valid_at(time.time_ns())

    def sign_reading(self, statement: bytes) -> tuple[bytes, bytes]:
        """The id of the certificate of this node, and its signature (ASN.1 DER) of a statement."""
        key = self._own.key
        return key.certificate_id, key.sign_in_any_form(statement)

    def role(self, certificate: bytes, node: NodeId, certificate_id: bytes) -> Role | None:
        """See :class:`~protocols.readings.signing.seal.ReadingSeal`."""
        author = self._author(certificate)
        if author is None or author.node != node or author.certificate_id != certificate_id:
            return None
        if author.role not in LINK_ROLES or not author.is_valid_at(time.time_ns()):
            return None
        return author.role

    def has_signed(self, certificate: bytes, statement: bytes, signature: bytes) -> bool:
        """See :class:`~protocols.readings.signing.seal.ReadingSeal`."""
        author = self._author(certificate)
        return author is not None and author.has_signed_in_any_form(statement, signature)

    def _author(self, certificate: bytes) -> CertifiedKey | None:
        authors = self._authors
        author = authors.get(certificate)
        if author is None:
            try:
                author = untrusted_certified_key(certificate, self._own.authority)
            except IdentityError:
                return None
            if author.mesh != self._mesh:
                return None
            if len(authors) >= _MAX_AUTHORS:  # those that are no good are free to make, and would push these out
                del authors[next(iter(authors))]
            authors[certificate] = author
        return author


def _read(credentials: CredentialFiles) -> _Own:
    return _Own(read_signing_key(credentials), read_authority(credentials.authority))
