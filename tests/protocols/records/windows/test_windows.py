"""Windows against a plain evaluator, and their bounds."""

import math
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.records.rules.sketches import DATA_SKETCHES
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.records.curation import ReadingDerived
from protocols.records.deriving.output import Output
from protocols.records.deriving.sources import Source
from protocols.records.windows.kinds import CountWindow, SessionWindow, TimeWindow, Window
from protocols.records.windows.rule import MAX_STATE_BYTES, WindowRule, by_key, by_origin
from protocols.records.windows.summary import EXACT, Functions
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from tests.protocols.records.windows import evaluator
from tests.protocols.records.windows.evaluator import Came
from tests.tools.strategies import MODEST

UTC_NS = 1_700_000_000 * SECOND
BOOT_NS = 77 * SECOND
"""The clock that never steps shows this when it is ``UTC_NS``."""
HERE = Position(48.7, 11.4, 2.0)
ALL = ("count", "min", "max", "sum", "mean", "first", "last", "distinct", "p50", "p95")


def reading(
    at_ns: int, value: Any = 1.0, key: str = "veh/a/speed", origin: str = "a", sequence: int = 1, unit: str = "m/s",
    where: Position = HERE, lineage: tuple[str, ...] = (),
) -> Reading:  # fmt: skip
    how = Provenance("wheel", unit, lineage=lineage)
    return Reading(key, origin, sequence, value, where, EventTime(UTC_NS + at_ns, 0), how)


def rule(window: Window, functions: Sequence[str] = ("count",), **options: Any) -> WindowRule:
    options.setdefault("source", Source("veh/*/speed", "any"))
    return WindowRule(
        "r", NodeId("me"), window=window, functions=Functions(functions, DATA_SKETCHES),
        output=Output("veh/{node}/r/{partition}", "m/s"), **options,
    )  # fmt: skip


def run(subject: WindowRule, came: Sequence[Came], is_own: bool = False) -> list[ReadingDerived]:
    """All that is derived, with every timer called when it is due."""
    derived: list[Any] = []
    for one in came:
        derived += timers(subject, one.utc_ns - UTC_NS)
        now = MonotonicNs(one.utc_ns - UTC_NS + BOOT_NS)
        derived += subject.receive(one.reading, is_own, now, UtcNs(one.utc_ns))
    return derived + timers(subject, NEVER // 2)


def timers(subject: WindowRule, until_ns: int) -> list[Any]:
    derived: list[Any] = []
    while subject.next_timer_at() <= until_ns + BOOT_NS:
        derived += subject.handle_timer(MonotonicNs(max(0, subject.next_timer_at())))
    return derived


@st.composite
def streams(draw: Any, *, in_order: bool = False) -> list[Came]:
    """Readings of two keys that come early, late, doubled and out of order."""
    came, now_ns = [], 0
    for sequence in range(draw(st.integers(1, 25))):
        now_ns += draw(st.integers(0, 3_000)) * MS
        late_ns = 0 if in_order else draw(st.integers(-2_500, 6_000)) * MS
        key, value = draw(st.sampled_from(["veh/a/speed", "veh/b/speed"])), draw(st.integers(-5, 5))
        # No two readings of one moment: which of them is the last would be left open.
        came.append(Came(reading(now_ns - late_ns + sequence, value, key, key[4], sequence), UTC_NS + now_ns))
    if not in_order:
        for at in draw(st.lists(st.integers(0, len(came) - 1), max_size=3)):
            came.append(Came(came[at].reading, came[-1].utc_ns))
    return came


def assert_equal(derived: Sequence[ReadingDerived], expected: dict[tuple[str, int], list[Reading]]) -> None:
    by_window = {(d.key.removeprefix("veh/me/r/"), d.value["end_ns"]): d for d in derived}
    assert len(by_window) == len(derived)
    assert by_window.keys() == expected.keys()
    for window, readings in expected.items():
        wanted = evaluator.results(readings)
        value = by_window[window].value
        for name in ALL:
            if name in ("first", "last"):
                at_ns = wanted[name]
                assert value[name] == next(r.value for r in readings if r.when.utc_ns == at_ns)
            else:
                assert math.isclose(value[name], wanted[name], abs_tol=1e-9), (name, value, wanted)


@MODEST
@given(
    streams(),
    st.sampled_from([(1_000, 1_000), (4_000, 4_000), (4_000, 1_000), (3_000, 1_500)]),
    st.sampled_from([0, 500, 2_000]),
)
def test_tumbling_and_sliding_windows_are_those_of_the_plain_evaluator(
    came: list[Came], sizes: tuple[int, int], late_ms: int
) -> None:
    """Late, doubled and disordered readings are what radios make of a stream."""
    window = TimeWindow(sizes[0] * MS, sizes[1] * MS, min(late_ms, sizes[0]) * MS)
    subject = rule(window, ALL, partition=by_key, max_partitions=9)
    assert_equal(run(subject, came), evaluator.time_windows(window, came))
    counts = subject.counters()
    assert sum(counts.get(name, 0) for name in ("taken", "late", "future", "doubled")) == len(came)


@MODEST
@given(streams(in_order=True), st.sampled_from([(1_000, 1_000), (1_500, 6_000), (4_000, 5_000)]))
def test_sessions_are_those_of_the_plain_evaluator(came: list[Came], spans: tuple[int, int]) -> None:
    window = SessionWindow(spans[0] * MS, spans[1] * MS, 0)
    assert_equal(run(rule(window, ALL, partition=by_key, max_partitions=9), came), evaluator.sessions(window, came))


@MODEST
@given(st.permutations(range(8)))
def test_sessions_are_the_same_in_whatever_order_their_readings_come(order: list[int]) -> None:
    """A late reading joins what a gap had divided."""
    window = SessionWindow(2 * SECOND, 60 * SECOND, 60 * SECOND)
    seconds = (0, 1, 2, 7, 8, 9, 10, 20)
    came = [Came(reading(seconds[at] * SECOND, at, sequence=at), UTC_NS + 25 * SECOND) for at in order]
    derived = run(rule(window), came)
    assert sorted((d.value["start_ns"] - UTC_NS) // SECOND for d in derived) == [0, 7, 20]
    assert sorted(d.value["count"] for d in derived) == [1, 3, 4]


@MODEST
@given(st.lists(st.integers(-5, 5), max_size=30), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2)]))
def test_windows_of_counts_are_the_last_readings(values: list[int], sizes: tuple[int, int]) -> None:
    size, every = sizes
    came = [Came(reading(number, value, sequence=number), UTC_NS + number) for number, value in enumerate(values)]
    derived = run(rule(CountWindow(size, every), ("count", "sum")), came)
    expected = [
        (size, sum(values[end - size : end])) for end in range(every, len(values) + 1, every) if end >= size
    ]  # fmt: skip
    assert [(d.value["count"], d.value["sum"]) for d in derived] == expected


def test_summary_has_the_context_of_all_its_readings() -> None:
    """Where, when and how stand beside each value, of derived ones too."""
    came = [
        Came(reading(0, 1.0, where=Position(48.70, 11.40, 2.0), lineage=("x",)), UTC_NS),
        Came(reading(SECOND, 3.0, sequence=2, where=Position(48.72, 11.42, 5.0), lineage=("y",)), UTC_NS + SECOND),
    ]
    (derived,) = run(rule(TimeWindow(10 * SECOND, 10 * SECOND), ("mean",)), came, is_own=True)
    assert derived.value == {"start_ns": UTC_NS, "end_ns": UTC_NS + 10 * SECOND, "mean": 2.0}
    assert derived.when == EventTime(UTC_NS + 5 * SECOND, 5 * SECOND)
    assert (derived.where.latitude_deg, derived.where.longitude_deg) == pytest.approx((48.71, 11.41))
    assert derived.where.accuracy_m == pytest.approx(1_330 + 5, abs=10)  # 1,111 m north, 735 m east, both halved
    assert (derived.how.unit, derived.how.lineage, derived.how.sensor) == ("m/s", ("x", "y"), "rule r")


def test_readings_that_do_not_fit_are_left_out_and_counted() -> None:
    came = [
        Came(one, UTC_NS + 20 * SECOND)
        for one in (
            reading(20 * SECOND, 1.0),
            reading(20 * SECOND, 1.0, sequence=2, unit="km/h"),
            reading(20 * SECOND, "fast", sequence=3),
            reading(20 * SECOND, math.nan, sequence=4),
            reading(3_600 * SECOND, 1.0, sequence=5),
            reading(0, 1.0, sequence=6),
            reading(20 * SECOND, 1.0, sequence=7, lineage=tuple("abcdefghijklmnop")),
        )
    ]
    subject = rule(TimeWindow(SECOND, SECOND), ("mean",), source=Source("**", "any", "m/s"))
    (derived,) = run(subject, came, is_own=True)
    assert derived.value["mean"] == 1.0
    assert subject.counters() == {
        "taken": 1, "unit_mismatch": 1, "unfit": 3, "future": 1, "late": 1, "derived": 1,
    }  # fmt: skip


def test_neighbour_that_invents_keys_pushes_out_its_own_windows_first() -> None:
    honest = [Came(reading(0, 1.0, "veh/b/speed", "b"), UTC_NS)]
    flood = [Came(reading(n, 1.0, f"veh/x{n}/speed", "x", n), UTC_NS + n) for n in range(1, 500)]
    window = TimeWindow(SECOND, SECOND)
    subject = rule(window, ("count",), partition=by_key, max_partitions=10)
    derived = run(subject, honest + flood)
    assert "veh/me/r/veh/b/speed" in {one.key for one in derived}
    assert len(derived) == 10 * window.max_open
    assert subject.counters()["evicted"] == 500 - len(derived)


@pytest.mark.parametrize("functions", [("count", "mean"), ("first", "last"), ("p95",), ("distinct",)])
def test_state_stays_below_its_bound(functions: tuple[str, ...]) -> None:
    """The bound that a rule is compiled with is a promise to a computer with little memory."""
    window = TimeWindow(SECOND, SECOND, 0)
    partitions = 2_000 if functions[0] in ("count", "first") else 6
    each = 1 if partitions == 2_000 else 3 * EXACT
    subject = rule(window, functions, partition=by_origin, max_partitions=partitions)
    fixed = rule(window, functions, partition=by_origin, max_partitions=1)
    DATA_SKETCHES.percentiles()  # the import is no state
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(each):
            for origin in range(partitions):
                at_ns, text = number * 1_000, f"{origin:09d}"
                value = (origin + number) / 7 if functions[0] != "first" else f"{origin:0200d}"
                one = reading(at_ns, value, f"veh/{text}/speed", text, number)
                subject.receive(one, False, MonotonicNs(at_ns), UtcNs(UTC_NS + at_ns))
        peak = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert subject.counters()["taken"] == each * partitions
    streams_bytes = 1_300 * partitions  # the table of what was seen, which all rules bound alike
    assert peak < subject.max_state_bytes + streams_bytes
    assert subject.max_state_bytes == partitions * fixed.max_state_bytes <= MAX_STATE_BYTES


def test_percentiles_and_distinct_values_of_many_are_within_the_stated_error() -> None:
    """Exact to 1,024 values; the sketches state 1.65 % of the rank, and 3 % of the number (three sigma)."""
    for number in (EXACT, 20_000):
        came = [Came(reading(n, (n * 7_919) % number, sequence=n), UTC_NS) for n in range(number)]
        (derived,) = run(rule(TimeWindow(SECOND, SECOND), ("p50", "p95", "distinct")), came)
        error = 0.0 if number == EXACT else 0.0165
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            rank = (derived.value[name] + 1) / number
            assert abs(rank - share) <= error + 1 / number
        assert abs(derived.value["distinct"] - number) <= (0 if number == EXACT else 0.03 * number)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeWindow(5 * SECOND, 2 * SECOND), "multiple of the step"),
        (lambda: TimeWindow(0, 0), "size is 0 s"),
        (lambda: TimeWindow(SECOND, SECOND, 2 * SECOND), "late is 2 s: use 0 s to 1 s"),
        (lambda: SessionWindow(2 * SECOND, SECOND), "shorter than gap"),
        (lambda: CountWindow(3, 2), "multiple"),
        (lambda: CountWindow(0, 0), "use 1 to"),
        (lambda: Functions(("median",), DATA_SKETCHES), "'median' is not a function"),
        (lambda: Functions((), DATA_SKETCHES), "at least one"),
        (lambda: rule(TimeWindow(SECOND, SECOND), ("p95",), partition=by_key, max_partitions=99_999), "MiB"),
        (lambda: rule(TimeWindow(SECOND, SECOND), max_partitions=0), "max_partitions is 0"),
        (lambda: Output("veh/{nod}", "1"), "{nod} stands for nothing"),
        (lambda: Output("veh//x", "1"), "empty chunk"),
    ],
)
def test_rule_that_can_not_work_is_refused_and_says_why(make: Callable[[], object], message: str) -> None:
    with pytest.raises(LocalProtocolError, match=message.replace("{", r"\{")):
        make()


def test_many_windows_that_end_together_are_derived_in_slices() -> None:
    """Nobody waits for a hundred thousand of them."""
    subject = rule(TimeWindow(SECOND, SECOND), partition=by_origin, max_partitions=1_000)
    for number in range(300):
        subject.receive(reading(0, 1.0, origin=f"n{number}"), False, MonotonicNs(0), UtcNs(UTC_NS))
    sizes = []
    while subject.next_timer_at() < NEVER:
        sizes.append(len(subject.handle_timer(MonotonicNs(3 * SECOND))))
    assert Counter(sizes)[128] == 2
    assert sum(sizes) == 300


# --- what a reviewer found -------------------------------------------------------------------------------------------
def test_lineage_that_a_neighbour_claims_silences_nobody() -> None:
    """A rule is not shown what has its own name in its lineage: one reading with that name silenced it for all."""
    claimed = tuple(f"rule-{number}" for number in range(15))
    came = [Came(reading(0, 1.0, lineage=claimed), UTC_NS)]
    came += [Came(reading(n, 2.0, origin="b", sequence=n, lineage=("x",)), UTC_NS + n) for n in range(1, 4)]
    subject = rule(TimeWindow(SECOND, SECOND), ("count",))
    (derived,) = run(subject, came)
    assert (derived.value["count"], derived.how.lineage) == (4, ())


def test_clock_that_was_a_year_ahead_for_a_while_closes_no_window_of_today() -> None:
    year_ns = 365 * 86_400 * SECOND
    subject = rule(TimeWindow(SECOND, SECOND), ("count",))
    ahead = [Came(reading(year_ns + n * SECOND, 1.0, sequence=n), UTC_NS + n * SECOND) for n in range(3)]
    derived: list[Any] = []
    for one in ahead:
        now = MonotonicNs(one.utc_ns - UTC_NS + BOOT_NS)
        derived += subject.receive(one.reading, True, now, UtcNs(one.utc_ns + year_ns))
        derived += timers(subject, one.utc_ns - UTC_NS + 5 * SECOND)
    assert len(derived) == 3
    back = [Came(reading(n * SECOND, 1.0, sequence=10 + n), UTC_NS + n * SECOND) for n in range(10, 13)]
    assert len(run(subject, back, is_own=True)) == 3
    assert "late" not in subject.counters()


def test_neighbour_whose_readings_go_back_in_time_fills_no_memory_with_sessions_that_gave_way() -> None:
    subject = rule(SessionWindow(3_600 * SECOND, 3_600 * SECOND), ("count", "p50"), partition=by_key, max_partitions=10)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20_000):
            one = reading(-number, 1.0, f"veh/{number}/speed", "e", number + 1)
            subject.receive(one, False, MonotonicNs(BOOT_NS), UtcNs(UTC_NS))
        assert tracemalloc.get_traced_memory()[0] - before < subject.max_state_bytes
    finally:
        tracemalloc.stop()


def test_windows_that_nobody_saves_leave_no_notes_behind() -> None:
    """A node whose disk failed noted every row that ever changed."""
    subject = rule(TimeWindow(SECOND, SECOND), ("count",), partition=by_key, max_partitions=9)
    for number in range(50):
        run(subject, [Came(reading(number * SECOND, 1.0, sequence=number), UTC_NS + number * SECOND)])
    assert not subject.has_changed
    subject.receive(reading(60 * SECOND, 1.0, sequence=60), False, MonotonicNs(BOOT_NS), UtcNs(UTC_NS + 60 * SECOND))
    subject.track(True)
    assert len(subject.changed(10)) == 1
    subject.track(False)
    assert not subject.has_changed


@pytest.mark.parametrize("share", [7, 14, 28, 55, 56, 68, 81])
def test_percentile_is_the_nearest_rank_also_where_its_share_is_no_number_of_a_computer(share: int) -> None:
    came = [Came(reading(n, n, sequence=n), UTC_NS) for n in range(1, 101)]
    (derived,) = run(rule(TimeWindow(SECOND, SECOND), (f"p{share}",)), came)
    assert derived.value[f"p{share}"] == share


def test_mean_of_equal_numbers_is_that_number_and_huge_ones_are_left_out() -> None:
    came = [Came(reading(n, 13.9 * 3.6, sequence=n), UTC_NS) for n in range(1, 26)]
    came += [Came(reading(n, 1.7e308, sequence=n), UTC_NS) for n in (30, 31)]
    subject = rule(TimeWindow(SECOND, SECOND), ("mean", "min", "max", "sum"))
    (derived,) = run(subject, came)
    assert derived.value["min"] <= derived.value["mean"] <= derived.value["max"]
    assert derived.value["sum"] == math.fsum([13.9 * 3.6] * 25)
    assert subject.counters()["unfit"] == 2
