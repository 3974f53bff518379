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


def test_program_that_subscribes_again_and_again_takes_no_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches of subscriptions that had ended stayed until they were due. A program that reconnects often, with a
    deadline of hours, filled the table, and others were told of silence where there was none."""
    monkeypatch.setattr(limits, "MAX_DEADLINES", 10)
    bench = Bench(A)
    hourly = Quality(deadline_ns=3_600 * SECOND)
    kept, _ = bench.machine.subscribe("**", hourly, 0)
    bench.accept(A, *(reading(f"veh/a/{key}", "a") for key in "xyz"))
    for _ in range(20):
        number, _ = bench.machine.subscribe("veh/**", hourly, 0)
        bench.machine.unsubscribe(number)
    bench.machine.handle_timer(bench.now)
    assert bench.machine.events() == []
    assert len(bench.machine._deadlines) == 3
    bench.now = 3_600 * SECOND
    bench.machine.handle_timer(bench.now)
    assert [event.subscription for event in bench.machine.events()] == [kept] * 3


@pytest.mark.parametrize("full", [True, False])
def test_deadline_of_a_subscription_and_a_stream_that_both_ended_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """What was forgotten of the stream can't be looked for; whether its place is needed or its time has come."""
    monkeypatch.setattr(limits, "MAX_DEADLINES", 2)
    bench = Bench(A)
    ended, _ = bench.machine.subscribe("**", WATCHED, 0)
    bench.accept(A, reading("veh/a/x", "a"), reading("veh/a/y", "a"))
    bench.machine.forget_origin(A, 0)
    bench.machine.unsubscribe(ended)
    if full:
        kept, _ = bench.machine.subscribe("veh/a/*", WATCHED, 0)
        bench.accept(A, reading("veh/a/x", "a"), reading("veh/a/y", "a"))
    bench.now = SECOND
    bench.machine.handle_timer(bench.now)
    told = [DeadlineMissed(kept, "a", f"veh/a/{key}") for key in "xy"] if full else []
    assert bench.machine.events() == told
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
