"""Life through the public API: callbacks and threads, coming and going, real nodes over TLS on loopback."""

import asyncio
import inspect
import logging
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

import meshnode
from meshnode.config.sections import MembershipSection
from meshnode.driver import Driver
from protocols.base.errors import (
    ConfigError,
    LocalProtocolError,
    StorageError,
)
from protocols.base.ids import Incarnation, MeshName, NodeId, Role
from protocols.membership.neighbour import State
from protocols.settings import NodeSettings
from protocols.wire.readings import Reading
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Open, given_house, given_opened, pair, wanted

BOTH = ("express", "nng")
__all__ = ["given_house", "given_opened"]


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
        assert await asyncio.to_thread(entered.wait, 30)
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
            calls: list[Reading] = []
            with here.subscribe("veh/**", callback=calls.append, history=False):
                await until(calls.__len__, "readings flow")
            counted = len(calls)
            with here.subscribe("veh/**") as iterated:
                await iterated.next(30)
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
        await node.subscribe("veh/**", callback=lambda _: None).next(30)


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
    async with meshnode.open(house.config("veh-1")) as node:
        subscription, port = node.subscribe("veh/**"), node.port
        node.publish("veh/veh-1/a", 1)
        await node.close()
        assert [reading.value async for reading in subscription] == [1]
    await node.close()
    # of this process: the kernel may have given the port to another program by now
    listening = psutil.Process().net_connections("tcp")
    assert port not in {connection.laddr.port for connection in listening if connection.status == psutil.CONN_LISTEN}
    async with meshnode.open(house.config("veh-1")) as again:
        assert again.id == node.id


async def test_node_opened_wrongly_leaves_nothing_behind(house: House, tmp_path: Path, opened: Open) -> None:
    """A failed start is tried again by a supervisor: a lock or a thread left behind would make it fail for ever."""
    with pytest.raises(ConfigError, match="does not exist"):
        meshnode.open(tmp_path / "missing.toml")
    running = await opened("veh-1")
    with pytest.raises(StorageError, match="in use by another process"):
        await meshnode.open(house.config("veh-1")).__aenter__()
    good = house.config("veh-2")
    threads = _threads_of_nodes()
    listen = type(good.listen)(host="127.0.0.1", port=running.port)
    for _ in range(2):
        async with meshnode.open(type(good)(**{**_fields(good), "listen": listen})) as waiting:
            (trouble,) = waiting.troubles.current()
            assert (waiting.port, trouble.part, trouble.essential) == (0, "inbox", True)
            assert f"127.0.0.1:{running.port} is in use" in trouble.why
    async with meshnode.open(good) as node:
        assert node.publish("veh/veh-2/a", 1).sequence
    await until(
        lambda: _threads_of_nodes() <= threads + 2, lambda: f"their threads have ended: {threading.enumerate()}"
    )


def _threads_of_nodes() -> int:
    """Without those of the event loop itself, which begins some as it needs them, and keeps them."""
    return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())


def _fields(config: meshnode.NodeConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


async def test_node_used_outside_its_with_block_says_so(house: House) -> None:
    """The contract of ``Node``: a mistake of the application is named, not a traceback from within. Before it is open
    there is no node to use, which a type checker sees."""
    configured = meshnode.open(house.config("veh-1"))
    with pytest.raises(AttributeError, match="'ConfiguredNode' object has no attribute 'publish'"):
        configured.publish("veh/veh-1/a", 1)  # type: ignore[attr-defined]
    async with configured as node:
        publisher = node.publisher("veh/veh-1/a")
        node.publish("veh/veh-1/a", 1)
    for use in (lambda: publisher.put(1), lambda: node.publish("veh/veh-1/a", 1), lambda: node.subscribe("veh/**")):
        with pytest.raises(LocalProtocolError, match="async with"):
            use()
    with pytest.raises(LocalProtocolError, match="async with"):
        await node.infer("x", {})
    assert node.statistics()["readings_published"] == 1, "what it counted can still be read"
    assert not node.drops()
    assert not node.peers()


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
    reading = await heard.next(30)
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


def test_driver_that_never_started_closes_without_a_word() -> None:
    """A node that is told to leave while it opens files has no timer thread yet. It ended with a traceback."""
    settings = NodeSettings(MeshName("m"), NodeId("me"), Role.VEHICLE, Incarnation(5), 7000)
    driver, before = Driver(settings, Random(1), lambda event: None, {}), threading.enumerate()
    driver.close("leaving")
    assert threading.enumerate() == before
