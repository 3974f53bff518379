"""What a node announces of itself, and how adverts of strangers are read."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from meshnode.links.transport import Address
from protocols.base.errors import InvalidName, RemoteProtocolError
from protocols.base.ids import Incarnation, MeshName, NodeId, mesh_name, node_id
from protocols.base.limits import MAX_ADVERT_ADDRESSES
from protocols.base.sequences import MAX_INCARNATION

MAJOR: Final = b"1"
_MAX_TXT_VALUE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Advert:
    """An unproven statement about a node."""

    node: NodeId
    incarnation: Incarnation
    addresses: tuple[Address, ...]


class OtherMesh(RemoteProtocolError):
    """An advert of another mesh, or of another major version, which does not concern us."""


def parse_untrusted_advert(
    properties: Mapping[bytes, bytes | None], addresses: Sequence[str], port: int | None, mesh: MeshName
) -> Advert:
    """An advert from the TXT properties, addresses and port of a service.

    :raises OtherMesh: it is of another mesh or major version.
    :raises RemoteProtocolError: it is not an advert for any other reason.
    """
    if (version := properties.get(b"v")) != MAJOR:
        raise OtherMesh(f"advert of major version {(version or b'')[:8]!r} ignored: this node speaks {MAJOR!r}")
    try:
        if (found := mesh_name(_text(properties, b"m"))) != mesh:
            raise OtherMesh(f"advert of mesh {found!r}, this is {mesh!r}: ignored")
        node = node_id(_text(properties, b"n"))
    except InvalidName as error:
        raise RemoteProtocolError(f"advert ignored: {error}") from error
    digits = _text(properties, b"i")
    if not (digits.isascii() and digits.isdigit()):
        raise RemoteProtocolError(f"advert of {node!r} ignored: incarnation {digits[:24]!r} is not a number")
    if int(digits) > MAX_INCARNATION:
        raise RemoteProtocolError(
            f"advert of {node!r} ignored: incarnation out of range: {digits[:24]} is above {MAX_INCARNATION}"
        )
    if port is None or not 0 < port <= 65_535:
        raise RemoteProtocolError(f"advert of {node!r} ignored: it has no valid port")
    hosts = [host for text in addresses[: 4 * MAX_ADVERT_ADDRESSES] if (host := _host(text)) is not None]
    usable = tuple(Address(host, port) for host in dict.fromkeys(hosts))[:MAX_ADVERT_ADDRESSES]
    if not usable:
        raise RemoteProtocolError(f"advert of {node!r} ignored: it has no address that can be dialled")
    return Advert(node, Incarnation(int(digits)), usable)


def _text(properties: Mapping[bytes, bytes | None], key: bytes) -> str:
    value = properties.get(key)
    if value is None:
        raise RemoteProtocolError(f"advert ignored: it has no {key.decode()!r}")
    if len(value) > _MAX_TXT_VALUE_BYTES:
        raise RemoteProtocolError(f"advert ignored: its {key.decode()!r} is longer than {_MAX_TXT_VALUE_BYTES} bytes")
    return value.decode("ascii", "replace")


def _host(text: str) -> str | None:
    """An address that can be dialled. None: no node can listen there, or it is an IPv6 address that needs an
    interface."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if ip.is_multicast or ip.is_unspecified or (ip.version == 6 and ip.is_link_local) or str(ip) == "255.255.255.255":
        return None
    return str(ip)
