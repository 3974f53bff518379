"""The gate before the inbox: what one host may cost before anybody knows who it is.

NNG accepts each connection and shakes hands on the same threads that carry the frames of open pipes, and tells of a
pipe only when its handshake is over. With mbedTLS that takes 6 ms, so an insider that opened pipe after pipe took two
thirds of a core, and honest frames waited behind it (p99 11 to 14 ms in place of 2). NNG has no way to accept less.
The kernel has: a filter at the listening socket drops the packets (SYN) with which a host that has spent its allowance
asks for one more connection. Its TCP asks again after a second, then after two and four. Connections that are open go
on untouched, and so does everybody else.

A host is an IPv4 address, or a /64 of IPv6: whoever has one address there can take any other of it. Neighbours that
share a /64, as on one Wi-Fi, share its allowance, which therefore has a larger burst.

The filter is classic BPF (``SO_ATTACH_FILTER``, socket(7)), which needs no privilege. Where there is none, the gate
stays open, which the log says once.
"""

import ctypes
import errno
import ipaddress
import logging
import os
import socket
import struct
from typing import Final

from meshnode.links.nng.connections import socket_descriptors
from meshnode.links.peer import payer_of
from protocols.base.allowance import Allowance
from protocols.base.limits import SECOND
from protocols.base.time import NEVER

HANDSHAKES_PER_S: Final = 16
"""Of one host, at 6 ms each: a tenth of a core."""
MAX_BURST: Final = 48
"""Handshakes of one host in a row: 24 nodes on one computer that open both lanes together."""
MAX_NETWORK_BURST: Final = 128
"""Handshakes of one /64 in a row: 64 neighbours in it that open both lanes together. They take 0.8 s, once."""
_REOPENS_WITH: Final = 8
"""Handshakes that a host has saved again before its packets pass."""
_MAX_HOSTS: Final = 256
"""Hosts whose allowance is remembered; the one that came first is forgotten first."""
_MAX_SHUT: Final = 64
"""Hosts in the filter: 64 of IPv6 are 320 instructions of the 4,096 that it may have."""
_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27

# The instructions, from linux/bpf_common.h. Offsets count from the TCP header, or from _NET of the IP header.
_LOAD_BYTE: Final = 0x30
_LOAD_WORD: Final = 0x20
_AND: Final = 0x54
_SHIFT_RIGHT: Final = 0x74
_JUMP_IF_EQUAL: Final = 0x15
_JUMP: Final = 0x05
_RETURN: Final = 0x06
_NET: Final = 0xFFF0_0000
_FLAGS_AT: Final = 13
_SOURCE_OF_4_AT: Final = 12
_SOURCE_OF_6_AT: Final = 8
_SYN_AND_ACK: Final = 0x12
_SYN: Final = 0x02
_ALL: Final = 0xFFFF_FFFF
_log = logging.getLogger(__name__)
_Instruction = tuple[int, int, int, int]
"""Code, steps to jump over if true, if false, and the constant."""


class Gate:
    """The gate of one listening port. Not thread-safe: call it from one thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._hosts: dict[str, Allowance] = {}
        self._shut: set[str] = set()
        self._is_usable = True
        self.times_shut = 0
        """How often a host was shut out."""
        self.due_ns = NEVER
        """From when on :meth:`go_on` has something to do."""

    @property
    def shut(self) -> frozenset[str]:
        """The hosts whose newcomers are dropped now, as :func:`~meshnode.links.peer.payer_of` names them."""
        return frozenset(self._shut)

    def pay(self, host: str, now_ns: int) -> None:
        """A handshake of ``host`` (an IP address) is over. If that was more than it may cost, it is shut out for a
        while."""
        host = payer_of(host)
        allowance = self._hosts.get(host)
        if allowance is None:
            if len(self._hosts) >= _MAX_HOSTS:
                self._forget_one()
            burst = MAX_NETWORK_BURST if ":" in host else MAX_BURST
            allowance = self._hosts[host] = Allowance(HANDSHAKES_PER_S, burst, now_ns)
        allowance.fine(1)  # below 0 too: several were under way before the gate was shut
        if allowance.left(now_ns) < 1 and host not in self._shut and len(self._shut) < _MAX_SHUT:
            self._shut.add(host)
            self.times_shut += 1
            self._apply()
            self._set_due(now_ns)

    def go_on(self, now_ns: int) -> int:
        """Let in again whose time has come. Call it regularly. Returns ``due_ns``."""
        if now_ns >= self.due_ns:
            again = {host for host in self._shut if self._hosts[host].left(now_ns) >= _REOPENS_WITH}
            if again:
                self._shut -= again
                self._apply()
            self._set_due(now_ns)
        return self.due_ns

    def _set_due(self, now_ns: int) -> None:
        missing = [_REOPENS_WITH - self._hosts[host].left(now_ns) for host in self._shut]
        self.due_ns = now_ns + max(1, min(missing)) * SECOND // HANDSHAKES_PER_S if missing else NEVER

    def _forget_one(self) -> None:
        """Hosts that are shut out stay: there are fewer places for them than for hosts."""
        del self._hosts[next(host for host in self._hosts if host not in self._shut)]

    def _apply(self) -> None:
        if not self._is_usable:
            return
        try:
            filter_newcomers(self._port, self._shut)
        except OSError as error:
            self._is_usable = False
            _log.warning(
                "connections of one host can't be held back (%s): it may cost this node a core; link engine 'express' "
                "holds them back without the kernel's help", error,
            )  # fmt: skip


def filter_newcomers(port: int, hosts: set[str]) -> None:
    """Have the kernel drop what opens a connection from ``hosts`` to the sockets of this process that listen on
    ``port``: IPv4 addresses and IPv6 networks of 64 bits. An empty set lets everybody in.

    :raises OSError: there is no such socket here, or no filter.
    """
    program = newcomer_filter(hosts)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    found = False
    for descriptor in socket_descriptors():
        try:
            # a copy for a moment: kept longer, it would keep the port after NNG has closed it
            listener = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # closed meanwhile
        with listener:
            if not _listens_on(listener, port):
                continue
            if hosts:
                pointer = struct.pack("@HL", len(program), ctypes.addressof(code))
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
            else:
                _detach(listener)
            found = True
    if not found:
        raise OSError(errno.ENOENT, f"no socket of this process that listens on port {port} was found")


def newcomer_filter(hosts: set[str]) -> list[_Instruction]:
    """A classic BPF program that drops a TCP packet with SYN and without ACK from any of ``hosts`` (IPv4 addresses and
    IPv6 networks of 64 bits), and passes all others."""
    networks = [ipaddress.ip_network(host) for host in sorted(hosts)]
    packed = [network.network_address.packed for network in networks]
    old = [step for address in packed if len(address) == 4 for step in _drop_loaded(address)]
    new = [step for address in packed if len(address) == 16 for step in _drop_from(address)]
    passed = (_RETURN, 0, 0, _ALL)
    return [
        (_LOAD_BYTE, 0, 0, _FLAGS_AT),
        (_AND, 0, 0, _SYN_AND_ACK),
        (_JUMP_IF_EQUAL, 1, 0, _SYN),
        passed,
        (_LOAD_BYTE, 0, 0, _NET),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_JUMP_IF_EQUAL, 1, 0, 4),
        (_JUMP, 0, 0, len(old) + 2),
        (_LOAD_WORD, 0, 0, _NET + _SOURCE_OF_4_AT),
        *old,
        passed,
        *new,
        passed,
    ]


def _drop_loaded(packed: bytes) -> list[_Instruction]:
    """Drop a packet when the word that was loaded is this IPv4 address."""
    return [(_JUMP_IF_EQUAL, 0, 1, int.from_bytes(packed, "big")), (_RETURN, 0, 0, 0)]


def _drop_from(packed: bytes) -> list[_Instruction]:
    """Drop a packet whose header has an IPv6 source with the first two words of this address."""
    first, second = struct.unpack_from(">2I", packed)
    return [
        (_LOAD_WORD, 0, 0, _NET + _SOURCE_OF_6_AT),
        (_JUMP_IF_EQUAL, 0, 3, first),
        (_LOAD_WORD, 0, 0, _NET + _SOURCE_OF_6_AT + 4),
        (_JUMP_IF_EQUAL, 0, 1, second),
        (_RETURN, 0, 0, 0),
    ]


def _listens_on(sock: socket.socket, port: int) -> bool:
    try:
        return (
            sock.family in (socket.AF_INET, socket.AF_INET6)
            and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            and sock.getsockname()[1] == port
        )
    except OSError:
        return False  # it has ended


def _detach(listener: socket.socket) -> None:
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:  # there was none
            raise
