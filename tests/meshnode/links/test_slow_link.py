"""A link that carries less than is published, between two real nodes: what comes is new, and hazards come at once."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from meshnode import Reading
from tests.tools.eventually import until
from tests.tools.mesh_fixture import Open, dropped, given_house, given_opened, wanted

__all__ = ["given_house", "given_opened"]
BYTES_PER_S = 8_000
_TICK_S = 0.02


@asynccontextmanager
async def slow_way(port: int) -> AsyncIterator[int]:
    """A port from which everything goes on to ``port``, at ``BYTES_PER_S``; what comes back is not slowed down. Its
    buffers are as small as the kernel allows."""
    pumps: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    async def pump(source: socket.socket, target: socket.socket, at_once: int, pause_s: float) -> None:
        while data := await loop.sock_recv(source, at_once):
            await loop.sock_sendall(target, data)
            await asyncio.sleep(pause_s)
        target.shutdown(socket.SHUT_WR)

    def begin(*arguments: object) -> None:
        task = asyncio.create_task(pump(*arguments))  # type: ignore[arg-type]
        pumps.add(task)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def accept() -> None:
        while True:
            near, _ = await loop.sock_accept(listener)
            far = socket.socket()
            for end in (near, far):
                ends.callback(end.close)
                end.setblocking(False)
            await loop.sock_connect(far, ("127.0.0.1", port))
            begin(near, far, int(BYTES_PER_S * _TICK_S), _TICK_S)
            begin(far, near, 65_536, 0.0)

    with ExitStack() as ends, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        accepting = asyncio.create_task(accept())
        try:
            yield listener.getsockname()[1]
        finally:
            for task in (accepting, *pumps):
                task.cancel()
            await asyncio.gather(accepting, *pumps, return_exceptions=True)


async def test_slow_link_carries_what_is_new_and_hazards_pass_it(opened: Open) -> None:
    """Seconds of old positions waited in the kernel, where nothing can replace them, and the hazard behind them. Time
    is counted in steps of the loop that also runs the link, so that a busy computer changes nothing."""
    there = await opened("slow-2")
    positions: list[int] = []
    hazards: list[int] = []
    step = 0

    def came(reading: Reading) -> None:
        told = reading.value if reading.key.endswith("hazard") else reading.value[0]
        (hazards if reading.key.endswith("hazard") else positions).append(step - told)

    there.subscribe("veh/slow-1/*", callback=came, history=False)
    async with slow_way(there.port) as port:
        here = await opened("slow-1", port)
        await wanted(here, "veh/slow-1/position")
        for step in range(200):  # six times what the link carries
            here.publish("veh/slow-1/position", [step, bytes(900)])
            if step % 40 == 39:
                here.publish("veh/slow-1/hazard", step, priority=7)
            await asyncio.sleep(_TICK_S)
        (view,) = here.peers()
        assert view.is_behind
        assert view.left_out > 80
        assert view.frames_per_s > 0
        while len(hazards) < 5 and step < 3_000:
            step += 1
            await asyncio.sleep(_TICK_S)
        assert len(hazards) == 5
        assert len(positions) > 10
        assert sorted(positions)[len(positions) // 2] < 75, "half of what came is that new; it was twice as old"
        assert max(hazards) < 150, "they don't wait behind two hundred positions, which take a thousand steps"
        assert dropped(here, "conflated") > 80, "what was left out is counted"


async def test_slow_link_carries_every_reading_to_who_asks_for_it_and_the_newest_to_others(opened: Open) -> None:
    """A program that counts events on a slow link had no way to get all of those that the link can carry."""
    there = await opened("slow-4")
    events: list[int] = []
    positions: list[int] = []
    there.subscribe(
        "veh/slow-3/event", callback=lambda reading: events.append(reading.value), history=False, every=True
    )
    there.subscribe("veh/slow-3/position", callback=lambda reading: positions.append(reading.value[0]), history=False)
    async with slow_way(there.port) as port:
        here = await opened("slow-3", port)
        await wanted(here, "veh/slow-3/event")
        for step in range(200):
            here.publish("veh/slow-3/position", [step, bytes(900)])
            if step % 2:
                here.publish("veh/slow-3/event", step)
            await asyncio.sleep(_TICK_S)
        await until(
            lambda: bool(events and positions) and (events[-1], positions[-1]) == (199, 199), "the last came", 60
        )
        assert events == list(range(1, 200, 2)), "the link has room for all of them, if not at once"
        assert len(positions) < 120
        assert {key for (_, key, why), _ in here.drops() if why == "conflated"} == {"veh/slow-3/position"}


async def test_slow_link_leaves_out_what_has_expired_of_what_was_asked_for_in_full(opened: Open) -> None:
    """Readings that nobody can use any more must not hold up those that come in time."""
    there = await opened("slow-6")
    seen: list[int] = []
    there.subscribe("veh/slow-5/*", callback=lambda reading: seen.append(reading.value[0]), history=False, every=True)
    async with slow_way(there.port) as port:
        here = await opened("slow-5", port)
        await wanted(here, "veh/slow-5/line")
        for step in range(150):  # six times what the link carries
            here.publish("veh/slow-5/line", [step, bytes(900)], lifespan_ms=1_000)
            await asyncio.sleep(_TICK_S)
        counted = ("expired_in_queue", "expired")
        await until(
            lambda: len(seen) + sum(dropped(here, why) + dropped(there, why) for why in counted) == 150, "all ended", 60
        )
        assert seen == sorted(seen)
        assert dropped(here, "expired_in_queue") > 50
        assert dropped(here, "conflated") == 0
