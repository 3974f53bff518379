"""Deadlines when subscriptions, neighbours and other work change meanwhile: no alarm is lost, late or for nobody."""

import pytest

from protocols.base import limits
from protocols.readings.events import DeadlineMissed
from protocols.readings.quality import Quality
from protocols.wire.readings import Want
from tests.tools.readings_fixture import SECOND, A, B, Bench
from tests.tools.strategies import reading

WATCHED = Quality(deadline_ns=SECOND)


def test_deadline_that_gave_way_is_told_at_once_whatever_is_planned_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Interest that came in between put the alarm off until the next deadline, which may be an hour away."""
    monkeypatch.setattr(limits, "MAX_DEADLINES", 2)
    bench = Bench(A, B)
    number, _ = bench.machine.subscribe("**", Quality(deadline_ns=3_600 * SECOND), 0)
    bench.accept(A, *(reading(f"veh/a/{key}", "a") for key in "xyz"))
    bench.wants(B, Want("**"))
    assert bench.machine.next_timer_at() <= bench.now
    bench.machine.handle_timer(bench.now)
    assert bench.machine.events() == [DeadlineMissed(number, "a", "veh/a/x")]
    assert bench.machine.next_timer_at() > bench.now, "once is enough"


def test_deadline_of_a_subscription_that_ended_gives_way_to_others_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left to tell, and its place is needed."""
    monkeypatch.setattr(limits, "MAX_DEADLINES", 2)
    bench = Bench(A)
    ended, _ = bench.machine.subscribe("**", WATCHED, 0)
    bench.accept(A, reading("veh/a/x", "a"), reading("veh/a/y", "a"))
    bench.machine.unsubscribe(ended)
    kept, _ = bench.machine.subscribe("veh/a/*", WATCHED, 0)
    bench.now = SECOND
    bench.machine.handle_timer(bench.now)
    assert bench.machine.events() == [DeadlineMissed(kept, "a", "veh/a/x"), DeadlineMissed(kept, "a", "veh/a/y")]


def test_deadline_of_a_subscription_that_ended_frees_its_place_when_it_is_due() -> None:
    """A program that subscribes again and again must not fill the table of deadlines."""
    bench = Bench(A)
    bench.accept(A, reading())
    for _ in range(5):
        number, _ = bench.machine.subscribe("**", WATCHED, bench.now)
        bench.machine.unsubscribe(number)
    bench.now = SECOND
    bench.machine.handle_timer(bench.now)
    assert bench.machine.events() == []
    assert len(bench.machine._deadlines) == 0
    assert bench.machine.next_timer_at() > bench.now + 60 * SECOND


def test_deadlines_of_a_neighbour_that_left_many_are_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay in its own share, because moving them would take long; that must not silence them."""
    monkeypatch.setattr(limits, "MAX_DISOWNED", 2)
    bench = Bench(A)
    number, _ = bench.machine.subscribe("**", WATCHED, 0)
    bench.accept(A, *(reading(f"veh/a/{key}", "a") for key in "xyz"))
    bench.machine.remove_peer(A)
    bench.now = SECOND
    bench.machine.handle_timer(bench.now)
    assert bench.machine.events() == [DeadlineMissed(number, "a", f"veh/a/{key}") for key in "xyz"]


def test_deadlines_started_anew_are_bounded_for_each_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many subscriptions, the first readings after a silence start thousands of watches. What one frame may not
    start is dropped, counted, and taken the next time."""
    bench = Bench(A)
    for _ in range(8):
        bench.machine.subscribe("**", WATCHED, 0)
    readings = [reading(f"veh/a/{number}", "a") for number in range(8)]
    bench.accept(A, *readings)
    bench.now = SECOND
    bench.machine.handle_timer(bench.now)
    assert len(bench.machine.events()) == 64
    monkeypatch.setattr(limits, "MATCHING_STEPS_PER_FRAME", 200)
    again = [reading(f"veh/a/{number}", "a", 2) for number in range(8)]
    taken = [bool(bench.accept(A, one)) for one in again]
    assert taken == [True] * 4 + [False] * 4, "each starts eight watches of eight steps"
    assert bench.dropped() == {(A, "over_rate"): 4}
    bench.now += 1
    assert [bool(bench.accept(A, one)) for one in again[4:]] == [True] * 4
    bench.now += SECOND
    bench.machine.handle_timer(bench.now)
    assert len(bench.machine.events()) == 64, "all are watched again"
