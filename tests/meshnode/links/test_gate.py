"""The gate before an NNG inbox: one host can't have handshake after handshake, and nobody else notices."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from meshnode.links.nng.gate import (
    HANDSHAKES_PER_S,
    MAX_BURST,
    MAX_NETWORK_BURST,
    Gate,
    filter_newcomers,
    newcomer_filter,
)
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from tests.tools.eventually import eventually
from tests.tools.link_fixture import given_ca, given_end, given_pki  # noqa: F401 -- fixtures
from tests.tools.own_loopback import on_own_loopback


@pytest.fixture(name="listener")
def given_listener() -> Iterator[socket.socket]:
    """A socket that listens for IPv4 on all addresses of loopback."""
    with socket.create_server(("", 0)) as listener:
        yield listener


def connects(port: int, source: str, to: str = "127.0.0.1", timeout_s: float = 0.3) -> bool:
    """Whether a connection from ``source`` is made. A packet that is dropped comes again after a second only."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with closing(socket.socket(family)) as sock:
        sock.settimeout(timeout_s)
        sock.bind((source, 0))
        try:
            sock.connect((to, port))
        except TimeoutError:
            return False
        return True


def test_newcomers_of_one_host_are_dropped_and_all_else_goes_on(listener: socket.socket) -> None:
    """Connections that are open, those of other hosts, and those of the same one when it is let in again."""
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) as early:
        accepted, _ = listener.accept()
        filter_newcomers(port, {"127.0.0.2", "127.0.0.3", "::/64"})
        assert not connects(port, "127.0.0.2")
        assert not connects(port, "127.0.0.3")
        assert connects(port, "127.0.0.1", timeout_s=20)
        early.sendall(b"still here")
        assert accepted.recv(10) == b"still here"
        filter_newcomers(port, set())
        filter_newcomers(port, set())
        assert connects(port, "127.0.0.2", timeout_s=20)
        accepted.close()


def test_a_connection_that_began_under_a_filter_is_not_touched_by_it(listener: socket.socket) -> None:
    """The kernel hands the filter on to it."""
    port = listener.getsockname()[1]
    filter_newcomers(port, {"127.0.0.2"})
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.4", 0)) as sock:
        accepted, _ = listener.accept()
        sock.sendall(b"x" * 100_000)
        assert sum(len(accepted.recv(65_536)) for _ in range(2)) > 0
        accepted.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this system has no IPv6")
def test_hosts_of_ipv6_and_mapped_ones_are_told_apart() -> None:
    """One listener may serve both, and sees an IPv4 host in an IPv4 packet."""
    try:
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener:
        port = listener.getsockname()[1]
        filter_newcomers(port, {"::/64", "127.0.0.2"})
        assert not connects(port, "::1", "::1")
        assert not connects(port, "127.0.0.2")
        assert connects(port, "127.0.0.1", timeout_s=20)
        filter_newcomers(port, {"fe80::/64", "0:0:0:1::/64", "0:1::/64", "127.0.0.2"})
        assert connects(port, "::1", "::1", timeout_s=20)


def test_the_largest_filter_is_taken_by_the_kernel(listener: socket.socket) -> None:
    """All places with the longest programs."""
    hosts = {f"2001:db8:0:{number:x}::/64" for number in range(64)} | {f"192.0.2.{number}" for number in range(64)}
    filter_newcomers(listener.getsockname()[1], hosts)
    assert connects(listener.getsockname()[1], "127.0.0.1", timeout_s=20)
    assert len(newcomer_filter(hosts)) <= 4_096


def test_a_port_that_is_not_ours_is_named() -> None:
    """The gate must not believe that it is shut."""
    with pytest.raises(OSError, match="port 1 was found"):
        filter_newcomers(1, {"127.0.0.1"})


def test_a_host_is_shut_out_for_as_long_as_it_spent_too_much(listener: socket.socket) -> None:
    """Its handshakes of the last moment count too, although the gate was not shut yet when they began."""
    gate = Gate(listener.getsockname()[1])
    for _ in range(MAX_BURST - 1):
        gate.pay("127.0.0.2", 0)
    gate.pay("127.0.0.3", 0)
    assert gate.shut == frozenset()
    assert gate.due_ns == NEVER
    for _ in range(HANDSHAKES_PER_S):
        gate.pay("127.0.0.2", 0)
    assert gate.shut == {"127.0.0.2"}
    assert gate.go_on(SECOND) > SECOND, "a second pays for the handshakes beyond, and saves nothing"
    assert gate.shut == {"127.0.0.2"}
    while (due_ns := gate.go_on(gate.due_ns)) != NEVER:
        assert due_ns < 3 * SECOND
    assert gate.shut == frozenset()


def test_many_hosts_cost_bounded_memory_and_those_beyond_stay_in(listener: socket.socket) -> None:
    """Whoever has a /48 has 65,536 hosts: nobody may be shut out, or remembered, without bound."""
    gate = Gate(listener.getsockname()[1])
    for number in range(1_000):
        for _ in range(MAX_NETWORK_BURST + 1):
            gate.pay(f"2001:db8:0:{number:x}::1", 0)
    assert len(gate.shut) == 64
    assert len(gate._hosts) == 256
    while gate.go_on(gate.due_ns) != NEVER:
        pass
    assert gate.shut == frozenset()


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to give loopback addresses of IPv6")
def test_a_host_with_many_addresses_in_a_network_of_ipv6_pays_for_all_of_them() -> None:
    """Each of them had an allowance of its own, so an insider took as much of the node as it liked."""
    own = [f"fd00:0:0:1::{number}" for number in range(1, 5)]
    others = ["fd00:0:0:2::1", "fd00:0:1:1::1"]

    def play() -> None:
        with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
            port = listener.getsockname()[1]
            gate = Gate(port)
            for number in range(MAX_NETWORK_BURST):
                gate.pay(own[number % 2], 0)
            assert gate.shut == {"fd00:0:0:1::/64"}
            for source in own[1:]:  # those that have never come too
                assert not connects(port, source, own[0])
            for source in others:
                assert connects(port, source, own[0], timeout_s=20)
            while gate.go_on(gate.due_ns) != NEVER:
                pass
            assert connects(port, own[3], own[0], timeout_s=20)

    on_own_loopback(play, *own, *others)


def test_a_gate_that_the_system_refuses_stays_open_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """A node without the filter is a node as before."""
    gate = Gate(1)
    for _ in range(3 * MAX_BURST):
        gate.pay("127.0.0.2", 0)
        gate.pay("127.0.0.3", 0)
    assert caplog.text.count("can't be held back") == 1


def test_a_host_that_opens_lane_after_lane_is_held_back_and_a_neighbour_is_heard(
    pki: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An insider had 110 handshakes a second, two thirds of a core, and honest frames waited behind them."""
    for name, value in (("HANDSHAKES_PER_S", 8), ("MAX_BURST", 16)):  # a slow machine may have no 16 a second
        monkeypatch.setattr(f"meshnode.links.nng.gate.{name}", value)
    a, b, honest = end(pki("a"), engine="nng"), end(pki("b"), engine="nng"), end(pki("h"), engine="nng")
    lane = honest.dial(b)
    honest.told.one("lane_opened")

    def is_held_back() -> bool:
        for _ in range(8):
            a.dial(b)
        return b.transport.statistics()["hosts_held_back"] > 0

    eventually(is_held_back, "its host is shut out")
    for number in range(20):
        eventually(lambda number=number: lane.try_send(b"%d" % number), "the lane takes a frame")  # type: ignore[misc]
    eventually(lambda: b"19" in b.told.frames(), "who is connected is heard")
    late = end(pki("late"), engine="nng")
    late.dial(b, timeout_s=60)
    eventually(lambda: late.told.all("lane_opened"), "a newcomer is served when the host is let in again", 60)


def test_hosts_that_take_turns_at_the_gate_leave_no_timers_behind(pki: Any, end: Any) -> None:
    """Each comes and is let in again while another is still shut out. If each left a timer until nobody is shut out,
    hosts that go on so would fill the thread of the links."""
    links = end(pki("b"), engine="nng").transport
    timers: list[int] = []

    def come(host: str, handshakes: int) -> None:
        for _ in range(handshakes):
            links._pay_handshake(host)

    links.post(partial(come, "192.0.2.0", 2_000))
    eventually(lambda: links._gate.shut == {"192.0.2.0"}, "it is shut out for long")
    for number in range(1, 4):
        links.post(partial(come, f"192.0.2.{number}", MAX_BURST + 1))
        eventually(lambda number=number: links._gate.times_shut == number + 1, "another is shut out")  # type: ignore[misc]
        eventually(lambda: links._gate.shut == {"192.0.2.0"}, "it is let in again")
        links.post(lambda: timers.append(len(links._timers)))
        eventually(lambda number=number: len(timers) == number, "timers are counted")  # type: ignore[misc]
    assert timers == [timers[0]] * 3
