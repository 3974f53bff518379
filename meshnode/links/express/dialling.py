"""Dialling of the express links: from the address of a lane to a socket that connects.

It runs on the I/O thread, except that each host name has a thread of its own, on which it is looked up and its
addresses are tried.
"""

import ipaddress
import select
import socket
import threading
from collections.abc import Callable
from typing import Final

from meshnode.links.express.connection import Closed
from meshnode.links.express.lane import ExpressLane
from meshnode.links.names import NoConnection, connect, is_name, look_up
from meshnode.links.peer import url_of
from protocols.base.errors import TransportError
from protocols.base.limits import MS, SECOND

_MAX_NAMES: Final = 32
"""The most host names at once, each on a thread of its own: a resolver may take half a minute to give up, and addresses
that do not answer take as long as the dial."""
_SOONER_NS: Final = 50 * MS
"""How long before its deadline a dial gives up by itself, so that it can say what became of each address."""


class Dialler:
    """Connects the lanes of one node."""

    def __init__(self) -> None:
        self._names = 0

    def start(self, lane: ExpressLane) -> None:
        """Begin to connect a lane. The lane is finished when that can't be done."""
        host, port = lane.address.host, lane.address.port
        try:
            url_of(lane.address)
        except TransportError as error:
            lane.hub.finish(lane, Closed(str(error)))
            return
        if not is_name(host):
            family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
            self._connect(lane, family, (host, port))
        elif self._names >= _MAX_NAMES:
            lane.hub.finish(lane, Closed(f"{self._names} host names are being dialled: use IP addresses"))
        else:
            self._names += 1
            threading.Thread(target=self._dial_name, args=(lane,), name="mesh-look-up", daemon=True).start()

    def _dial_name(self, lane: ExpressLane) -> None:
        """Look a host name up and connect to one of its addresses. It runs on a thread of its own."""

        def is_wanted() -> bool:
            return not (lane.closed or lane.finished)

        ends_s = (lane.deadline_ns - _SOONER_NS) / SECOND
        try:
            sock, target = connect(look_up(lane.address.host, lane.address.port), ends_s, is_wanted)
        except NoConnection as error:
            end = Closed(f"no connection to {lane.address} ({error})")
            lane.hub.post(lambda: self._dialled(lambda: lane.hub.finish(lane, end)))
        else:
            lane.hub.post(lambda: self._dialled(lambda: self._take_over(lane, sock, target.host)))

    def _dialled(self, then: Callable[[], None]) -> None:
        self._names -= 1
        then()

    def _take_over(self, lane: ExpressLane, sock: socket.socket, host: str) -> None:
        if lane.finished:
            sock.close()
            return
        try:
            lane.take_over(sock, host)
        except OSError as error:
            sock.close()
            lane.descriptor = -1
            lane.hub.finish(lane, Closed(f"no connection to {lane.address} ({error.strerror or error})"))
        else:
            lane.hub.adopt(lane, select.EPOLLOUT)

    def _connect(self, lane: ExpressLane, family: int, to: tuple[str, int]) -> None:
        if lane.finished:
            return
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                lane.connect(sock, to)
            except BaseException:
                sock.close()
                raise
        except Closed as end:
            lane.descriptor = -1
            lane.hub.finish(lane, end)
        except OSError as error:
            lane.descriptor = -1
            lane.hub.finish(lane, Closed(f"no connection to {lane.address} ({error.strerror or error})"))
        else:
            lane.hub.adopt(lane, select.EPOLLOUT)
