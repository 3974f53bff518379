"""A link that carries less than is published, between two real nodes: what comes is new, and hazards come at once."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from meshnode import Reading
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
        while len(hazards) < 5 and step < 3_000:
            step += 1
            await asyncio.sleep(_TICK_S)
        assert len(hazards) == 5
        assert len(positions) > 10
        assert sorted(positions)[len(positions) // 2] < 75, "half of what came is that new; it was twice as old"
        assert max(hazards) < 150, "they don't wait behind two hundred positions, which take a thousand steps"
        assert dropped(here, "conflated") > 80, "what was left out is counted"
