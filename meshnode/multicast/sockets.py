"""The UDP sockets of multicast datagrams: one to hear, and one for each interface to send.

A thread of its own hears, and calls a function for each datagram. It takes at most ``MOST_PER_S``; a flood beyond that
fills the kernel's buffer and is dropped there. What is sent stays on the network of its interface (its time to live is
1), and other nodes on this host hear it too.

A socket that does not work is a trouble of the node until it works again: the log has its beginning and its end, and
what happens meanwhile is counted. A buffer that is full is none, because a full channel has that all the time.
"""

import contextlib
import errno
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from meshnode.links.interfaces import HostAddress
from meshnode.troubles import Troubles
from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.errors import TransportError

_log = logging.getLogger(__name__)

MOST_PER_S: Final = 4_000
"""Eighty vehicles that send ten datagrams a second are a fifth of it. One that is no good costs about 10 µs."""
_BURST: Final = 1_000
_PAUSE_S: Final = 0.01
_BUFFER_BYTES: Final = 256 * 1024
"""What the kernel holds of datagrams that were not taken yet: a burst of ``_BURST``."""
_SEND_BUFFER_BYTES: Final = 16 * 1024
"""What waits in the kernel can't be replaced any more."""
_WAKE_S: Final = 0.5
"""How long closing may wait for the thread."""
_INDEX: Final = struct.Struct("@I")
_FULL: Final = (errno.EAGAIN, errno.ENOBUFS)
_MEANWHILE: Final = "neighbours are served on their links meanwhile"


class GroupSockets:
    """The sockets of one node. Datagrams may be sent from any thread."""

    def __init__(self, group: str, port: int, heard: Callable[[bytes, str], object], troubles: Troubles) -> None:
        """``heard`` is called with each datagram and the address that it seems to come from, on the thread of this
        object. :raises TransportError: when the port can't be had."""
        self._group, self._port, self._heard, self._troubles = group, port, heard, troubles
        self._failing: dict[str, str] = {}  # by name of an interface, and empty for hearing
        self._family = socket.AF_INET6 if ":" in group else socket.AF_INET
        self._senders: dict[int, tuple[str, socket.socket]] = {}  # with the name of the interface
        self._closing = False
        self.not_sent = self.not_read = self.not_taken = self.too_many = 0
        try:
            self._receiver = self._listen()
        except OSError as error:
            raise TransportError(
                f"UDP port {port} of group {group} can't be had ({error.strerror or error}): end what uses it, or set "
                "another [multicast] port on all nodes"
            ) from error
        self._thread = threading.Thread(target=self._hear, name="meshnode-multicast", daemon=True)

    def _listen(self) -> socket.socket:
        receiver = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # several nodes on one host hear the group
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            receiver.bind((self._group, self._port))
            receiver.settimeout(_WAKE_S)
        except OSError:
            receiver.close()
            raise
        return receiver

    def start(self) -> None:
        """Begin to hear."""
        self._thread.start()

    # --- interfaces ------------------------------------------------------------------------------------------------
    def use(self, held: Sequence[HostAddress], again: frozenset[int]) -> bool:
        """Use these interfaces from now on, one address of each. ``again``: indexes of interfaces that were away, where
        the group has to be joined anew. Returns False when one can't be used yet."""
        wanted = {entry.index: entry for entry in held if (":" in entry.address) == (self._family == socket.AF_INET6)}
        for index in [index for index in self._senders if index not in wanted or index in again]:
            self._leave(index)
        is_complete = True
        for index, entry in wanted.items():
            if index not in self._senders:
                try:
                    self._join(entry)
                except OSError as error:
                    self._fails(entry.interface, f"the interface can't be used yet ({error.strerror or error})")
                    is_complete = False
                else:
                    self._works(entry.interface)
        for name in [name for name in self._failing if name and name not in {one.interface for one in wanted.values()}]:
            self._works(name)
        return is_complete

    def _join(self, entry: HostAddress) -> None:
        sender = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            sender.setblocking(False)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            if self._family == socket.AF_INET:
                interface = struct.pack("=4s4si", bytes(4), socket.inet_aton(entry.address), entry.index)
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            else:
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, entry.index)
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
            with contextlib.suppress(OSError):  # it may be joined already, by an interface that came back
                self._member(entry.index, joins=False)
            self._member(entry.index, joins=True)
        except OSError:
            sender.close()
            raise
        self._senders = {**self._senders, entry.index: (entry.interface, sender)}

    def _member(self, index: int, *, joins: bool) -> None:
        if self._family == socket.AF_INET:
            option = socket.IP_ADD_MEMBERSHIP if joins else socket.IP_DROP_MEMBERSHIP
            membership = struct.pack("=4s4si", socket.inet_aton(self._group), bytes(4), index)
            self._receiver.setsockopt(socket.IPPROTO_IP, option, membership)
        else:
            option = socket.IPV6_JOIN_GROUP if joins else socket.IPV6_LEAVE_GROUP
            membership = socket.inet_pton(socket.AF_INET6, self._group) + _INDEX.pack(index)
            self._receiver.setsockopt(socket.IPPROTO_IPV6, option, membership)

    def _leave(self, index: int) -> None:
        senders = dict(self._senders)
        _, gone = senders.pop(index)
        self._senders = senders
        gone.close()
        with contextlib.suppress(OSError):  # the interface is gone
            self._member(index, joins=False)

    @property
    def interfaces(self) -> int:
        """How many interfaces are in use."""
        return len(self._senders)

    # --- datagrams -------------------------------------------------------------------------------------------------
    def send(self, datagram: bytes) -> None:
        """Send a datagram on every interface. What an interface does not take is counted: who misses it will say so."""
        for index, (interface, sender) in self._senders.items():
            to = (self._group, self._port) if self._family == socket.AF_INET else (self._group, self._port, 0, index)
            try:
                sender.sendto(datagram, to)
            except OSError as error:
                self.not_sent += 1
                if error.errno not in _FULL:
                    self._fails(interface, f"datagrams can't be sent ({error.strerror or error})")
            else:
                if self._failing:
                    self._works(interface)

    def _hear(self) -> None:
        allowance = Allowance(MOST_PER_S, _BURST, time.monotonic_ns())
        while not self._closing:
            try:
                datagram, address = self._receiver.recvfrom(limits.MAX_DATAGRAM_BYTES + 1)
            except TimeoutError:
                self._works("")
                continue
            except OSError as error:
                if not self._closing:
                    self.not_read += 1
                    self._fails("", f"datagrams can't be read ({error.strerror or error})")
                    time.sleep(_WAKE_S)
                continue
            if self._failing:
                self._works("")
            if not allowance.take(time.monotonic_ns()):
                self.too_many += 1
                time.sleep(_PAUSE_S)
                continue
            try:
                self._heard(datagram, address[0])
            except Exception:  # noqa: BLE001 - whatever one datagram does, hearing goes on
                self.not_taken += 1
                if self.not_taken == 1:
                    _log.exception("a datagram from %s could not be taken; others are only counted", address[0])

    # --- troubles --------------------------------------------------------------------------------------------------
    def _fails(self, name: str, why: str) -> None:
        if self._failing.get(name) != why:
            self._failing[name] = why
            self._troubles.begin("multicast", name, f"{why}; {_MEANWHILE}")

    def _works(self, name: str) -> None:
        if self._failing.pop(name, None) is not None:
            self._troubles.end("multicast", name)

    def close(self) -> None:
        """Leave the group and end the thread. Idempotent."""
        self._closing = True
        if self._thread.is_alive():
            self._thread.join(10 * _WAKE_S)
        for _, sender in self._senders.values():
            sender.close()
        self._senders = {}
        self._receiver.close()
