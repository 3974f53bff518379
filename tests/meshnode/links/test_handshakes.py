"""The thread for handshakes: what one host may cost before anybody knows who it is."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.links.express import handshakes
from meshnode.links.express.handshakes import Handshakes
from protocols.base.limits import HANDSHAKES_PER_S, MAX_HANDSHAKE_BURST, SECOND
from tests.tools.eventually import eventually


class _Newcomer:
    """As much of a connection as the thread needs."""

    def __init__(self, host: str, steps: list[str]) -> None:
        self.host, self.owes, self.finished = host, True, False
        self._steps = steps

    def advance(self) -> None:
        self._steps.append(self.host)


class _Bench:
    """The thread, with a clock that stands still: what a busy machine takes buys no handshakes."""

    now_ns = 10 * SECOND

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(handshakes, "time", SimpleNamespace(monotonic_ns=lambda: self.now_ns))
        self.steps: list[str] = []
        self.back: list[Any] = []
        self.handshakes = Handshakes(lambda task: task(), self.back.append)

    def comes(self, host: str) -> Any:
        newcomer: Any = _Newcomer(host, self.steps)
        self.handshakes.take_step(newcomer)
        return newcomer

    def settled(self) -> int:
        """The steps that were taken once the thread has done all that it was given."""
        marks = len(self.back)
        self.comes(f"mark {marks}")
        eventually(lambda: any(one.host == f"mark {marks}" for one in list(self.back)), "the thread is done")
        return sum(not host.startswith("mark") for host in self.steps)


def test_host_that_connects_again_and_again_makes_only_its_own_newcomers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An insider that opened pipe after pipe had 150 handshakes a second, which is a fifth of a core."""
    bench = _Bench(monkeypatch)
    many = [bench.comes("192.0.2.1") for _ in range(MAX_HANDSHAKE_BURST + 3 * HANDSHAKES_PER_S)]
    first = bench.settled()
    assert first == MAX_HANDSHAKE_BURST
    bench.comes("192.0.2.2")
    assert bench.settled() == first + 1, "another host does not wait"
    many[0].owes = False
    bench.handshakes.take_step(many[0])
    assert bench.settled() == first + 2, "a handshake that has begun goes on"
    assert bench.handshakes.due_ns <= bench.now_ns + SECOND // HANDSHAKES_PER_S
    bench.handshakes.go_on(bench.now_ns + SECOND)
    assert bench.settled() == first + 2 + HANDSHAKES_PER_S
    bench.handshakes.close()


def test_addresses_in_one_network_of_ipv6_are_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has one address of a /64 can take any other of it."""
    bench = _Bench(monkeypatch)
    for number in range(2 * MAX_HANDSHAKE_BURST):
        bench.comes(f"2001:db8::{number:x}")
    assert bench.settled() == MAX_HANDSHAKE_BURST
    bench.comes("2001:db8:0:1::1")
    before = bench.settled()
    bench.comes("2001:db8:0:2::1")
    assert bench.settled() == before + 1
    bench.handshakes.close()


def test_newcomer_that_ended_while_it_waited_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline passes while it waits, and its place in the allowance is for the next one."""
    bench = _Bench(monkeypatch)
    many = [bench.comes("192.0.2.1") for _ in range(MAX_HANDSHAKE_BURST + 2 * HANDSHAKES_PER_S)]
    first = bench.settled()
    for newcomer in many:
        newcomer.finished = True
    due_ns = bench.handshakes.go_on(bench.now_ns + 60 * SECOND)
    assert bench.settled() == first
    assert due_ns > bench.now_ns + 3_600 * SECOND
    bench.handshakes.close()


def test_thread_for_handshakes_ends_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed node leaves no thread behind."""
    before = threading.active_count()
    bench = _Bench(monkeypatch)
    assert threading.active_count() == before + 1
    bench.handshakes.close()
    assert threading.active_count() == before
