"""How readings that may be passed on are signed and checked, which a machine may not do itself."""

from collections.abc import Callable

from msgspec import Struct

from protocols.base.ids import NodeId, Role

Certified = tuple[bytes, int]
"""The certificate of an author (DER) as gossip holds it, and the incarnation in which the author said so."""


class ReadingSeal(Struct, frozen=True):
    """How readings are signed and checked. A *certificate id* is the first ``CERTIFICATE_ID_BYTES`` of the SHA-256 of a
    certificate."""

    sign: Callable[[bytes], tuple[bytes, bytes]]
    """Signs a statement and returns (certificate id, signature); see ``protocols.wire.parcels.reading_statement``."""
    role: Callable[[bytes, NodeId, bytes], Role | None]
    """The role in a certificate, given it (DER), the author and a certificate id. None: it does not have this id, is
    not valid now, or does not name the author as a node of this mesh that may be a neighbour."""
    signed: Callable[[bytes, bytes, bytes], bool]
    """Whether the key of a certificate (DER), for which :attr:`role` gave a role, has signed a statement. The last
    argument is the signature."""
