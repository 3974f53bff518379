"""Dialling of the express links: from the address of a lane to a socket that connects.

It runs on the I/O thread, except that each host name is looked up on a thread of its own.
"""

import ipaddress
import select
import socket
import threading
from collections.abc import Callable

from meshnode.links.express.connection import Closed
from meshnode.links.express.lane import ExpressLane
from meshnode.links.peer import url_of
from protocols.base.errors import TransportError

_MAX_LOOK_UPS = 8
"""The most look-ups at once, each on a thread of its own: a resolver may take half a minute to give up."""


class Dialler:
    """Connects the lanes of one node."""

    def __init__(self) -> None:
        self._look_ups = 0

    def start(self, lane: ExpressLane) -> None:
        """Begin to connect a lane. The lane is finished when that can't be done."""
        host, port = lane.address.host, lane.address.port
        try:
            url_of(lane.address)
            ip = ipaddress.ip_address(host)
        except TransportError as error:
            lane.hub.finish(lane, Closed(str(error)))
        except ValueError:  # a name: looking it up may take long, and must not hold up the links
            if self._look_ups >= _MAX_LOOK_UPS:
                lane.hub.finish(lane, Closed(f"{self._look_ups} host names are being looked up: use IP addresses"))
                return
            self._look_ups += 1
            threading.Thread(target=self._look_up, args=(lane,), name="mesh-look-up", daemon=True).start()
        else:
            family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
            self._connect(lane, family, (host, port))

    def _look_up(self, lane: ExpressLane) -> None:
        """Look a host name up. It runs on a thread of its own."""
        try:
            found = socket.getaddrinfo(lane.address.host, lane.address.port, type=socket.SOCK_STREAM)
            family, _, _, _, to = found[0]
        except (OSError, UnicodeError) as error:
            end = Closed(f"no connection to {lane.address} (unknown host: {error}): use an IP address")
            lane.hub.post(lambda: self._looked_up(lambda: lane.hub.finish(lane, end)))
        else:
            lane.hub.post(lambda: self._looked_up(lambda: self._connect(lane, family, to)))  # type: ignore[arg-type]

    def _looked_up(self, then: Callable[[], None]) -> None:
        self._look_ups -= 1
        then()

    def _connect(self, lane: ExpressLane, family: int, to: "tuple[str, int] | tuple[str, int, int, int]") -> None:
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
