"""A stand-in for the signatures of readings: a keyed hash, with the author's name as the key.

A certificate is the bytes of ``role:name``. It is as good as a real one in tests, which must not sign in the name of
another node unless they forge on purpose.
"""

import hashlib
from collections.abc import Mapping
from random import Random

from msgspec.structs import replace

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.readings.signing.seal import ReadingSeal
from protocols.settings import NodeSettings
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.parcels import encode_alone, encode_signed, encode_together, reading_statement
from protocols.wire.readings import Reading, SignedReadings
from sims.virtual.driver import SimDriver
from sims.world.authors import Authors


def certificate(node: str, role: Role = Role.VEHICLE) -> bytes:
    """The certificate of a node."""
    return f"{role.value}:{node}".encode()


def certificate_id(data: bytes) -> bytes:
    """The id of a certificate."""
    return hashlib.sha256(data).digest()[: limits.CERTIFICATE_ID_BYTES]


def signature(author: str, statement: bytes) -> bytes:
    """The signature of ``author``."""
    return hashlib.blake2b(statement, key=author.encode()[:64], digest_size=16).digest()


def _role(data: bytes, author: NodeId, wanted_id: bytes) -> Role | None:
    role, _, name = data.decode().partition(":")
    return Role(role) if name == author and wanted_id == certificate_id(data) else None


def _has_signed(data: bytes, statement: bytes, given: bytes) -> bool:
    return signature(data.decode().partition(":")[2], statement) == given


def reading_seal(node: str, role: Role = Role.VEHICLE) -> ReadingSeal:
    """A seal that signs as ``node`` and checks the signatures of all authors."""
    own_id = certificate_id(certificate(node, role))
    return ReadingSeal(lambda statement: (own_id, signature(node, statement)), _role, _has_signed)


class Certificates:
    """The certificates that a node holds: those of all nodes, or without those in ``unknown``."""

    def __init__(self) -> None:
        self.roles: dict[str, Role] = {}
        self.incarnations: dict[str, int] = {}
        self.unknown: set[str] = set()

    def __call__(self, author: NodeId) -> tuple[bytes, int] | None:
        if author in self.unknown:
            return None
        return certificate(author, self.roles.get(author, Role.VEHICLE)), self.incarnations.get(author, 0)


def signed(
    *readings: Reading, roles: Mapping[str, Role] | None = None, hops: int | None = None, by: str | None = None
) -> SignedReadings:  # fmt: skip
    """The frame that carries ``readings``, signed by their origin (``by``: by somebody else in its name), with ``hops``
    left (None: those that the author allowed)."""
    origin = readings[0].origin
    parcel = encode_alone(readings[0]) if len(readings) == 1 else encode_together(list(readings))
    made_by = signature(by or origin, reading_statement(parcel))
    known_as = certificate_id(certificate(origin, (roles or {}).get(origin, Role.VEHICLE)))
    left = min(reading.hops for reading in readings) if hops is None else hops
    frame = decode_untrusted_node_frame(encode_signed(left, known_as, made_by, parcel))
    assert type(frame) is SignedReadings
    return frame


def signed_world(seed: int = 1) -> tuple[SimDriver, Authors]:
    """A simulation whose nodes sign, and their authors, which spread the certificate of a node with its address."""
    made: list[Authors] = []

    def adjust(settings: NodeSettings) -> NodeSettings:
        (authors,) = made
        return replace(
            settings, seal=authors.seal(settings.node), reading_seal=authors.reading_seal(settings.node)
        )  # fmt: skip

    driver = SimDriver(seed, adjust=adjust)
    made.append(Authors(driver, Random(seed)))
    return driver, made[0]
