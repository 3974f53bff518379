"""Which addresses a host has and announces, and who is told when that changes."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from meshnode.links import interfaces
from meshnode.links.interfaces import (
    AddressWatch,
    HostAddress,
    announced_addresses,
    host_addresses,
    interrupted_by,
    mdns_addresses,
)
from protocols.base.limits import MAX_ADVERT_ADDRESSES
from tests.tools.eventually import until

LO, WLAN = HostAddress("lo", 1, "127.0.0.1"), HostAddress("wlan0", 3, "198.51.100.1")
ETH, ETH_TOO, ETH_IPV6 = (HostAddress("eth0", 2, address) for address in ("192.0.2.7", "192.0.2.8", "2001:db8::7"))
HELD = LO, ETH, ETH_TOO, ETH_IPV6, WLAN


def test_addresses_of_this_host_have_their_interface_and_no_zone() -> None:
    """The watch compares them, and multicast groups are left by number."""
    names = dict(socket.if_nameindex())
    for entry in host_addresses():
        assert names[entry.index] == entry.interface
        assert "%" not in entry.address


def test_one_address_of_each_interface_joins_the_group() -> None:
    """A socket joins a group once on an interface: the second address of it would count as a failure for ever."""
    assert mdns_addresses(HELD, ()) == [LO, ETH, WLAN]
    assert mdns_addresses(HELD, ("192.0.2.8", "192.0.2.7", "203.0.113.1", "2001:db8::7")) == [ETH_TOO, ETH_IPV6]
    assert mdns_addresses((), ()) == []


def test_announced_are_addresses_that_this_host_has_or_those_of_the_configuration() -> None:
    """Each address that leads nowhere costs each neighbour a dial."""
    assert announced_addresses(None, (), HELD) == ["192.0.2.7", "192.0.2.8", "198.51.100.1"]
    assert announced_addresses(None, (), (LO,)) == ["127.0.0.1"]
    assert announced_addresses(None, (), ()) == []
    assert announced_addresses((), ("203.0.113.1", "2001:db8::7"), HELD) == ["2001:db8::7"]
    assert announced_addresses(("203.0.113.1",), ("192.0.2.7",), HELD) == ["203.0.113.1"]
    many = [HostAddress("eth0", 2, f"192.0.2.{number}") for number in range(20)]
    assert len(announced_addresses(None, (), many)) == MAX_ADVERT_ADDRESSES


def message(kind: int, body: bytes, length: int | None = None) -> bytes:
    """One netlink message."""
    size = 16 + len(body)
    return struct.pack("=IHHII", size if length is None else length, kind, 0, 0, 0) + body + bytes(-size % 4)


def link(index: int, flags: int, family: int = 0) -> bytes:
    return struct.pack("=BxHiII", family, 1, index, flags, 0) + b"\x08\x00\x01\x00abcd"


def test_messages_of_the_kernel_tell_which_interfaces_were_away() -> None:
    """An interface that goes and comes within a moment looks the same before and after."""
    up, down, no_carrier = 0x11043, 0x1002, 0x1003
    told = [
        message(16, link(2, up)), message(16, link(3, down)), message(16, link(4, no_carrier)),
        message(17, link(5, up)), message(17, link(6, up, family=7)),  # left a bridge
        message(20, struct.pack("=BBBBi", 2, 24, 0, 0, 7)), message(21, struct.pack("=BBBBi", 2, 24, 0, 0, 8) + b"x"),
        message(21, struct.pack("=BBBBi", 2, 24, 0, 0, 9)),
    ]  # fmt: skip
    assert interrupted_by(b"".join(told)) == {3, 4, 5, 8, 9}
    assert interrupted_by(b"") == set()


@pytest.mark.parametrize("length", [0, 15, 4_096, 2**32 - 1])
def test_message_of_an_impossible_length_ends_the_reading(length: int) -> None:
    """It must not go round in a circle."""
    assert interrupted_by(message(17, link(5, 0), length) + message(17, link(6, 0))) == set()


# --- the watch -------------------------------------------------------------------------------------------------------
@asynccontextmanager
async def running(watch: AddressWatch) -> AsyncIterator[None]:
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Told:
    """A listener."""

    def __init__(self, follows: Callable[[int], bool] = lambda _: True) -> None:
        self.looks: list[Sequence[HostAddress]] = []
        self._follows = follows

    def __call__(self, held: Sequence[HostAddress], _: frozenset[int]) -> bool:
        self.looks.append(held)
        return self._follows(len(self.looks))


async def test_watch_tells_everybody_at_once_and_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """One part's bug must not keep the others on an address of yesterday."""
    monkeypatch.setattr(interfaces, "RETRY_S", 0.05)
    watch = AddressWatch()

    def broken(number: int) -> bool:
        raise RuntimeError(f"call {number}")

    bad, slow, good = Told(broken), Told(lambda number: number > 3), Told()
    async with running(watch):
        for listener in (bad, slow, good):
            watch.listen(listener)
        await until(lambda: len(good.looks) >= 6, "it is told again and again, because one could not follow")
    assert len(slow.looks) >= 6
    assert set(good.looks[0]) == set(host_addresses())


async def test_watch_looks_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may forbid the family of sockets, and other systems don't have it."""
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    monkeypatch.setattr(interfaces, "POLL_S", 0.05)
    watch, told = AddressWatch(), Told()
    async with running(watch):
        watch.listen(told)
        await until(lambda: len(told.looks) >= 3, "it looks again and again")


async def test_watch_is_quiet_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that idles must let the processor sleep."""
    if not hasattr(socket, "AF_NETLINK"):
        pytest.skip("the kernel of this system does not tell")
    monkeypatch.setattr(interfaces, "POLL_S", 0.01)
    watch, told = AddressWatch(), Told()
    async with running(watch):
        watch.listen(told)
        await until(lambda: told.looks, "it is told once")
        looks = len(told.looks)
        for _ in range(5):
            await asyncio.sleep(interfaces.SETTLE_S)
        assert len(told.looks) - looks <= watch.changes, "others on this host may change an interface"
