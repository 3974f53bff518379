"""Types of names and numbers: nodes, roles, instants, digests.

A ``NodeId`` is unique in its mesh. The certificate holds it as ``spiffe://<mesh>/<role>/<node-id>``.
An ``Incarnation`` grows with every start of a node and is never used twice. It orders a node's lives and its readings.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from protocols.base.errors import InvalidName

NodeId = NewType("NodeId", str)
MeshName = NewType("MeshName", str)
Incarnation = NewType("Incarnation", int)
MonotonicNs = NewType("MonotonicNs", int)
"""Nanoseconds of a clock that never goes back; only differences of them mean something."""
UtcNs = NewType("UtcNs", int)
"""Nanoseconds since 1970-01-01T00:00:00Z, of a clock that may be wrong and may jump."""
ModelDigest = NewType("ModelDigest", str)
"""SHA-256 of a model file, 64 lower-case hexadecimal digits."""

SERVER_NAME = "mesh.node"
"""The DNS SAN that every certificate carries and every dialer asks for."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SPIFFE = re.compile(r"spiffe://([^/]+)/([^/]+)/([^/]+)")


class Role(StrEnum):
    """What the holder of a certificate may be."""

    VEHICLE = "vehicle"
    RSU = "rsu"
    RELAY = "relay"
    TOOL = "tool"


class Lane(StrEnum):
    """One of two connections to a neighbour: a large tensor on ``BULK`` can't delay a brake event on ``REALTIME``."""

    REALTIME = "realtime"
    BULK = "bulk"


def _checked_name(text: str, what: str) -> str:
    if not _NAME.fullmatch(text):
        raise InvalidName(
            f"{what} {text[:80]!r} is not valid: use 1 to 63 lower-case letters, digits and inner hyphens, "
            "as in 'rsu-1'"
        )
    return text


def node_id(text: str) -> NodeId:
    """Parse a node id. :raises InvalidName: when it is not a lower-case DNS label."""
    return NodeId(_checked_name(text, "node id"))


def mesh_name(text: str) -> MeshName:
    """Parse a mesh name. :raises InvalidName: when it is not a lower-case DNS label."""
    return MeshName(_checked_name(text, "mesh name"))


def spiffe_uri(mesh: MeshName, role: Role, node: NodeId) -> str:
    """The URI SAN that is the identity of a node."""
    return f"spiffe://{mesh}/{role.value}/{node}"


def parse_untrusted_spiffe(uri: str) -> tuple[MeshName, Role, NodeId]:
    """Parse an identity URI. :raises InvalidName: for anything that :func:`spiffe_uri` can't have made."""
    match = _SPIFFE.fullmatch(uri)
    if match is None:
        raise InvalidName(f"identity {uri[:120]!r} is not of the form spiffe://<mesh>/<role>/<node-id>")
    mesh, role, node = match.groups()
    if role not in Role.__members__.values():
        raise InvalidName(f"identity {uri[:120]!r} has the unknown role {role!r}: use one of {', '.join(Role)}")
    return mesh_name(mesh), Role(role), node_id(node)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """The identity that a TLS handshake proved for the other end of a pipe."""

    mesh: MeshName
    role: Role
    node: NodeId
    not_after_utc_ns: int = field(default=0, compare=False)
    """When its certificate expires, in nanoseconds since 1970; 0: the link engine does not know."""
