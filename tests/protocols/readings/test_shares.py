"""Whoever fills a table of readings pays with its own rows."""

import tracemalloc

import pytest

from protocols.base import limits
from protocols.readings.events import DeadlineMissed
from protocols.readings.quality import Quality
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.readings import Provenance, Reading, Readings, Want
from tests.tools.readings_fixture import ALL, SECOND, A, B, Bench
from tests.tools.strategies import HERE, WHEN, reading

MIB = 1024 * 1024
DEAR = Provenance("😀" * 200, "😀" * 200, 1.0, "😀" * 200, tuple("😀" * 199 + chr(65 + n) for n in range(16)))
"""The context that takes most memory: 16 kB, and 64 bytes of value beside it."""


def from_the_wire(*readings: Reading) -> tuple[Reading, ...]:
    """Readings as a frame brings them, with objects of their own."""
    frame = decode_untrusted_node_frame(encode_frame(Readings(readings)))
    assert type(frame) is Readings
    return frame.readings


def flood(bench: Bench, count: int, pause_ns: int = limits.MS) -> None:
    """B invents keys, at a rate that its allowance permits."""
    for number in range(count):
        bench.now += pause_ns
        bench.accept(B, reading(f"veh/b/{number}", "b"))


# --- streams -------------------------------------------------------------------------------------------------------
def test_streams_of_others_stay_when_one_neighbour_fills_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is forgotten is decided anew with each reading, and its duplicates are delivered."""
    monkeypatch.setattr(limits, "MAX_STREAMS", 100)
    bench = Bench(A, B)
    for number in range(20):
        bench.accept(A, reading(f"veh/a/{number}", "a", 5))
        bench.publish(f"veh/me/{number}")
    flood(bench, 500)
    assert len(bench.machine._table) == 100
    assert bench.machine.subscribe("veh/a/*", ALL, bench.now)[1] == [
        reading(f"veh/a/{number}", "a", 5) for number in range(20)
    ]
    assert len(bench.machine.subscribe("veh/me/*", ALL, bench.now)[1]) == 20
    bench.machine.subscribe("**", ALL, bench.now)
    assert bench.accept(A, reading("veh/a/0", "a", 5)) == []


def test_streams_of_neighbours_that_are_gone_are_one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A road-side unit meets thousands of vehicles, and what they left must not push out those that are here."""
    monkeypatch.setattr(limits, "MAX_STREAMS", 60)
    bench = Bench(A, B)
    for number in range(20):
        bench.accept(A, reading(f"veh/a/{number}", "a"))
    flood(bench, 60)
    bench.machine.remove_peer(B)
    assert bench.machine._table._rows.shares.payers() == ["a", ""]
    for number in range(20, 30):
        bench.accept(A, reading(f"veh/a/{number}", "a"))
    assert bench.machine._table._rows.shares.held(A) == 30
    bench.add(B)
    bench.accept(B, reading("veh/b/59", "b", 9))
    assert bench.machine._table._rows.shares.held(B) == 1


def test_neighbour_that_left_many_streams_keeps_a_share_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving 16,384 rows took 30 ms, and a neighbour may come and go as it likes."""
    monkeypatch.setattr(limits, "MAX_DISOWNED", 10)
    bench = Bench(A, B)
    flood(bench, 11)
    bench.accept(A, reading("veh/a/x", "a"))
    bench.machine.remove_peer(A)
    bench.machine.remove_peer(B)
    assert bench.machine._table._rows.shares.payers() == ["b", ""]


# --- deadlines -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bound", ["MAX_STREAMS", "MAX_DEADLINES"])
def test_deadline_of_a_silent_neighbour_is_missed_whatever_another_invents(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """16,500 keys pushed the watch of an honest stream out, and its alarm never came."""
    monkeypatch.setattr(limits, bound, 50)
    bench = Bench(A, B)
    number, _ = bench.machine.subscribe("**", Quality(deadline_ns=SECOND), 0)
    bench.accept(A, reading("veh/a/hazard", "a"))
    flood(bench, 300)
    bench.now = max(bench.now, SECOND)
    for _ in range(3):
        bench.machine.handle_timer(bench.now)
    assert DeadlineMissed(number, "a", "veh/a/hazard") in bench.machine.events()
    assert len(bench.machine._deadlines) <= max(50, 300 if bound == "MAX_STREAMS" else 0)


def test_deadline_that_gives_way_is_told_as_missed_and_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alarm that ends silently is worse than one that comes too early."""
    monkeypatch.setattr(limits, "MAX_DEADLINES", 3)
    bench = Bench(B)
    number, _ = bench.machine.subscribe("**", Quality(deadline_ns=SECOND), 0)
    flood(bench, 4)
    assert bench.machine.next_timer_at() <= bench.now
    bench.machine.handle_timer(bench.now)
    assert bench.machine.events() == [DeadlineMissed(number, "b", "veh/b/0")]
    bench.accept(B, reading("veh/b/0", "b", 2))
    bench.machine.handle_timer(bench.now)
    assert bench.machine.events() == [DeadlineMissed(number, "b", "veh/b/1")]
    bench.now += 2 * SECOND
    bench.machine.handle_timer(bench.now)
    assert {event.key for event in bench.machine.events()} == {"veh/b/0", "veh/b/2", "veh/b/3"}
    assert bench.machine.next_timer_at() > bench.now


def test_deadlines_that_are_all_due_at_once_are_told_in_slices() -> None:
    """All streams fall silent when the radio does. 16,384 of them take a timer for a long time."""
    bench = Bench(B)
    for _ in range(10):
        bench.machine.subscribe("**", Quality(deadline_ns=10 * SECOND), 0)
    flood(bench, 300)
    bench.now += 10 * SECOND
    told = []
    while bench.machine.next_timer_at() <= bench.now:
        bench.machine.handle_timer(bench.now)
        told.append(len(bench.machine.events()))
    assert sum(told) == 3_000
    assert max(told) == limits.MAX_DEADLINES_AT_ONCE


def test_deadline_watches_of_a_stream_that_comes_and_goes_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each watch that gives way leaves an entry in the queue of what is due."""
    monkeypatch.setattr(limits, "MAX_DEADLINES", 10)
    bench = Bench(B)
    bench.machine.subscribe("**", Quality(deadline_ns=3_600 * SECOND), 0)
    flood(bench, 1_000)
    assert len(bench.machine._deadlines) == 10
    assert len(bench.machine._deadlines._heap) <= 20


# --- last values ---------------------------------------------------------------------------------------------------
def test_last_values_of_others_stay_when_one_neighbour_fills_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late subscribers get what honest neighbours sent last."""
    monkeypatch.setattr(limits, "MAX_CACHE_BYTES", 100_000)
    bench = Bench(A, B)
    bench.accept(A, *(reading(f"veh/a/{number}", "a") for number in range(10)))
    for number in range(100):
        bench.accept(B, reading(f"veh/b/{number}", "b", value=bytes(5_000)))
    kept = bench.machine.subscribe("**", ALL, 0)[1]
    assert [one.key for one in kept[:10]] == [f"veh/a/{number}" for number in range(10)]
    assert kept[-1].key == "veh/b/99"
    assert 11 < len(kept) < 30


def test_last_value_on_a_foreign_stream_is_paid_for_by_who_passed_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a neighbour could fill the share of another one."""
    monkeypatch.setattr(limits, "MAX_CACHE_BYTES", 100_000)
    bench = Bench(A, B)
    bench.machine.subscribe("**", Quality(hops=1), 0)
    for number in range(10):
        bench.accept(A, reading(f"veh/far/{number}", "far"))
        bench.accept(B, reading(f"veh/far/{number}", "far", 2, value=bytes(50_000)))
    bench.accept(A, reading("veh/a/x", "a"))
    assert bench.machine._table.last_values._rows.shares.held(A) < 2_000
    assert [one.key for one in bench.machine.subscribe("veh/a/*", ALL, 0)[1]] == ["veh/a/x"]


@pytest.mark.parametrize(
    ("how", "value"),
    [
        (DEAR, 1),
        (Provenance("s", "1"), 1),
        (Provenance("s", "1"), "😀" * 5_000),
        (Provenance("s", "1"), bytes(5_000)),
        (Provenance("s", "1"), [1.5] * 200),
        (Provenance("s", "1"), [[n + 1_000] for n in range(50)]),
        (Provenance("s", "1"), {f"key {n}": f"value {n}" for n in range(20)}),
        (Provenance("s", "1"), [{}] * 100),
    ],
    ids=["context", "small", "text", "bytes", "floats", "lists", "dict", "empties"],
)
def test_last_values_hold_no_more_memory_than_their_bound(
    monkeypatch: pytest.MonkeyPatch, how: Provenance, value: object
) -> None:
    """335 MB were held where the bound said 16 MiB, because only values were counted. This counts what is allocated."""
    monkeypatch.setattr(limits, "MAX_CACHE_BYTES", MIB // 2)
    monkeypatch.setattr(limits, "MAX_STREAMS", 600)
    bench = Bench(B)
    for number in range(100):
        bench.accept(B, *from_the_wire(Reading(f"veh/b/{number}", "b", 10**15, value, HERE, WHEN, how)))
    tracemalloc.start()
    try:
        for number in range(100, 700):
            bench.now += limits.MS
            bench.accept(B, *from_the_wire(Reading(f"veh/b/{number}", "b", 10**15, value, HERE, WHEN, how)))
        rows_bytes = 1_100 * len(bench.machine._table)
        allocated_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted_bytes = bench.machine._table.last_values.held_bytes
    assert counted_bytes <= MIB // 2
    assert allocated_bytes < 1.1 * counted_bytes + rows_bytes
    assert not bench.dropped()


def test_memory_of_an_own_value_is_that_of_its_kind_even_if_it_takes_as_many_bytes_to_send() -> None:
    """Fifteen numbers and fourteen bytes are sixteen bytes on the wire, and a list is five times as large in memory."""
    bench, alone = Bench(), {}
    values: tuple[object, ...] = (bytes(14), [0] * 15)
    for number, value in enumerate(values):
        single = Bench()
        single.publish(value=value)
        alone[number] = single.machine._table.last_values.held_bytes
    assert alone[1] > alone[0] + 100
    for number in (0, 0, 1, 0, 0, 1, 1):
        bench.publish(value=values[number])
        assert bench.machine._table.last_values.held_bytes == alone[number]


def test_size_of_a_last_value_follows_its_context() -> None:
    """A neighbour may send a short provenance first and a long one next, on each of 16,384 streams."""
    bench = Bench(B)
    bench.accept(B, *from_the_wire(reading("veh/b/x", "b")))
    before_bytes = bench.machine._table.last_values.held_bytes
    bench.accept(B, *from_the_wire(Reading("veh/b/x", "b", 2, 1, HERE, WHEN, DEAR)))
    assert bench.machine._table.last_values.held_bytes > before_bytes + 10_000
    bench.accept(B, *from_the_wire(reading("veh/b/x", "b", 3)))
    assert bench.machine._table.last_values.held_bytes == before_bytes
    bench.wants(B, Want("**"))
