"""Local applications as their developer sees them: real nodes, real sockets, other processes."""

import asyncio
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from msgspec.structs import replace

import meshnode
from meshnode.inference.running import RunningInference
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.local.client import NodeAway, NodeBack
from meshnode.local.section import load_local_socket, socket_of
from protocols.base import limits
from protocols.base.errors import (
    BoundExceeded,
    ContextMissing,
    InferenceError,
    InputInvalid,
    InvalidKey,
    LocalProtocolError,
    ModelUnknown,
    NotPermitted,
    TransportError,
    ValueUnsupported,
)
from protocols.base.ids import node_id
from protocols.membership.events import NeighbourMet
from protocols.wire.readings import Position, Reading
from tests.tools.eventually import until
from tests.tools.mesh_fixture import HERE, House, Member
from tests.tools.node_fixture import environment
from tests.tools.tiny_onnx import write_model

_SLOW = InferenceSection(emulate_slowdown=1_000)
"""A fraction of a millisecond times a thousand: something can happen meanwhile."""

_PROGRAM = """
import asyncio, sys, meshnode
async def main(socket, key):
    async with meshnode.connect(socket, "child") as node:
        node.subscribe("**", callback=lambda reading: print("got", reading.key, reading.value, flush=True), own=False)
        commands = node.subscribe("*/*/command")
        node.publish(key, "up")
        await node.flushed()
        print("up", flush=True)
        async for reading in commands:
            print("command", reading.value, flush=True)
            node.publish(key, reading.value)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Child:
    """An application in a process of its own; every line that it printed."""

    def __init__(self, path: Path, key: str = "veh/veh-1/child", **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(path), key],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.strip())

    async def heard(self, line: str) -> None:
        await until(lambda: line in self.said or self.process.poll() is not None, f"{line!r}, not only {self.said}")
        assert line in self.said, self.errors()

    def errors(self) -> str:
        assert self.process.stderr is not None
        return str(self.process.stderr.read())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(30)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


# --- publish, subscribe, infer ---------------------------------------------------------------------------------------
@pytest.mark.processes
async def test_application_in_another_process_publishes_and_subscribes_through_the_node(house: House) -> None:
    """The purpose of it all: what a node's own code can do, a process beside it can."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node:
        heard = node.subscribe("veh/**")
        with Child(socket_of(config)) as child:
            first = await heard.next(30)
            assert (first.key, first.value, first.origin, first.where) == ("veh/veh-1/child", "up", "veh-1", HERE)
            assert abs(first.when.utc_ns - time.time_ns()) < 60 * limits.SECOND
            await child.heard("up")
            node.publish("veh/veh-1/command", "brake")
            await child.heard("command brake")
            assert (await heard.next(30)).value == "brake"


async def test_two_applications_hear_each_other_and_a_neighbour(house: House) -> None:
    """Applications of one vehicle and of its neighbours are one bus."""
    rsu, vehicle = house.config("rsu-1", role="rsu"), house.config("veh-1")
    async with meshnode.open(rsu) as north:
        vehicle = replace(vehicle, discovery=house.config("veh-1", north.port).discovery)
        async with (
            meshnode.open(vehicle),
            meshnode.connect(socket_of(vehicle), "left") as left,
            meshnode.connect(socket_of(vehicle), "right") as right,
            meshnode.connect(socket_of(rsu), "far") as far,
        ):
            met: list[Any] = []
            left.on_event(met.append)
            assert [peer.node for peer in await left.wait_for_peers(1)] == ["rsu-1"]
            (peer,) = right.peers()
            assert peer.node == "rsu-1"
            assert peer.role.value == "rsu"
            near, distant = right.subscribe("veh/veh-1/*"), far.subscribe("veh/veh-1/*")
            left.publish("veh/veh-1/door", {"open": True, "angles": [1, 2.5]})
            for heard in (near, distant):
                reading = await heard.next(30)
                assert (reading.value, reading.origin) == ({"open": True, "angles": [1, 2.5]}, "veh-1")


async def test_tensor_of_a_megabyte_arrives_bit_for_bit(house: House) -> None:
    """Camera frames go this way; they are larger than any buffer on it."""
    config = house.config("veh-1")
    array = np.random.default_rng(1).integers(0, 255, (3, 640, 640), dtype="u1")
    async with (
        meshnode.open(config),
        meshnode.connect(socket_of(config)) as one,
        meshnode.connect(socket_of(config)) as two,
    ):
        frames = two.subscribe("veh/veh-1/camera")
        for _ in range(5):
            one.publish("veh/veh-1/camera", array)
        for _ in range(5):
            reading = await frames.next(30)
            assert np.array_equal(np.asarray(reading.value), array)


@pytest.mark.processes
async def test_infer_through_the_node_is_computed_by_a_neighbour(house: House) -> None:
    """An application without models, on a vehicle without models, gets what the roadside computes."""
    model = write_model(house.folder / "double.onnx", [2, 3], "Add")
    rsu = house.config("rsu-1", role="rsu", models={"double": ModelSection(path=model)})
    async with meshnode.open(rsu) as north:
        vehicle = house.config("veh-1", north.port)
        async with (
            meshnode.open(vehicle) as own,
            meshnode.connect(socket_of(vehicle)) as app,
            meshnode.connect(socket_of(rsu)) as roadside,
        ):
            (signature,) = roadside.models["double"].inputs
            assert (signature.name, signature.dtype, signature.shape) == ("x", "f4", (2, 3))
            await until(lambda: any(peer.offers for peer in own.peers()), "the neighbour offers its model")
            x = np.arange(6, dtype="f4").reshape(2, 3)
            result = await app.infer("double", {"x": x}, deadline_ms=60_000)
            assert np.array_equal(result.outputs["y"], 2 * x)
            assert result.ran_on == "rsu-1"
            assert result.attempts[0].outcome == "done"
            assert app.models == {}
            with pytest.raises(InputInvalid):
                await roadside.infer("double", {"z": x})
            with pytest.raises(ModelUnknown):
                await app.infer("triple", {"x": x})


@pytest.mark.processes
async def test_infer_cancelled_is_forgotten_by_the_node(house: House) -> None:
    """An application that gives up must not keep the node's places."""
    model = write_model(house.folder / "long.onnx", [96, 96], "MatMul", repeat=4)
    config = house.config("veh-1", models={"long": ModelSection(path=model)}, inference=_SLOW)
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as app:
        x = np.zeros((96, 96), "f4")
        running = [asyncio.ensure_future(app.infer("long", {"x": x}, deadline_ms=60_000)) for _ in range(20)]
        await until(lambda: node.statistics()["local_inferences"] == 20, "they are under way")
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await until(lambda: not node.part(RunningInference)._answers, "none is")


@pytest.mark.processes
async def test_stream_through_the_node_is_bounded_and_ends_with_the_connection(house: House) -> None:
    """A camera's process beside the node streams as the node's own code does, and leaves nothing there."""
    double = write_model(house.folder / "double.onnx", [1], "Add")
    long = write_model(house.folder / "long.onnx", [96, 96], "MatMul", repeat=4)
    models = {"double": ModelSection(path=double), "long": ModelSection(path=long)}
    # A processor that has slept computes the smallest model in 7 ms. That must not become longer than the deadline.
    config = house.config("veh-1", models=models, inference=InferenceSection(emulate_slowdown=50))
    async with meshnode.open(config) as node:
        async with meshnode.connect(socket_of(config)) as app:
            with pytest.raises(LocalProtocolError, match="use 1 to 32"):
                app.infer_stream("double", [], in_flight=33)
            inputs = ({"x": np.array([n], "f4")} for n in range(2 * limits.MAX_LOCAL_REQUESTS))
            stream = app.infer_stream("double", inputs, in_flight=8, deadline_ms=60_000)
            assert [item.result().outputs["y"][0] async for item in stream] == [
                2 * n for n in range(2 * limits.MAX_LOCAL_REQUESTS)
            ]
            frames = [{"x": np.zeros((96, 96), "f4")}] * 100
            async for item in app.infer_stream("long", frames, in_flight=8, deadline_ms=60_000):
                item.result()
                break
            await until(lambda: not node.part(RunningInference)._answers, "nothing is under way")
            last = app.infer_stream("long", frames, deadline_ms=60_000)
            await anext(last)
        with pytest.raises(InferenceError, match="closed its connection while a stream"):
            await anext(last)
        await until(lambda: not node.part(RunningInference)._answers, "nothing is under way")


# --- errors ----------------------------------------------------------------------------------------------------------
async def test_put_that_the_node_would_refuse_raises_where_it_was_made(house: House) -> None:
    """An application gets the errors of a node in its own process, at the line that made the mistake."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as app:
        with pytest.raises(NotPermitted, match="rsu/x"):
            app.publish("rsu/x", 1)
        with pytest.raises(InvalidKey):
            app.publish("veh//x", 1)
        with pytest.raises(ValueUnsupported):
            app.publish("veh/veh-1/x", object())
        with pytest.raises(ValueUnsupported, match="not on earth"):
            app.publish("veh/veh-1/x", 1, where=Position(200.0, 0.0, 1.0))
        with pytest.raises(ValueUnsupported, match="not a time"):
            app.publish("veh/veh-1/x", 1, time_ns=-1)
        with pytest.raises(LocalProtocolError, match="priority"):
            app.publisher("veh/veh-1/x", priority=8)
        with pytest.raises(InvalidKey):
            app.subscribe("veh/a*b")
        for number in range(limits.MAX_LOCAL_SUBSCRIPTIONS):
            app.subscribe(f"veh/{number}", callback=print)
        with pytest.raises(BoundExceeded):
            app.subscribe("veh/x", callback=print)
        assert node.statistics()["local_refused"] == 0
    with pytest.raises(LocalProtocolError, match="connect"):
        app.publish("veh/veh-1/x", 1)


async def test_put_without_position_is_refused_until_an_application_tells_it(house: House) -> None:
    """A GNSS receiver may be an application too: then the others need not know where they are."""
    config = house.config("veh-1", where=None)
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as app:
        heard = node.subscribe("veh/**")
        with pytest.raises(ContextMissing, match=r"node\.position"):
            app.publish("veh/veh-1/speed", 3)
        app.position = HERE
        app.publish("veh/veh-1/speed", 4)
        assert (await heard.next(30)).where == HERE
        assert app.position == HERE
        node.position = None  # between a put and its arrival this may happen
        speed = app.publisher("veh/veh-1/speed")
        speed.put(5)
        with pytest.raises(ContextMissing):
            await speed.flushed()
        await speed.flushed()  # told once
        assert node.statistics()["local_refused"] == 1
        assert app.statistics()["application_puts_refused"] == 1


async def test_question_in_a_callback_is_answered(house: House) -> None:
    """A callback holds the thread that receives the answer; an application must not hang itself by asking there."""
    config = house.config("veh-1")
    async with meshnode.open(config), meshnode.connect(socket_of(config)) as app:
        seen: list[Any] = []

        def ask(reading: Reading) -> None:
            if reading.value == 0:
                seen.append(app.position)
                app.subscribe("veh/veh-1/other", callback=lambda other: seen.append(other.value))
                app.publish("veh/veh-1/other", "said there")
            seen.append(reading.value)

        app.subscribe("veh/veh-1/count", callback=ask)
        for value in range(50):
            app.publish("veh/veh-1/count", value)
        await until(lambda: len(seen) == 52, "all")
        assert seen[0] == HERE
        assert [value for value in seen[1:] if value != "said there"] == list(range(50))


async def test_missed_deadline_is_counted_and_told(house: House) -> None:
    """Silence of a brake sensor must be noticed by the application that depends on it."""
    config = house.config("veh-1")
    async with meshnode.open(config), meshnode.connect(socket_of(config)) as app:
        events: list[Any] = []
        app.on_event(events.append)
        app.publish("veh/veh-1/brake", 1)
        await app.flushed()
        watch = app.subscribe("veh/veh-1/brake", deadline_ms=50)
        await until(lambda: watch.deadlines_missed, "the deadline passes")
        await until(lambda: events, "it is told")
        assert [event.key for event in events if type(event).__name__ == "DeadlineMissed"] == ["veh/veh-1/brake"]


# --- load ------------------------------------------------------------------------------------------------------------
async def test_values_published_together_arrive_in_order(house: House) -> None:
    """An application moves between the node's process and its own: ``put_many`` has to mean the same in both."""
    config = house.config("veh-1")
    async with meshnode.open(config), meshnode.connect(socket_of(config)) as here:
        heard: list[object] = []
        here.subscribe("veh/veh-1/*", callback=lambda reading: heard.append(reading.value))
        publisher = here.publisher("veh/veh-1/imu", where=HERE)
        put = publisher.put_many(np.arange(5.0))
        assert (put.count, put.queued, put.dropped) == (5, 5, 0)
        await publisher.flushed()
        await until(lambda: len(heard) == 5, "all came")
        assert heard == [0.0, 1.0, 2.0, 3.0, 4.0]
        publisher.put(np.float64(5.0))
        publisher.put_many([np.float32(6.0)])
        await publisher.flushed()
        await until(lambda: len(heard) == 7, "the scalars came")
        assert heard[5:] == [5.0, 6.0]
        assert all(type(value) is float for value in heard)
        with pytest.raises(ValueUnsupported, match="0 values"):
            publisher.put_many([])


async def test_publishers_on_many_threads_lose_and_reorder_nothing(house: House) -> None:
    """``put`` belongs to any thread, and one stream keeps its order while the socket is full."""
    config = house.config("veh-1")
    each, threads = 200, 8
    async with (
        meshnode.open(config),
        meshnode.connect(socket_of(config)) as one,
        meshnode.connect(socket_of(config)) as two,
    ):
        heard: dict[str, list[int]] = {f"veh/veh-1/{thread}": [] for thread in range(threads)}
        two.subscribe("veh/veh-1/*", callback=lambda reading: heard[reading.key].append(reading.value))

        def work(key: str) -> None:
            publisher = one.publisher(key)
            for value in range(each):
                assert publisher.put(value).queued == 1

        workers = [threading.Thread(target=work, args=(key,)) for key in heard]
        for worker in workers:
            worker.start()
        for worker in workers:
            await asyncio.to_thread(worker.join)
        await one.flushed()
        await until(lambda: sum(map(len, heard.values())) == each * threads, "everything arrives")
        assert all(values == list(range(each)) for values in heard.values())


async def test_slow_application_loses_its_oldest_and_holds_up_nobody(house: House) -> None:
    """One hung display must not cost the vehicle its brake events, nor memory without end."""
    config = house.config("veh-1")
    async with (
        meshnode.open(config) as node,
        meshnode.connect(socket_of(config), "slow") as slow,
        meshnode.connect(socket_of(config), "quick") as quick,
    ):
        release, seen, prompt = threading.Event(), [], []

        def hang(reading: Reading) -> None:
            release.wait(30)
            seen.append(reading.value)

        hung = slow.subscribe("veh/veh-1/*", callback=hang)
        quick.subscribe("veh/veh-1/*", callback=lambda reading: prompt.append(reading.value))
        total = 6_000
        for value in range(total):
            node.publish("veh/veh-1/x", value)
            if value % 200 == 0:  # the quick one has the interpreter as well, or it would be slow too
                await until(lambda: len(prompt) >= value - 200, "the quick one keeps up")  # noqa: B023  awaited here
        await until(lambda: len(prompt) == total, "the quick one has all")
        dropped = sum(count for (_, _, reason), count in node.drops() if reason == "queue_full")
        assert dropped > 0
        release.set()
        await until(lambda: len(seen) + dropped == total, "the slow one gets the rest")
        assert seen[-1] == total - 1
        assert seen == sorted(seen)
        await until(lambda: hung.dropped == dropped, "it is told how many")


async def test_conflated_subscription_of_a_slow_application_gets_the_newest(house: House) -> None:
    """A display wants the speed now, not that of a minute ago."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as app:
        release, seen = threading.Event(), []

        def hang(reading: Reading) -> None:
            release.wait(30)
            seen.append(reading.value)

        app.subscribe("veh/veh-1/*", callback=hang, conflate=True)
        for value in range(3_000):
            node.publish("veh/veh-1/x", value)
        release.set()
        await until(lambda: seen and seen[-1] == 2_999, "the newest arrives")
        assert len(seen) < 3_000
        assert not [drop for drop in node.drops() if drop[0][2] == "queue_full"]


async def test_application_asks_for_every_reading_as_its_node_does(house: House) -> None:
    """What waits for a slow link is decided by neighbours, and they hear of it from the node alone."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as app:
        app.subscribe("rsu/**", every=True)
        node.subscribe("veh/**", every=True)
        wants = node.driver.engine.readings.interest_for(node_id("veh-2")).wants
        assert [(want.expression, want.every) for want in wants] == [("rsu/**", True), ("veh/**", True)]
        for one in (app, node):
            with pytest.raises(LocalProtocolError, match="use one of both"):
                one.subscribe("rsu/**", every=True, conflate=True)


async def test_closing_application_hands_over_what_it_put(house: House) -> None:
    """A program that publishes one result and ends must not have to wait by guess."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node:
        heard = node.subscribe("veh/veh-1/*", depth=2_000)
        async with meshnode.connect(socket_of(config)) as app:
            for value in range(1_000):
                app.publish("veh/veh-1/result", value)
        assert [(await heard.next(30)).value for _ in range(1_000)] == list(range(1_000))


@pytest.mark.processes
def test_application_loads_neither_links_nor_models() -> None:
    """Ten small programs on a vehicle must not cost ten nodes' memory."""
    heavy = "{'pynng', 'zeroconf', 'onnxruntime', 'numpy', 'cryptography', 'uvicorn'}"
    program = f"import sys, meshnode; meshnode.connect('/nowhere'); print(*{heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


# --- dying and coming back -------------------------------------------------------------------------------------------
@pytest.mark.processes
async def test_killed_application_leaves_nothing_behind(house: House) -> None:
    """Applications crash; the node must not keep their subscriptions, descriptors or places."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node:
        descriptors = 0
        for killed in (1, 2, 3):
            with Child(socket_of(config)) as child:
                await child.heard("up")
                child.process.send_signal(signal.SIGKILL)
                child.process.wait()
            await until(lambda killed=killed: node.statistics()["local_closed"] == killed, "the node notices")
            assert node.driver._handlers == {}
            descriptors = descriptors or _open_files()  # what is opened once, for the first application, is no leak
        await until(lambda: _open_files() <= descriptors, "descriptors are closed")
    assert not socket_of(config).exists()


@pytest.mark.processes
async def test_killed_node_is_noticed_and_its_successor_takes_over(house: House) -> None:
    """A node may crash and be restarted by its supervisor: applications go on by themselves, and lose nothing they put
    while it was away."""
    file = house.file("veh-1", mdns=False)
    path = load_local_socket(file)
    events: list[Any] = []
    with Member(file) as first:
        first.wait_for("up")
        async with meshnode.connect(file) as app:
            app.on_event(events.append)
            heard = app.subscribe("veh/veh-1/*")
            first.ask("publish", "veh/veh-1/x", 1)
            assert (await heard.next(30)).value == 1
            before = app.incarnation
            request = asyncio.ensure_future(app.flushed())
            await request
            first.end(signal.SIGKILL)
            await until(lambda: any(type(event) is NodeAway for event in events), "the application notices")
            assert stat.S_ISSOCK(path.lstat().st_mode)  # left behind: nobody could remove it
            with pytest.raises(TransportError, match="away"):
                app.peers()
            with pytest.raises(TransportError, match="away"):
                await app.infer("m", {})
            with pytest.raises(TransportError, match="away"):
                app.subscribe("veh/x", callback=print)
            assert app.publish("veh/veh-1/waits", "for you").queued == 1
            assert app.statistics()["application_readings_waiting"] == 1
            with Member(file) as second:
                assert (await heard.next(30)).value == "for you"
                assert app.incarnation > before
                await until(lambda: any(type(event) is NodeBack for event in events), "it is told")
                assert [event.incarnation for event in events if type(event) is NodeBack] == [app.incarnation]
                second.ask("publish", "veh/veh-1/x", 2)
                assert (await heard.next(30)).value == 2
                assert second.end() == 0
            await until(lambda: sum(type(event) is NodeAway for event in events) == 2, "it says goodbye")
            assert "leaving" in events[-1].reason
    assert not path.exists()


@pytest.mark.processes
async def test_inference_under_way_fails_when_the_node_is_killed(house: House) -> None:
    """Waiting for ever for the answer of a dead process is the worst of answers."""
    model = write_model(house.folder / "long.onnx", [96, 96], "MatMul", repeat=4)
    slow = f"[inference]\nemulate_slowdown = {_SLOW.emulate_slowdown}\n"
    file = house.file("veh-1", f'[models.long]\npath = "{model}"\n{slow}', mdns=False)
    with Member(file) as member:
        member.wait_for("up")
        async with meshnode.connect(file) as app:
            x = np.zeros((96, 96), "f4")
            running = [asyncio.ensure_future(app.infer("long", {"x": x}, deadline_ms=60_000)) for _ in range(20)]
            await until(lambda: app.statistics()["local_inferences"] == 20, "they are under way")
            member.end(signal.SIGKILL)
            with pytest.raises(meshnode.MeshError, match="lost before it answered"):
                await asyncio.wait_for(running[-1], 30)
            await asyncio.gather(*running, return_exceptions=True)


async def test_events_of_the_neighbourhood_reach_the_application(house: House) -> None:
    """An application that shows neighbours need not ask every second."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as app:
        events: list[Any] = []
        app.on_event(events.append)
        async with meshnode.open(house.config("rsu-1", node.port, role="rsu")):
            await until(lambda: any(type(event) is NeighbourMet for event in events), "met")
        await until(lambda: type(events[-1]).__name__ == "NeighbourLeft", "left")
        assert [event.node for event in events] == ["rsu-1"] * len(events)
