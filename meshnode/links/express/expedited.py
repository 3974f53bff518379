"""Packets that are small and urgent: readings, and what confirms that anything has come.

They say so to whatever forwards them. A bulk lane does not, so that pieces of releases and tensors don't hold up
readings there. The confirmations of both kinds of lanes do. A node judges by them how long its readings take, so it
would take a link for full whose other direction carries pieces.
"""

import socket
import sys
from contextlib import suppress
from typing import Final

DSCP_EF: Final = 46 << 2
"""Expedited forwarding (RFC 3246). Wi-Fi sends such packets in its class for video (RFC 8325) …"""
_INTERACTIVE: Final = 6
"""… and Linux, by the priority TC_PRIO_INTERACTIVE, before what waits for the same interface."""


def expedite(sock: socket.socket) -> None:
    """Have what a socket sends from now on go first. It may have ended already, and not every system can do so."""
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, DSCP_EF)
    with suppress(OSError):  # of an IPv6 socket, when its peer came by IPv4
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, DSCP_EF)
    with suppress(OSError):
        if sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _INTERACTIVE)
