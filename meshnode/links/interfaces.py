"""The addresses of this host's network interfaces, and news of their changes.

On Linux the kernel tells of changes (rtnetlink(7)). Elsewhere, and where a process may not listen to it, the watch
looks every ``POLL_S``. In either case it looks now and then unasked, so that nothing depends on one message.

Invariants:
- listeners are called one after the other on a worker thread, never two at a time;
- after each change of which the kernel tells they are called with a look that began after it;
- a burst of changes is one call: the watch waits until it is quiet for ``SETTLE_S``, but not for longer than
  ``MAX_SETTLE_S``.

Left out: routes, and whether anybody can be reached.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from protocols.base.limits import MAX_ADVERT_ADDRESSES

_log = logging.getLogger(__name__)

SETTLE_S: Final = 0.2
MAX_SETTLE_S: Final = 1.0
POLL_S: Final = 2.0
"""The time between two looks where the kernel does not tell of changes."""
LOOK_S: Final = 30.0
"""The time between two looks where it does."""
RETRY_S: Final = 2.0
"""The time until the next look when a listener could not follow."""

EVERY_INTERFACE: Final = -1
"""Stands for the index of every interface: the kernel told of more changes than could be read."""

_NETLINK_ROUTE: Final = 0
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = 16, 17, 20, 21
_IFF_UP_AND_RUNNING: Final = 0x41
_AF_BRIDGE: Final = 7
_HEADER, _LINK, _ADDRESS = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=BBBBi")
_READ_BYTES: Final = 65_536
_MOST_READS: Final = 64
"""Messages are read so often before others on the event loop get their turn."""


@dataclass(frozen=True, slots=True)
class HostAddress:
    """One IP address of one interface."""

    interface: str
    index: int
    """The kernel's number of the interface. An interface that is removed and made again gets another one."""
    address: str
    """Without the zone of a link-local IPv6 address."""

    @property
    def loopback(self) -> bool:
        """Whether only this host can reach it."""
        return ipaddress.ip_address(self.address).is_loopback


def host_addresses() -> tuple[HostAddress, ...]:
    """The addresses of all interfaces that are up and connected."""
    running = {name for name, state in psutil.net_if_stats().items() if state.isup}
    indexes = {name: index for index, name in socket.if_nameindex()}
    return tuple(
        HostAddress(name, indexes[name], entry.address.partition("%")[0])
        for name, entries in psutil.net_if_addrs().items()
        if name in running and name in indexes
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    )


def mdns_addresses(held: Sequence[HostAddress], chosen: Sequence[str]) -> list[HostAddress]:
    """One address for each interface that mDNS uses, of those that this host has: the ``chosen`` ones, or of all
    interfaces that have IPv4. A chosen address that no interface has yet is left out."""
    if chosen:
        by_address = {entry.address: entry for entry in held}
        candidates = [by_address[address] for address in chosen if address in by_address]
    else:
        candidates = [entry for entry in held if ":" not in entry.address]
    first: dict[tuple[int, bool], HostAddress] = {}
    for entry in candidates:
        first.setdefault((entry.index, ":" in entry.address), entry)
    return list(first.values())


def announced_addresses(
    advertise: Sequence[str] | None, chosen: Sequence[str], held: Sequence[HostAddress]
) -> list[str]:
    """The IP addresses that neighbours are told: ``advertise``; or those of the ``chosen`` ones that this host has; or
    its IPv4 addresses. Loopback counts only on a host that has nothing else."""
    if advertise:
        told = list(advertise)
    elif chosen:
        known = {entry.address for entry in held}
        told = [address for address in chosen if address in known]
    else:
        ipv4 = [entry for entry in held if ":" not in entry.address]
        told = [entry.address for entry in ipv4 if not entry.loopback] or [entry.address for entry in ipv4]
    return list(dict.fromkeys(told))[:MAX_ADVERT_ADDRESSES]


Listener = Callable[[Sequence[HostAddress], frozenset[int]], bool]
"""Takes what addresses there are, and the indexes of interfaces that were down, gone or without an address since the
last call, if only for a moment. Returns False when it could not follow and wants to be called again soon."""


class AddressWatch:
    """Tells listeners which addresses this host has. Belongs to one event loop."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._news = asyncio.Event()
        self._interrupted: set[int] = set()
        self.changes = 0
        """How many messages of the kernel were read."""

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` from now on, the first time soon; see the module for when."""
        self._listeners.append(listener)
        self._news.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        with _kernel_news() as news:
            pause_s = longest_s = LOOK_S if self._hear(news) else POLL_S
            try:
                while True:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await self._news.wait()
                        await self._settle()
                    self._news.clear()
                    interrupted, self._interrupted = frozenset(self._interrupted), set()
                    followed = await asyncio.to_thread(self._tell, interrupted)
                    pause_s = longest_s if followed else min(RETRY_S, longest_s)
            finally:
                if news is not None:
                    asyncio.get_running_loop().remove_reader(news)

    def _hear(self, news: socket.socket | None) -> bool:
        """Have the event loop read what the kernel tells. False: it can't."""
        if news is None:
            return False
        try:
            asyncio.get_running_loop().add_reader(news, self._read, news)
        except NotImplementedError:
            return False
        return True

    async def _settle(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_SETTLE_S):
                while self._news.is_set():
                    self._news.clear()
                    await asyncio.sleep(SETTLE_S)

    def _read(self, news: socket.socket) -> None:
        for _ in range(_MOST_READS):
            try:
                messages = news.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    _log.warning(
                        "news of network interfaces can't be read (%s): they are looked at now and then", error
                    )
                    asyncio.get_running_loop().remove_reader(news)
                    return
                self._interrupted.add(EVERY_INTERFACE)
                self._news.set()
                continue
            self.changes += 1
            self._interrupted |= interrupted_by(messages)
            self._news.set()

    def _tell(self, interrupted: frozenset[int]) -> bool:
        held = host_addresses()
        followed = True
        for listener in tuple(self._listeners):
            try:
                followed &= listener(held, interrupted)
            except Exception:  # noqa: BLE001 -- one listener's bug must not keep the others from knowing
                _log.exception("a listener failed on the addresses of this host")
                followed = False
        return followed


@contextlib.contextmanager
def _kernel_news() -> Iterator[socket.socket | None]:
    """A socket on which the kernel tells of changes of interfaces and addresses; None where there is none."""
    if not hasattr(socket, "AF_NETLINK"):
        yield None
        return
    try:
        news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
    except OSError as error:  # a sandbox without this family of addresses
        _log.info("the kernel does not tell of network interfaces (%s): they are looked at every %g s", error, POLL_S)
        yield None
        return
    with news:
        try:
            news.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except OSError as error:
            _log.info(
                "the kernel does not tell of network interfaces (%s): they are looked at every %g s", error, POLL_S
            )
            yield None
            return
        yield news


def interrupted_by(messages: bytes) -> set[int]:
    """The indexes of interfaces that are down, gone or lost an address, according to netlink messages. What can't be
    read is skipped: only the kernel sends here."""
    found = set()
    offset = 0
    while offset + _HEADER.size <= len(messages):
        length, kind, _, _, _ = _HEADER.unpack_from(messages, offset)
        body, end = offset + _HEADER.size, offset + length
        if length < _HEADER.size or end > len(messages):
            break
        if kind in (_NEWLINK, _DELLINK) and body + _LINK.size <= end:
            family, _, index, flags, _ = _LINK.unpack_from(messages, body)
            lost = kind == _DELLINK or flags & _IFF_UP_AND_RUNNING != _IFF_UP_AND_RUNNING
            if lost and family != _AF_BRIDGE:
                found.add(index)
        elif kind == _DELADDR and body + _ADDRESS.size <= end:
            found.add(_ADDRESS.unpack_from(messages, body)[4])
        offset += (length + 3) & ~3
    return found
