"""Readings through the public API: real nodes in this process, over TLS on loopback, by both link engines."""

import asyncio
import inspect
import logging
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meshnode
from meshnode.config import MembershipSection
from protocols import limits
from protocols.access import Rule
from protocols.errors import (
    BoundExceeded,
    ConfigError,
    ContextMissing,
    InvalidKey,
    LocalProtocolError,
    NotPermitted,
    StorageError,
    TransportError,
    ValueUnsupported,
)
from protocols.events import DeadlineMissed, Event
from protocols.ids import Lane, Role
from protocols.limits import MS
from protocols.membership import State
from protocols.messages import EventTime, Position, Provenance, Reading, Tensor
from tests.mesh_fixture import HERE, House, until

Open = Callable[..., Any]
BOTH = ("express", "nng")


@pytest.fixture(scope="module", name="house")
def given_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(name="opened")
async def given_opened(house: House) -> AsyncIterator[Open]:
    """Open a node that is closed after the test: ``await opened("veh-1", other.port, role=…)``."""
    async with AsyncExitStack() as stack:

        async def make(node: str, *seeds: int, **options: Any) -> meshnode.Node:
            return await stack.enter_async_context(meshnode.open(house.config(node, *seeds, **options)))

        yield make


async def pair(opened: Open, rsu: str = "express", vehicle: str = "express") -> tuple[meshnode.Node, meshnode.Node]:
    """``rsu-1`` and ``veh-1``, who have met."""
    here = await opened("rsu-1", role="rsu", engine=rsu)
    there = await opened("veh-1", here.port, engine=vehicle)
    await asyncio.gather(here.wait_for_peers(1), there.wait_for_peers(1))
    return here, there


async def wanted(publisher: meshnode.Node, key: str, count: int = 1) -> None:
    """Until so many neighbours of ``publisher`` have said that they want ``key``."""
    await until(lambda: len(publisher._driver.engine.wanted_by(key)) == count, f"{count} neighbours want {key}")


def dropped(node: meshnode.Node, reason: str) -> int:
    return sum(count for (_, _, why), count in node.drops() if why == reason)


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
    values = [(await iterated.next(5)).value for _ in range(20)]
    assert values == [number * 0.5 for number in range(20)]
    await until(lambda: len(called) == 20, "the callback has all")
    assert [reading.value for reading in called] == values
    here.publish("rsu/rsu-1/hazard", {"kind": "ice", "lanes": [1, 2]}, priority=7)
    assert (await back.next(5)).value == {"kind": "ice", "lanes": [1, 2]}


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
    first, second = await subscription.next(5), await subscription.next(5)
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
    assert (await own.next(1)).value == [1, [2]]
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
    assert (await subscription.next(1)).value == [1]
    assert np.asarray((await subscription.next(1)).value).tolist() == [0, 1, 2, 3]


async def test_late_subscriber_begins_with_the_last_values_unless_it_refuses(opened: Open) -> None:
    """Who joins late must know a hazard that was told before, without waiting for the next one."""
    here, there = await pair(opened)
    for value in range(3):
        there.publish("veh/veh-1/a", value)
    there.publish("veh/veh-1/b", "only")
    fresh = here.subscribe("veh/*/a", history=False)
    await wanted(there, "veh/veh-1/a")
    late = here.subscribe("veh/**")
    assert {(reading.key, reading.value) for reading in [await late.next(5), await late.next(5)]} == {
        ("veh/veh-1/a", 2), ("veh/veh-1/b", "only")
    }  # fmt: skip
    there.publish("veh/veh-1/a", 3)
    assert (await fresh.next(5)).value in (2, 3), "never one from before the node asked for the last values"
    again: list[Any] = []
    here.subscribe("veh/*/b", callback=lambda reading: again.append(reading.value))
    assert again == ["only"], "a value that the node has is handed over before subscribe returns"
    here.subscribe("veh/*/b", callback=lambda _: again.append("unwanted"), history=False)
    assert again == ["only"]


async def test_reader_that_conflates_gets_the_newest_of_each_key(opened: Open) -> None:
    """A display that is slower than its sensors must show the present, not a growing past."""
    node = await opened("veh-1")
    subscription = node.subscribe("veh/**", conflate=True)
    for value in range(50):
        node.publish("veh/veh-1/a", value)
        node.publish("veh/veh-1/b", -value)
    assert [(await subscription.next(1)).value for _ in range(2)] == [49, -49]
    assert subscription.dropped == 98
    with pytest.raises(TimeoutError):
        await subscription.next(0)


async def test_reader_that_falls_behind_loses_the_oldest_and_knows_how_many(opened: Open) -> None:
    """Memory is bounded, and nothing is lost silently."""
    node = await opened("veh-1")
    subscription = node.subscribe("veh/**", depth=10)
    for value in range(25):
        node.publish("veh/veh-1/a", value)
    assert [(await subscription.next(1)).value for _ in range(10)] == list(range(15, 25))
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
    await marks.next(5)
    assert (await subscription.next(0)).value == 0
    with pytest.raises(TimeoutError):
        await subscription.next(0)


async def test_stream_silent_beyond_the_deadline_is_told_once_for_each_silence(opened: Open) -> None:
    """A sensor that died must be noticed by who relies on it, without an alarm a millisecond."""
    here, there = await pair(opened)
    events: list[Event] = []
    here.on_event(events.append)
    subscription = here.subscribe("veh/*/pulse", deadline_ms=80)
    await wanted(there, "veh/veh-1/pulse")
    for silences in (1, 2):
        there.publish("veh/veh-1/pulse", silences)
        await subscription.next(5)
        await until(lambda expected=silences: subscription.deadlines_missed == expected, "the silence is noticed")
    missed = [event for event in events if isinstance(event, DeadlineMissed)]
    assert [(event.origin, event.key) for event in missed] == [("veh-1", "veh/veh-1/pulse")] * 2


async def test_reading_past_its_lifespan_is_dropped_and_counted(opened: Open) -> None:
    """Yesterday's brake event must not stop anybody today."""
    here, there = await pair(opened)
    subscription = here.subscribe("veh/**")
    await wanted(there, "veh/veh-1/brake")
    there.publish("veh/veh-1/brake", "old", lifespan_ms=1_000, time_ns=time.time_ns() - 10 * limits.SECOND)
    there.publish("veh/veh-1/brake", "new", lifespan_ms=60_000)
    assert (await subscription.next(5)).value == "new"
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
            there.publish("veh/veh-1/picture", block, priority=1)
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
    near.publish("veh/veh-1/a", "stays")
    near.publish("veh/veh-1/a", "passes", hops=1)
    reading = await subscription.next(5)
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
        value = (await subscription.next(5)).value
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
        value = (await subscription.next(10)).value
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
    for options in ({"priority": 8}, {"hops": 99}, {"lifespan_ms": -1}, {"quality": 1.5}, {"unit": "x" * 201}):
        with pytest.raises(LocalProtocolError):
            node.publisher("veh/veh-1/a", **options)  # type: ignore[arg-type]
    for options in ({"max_rate_hz": -1.0}, {"depth": 0}, {"hops": 9}, {"deadline_ms": -5}):
        with pytest.raises(LocalProtocolError):
            node.subscribe("veh/**", **options)  # type: ignore[arg-type]


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
    strict = (Rule(Role.RSU, "publish", "**"), Rule(Role.VEHICLE, "subscribe", "rsu/open/**"))
    here = await opened("rsu-1", role="rsu", rules=strict)
    generous = tuple(Rule(Role.VEHICLE, verb, "**") for verb in ("publish", "subscribe"))  # type: ignore[arg-type]
    there = await opened(
        "veh-1", here.port, rules=(*generous, Rule(Role.RSU, "publish", "**"), Rule(Role.RSU, "subscribe", "**"))
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
    assert (await modest.next(5)).value == 2
    assert [reading.value for reading in [await greedy.next(1), await greedy.next(1)]] == ["not allowed there", 2]
    assert not heard


# --- callbacks and threads -------------------------------------------------------------------------------------------
async def test_callback_that_fails_harms_no_other_and_is_counted(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """One broken subscriber must cost neither the others their readings nor the node its link."""
    here, there = await pair(opened)
    good: list[Any] = []

    def broken(reading: Reading) -> None:
        raise ZeroDivisionError(reading.key)

    with caplog.at_level(logging.ERROR):
        here.subscribe("veh/**", callback=broken)
        here.subscribe("veh/**", callback=lambda reading: good.append(reading.value))
        await wanted(there, "veh/veh-1/a")
        for value in range(9):
            there.publish("veh/veh-1/a", value)
        await until(lambda: len(good) == 9, "the other subscriber has all")
    assert here.statistics()["callbacks_failed"] == 9
    assert 1 <= sum("a callback failed" in record.message for record in caplog.records) <= 5, "1, 2, 4, 8"
    assert there.peers()[0].state is State.ALIVE


@pytest.mark.parametrize("engine", BOTH)
async def test_callback_that_is_slow_kills_no_neighbour_on_either_side(opened: Open, engine: str) -> None:
    """A callback that hangs for seconds holds up receiving, not life: nobody may be called dead for it."""
    fast = MembershipSection(
        heartbeat_interval_ms=100, suspect_after_silence_ms=500, suspicion_min_ms=100, suspicion_max_ms=300
    )
    here = await opened("rsu-1", role="rsu", engine=engine, membership=fast)
    there = await opened("veh-1", here.port, engine=engine, membership=fast)
    await asyncio.gather(here.wait_for_peers(1), there.wait_for_peers(1))
    release, entered = threading.Event(), threading.Event()

    def hangs(_: Reading) -> None:
        entered.set()
        release.wait(20)

    here.subscribe("veh/**", callback=hangs)
    await wanted(there, "veh/veh-1/a")
    there.publish("veh/veh-1/a", 1)
    try:
        assert await asyncio.to_thread(entered.wait, 5)
        beats = there.statistics()["link_frames_received"]
        await until(lambda: there.statistics()["link_frames_received"] > beats + 20, "two seconds of heartbeats")
    finally:
        release.set()
    for node in (here, there):
        assert node.statistics()["deaths"] == 0
        assert node.peers()[0].met


@pytest.mark.parametrize("engine", BOTH)
async def test_publishing_from_many_threads_loses_and_disorders_nothing(opened: Open, engine: str) -> None:
    """Sensors publish from threads of their own, some on one key: a subscriber must still see each stream in order."""
    here, there = await pair(opened, engine, engine)
    threads, each, bound = 4, 1_500, 1_000
    received: dict[str, list[Any]] = defaultdict(list)
    sequences: list[int] = []

    def take(reading: Reading) -> None:
        received[reading.key].append(reading.value)
        sequences.append(reading.sequence)

    here.subscribe("veh/**", callback=take)
    await wanted(there, "veh/veh-1/shared")

    def publish(number: int) -> None:
        own = there.publisher(f"veh/veh-1/own{number}")
        for value in range(each):
            own.put(value)
            there.publish("veh/veh-1/shared", [number, value])
            if value % 50 == 0:
                while there.peers()[0].waiting_readings > bound:
                    time.sleep(0.001)

    await asyncio.gather(*(asyncio.to_thread(publish, number) for number in range(threads)))
    await until(lambda: len(sequences) == 2 * threads * each, f"all arrive, not {len(sequences)}: {there.drops()}")
    for number in range(threads):
        assert received[f"veh/veh-1/own{number}"] == list(range(each))
        assert [value for who, value in received["veh/veh-1/shared"] if who == number] == list(range(each))
    assert there.drops() == here.drops() == []


async def test_subscriptions_opened_and_closed_under_load_keep_their_promises(opened: Open) -> None:
    """Applications come and go while readings flow: a closed subscription is silent, and nothing breaks."""
    here, there = await pair(opened)
    stop = threading.Event()

    def publish() -> None:
        put = there.publisher("veh/veh-1/a").put
        while not stop.wait(0.0005):
            put(1)

    publishing = asyncio.create_task(asyncio.to_thread(publish))
    try:
        for _ in range(30):
            calls: list[int] = []
            with here.subscribe("veh/**", callback=lambda _, calls=calls: calls.append(1), history=False):
                await until(lambda calls=calls: calls, "readings flow")
            counted = len(calls)
            with here.subscribe("veh/**") as iterated:
                await iterated.next(5)
            assert len(calls) <= counted + 1, "one call may have been under way"
            async for _reading in iterated:
                pass  # ends after what is queued
    finally:
        stop.set()
        await publishing
    assert there.statistics()["frames_malformed"] == here.statistics()["frames_malformed"] == 0


async def test_subscription_with_a_callback_cannot_be_iterated(opened: Open) -> None:
    """Waiting for readings that go elsewhere would hang for ever."""
    node = await opened("veh-1")
    with pytest.raises(TypeError, match="make one without"):
        await node.subscribe("veh/**", callback=lambda _: None).next(1)


# --- life ------------------------------------------------------------------------------------------------------------
async def test_peers_of_a_node_tell_who_is_there_and_who_left(opened: Open, house: House) -> None:
    """Applications decide by it whom to rely on."""
    here = await opened("rsu-1", role="rsu")
    async with meshnode.open(house.config("veh-1", here.port)) as there:
        (peer,) = await here.wait_for_peers(1)
        assert (peer.node, peer.role, peer.state, peer.met) == ("veh-1", Role.VEHICLE, State.ALIVE, True)
        assert peer.incarnation == there.incarnation
        await until(lambda: here.peers()[0].round_trip_ns and here.peers()[0].hears_us, "heartbeats were answered")
    await until(lambda: here.peers()[0].state is State.LEFT, "the goodbye is heard")
    assert not here.peers()[0].met
    assert here.statistics()["deaths"] == 0
    async with meshnode.open(house.config("veh-1", here.port)) as again:
        assert again.incarnation > there.incarnation
        (peer,) = await here.wait_for_peers(1)
        assert peer.incarnation == again.incarnation


async def test_waiting_for_peers_that_never_come_times_out(opened: Open) -> None:
    """A program must be able to say that it is alone."""
    node = await opened("veh-1")
    with pytest.raises(TimeoutError):
        await node.wait_for_peers(1, timeout_s=0.05)


async def test_node_closed_twice_ends_its_readers_and_frees_its_port_and_folder(house: House) -> None:
    """Programs close in ``finally`` and by ``async with``; the next node must find the place free."""
    node = meshnode.open(house.config("veh-1"))
    async with node:
        subscription, port = node.subscribe("veh/**"), node.port
        node.publish("veh/veh-1/a", 1)
        await node.close()
        assert [reading.value async for reading in subscription] == [1]
    await node.close()
    async with meshnode.open(house.config("veh-1")):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_node_opened_wrongly_leaves_nothing_behind(house: House, tmp_path: Path, opened: Open) -> None:
    """A failed start is tried again by a supervisor: a lock or a thread left behind would make it fail for ever."""
    with pytest.raises(ConfigError, match="does not exist"):
        meshnode.open(tmp_path / "missing.toml")
    running = await opened("veh-1")
    with pytest.raises(StorageError, match="in use by another process"):
        await meshnode.open(house.config("veh-1")).__aenter__()
    good = house.config("veh-2")
    threads = threading.active_count()
    listen = type(good.listen)(host="127.0.0.1", port=running.port)
    for _ in range(2):
        with pytest.raises(TransportError, match=f"127.0.0.1:{running.port} is in use"):
            await meshnode.open(type(good)(**{**_fields(good), "listen": listen})).__aenter__()
    async with meshnode.open(good) as node:
        assert node.publish("veh/veh-2/a", 1).sequence
    await until(lambda: threading.active_count() <= threads + 2, "threads of the failed nodes have ended")


def _fields(config: meshnode.NodeConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


async def test_node_used_outside_its_with_block_says_so(house: House) -> None:
    """The contract of ``Node``: a mistake of the application is named, not a traceback from within."""
    node = meshnode.open(house.config("veh-1"))
    for use in (
        lambda: node.publish("veh/veh-1/a", 1),
        lambda: node.subscribe("veh/**"),
        node.peers,
        node.statistics,
        node.drops,
    ):
        with pytest.raises(LocalProtocolError, match="async with"):
            use()
    with pytest.raises(LocalProtocolError, match="async with"):
        await node.infer("x", {})
    async with node:
        publisher = node.publisher("veh/veh-1/a")
        node.publish("veh/veh-1/a", 1)
    for use in (lambda: publisher.put(1), lambda: node.publish("veh/veh-1/a", 1), lambda: node.subscribe("veh/**")):
        with pytest.raises(LocalProtocolError, match="async with"):
            use()
    assert node.statistics()["readings_published"] == 1, "what it counted can still be read"
    assert node.drops() == node.peers() == []


# --- examples --------------------------------------------------------------------------------------------------------
def examples_of(text: str) -> Iterator[str]:
    """The indented blocks of a docstring that hold Python."""
    for block in text.split("\n\n"):
        if block.startswith("    ") and "async with" in block:
            yield textwrap.dedent(block)


async def test_example_of_the_documentation_does_what_it_says(
    house: House, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thing that a new user copies has to work."""
    listener = await opened("rsu-1", role="rsu")
    heard = listener.subscribe("veh/**")
    seeds = f'[discovery]\nmdns = false\nseeds = ["127.0.0.1:{listener.port}"]\n'
    path = house.file("veh-1", seeds)
    path.rename(path.with_name("vehicle.toml"))
    monkeypatch.chdir(path.parent)
    (example,) = examples_of(inspect.getdoc(inspect.getmodule(meshnode.Node)) or "")
    space: dict[str, Any] = {"meshnode": meshnode}
    exec("async def example():\n" + textwrap.indent(example, "    "), space)
    running = asyncio.create_task(space["example"]())
    reading = await heard.next(10)
    assert (reading.key, reading.value, reading.how.unit, reading.how.sensor) == (
        "veh/veh-1/speed",
        13.9,
        "m/s",
        "wheel",
    )
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: listener.peers()[0].state is State.LEFT, "it said goodbye on the way out")
