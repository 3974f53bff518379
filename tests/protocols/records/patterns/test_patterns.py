"""What all patterns promise: bounds on what they hold, refusals, and what they never see."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import MAX_LINEAGE, MS, SECOND
from protocols.records.curation import Curator, Pattern, ReadingDerived
from protocols.records.deriving.sources import ExpressionFailed, Source
from protocols.records.patterns.absence import AbsenceRule
from protocols.records.patterns.base import PatternRule
from protocols.records.patterns.join import JoinRule
from protocols.records.patterns.nearness import Nearness
from protocols.records.patterns.repetition import RepetitionRule
from protocols.records.patterns.sequence import SequenceRule
from protocols.records.windows.rule import MAX_STATE_BYTES, MIB, by_key, by_origin
from protocols.wire.readings import Reading
from tests.protocols.records.patterns.streams import (
    BOOT_NS,
    KEYS,
    ME,
    OUTPUT,
    UTC_NS,
    came,
    is_first,
    is_then,
    named,
    reading,
    run,
)

ANY_FIRST = Source("**", "any", where=is_first)
ANY_THEN = Source("**", "any", where=is_then)
NEAR = Nearness(10 * SECOND)
Make = Callable[..., Any]


def sequence(nearness: Nearness = NEAR, **options: Any) -> SequenceRule:
    return SequenceRule("p", ME, ANY_FIRST, ANY_THEN, nearness, OUTPUT, **options)


def absence(nearness: Nearness = NEAR, **options: Any) -> AbsenceRule:
    return AbsenceRule("p", ME, ANY_FIRST, ANY_THEN, nearness, OUTPUT, **options)


def repetition(nearness: Nearness = NEAR, times: int = 2, **options: Any) -> RepetitionRule:
    return RepetitionRule("p", ME, Source("**", "any"), times, nearness, OUTPUT, **options)


def join(nearness: Nearness = NEAR, **options: Any) -> JoinRule:
    return JoinRule("p", ME, ANY_FIRST, ANY_THEN, nearness, OUTPUT, **options)


ALL: list[Make] = [sequence, absence, repetition, join]
PAIRS: list[Make] = [sequence, repetition, join]
"""Patterns that derive something when a second reading comes."""


def give(subject: Pattern, one: Reading, at_ms: int | None = None) -> list[Any]:
    at_ns = one.when.utc_ns if at_ms is None else UTC_NS + at_ms * MS
    return list(subject.receive(one, False, MonotonicNs(at_ns - UTC_NS + BOOT_NS), UtcNs(at_ns)))


# --- bounds ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", ALL)
def test_neighbour_that_invents_keys_pushes_out_its_own_readings_first(make: Make) -> None:
    """What an honest neighbour sensed is still there when what belongs to it comes."""
    subject = make(partition=by_key, max_partitions=100, max_held=6)
    give(subject, reading(0, 0, "veh/b/x", "b"))
    for number in range(1, 2_000):
        give(subject, reading(number, 0, f"veh/x{number}/x", "x", number))
    derived = [] if make is absence else give(subject, reading(2_000, 1, "veh/b/x", "b", 2))
    derived += [one for one, _ in run(subject, [])]
    assert "veh/me/p/veh/b/x" in {one.key for one in derived}
    assert subject.counters()["evicted"] > 1_000


@pytest.mark.parametrize("make", PAIRS)
def test_neighbour_that_floods_a_partition_pushes_out_its_own_readings_first(make: Make) -> None:
    """In one partition for all, everybody's readings lie side by side."""
    subject = make(max_held=4, times=3, distinct_origins=True) if make is repetition else make(max_held=4)
    give(subject, reading(0, 0, origin="b"))
    for number in range(1, 100):
        give(subject, reading(number, 0, origin="x", sequence=number))
    derived = [one for number in range(4) for one in give(subject, reading(200, 1, origin="c", sequence=number))]
    derived += [one for one, _ in run(subject, [])]
    used = [named(one) for d in derived for one in d.value.get("readings", [d.value.get("first", d.value.get("left"))])]
    assert ("b", KEYS[0], 1) in used
    assert subject.counters()["evicted"] >= 95


@pytest.mark.parametrize("make", PAIRS)
def test_readings_that_are_over_are_forgotten(make: Make) -> None:
    """What can't be completed any more must not push out what can."""
    options: dict[str, Any] = {"times": 16} if make is repetition else {}
    subject = make(Nearness(SECOND, 0), partition=by_origin, **options)
    for number in range(300):
        give(subject, reading(number * 100, number % 2, origin=f"n{number}"))
        subject.handle_timer(MonotonicNs(number * 100 * MS + BOOT_NS))
    stores = [store for store in vars(subject).values() if hasattr(store, "forget_due")]
    assert sum(map(len, stores)) <= 25
    assert "evicted" not in subject.counters()


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("text", ["x", "x" * 150])
def test_state_stays_below_its_bound(make: Make, text: str) -> None:
    """The bound that a rule is compiled with is a promise to a computer with little memory."""
    partitions = 1_000
    options: dict[str, Any] = {"times": 3, "max_held": 2} if make is repetition else {"max_held": 1}
    subject = make(partition=by_key, max_partitions=partitions, **options)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(3 * partitions):
            at_ms, name = number // 100, f"{text}{number:09d}"
            one = reading(at_ms, number // partitions % 2, f"veh/{name}/x", f"n{number:09d}"[:64], number)
            give(subject, one, 40)
        peak = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert subject.counters()["taken"] == 3 * partitions
    streams_bytes = 1_500 * 3 * partitions  # the table of what was seen, which all rules bound alike
    assert peak < subject.max_state_bytes + streams_bytes
    assert subject.max_state_bytes <= MAX_STATE_BYTES


def test_heap_of_what_is_due_does_not_grow_with_what_is_over() -> None:
    """Sequences that complete at once leave nothing behind, however long their span is."""
    subject = sequence(Nearness(3_600 * SECOND), partition=by_key)
    give(subject, reading(0, 0, "veh/waits/x"))
    for number in range(5_000):
        give(subject, reading(number, number % 2, sequence=number))
    assert subject.counters()["derived"] == 2_500
    assert len(subject._firsts) == 1
    assert len(subject._firsts._deadlines._heap) <= 68


# --- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Nearness(0), "the span is 0 s: use 0.01 s"),
        (lambda: Nearness(30 * 86_400 * SECOND), "the span is"),
        (lambda: Nearness(SECOND, -1), "late is"),
        (lambda: Nearness(SECOND, 7_200 * SECOND), "late is 7200 s: use 0 s to 3600 s"),
        (lambda: Nearness(SECOND, within_m=0.0), "within_m is 0"),
        (lambda: Nearness(SECOND, within_m=float("nan")), "within_m is nan"),
        (lambda: Nearness(SECOND, within_m=float("inf")), "within_m is inf"),
        (lambda: absence(Nearness(SECOND, within_m=5.0)), "has no distance"),
        (lambda: repetition(times=1), "1 readings: use 2 to 16"),
        (lambda: repetition(times=17), "17 readings"),
        (lambda: repetition(times=8, max_held=6), "max_held to be 7 at least"),
        (lambda: sequence(max_held=0), "max_held is 0"),
        (lambda: sequence(max_held=2_000), "max_held is 2000: use 1 to 1024"),
        (lambda: join(max_partitions=0), "max_partitions is 0"),
        (lambda: join(partition=by_key, max_partitions=100_001), "use 1 to 100000"),
        (lambda: sequence(partition=by_key, max_partitions=99_999), "rule may have 256: allow fewer partitions"),
        (lambda: absence(Nearness(10 * MS, 3_600 * SECOND), partition=by_key), "MiB"),
    ],
)
def test_rule_that_can_not_work_is_refused_and_says_why(build: Callable[[], object], message: str) -> None:
    with pytest.raises(LocalProtocolError, match=message):
        build()


def test_hundred_thousand_partitions_with_one_reading_each_are_within_the_bound() -> None:
    """One partition for all counts as one, whatever the number says."""
    assert repetition(partition=by_key, max_partitions=100_000, max_held=1).max_state_bytes <= MAX_STATE_BYTES
    assert repetition(max_partitions=100_000, max_held=1).max_state_bytes == MIB


# --- what is taken ---------------------------------------------------------------------------------------------------
def test_readings_that_do_not_fit_are_left_out_and_counted() -> None:
    def partition(one: Reading) -> object:
        if one.value == "nowhere":
            raise ExpressionFailed("no cell")
        return 7

    subject = RepetitionRule("p", ME, Source("**", "any", "m/s"), 2, NEAR, OUTPUT, partition=partition)
    stream = [
        came(reading(0, "x" * 20_000, sequence=1)),
        came(reading(0, ["x" * 20_000], sequence=2)),
        came(reading(0, {1, 2}, sequence=3)),
        came(reading(0, 1, sequence=4, lineage=tuple("abcdefghijklmnop"))),
        came(reading(0, "nowhere", sequence=5)),
        came(reading(0, 1, sequence=6), 11_000),
        came(reading(0, 1, sequence=6), 11_000),
        came(reading(60_000, 1, sequence=7), 11_000),
        came(reading(10_000, "x" * 10_000, sequence=8), 11_000),
        came(reading(10_000, 1, sequence=9), 11_000),
    ]
    ((derived, _),) = run(subject, stream, is_own=True)
    assert [one["sequence"] for one in derived.value["readings"]] == [8, 9]
    assert derived.key == "veh/me/p/7"
    assert subject.counters() == {
        "unfit": 4, "failed": 1, "late": 1, "doubled": 1, "future": 1, "taken": 2, "derived": 1,
    }  # fmt: skip


def test_expressions_are_those_of_sources_that_take_readings_of_neighbours() -> None:
    """Each costs every neighbour some matching."""
    own, others = Source("veh/a/x"), Source("rsu/**", "any")
    subject = SequenceRule("p", ME, own, others, NEAR, OUTPUT)
    assert subject.expressions == ("rsu/**",)
    assert subject.considers("veh/a/x", True)
    assert not subject.considers("veh/a/x", False)
    assert subject.considers("rsu/1/light", False)
    assert sequence().expressions == ("**",)


# --- lineage ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", ALL)
def test_pattern_never_sees_what_it_derived(make: Make) -> None:
    """It would feed itself for ever; and what a neighbour derived by the same rule would come back as well."""
    subject: PatternRule = make()
    curator = Curator([], [subject])
    now, utc_now = MonotonicNs(BOOT_NS), UtcNs(UTC_NS)
    derived: list[Any] = []
    for number in (0, 1):
        if make is not absence or number == 0:
            derived += curator.receive(reading(0 + number, number, sequence=number), True, now, utc_now)
    while curator.next_timer_at() < 10**18:
        derived += curator.handle_timer(MonotonicNs(curator.next_timer_at()))
    (one,) = derived
    assert isinstance(one, ReadingDerived)
    assert one.how.lineage == ("p",)
    taken = subject.counters()["taken"]
    for number in range(5):
        again = Reading(one.key, "me", number, 0, one.where, one.when, one.how)
        outcome = curator.receive(again, number % 2 == 0, now, utc_now)
        assert not [output for output in outcome if isinstance(output, ReadingDerived)]
    assert subject.counters()["taken"] == taken


@pytest.mark.parametrize("make", PAIRS)
def test_readings_whose_lineages_do_not_fit_together_are_not_put_together(make: Make) -> None:
    """A lineage that lost steps would let a pattern see what it derived; so it must not lose any."""
    subject = make()
    steps = tuple(f"s{number}" for number in range(MAX_LINEAGE - 1))
    full = reading(0, 0, lineage=steps)
    stream = [came(full), came(reading(10, 1, sequence=2, lineage=("other",))), came(reading(20, 1, sequence=3))]
    ((derived, _),) = run(subject, stream)
    assert set(derived.how.lineage) <= set(steps) or derived.how.lineage == ("other",)


def test_repetition_whose_lineages_do_not_fit_together_is_not_derived_and_is_counted() -> None:
    """Each two of them would."""
    subject = repetition(times=3)
    steps = [tuple(f"{name}{number}" for number in range(6)) for name in "xyz"]
    assert run(subject, [came(reading(at, sequence=at, lineage=steps[at])) for at in range(3)], is_own=True) == []
    assert subject.counters() == {"taken": 3, "lineage_full": 1}


def test_repetition_of_what_neighbours_sensed_takes_no_lineage_from_them() -> None:
    """One of them could claim that it comes from a rule, which would not be shown what is derived for all."""
    stream = [came(reading(at, sequence=at, origin=f"n{at}", lineage=("alarm",) * at)) for at in range(2)]
    ((derived, _),) = run(repetition(times=2), stream)
    assert derived.how.lineage == ()
