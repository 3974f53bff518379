"""Readings through the public API: real nodes in this process, over TLS on loopback, by both link engines."""

import asyncio
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from meshnode.http.metrics import Metrics
from meshnode.readings.subscriptions import Subscription
from protocols.access import AccessRule
from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.errors import (
    BoundExceeded,
    ContextMissing,
    InvalidKey,
    LocalProtocolError,
    NotPermitted,
    ValueUnsupported,
)
from protocols.base.ids import Lane, Role
from protocols.base.limits import MS
from protocols.readings.events import DeadlineMissed
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.tensors import Tensor
from tests.tools.eventually import until
from tests.tools.mesh_fixture import HERE, Open, dropped, given_house, given_opened, pair, wanted
from tests.tools.strategies import reading

BOTH = ("express", "nng")
__all__ = ["given_house", "given_opened"]


# --- publish and subscribe -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rsu", "vehicle"), [(a, b) for a in BOTH for b in BOTH])
async def test_reading_between_any_two_link_engines_arrives_at_callback_and_iterator(
    opened: Open, rsu: str, vehicle: str
) -> None:
    """A mesh is upgraded node by node: which engine carries a link must make no difference to an application."""
    here, there = await pair(opened, rsu, vehicle)
    called: list[Reading] = []
    here.subscribe("veh/*/speed", callback=called.append)
    iterated = here.subscribe("veh/**")
    back = there.subscribe("rsu/*/hazard")
    await wanted(there, "veh/veh-1/speed")
    await wanted(here, "rsu/rsu-1/hazard")
    for number in range(20):
        put = there.publish("veh/veh-1/speed", number * 0.5, unit="m/s", sensor="wheel")
        assert (put.queued, put.dropped, put.local) == (1, 0, 0)
    values = [(await iterated.next(30)).value for _ in range(20)]
    assert values == [number * 0.5 for number in range(20)]
    await until(lambda: len(called) == 20, "the callback has all")
    assert [reading.value for reading in called] == values
    here.publish("rsu/rsu-1/hazard", {"kind": "ice", "lanes": [1, 2]}, priority=7)
    assert (await back.next(30)).value == {"kind": "ice", "lanes": [1, 2]}


async def test_values_published_together_arrive_one_by_one_with_their_times(opened: Open) -> None:
    """What a sensor gathered, often an array, reaches a subscriber as plain numbers, as from single puts."""
    here, there = await pair(opened)
    subscription = here.subscribe("veh/**")
    await wanted(there, "veh/veh-1/imu")
    publisher = there.publisher("veh/veh-1/imu", unit="m/s2")
    times_ns = list(range(10**18, 10**18 + 100))
    put = publisher.put_many(np.arange(100.0), times_ns=times_ns)
    assert (put.count, put.queued, put.dropped) == (100, 100, 0)
    assert publisher.put_many([[1, 2], "text"]).first_sequence == put.first_sequence + 100
    came = [await subscription.next(30) for _ in range(102)]
    assert [reading.value for reading in came] == [*map(float, range(100)), [1, 2], "text"]
    assert all(type(reading.value) is float for reading in came[:100])
    assert [reading.when.utc_ns for reading in came[:100]] == times_ns
    with pytest.raises(ValueUnsupported, match="3 values with 1 times"):
        publisher.put_many([1, 2, 3], times_ns=[1])


SCALARS = [
    np.float64(1.5),
    np.float32(0.5),
    np.float16(2.0),
    np.int32(-7),
    np.uint8(200),
    np.bool_(True),
    np.mean([1, 2]),
]


@pytest.mark.parametrize("many", [False, True], ids=["put", "put_many"])
async def test_scalar_of_an_array_arrives_as_the_number_it_is(opened: Open, many: bool) -> None:
    """Sums and means are NumPy's scalars: who gets one compares it, which an array of no dimension does not let him."""
    here, there = await pair(opened)
    subscription, own = here.subscribe("veh/**"), there.subscribe("veh/**")
    await wanted(there, "veh/veh-1/mean")
    publisher = there.publisher("veh/veh-1/mean")
    if many:
        publisher.put_many(SCALARS)
    else:
        for scalar in SCALARS:
            publisher.put(scalar)
    for one in (subscription, own):
        values = [(await one.next(30)).value for _ in SCALARS]
        assert values == [1.5, 0.5, 2.0, -7, 200, True, 1.5]
        assert [type(value) for value in values] == [float, float, float, int, int, bool, float]
    publisher.put(np.array(1.5))
    assert isinstance((await subscription.next(30)).value, Tensor), "an array stays one"


async def test_reading_received_carries_where_when_and_how_of_its_publisher(opened: Open) -> None:
    """A value without its context is of no use: nothing of it may be lost or made up on the way."""
    here, there = await pair(opened)
    subscription = here.subscribe("veh/**")
    await wanted(there, "veh/veh-1/range")
    where = Position(48.1, 11.5, 0.4, 520.0, 271.5)
    before_ns = time.time_ns()
    there.publish(
        "veh/veh-1/range", 7, unit="m", sensor="lidar", where=where, quality=0.25, calibration="cal-9",
        lineage=("fusion", "raw"), priority=5, lifespan_ms=60_000, hops=2,
    )  # fmt: skip
    put = there.publish("veh/veh-1/range", 8, time_ns=1_700_000_000_000_000_000)
    first, second = await subscription.next(30), await subscription.next(30)
    assert (first.origin, first.key, first.value, first.where) == ("veh-1", "veh/veh-1/range", 7, where)
    assert first.how == Provenance("lidar", "m", 0.25, "cal-9", ("fusion", "raw"))
    assert (first.priority, first.lifespan_ms, first.hops) == (5, 60_000, 2)
    assert before_ns <= first.when.utc_ns <= time.time_ns()
    assert second.when == EventTime(1_700_000_000_000_000_000, 10 * MS)
    assert (second.where, second.sequence) == (HERE, put.sequence)


async def test_own_readings_reach_own_subscriptions_only_when_wanted(opened: Open) -> None:
    """An application may watch the mesh through its own node, or only the others."""
    node = await opened("veh-1")
    own, others = node.subscribe("veh/**"), node.subscribe("veh/**", own=False)
    assert node.publish("veh/veh-1/a", [1, [2]]).local == 1
    assert (await own.next(30)).value == [1, [2]]
    with pytest.raises(TimeoutError):
        await others.next(0)


async def test_value_changed_after_publishing_changes_nothing_for_subscribers(opened: Open) -> None:
    """Publishers reuse their buffers: what was sent is what is kept and delivered."""
    node = await opened("veh-1")
    subscription = node.subscribe("veh/**")
    row, array = [1], np.arange(4)
    node.publish("veh/veh-1/row", row)
    node.publish("veh/veh-1/array", array)
    row.append(2)
    array[:] = -1
    assert (await subscription.next(30)).value == [1]
    assert np.asarray((await subscription.next(30)).value).tolist() == [0, 1, 2, 3]


async def test_late_subscriber_begins_with_the_last_values_unless_it_refuses(opened: Open) -> None:
    """Who joins late must know a hazard that was told before, without waiting for the next one."""
    here, there = await pair(opened)
    for value in range(3):
        there.publish("veh/veh-1/a", value)
    there.publish("veh/veh-1/b", "only")
    fresh = here.subscribe("veh/*/a", history=False)
    await wanted(there, "veh/veh-1/a")
    late = here.subscribe("veh/**")
    assert {(reading.key, reading.value) for reading in [await late.next(30), await late.next(30)]} == {
        ("veh/veh-1/a", 2), ("veh/veh-1/b", "only")
    }  # fmt: skip
    there.publish("veh/veh-1/a", 3)
    assert (await fresh.next(30)).value in (2, 3), "never one from before the node asked for the last values"
    again: list[Any] = []
    here.subscribe("veh/*/b", callback=lambda reading: again.append(reading.value))
    assert again == ["only"], "a value that the node has is handed over before subscribe returns"
    here.subscribe("veh/*/b", callback=lambda _: again.append("unwanted"), history=False)
    assert again == ["only"]


async def test_node_tells_the_pace_that_it_keeps_and_none_while_there_is_no_limit(opened: Open) -> None:
    """On a full channel this is the figure that explains all others; a pace of 0 would look like a node that stands."""
    node = await opened("veh-1")  # without a neighbour nothing is measured that would end the pace
    assert "pace_frames_per_s" not in node.statistics()
    assert b"pace_frames" not in Metrics(node).exposition()[0]
    pace = node.driver.engine.lanes.pace
    pace.active, pace.rate = True, 40.7
    assert node.statistics()["pace_frames_per_s"] == 41
    page = Metrics(node).exposition()[0]
    assert b"# TYPE meshnode_pace_frames_per_s gauge" in page
    assert b"meshnode_pace_frames_per_s 41.0" in page


async def test_reader_that_conflates_gets_the_newest_of_each_key(opened: Open) -> None:
    """A display that is slower than its sensors must show the present, not a growing past."""
    node = await opened("veh-1")
    subscription = node.subscribe("veh/**", conflate=True)
    for value in range(50):
        node.publish("veh/veh-1/a", value)
        node.publish("veh/veh-1/b", -value)
    assert [(await subscription.next(30)).value for _ in range(2)] == [49, -49]
    assert subscription.dropped == 98
    with pytest.raises(TimeoutError):
        await subscription.next(0)


async def test_reader_that_conflates_gets_the_newest_of_each_origin() -> None:
    """Two nodes may say something of the same street, and neither speaks for the other."""
    subscription = Subscription("street/**", 10, True, asyncio.get_running_loop())
    for sequence in range(1, 10):
        for origin in ("veh-1", "veh-2"):
            subscription.take(reading(key="street/1", origin=origin, sequence=sequence))
    newest = [await subscription.next(30) for _ in range(2)]
    assert [(one.origin, one.sequence) for one in newest] == [("veh-1", 9), ("veh-2", 9)]
    assert subscription.dropped == 16


@pytest.mark.parametrize("conflate", [False, True])
async def test_node_that_floods_a_reader_loses_its_own_readings(conflate: bool) -> None:
    """One neighbour took all places of a function or an application, and what others said was never seen."""
    subscription = Subscription("**", 10, conflate, asyncio.get_running_loop())
    for number in range(3):
        subscription.take(reading(f"veh/veh-2/{number}", "veh-2"))
    for number in range(50):
        subscription.take(reading(f"veh/veh-6/{number}", "veh-6"))
    for origin in ("veh-3", "veh-4"):
        subscription.take(reading(f"veh/{origin}/0", origin))
    keys = [(await subscription.next(30)).key for _ in range(10)]
    of_rogue = [f"veh/veh-6/{number}" for number in range(45, 50)]
    assert keys == [*(f"veh/veh-2/{number}" for number in range(3)), *of_rogue, "veh/veh-3/0", "veh/veh-4/0"]
    assert subscription.dropped == 45
    with pytest.raises(TimeoutError):
        await subscription.next(0)


async def test_reader_that_falls_behind_loses_the_oldest_and_knows_how_many(opened: Open) -> None:
    """Memory is bounded, and nothing is lost silently."""
    node = await opened("veh-1")
    subscription = node.subscribe("veh/**", depth=10)
    for value in range(25):
        node.publish("veh/veh-1/a", value)
    assert [(await subscription.next(30)).value for _ in range(10)] == list(range(15, 25))
    assert subscription.dropped == 15


async def test_rate_limit_of_a_subscription_is_kept_by_the_publisher_and_counted(opened: Open) -> None:
    """Who wants one reading an hour must not cost the radio a thousand."""
    here, there = await pair(opened)
    subscription = here.subscribe("veh/*/fast", max_rate_hz=1 / 3_600)
    marks = here.subscribe("veh/*/mark")
    await wanted(there, "veh/veh-1/fast")
    await wanted(there, "veh/veh-1/mark")
    puts = [there.publish("veh/veh-1/fast", value) for value in range(30)]
    assert [put.queued for put in puts] == [1] + [0] * 29
    assert sum(put.dropped for put in puts) == dropped(there, "rate_limited") == 29
    there.publish("veh/veh-1/mark", 0)
    await marks.next(30)
    assert (await subscription.next(0)).value == 0
    with pytest.raises(TimeoutError):
        await subscription.next(0)


def _silences(subscription: Subscription, count: int) -> bool:
    return subscription.deadlines_missed == count


async def test_stream_silent_beyond_the_deadline_is_told_once_for_each_silence(opened: Open) -> None:
    """A sensor that died must be noticed by who relies on it, without an alarm a millisecond."""
    here, there = await pair(opened)
    events: list[Event] = []
    here.on_event(events.append)
    subscription = here.subscribe("veh/*/pulse", deadline_ms=80)
    await wanted(there, "veh/veh-1/pulse")
    for silences in (1, 2):
        there.publish("veh/veh-1/pulse", silences)
        await subscription.next(30)
        await until(partial(_silences, subscription, silences), "the silence is noticed")
        await until(
            lambda silences=silences: sum(isinstance(event, DeadlineMissed) for event in events) >= silences,
            "it is told",
        )
    missed = [event for event in events if isinstance(event, DeadlineMissed)]
    assert [(event.origin, event.key) for event in missed] == [("veh-1", "veh/veh-1/pulse")] * 2


async def test_reading_past_its_lifespan_is_dropped_and_counted(opened: Open) -> None:
    """Yesterday's brake event must not stop anybody today."""
    here, there = await pair(opened)
    subscription = here.subscribe("veh/**")
    await wanted(there, "veh/veh-1/brake")
    there.publish("veh/veh-1/brake", "old", lifespan_ms=1_000, time_ns=time.time_ns() - 10 * limits.SECOND)
    there.publish("veh/veh-1/brake", "new", lifespan_ms=60_000)
    assert (await subscription.next(30)).value == "new"
    assert dropped(there, "expired_in_queue") == 1, "it did not even travel"


async def test_urgent_reading_overtakes_what_waits_on_a_congested_link(opened: Open) -> None:
    """A brake event stuck behind a megabyte of pictures comes too late."""
    here, there = await pair(opened)
    release, order = threading.Event(), list[int]()

    def slow(reading: Reading) -> None:
        release.wait(20)
        order.append(reading.priority)

    here.subscribe("veh/**", callback=slow)
    await wanted(there, "veh/veh-1/picture")
    block, sent = bytes(16_000), 0
    try:
        while there.peers()[0].waiting_readings < 300:
            there.publish(f"veh/veh-1/picture/{sent}", block, priority=1)  # of one key only the newest would wait
            sent += 1
            assert sent < 5_000, "the link never became congested"
        there.publish("veh/veh-1/brake", 1, priority=7)
    finally:
        release.set()
    await until(lambda: len(order) == sent + 1, "all are received")
    assert len(order) - 1 - order.index(7) >= 250, "it overtook most of what waited"


async def test_reading_with_hops_passes_a_middle_node_and_no_further(opened: Open) -> None:
    """A hazard must reach who is out of the publisher's range, through nodes in between, and not for ever."""
    middle = await opened("rsu-1", role="rsu")
    near = await opened("veh-1", middle.port)
    far = await opened("veh-2", middle.port)
    await middle.wait_for_peers(2)
    subscription = far.subscribe("veh/**", hops=1)
    await wanted(near, "veh/veh-1/a")
    await until(lambda: "veh-1" in {entry.author for entry in far.entries()}, "its certificate has spread")
    near.publish("veh/veh-1/a", "stays")
    near.publish("veh/veh-1/a", "passes", hops=1)
    reading = await subscription.next(30)
    assert (reading.value, reading.origin, reading.hops, reading.where) == ("passes", "veh-1", 0, HERE)
    assert {peer.node for peer in far.peers()} == {"rsu-1"}
    assert middle.statistics()["readings_forwarded"] == 1


# --- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8"])
async def test_array_of_every_kind_arrives_bit_for_bit(opened: Open, dtype: str) -> None:
    """NaN payloads and negative zeros included: models compare bits."""
    here, there = await pair(opened)
    subscription = here.subscribe("veh/**")
    await wanted(there, "veh/veh-1/array")
    raw = np.random.default_rng(7).integers(0, 2 if dtype == "?" else 256, 24 * np.dtype(dtype).itemsize, dtype="u1")
    array = raw.view(dtype).reshape(2, 3, 4)
    for sent in (array, array[:, ::-1, 1:3], np.asarray(array[0, 0, 0]), array[:0]):
        there.publish("veh/veh-1/array", sent)
        value = (await subscription.next(30)).value
        assert isinstance(value, Tensor)
        got = np.asarray(value)
        assert (got.dtype, got.shape, got.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())


async def test_large_tensors_travel_both_ways_on_the_bulk_lane(opened: Open) -> None:
    """A large tensor can't delay a brake event: it has a connection of its own."""
    here, there = await pair(opened)
    at_here, at_there = here.subscribe("veh/**"), there.subscribe("rsu/**")
    await wanted(there, "veh/veh-1/big")
    await wanted(here, "rsu/rsu-1/big")
    assert not any(Lane.BULK in peer.lanes for node in (here, there) for peer in node.peers())
    array = np.random.default_rng(1).random((3, 500, 700), dtype="f4")
    for publisher, key, subscription in (
        (there, "veh/veh-1/big", at_here), (here, "rsu/rsu-1/big", at_there)
    ):  # fmt: skip
        publisher.publish(key, {"frame": array, "id": 7})
        value = (await subscription.next(30)).value
        assert value["id"] == 7
        assert np.asarray(value["frame"]).tobytes() == array.tobytes()
        assert Lane.BULK in publisher.peers()[0].lanes


@pytest.mark.parametrize(
    "value", [object(), {1: "number as key"}, 1 << 64, np.array(["text"]), np.zeros(3, ">f4"), "\ud800"]
)
async def test_value_that_cannot_travel_is_refused_at_its_source(opened: Open, value: Any) -> None:
    """The error belongs to who made it, not to a neighbour a second later."""
    node = await opened("veh-1")
    with pytest.raises(ValueUnsupported):
        node.publish("veh/veh-1/x", value)
    assert node.publish("veh/veh-1/x", 1).sequence, "the node goes on"


async def test_value_too_large_for_a_frame_is_refused_at_its_source(opened: Open) -> None:
    """No neighbour would take it, and none should have to."""
    node = await opened("veh-1")
    with pytest.raises(ValueUnsupported, match="split or shrink"):
        node.publish("veh/veh-1/x", bytes(limits.MAX_FRAME_BYTES))


# --- refusals --------------------------------------------------------------------------------------------------------
async def test_publishing_without_permission_key_or_context_says_why(opened: Open) -> None:
    """Each mistake of an application has its own error, and a message with the way out."""
    node = await opened("veh-1", where=None)
    with pytest.raises(ContextMissing, match=r"Set \[node\] position, or pass where="):
        node.publish("veh/veh-1/a", 1)
    assert node.publish("veh/veh-1/a", 1, where=HERE).sequence
    node.position = HERE
    assert node.publish("veh/veh-1/a", 1).sequence
    with pytest.raises(NotPermitted, match="vehicle veh-1 publish on 'veh/veh-2/a'"):
        node.publish("veh/veh-2/a", 1)
    for key in ("", "a//b", "veh/*/a", "/a", "x" * 300):
        with pytest.raises(InvalidKey):
            node.publish(key, 1)
    with pytest.raises(InvalidKey):
        node.subscribe("a//b")
    options: dict[str, Any]
    for options in ({"priority": 8}, {"hops": 99}, {"lifespan_ms": -1}, {"quality": 1.5}, {"unit": "x" * 201}):
        with pytest.raises(LocalProtocolError):
            node.publisher("veh/veh-1/a", **options)
    for options in ({"max_rate_hz": -1.0}, {"depth": 0}, {"hops": 9}, {"deadline_ms": -5}):
        with pytest.raises(LocalProtocolError):
            node.subscribe("veh/**", **options)


async def test_subscriptions_beyond_the_bound_are_refused_until_one_is_closed(opened: Open) -> None:
    """A leak in an application shows as a clear error, and closing what leaked ends it."""
    node = await opened("veh-1")
    many = [node.subscribe(f"veh/x{number}") for number in range(limits.MAX_SUBSCRIPTIONS)]
    with pytest.raises(BoundExceeded, match="close some"):
        node.subscribe("veh/**")
    many[0].close()
    node.subscribe("veh/**").close()


async def test_table_denies_what_neighbours_may_not_publish_or_ask_for(opened: Open) -> None:
    """An insider who gives itself permissions gains nothing: each node judges by its own table."""
    strict = (AccessRule(Role.RSU, "publish", "**"), AccessRule(Role.VEHICLE, "subscribe", "rsu/open/**"))
    here = await opened("rsu-1", role="rsu", rules=strict)
    generous = (AccessRule(Role.VEHICLE, "publish", "**"), AccessRule(Role.VEHICLE, "subscribe", "**"))
    there = await opened(
        "veh-1",
        here.port,
        rules=(*generous, AccessRule(Role.RSU, "publish", "**"), AccessRule(Role.RSU, "subscribe", "**")),
    )
    await asyncio.gather(here.wait_for_peers(1), there.wait_for_peers(1))
    heard: list[Reading] = []
    here.subscribe("**", callback=heard.append, own=False)
    greedy = there.subscribe("**")
    modest = there.subscribe("rsu/open/**")
    await wanted(there, "veh/veh-1/a")
    await wanted(here, "rsu/open/a")
    there.publish("veh/veh-1/a", "not allowed there")
    await until(lambda: dropped(here, "denied") >= 2, "refusals are counted")
    here.publish("rsu/secret", 1)
    here.publish("rsu/open/a", 2)
    assert (await modest.next(30)).value == 2
    assert [reading.value for reading in [await greedy.next(30), await greedy.next(30)]] == ["not allowed there", 2]
    assert not heard
