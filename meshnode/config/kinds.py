"""Types of text and rules that sections of a configuration share, each with the check of its form.

A check takes the value and returns None, or what is wrong and what to do.
"""

import ipaddress
import re
from typing import Annotated, Final

from msgspec import Meta

from meshnode.links.transport import Address
from protocols.access import AccessRule
from protocols.base.errors import InvalidKey
from protocols.base.keys import checked_expression

HOST: Final = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.:%_-]{0,251}[0-9A-Za-z.])?|::[0-9A-Za-z:.%]{0,60}")
"""A host name or an IP address, in form only."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def parse_address(text: str) -> Address:
    """``host:port`` or ``[ipv6]:port``. :raises ValueError: says what is wrong and the way out."""
    host, colon, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or not 1 <= int(port) <= 65_535 or not colon:
        raise ValueError("has no port from 1 to 65535: write 'host:port', as in '192.0.2.7:7400'")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("has a bare IPv6 address: put brackets around it, as in '[2001:db8::7]:7400'")
    if not HOST.fullmatch(host):
        raise ValueError("has no valid host: write 'host:port', as in '192.0.2.7:7400' or 'relay.example.org:7400'")
    return Address(host, int(port))


def _check_host(value: str) -> str | None:
    return None if HOST.fullmatch(value) else "is not a host: use an IP address or a host name"


def _check_loopback(value: str) -> str | None:
    try:
        loopback = ipaddress.ip_address(value).is_loopback
    except ValueError:
        loopback = value == "localhost"
    if loopback:
        return None
    return "is reachable by others, and this server has no log-in: use '127.0.0.1', with a proxy in front of it"


def _check_announced(value: str) -> str | None:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return "is not an IP address: announce numbers, a neighbour may have no DNS"
    if address.is_unspecified or address.is_multicast:
        return "can't be dialled: announce an address that neighbours reach"
    return None


def _check_interface(value: str) -> str | None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return "is not an IP address: name an interface by one of its addresses"
    return None


def _check_expression(value: str) -> str | None:
    try:
        checked_expression(value)
    except InvalidKey as error:
        return str(error)
    return None


def _check_name(value: str) -> str | None:
    return None if _NAME.fullmatch(value) else "is not a name: use up to 100 letters, digits and inner . _ -"


def _check_rule(rule: AccessRule) -> str | None:
    keys = rule.keys.replace("{id}", "x")
    if "{" in keys or "}" in keys:
        return f"keys {rule.keys[:80]!r} have braces that match nothing: only {{id}}, the node that asks, is filled in"
    return _check_expression(keys)


Bound = Annotated[str, Meta(extra={"check": _check_host})]
"""An address to listen on."""
Loopback = Annotated[str, Meta(extra={"check": _check_loopback})]
"""An address that only programs on this host reach."""
Announced = Annotated[str, Meta(extra={"check": _check_announced})]
"""An address that neighbours dial."""
Interface = Annotated[str, Meta(extra={"check": _check_interface})]
"""An interface of this host, by one of its addresses."""
Name = Annotated[str, Meta(extra={"check": _check_name})]
"""A name that the author of the file chooses."""
Expression = Annotated[str, Meta(extra={"check": _check_expression})]
"""A key expression."""
CheckedRule = Annotated[AccessRule, Meta(extra={"check": _check_rule})]
"""A rule of the access table."""
