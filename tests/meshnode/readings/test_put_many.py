"""Readings published together: nobody but a clock can tell them from as many published one by one."""

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base import limits
from protocols.base.errors import ContextMissing, NotPermitted, ValueUnsupported
from protocols.readings.events import Delivery, PutMany
from protocols.readings.publication import checked_publication
from protocols.readings.quality import Quality
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.parcels import encode_alone, frame_of_alone
from protocols.wire.readings import EventTime, Reading, Readings, Want
from protocols.wire.tensors import Tensor
from tests.tools.readings_fixture import ME, MS, A, B, Bench
from tests.tools.strategies import HERE, HOW, MODEST, NOW_UTC_NS

KEY = "veh/me/x"
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.integers(0, 3), max_size=3),
    st.just(array("f", [1.0, 2.0])),
    st.integers(limits.BULK_THRESHOLD_BYTES // 40, limits.BULK_THRESHOLD_BYTES * 2).map(bytes),
)
WANT = st.builds(Want, st.just("veh/**"), st.sampled_from([0, 1_000]), st.booleans(), st.booleans())
WANTS = st.lists(WANT, min_size=1, max_size=2)
QUALITIES = st.builds(Quality, min_interval_ns=st.sampled_from([0, MS]))


def put_many(bench: Bench, values: list[Any], **more: Any) -> tuple[PutMany, list[Delivery]]:
    whens = [EventTime(NOW_UTC_NS + number, 0) for number in range(len(values))]
    context = {"where": HERE, "whens": whens, "how": HOW, **more}
    where, whens = context.pop("where"), context.pop("whens")
    return bench.machine.publish_many(checked_publication(KEY, **context), values, where, whens, bench.now, bench.utc)


def shown(reading: Reading) -> Any:
    value = reading.value
    plain = (value.dtype, value.shape, bytes(value.data)) if type(value) is Tensor else value
    return reading.sequence, reading.when, type(value), plain


@MODEST
@given(st.lists(VALUES, min_size=1, max_size=150), st.lists(WANTS, max_size=2), st.lists(QUALITIES, max_size=2))
def test_put_many_equals_as_many_puts(values: list[Any], wants: list[list[Want]], qualities: list[Quality]) -> None:
    """Gathering is a matter of cost: what is sent, kept, delivered and counted may not depend on it."""
    together, one_by_one = Bench(A, B), Bench(A, B)
    for bench in (together, one_by_one):
        for quality in qualities:
            bench.machine.subscribe("veh/**", quality, bench.now)
        for node, wanted in zip((A, B), wants, strict=False):
            bench.wants(node, *wanted)
    put, deliveries = put_many(together, values)
    puts = [one_by_one.publish(KEY, value, when=EventTime(NOW_UTC_NS + at, 0)) for at, value in enumerate(values)]
    assert (put.first_sequence, put.count) == (puts[0][0].sequence, len(values))
    assert put.queued == sum(single.queued for single, _ in puts)
    assert put.dropped == sum(single.dropped for single, _ in puts)
    expected = [delivery for _, delivery in puts if delivery is not None]
    assert [(numbers, shown(reading)) for numbers, reading in deliveries] == [
        (numbers, shown(reading)) for numbers, reading in expected
    ]
    assert together.dropped() == one_by_one.dropped()
    for node in (A, B):
        for bulk in (False, True):
            ours, theirs = together.sent(node, bulk), one_by_one.sent(node, bulk)
            assert [shown(reading) for reading in ours] == [shown(reading) for reading in theirs]
    latest = [bench.machine.subscribe("veh/**", Quality(), bench.now)[1] for bench in (together, one_by_one)]
    assert [shown(reading) for reading in latest[0]] == [shown(reading) for reading in latest[1]]


def test_put_many_travels_in_full_frames() -> None:
    """A frame for each reading would cost what gathering is to save."""
    bench = Bench(A)
    bench.wants(A, Want("veh/**"))
    put_many(bench, [float(number) for number in range(130)])
    counts = []
    while (frame := bench.peers[A].realtime.take(bench.now)) is not None:
        decoded = decode_untrusted_node_frame(frame)
        assert type(decoded) is Readings
        counts.append(len(decoded.readings))
    assert counts == [64, 64, 2]


def test_put_many_behind_and_before_single_readings_keeps_the_order() -> None:
    """Within a priority the oldest goes first, however it was published."""
    bench = Bench(A)
    bench.wants(A, Want("veh/**"))
    bench.publish(KEY, "first")
    put_many(bench, [1, 2, 3])
    bench.publish(KEY, "last")
    assert [reading.value for reading in bench.sent(A)] == ["first", 1, 2, 3, "last"]


def test_put_many_to_a_full_queue_is_counted_by_readings() -> None:
    """A drop counter that counts frames would hide sixty-three of sixty-four lost readings."""
    bench = Bench(A)
    bench.wants(A, Want("veh/**"))
    for _ in range(limits.MAX_QUEUE_READINGS // 64 + 1):
        put, _ = put_many(bench, [1.0] * 64)
        assert (put.queued, put.dropped) == (64, 0)
    assert bench.peers[A].realtime.waiting_readings == limits.MAX_QUEUE_READINGS
    assert bench.dropped() == {(A, "queue_full"): 64}
    urgent = [bench.publish(KEY, 1, priority=7)[0].queued for _ in range(limits.MAX_QUEUE_READINGS)]
    assert all(urgent)
    late, _ = put_many(bench, [1.0] * 64)
    assert (late.queued, late.dropped) == (0, 64)


def test_put_many_that_can_not_have_places_evicts_nothing() -> None:
    """Sixty-four that are refused anyway must not cost eight others their places."""
    bench = Bench(A)
    bench.wants(A, Want("veh/**"))
    for number in range(limits.MAX_QUEUE_READINGS):
        bench.publish(KEY, 1, priority=0 if number < 8 else 7)
    put, _ = put_many(bench, [1.0] * 64)
    assert (put.queued, put.dropped) == (0, 64)
    assert bench.dropped() == {(A, "queue_full"): 64}
    assert bench.peers[A].realtime.waiting_readings == limits.MAX_QUEUE_READINGS


def test_put_many_of_large_texts_takes_what_single_puts_take() -> None:
    """Together they would be larger than any frame, each by itself is not."""
    bench = Bench(A)
    bench.wants(A, Want("veh/**"))
    put, _ = put_many(bench, ["x" * 300_000] * 64)
    assert put.queued == 64
    assert [len(str(reading.value)) for reading in bench.sent(A, bulk=True)] == [300_000] * 64


def test_put_many_expired_in_the_queue_is_counted_by_readings() -> None:
    """Stale readings are not sent, and not forgotten either."""
    bench = Bench(A)
    bench.wants(A, Want("veh/**"))
    put_many(bench, [1.0] * 10, lifespan_ms=5)
    bench.now += 6 * MS
    assert bench.sent(A) == []
    assert bench.dropped() == {(A, "expired_in_queue"): 10}


def test_put_many_to_a_neighbour_that_goes_is_counted_by_readings() -> None:
    """The counters have to add up when a neighbour leaves with readings under way."""
    bench = Bench(A)
    bench.wants(A, Want("veh/**"))
    put_many(bench, [1.0] * 10)
    bench.peers[A].realtime.clear("neighbour_gone")
    assert bench.dropped() == {(A, "neighbour_gone"): 10}
    assert bench.peers[A].realtime.waiting_readings == 0


@pytest.mark.parametrize(
    ("values", "more", "error"),
    [
        ([], {}, ValueUnsupported),
        ([1, 2], {"whens": [EventTime(1, 0)]}, ValueUnsupported),
        ([1, 2], {"whens": [EventTime(1, 0), EventTime(-1, 0)]}, ValueUnsupported),
        ([1, 2**64], {}, ValueUnsupported),
        ([1], {"where": None}, ContextMissing),
        ([1], {"priority": 8}, ValueUnsupported),
    ],
)
def test_put_many_with_one_bad_value_publishes_nothing(values: list[Any], more: dict[str, Any], error: type) -> None:
    """Half of a list published leaves its caller with no good next step."""
    bench = Bench(A)
    bench.wants(A, Want("veh/**"))
    with pytest.raises(error):
        put_many(bench, values, **more)
    assert bench.sent(A) == []
    assert bench.publish(KEY)[0].sequence == 1
    assert bench.machine.subscribe("veh/**", Quality(), 0)[1][0].origin == ME


def test_put_many_on_a_foreign_key_is_refused() -> None:
    """The access table holds for lists too."""
    with pytest.raises(NotPermitted):
        Bench().machine.publish_many(checked_publication("veh/other/x", HOW), [1], HERE, [EventTime(1, 0)], 0, 1)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 64])
def test_frame_of_readings_encoded_alone_is_the_frame_of_all(count: int) -> None:
    """A reading is encoded once and put together in bytes: a second implementation sees ordinary frames."""
    readings = [Reading(KEY, ME, number, 1.5, HERE, EventTime(1, 0), HOW) for number in range(count)]
    assert frame_of_alone([encode_alone(one) for one in readings]) == encode_frame(Readings(tuple(readings)))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 6, 9, 11, 230, 245, 250, 256, 65_500, 65_536, 70_000])
@pytest.mark.parametrize("code", ["B", "f"])
def test_tensor_reading_put_together_is_what_the_encoder_makes(size: int, code: str) -> None:
    """Large arrays are copied once by writing MessagePack by hand: it must be the shortest form, byte for byte."""
    value = array(code, [1]) * size
    view = memoryview(value)
    shape, dtype = (size,), {"B": "u1", "f": "f4"}[code]
    one = Reading(KEY, ME, 7, Tensor(dtype, shape, view.cast("B")), HERE, EventTime(1, 0), HOW)  # type: ignore[arg-type]
    assert encode_alone(one) == encode_frame(Readings((one,)))
    assert encode_alone(Reading(KEY, ME, 7, value, HERE, EventTime(1, 0), HOW)) == encode_alone(one)
