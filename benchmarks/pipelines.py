"""``python -m benchmarks.pipelines``: a model in stages, on a slow vehicle and faster roadside units.

All nodes are real processes on loopback with mutual TLS, and the model is the plate detector of the demonstration, cut
where the planner wants. Slower computers are made by sleeping (``emulate_slowdown``).

- ``kills``: a vehicle that may not give its inputs away, with the first stage at home and the rest at one of three
  roadside units, which had nothing of the model at first. The one that computes is killed with SIGKILL again and again.
  Bars: each request gets one right answer, and as many stages as wanted began again from a boundary.
- ``never-slower``: two vehicles ask in turn, one request at a time. One may split the model, the other computes it
  alone. The unit beside them accepts stages; it is idle and twice as fast, busy with stages of its own, or three times
  as slow. Bars: p50 at most 1.03 times, p99 at most 1.15 times that of the vehicle alone.

It prints the figures and writes ``build/pipelines.json``.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

import meshnode
from benchmarks import command
from benchmarks.children import Child
from benchmarks.command import between, finish, measuring
from benchmarks.measures import percentile
from meshnode.config.sections import DiscoverySection, IdentitySection, ListenSection, NodeConfig, NodeSection
from meshnode.http.section import HttpSection
from meshnode.identity import create_mesh, issue
from meshnode.inference.section import InferenceSection, ModelSection, ModelsSection
from meshnode.links.transport import Address
from meshnode.models import ModelSpec, load_model
from meshnode.models.plate import find_detector
from meshnode.node import Node
from protocols.base.errors import MeshError
from protocols.base.ids import node_id
from protocols.wire.readings import Position

MODEL, INPUT = "plate", "image"
VEHICLE_SLOWDOWN: Final = 20.0
SHAPE: Final = (1, 3, 320, 320)
ALONE_SLOWDOWN: Final = 4.0
"""Of the vehicles that are compared."""
UNIT_SLOWDOWN: Final = 5.0
"""So slow that a run there is under way long enough to be hit."""
DEADLINE_MS: Final = 30_000
PLAN_S: Final = 120.0
P50_BAR, P99_BAR = 1.03, 1.15
DISTINCT_INPUTS: Final = 8
MANNERS: Final = {"idle": (0.5, False), "busy": (0.5, True), "slow": (3.0, False)}
"""How slow the unit is beside the vehicles, and whether it has a request of its own under way all the time."""


def _config(folder: Path, name: str, seeds: tuple[int, ...], inference: InferenceSection, **model: Any) -> NodeConfig:
    models = {MODEL: ModelSection(**model, warm_up={INPUT: SHAPE})} if model else {}
    return NodeConfig(
        node=NodeSection(id=node_id(name), state_dir=folder / name / "state", position=Position(48.7657, 11.4237, 1.0)),
        identity=IdentitySection.in_folder(folder / name, name),
        listen=ListenSection(host="127.0.0.1"),
        discovery=DiscoverySection(mdns=False, seeds=tuple(Address("127.0.0.1", port) for port in seeds)),
        sections=(HttpSection(enabled=False), ModelsSection(models=models), inference),
    )


def _unit(folder: Path, name: str, seeds: tuple[int, ...], slowdown: float, busy: bool, orders: Connection) -> None:
    """A roadside unit that has no model, or one of its own that keeps it busy, and takes stages of others."""

    async def main() -> None:
        own = {"path": folder / "busy.onnx", "serve": False} if busy else {}
        how = InferenceSection(accept_stages=True, emulate_slowdown=slowdown, offload=False)
        async with meshnode.open(_config(folder, name, seeds, how, **own)) as node:
            asking = asyncio.create_task(_busy(node)) if busy else None
            orders.send(node.port)
            await asyncio.to_thread(_wait, orders)
            if asking is not None:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(main())


async def _busy(node: Node) -> None:
    inputs = _inputs(random.Random(0))
    while True:
        with contextlib.suppress(MeshError):
            await node.infer(MODEL, inputs, deadline_ms=DEADLINE_MS)


def _wait(orders: Connection) -> None:
    with contextlib.suppress(EOFError):
        orders.recv()


def _inputs(chance: random.Random) -> dict[str, Any]:
    return {INPUT: np.random.default_rng(chance.randrange(2**32)).random(SHAPE, np.float32)}


class _Asker:
    """The requests of one vehicle, and what came of them."""

    def __init__(self, node: Node, given: list[tuple[dict[str, Any], dict[str, bytes]]]) -> None:
        """``given``: inputs and what the whole model makes of them."""
        self.node, self._given = node, given
        self.took_ms: list[float] = []
        self.disturbed_ms: list[float] = []
        self.failed = self.wrong = self.asked = self.split = 0

    async def ask(self) -> None:
        """One request, answered."""
        inputs, expected = self._given[self.asked % len(self._given)]
        self.asked += 1
        began = time.perf_counter()
        try:
            result = await self.node.infer(MODEL, inputs, deadline_ms=DEADLINE_MS)
        except MeshError as error:
            print(f"  {self.node.id}: {error}", file=sys.stderr)
            self.failed += 1
            return
        took_ms = (time.perf_counter() - began) * 1e3
        self.took_ms.append(took_ms)
        self.split += bool(result.parts)
        if any(part.replays for part in result.parts):
            self.disturbed_ms.append(took_ms)
        self.wrong += {name: array.tobytes() for name, array in result.outputs.items()} != expected

    def quantile(self, share: float) -> float:
        """Of the times, in milliseconds."""
        return percentile(sorted(self.took_ms), share) if self.took_ms else float("nan")

    def counter(self, name: str) -> int:
        """One of the counters of inference."""
        return int(self.node.statistics()[f"inference_{name}"])


def _given(model: Path) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    whole, given = load_model(ModelSpec(MODEL, model)), []
    for number in range(DISTINCT_INPUTS):
        inputs = _inputs(random.Random(number))
        given.append((inputs, {name: array.tobytes() for name, array in whole.run(inputs)}))
    return given


def _prepare(folder: Path, names: list[str]) -> Path:
    """Certificates, and the model with a manifest that keeps its inputs at home. Returns the model's path."""
    create_mesh(folder / "authority", "bench")
    for name in names:
        issue(folder / "authority", "vehicle" if name.startswith("v") else "rsu", name, folder / name)
    content = find_detector().read_bytes()
    (folder / "busy.onnx").write_bytes(content)
    model = folder / "plate.onnx"
    model.write_bytes(content)
    return model


async def _planned(node: Node, without: str | None = None) -> None:
    """Until a plan is in force in which ``without`` has no stage."""
    ends_at = time.monotonic() + PLAN_S
    while True:
        views = node.driver.look(lambda engine, _: engine.inference.split.views())
        if any(view.state == "in force" and without not in [stage.node for stage in view.stages] for view in views):
            return
        if time.monotonic() > ends_at:
            raise TimeoutError(f"no plan came into force within {PLAN_S:g} s: {views}")
        await asyncio.sleep(0.02)


class _Units:
    """Roadside units in processes of their own."""

    def __init__(self, folder: Path, seeds: tuple[int, ...], slowdown: float, busy: bool) -> None:
        self._arguments = folder, seeds, slowdown, busy
        self._context = multiprocessing.get_context("spawn")
        self.running: dict[str, Child] = {}

    def start(self, name: str) -> None:
        folder, *others = self._arguments
        self.running[name] = Child(self._context, _unit, folder, name, *others)

    def kill(self, name: str) -> None:
        child = self.running.pop(name)
        assert child.process.pid is not None
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.join()
        child.orders.close()


@contextlib.asynccontextmanager
async def _opened_units(
    folder: Path, vehicles: list[Node], names: list[str], slowdown: float, busy: bool
) -> AsyncIterator[_Units]:
    units = _Units(folder, tuple(vehicle.port for vehicle in vehicles), slowdown, busy)
    try:
        for name in names:
            units.start(name)
        for child in list(units.running.values()):
            await asyncio.to_thread(child.answer)
        yield units
    finally:
        for child in units.running.values():
            await asyncio.to_thread(child.end)


async def kills(folder: Path, requests: int, wanted: int) -> dict[str, Any]:
    """See the module."""
    names = ["r1", "r2", "r3"]
    model = _prepare(folder, ["v1", *names])
    model.with_suffix(".toml").write_text("[split]\nfirst_cut_at_home = true\n")
    how = InferenceSection(emulate_slowdown=VEHICLE_SLOWDOWN)
    config = _config(folder, "v1", (), how, path=model, split="latency", whole=False)
    async with meshnode.open(config) as vehicle, _opened_units(folder, [vehicle], names, UNIT_SLOWDOWN, False) as units:
        asker = _Asker(vehicle, _given(model))
        killed = 0
        await _planned(vehicle)
        while asker.asked < requests:
            asking = asyncio.create_task(asker.ask())
            replayed = asker.counter("stages_replayed")
            if replayed < wanted and replayed * requests <= asker.asked * wanted:
                victim = await _computing(vehicle, asking)
                if victim is not None:
                    await asyncio.to_thread(units.kill, victim)
                    killed += 1
                    await asking
                    units.start(victim)
                    await asyncio.to_thread(units.running[victim].answer)
                    await _planned(vehicle)
            await asking
        return {
            "requests": requests, "answered": len(asker.took_ms), "failed": asker.failed, "wrong": asker.wrong,
            "killed": killed, "wanted": wanted, "replayed": asker.counter("stages_replayed"), "split": asker.split,
            "p50_ms": asker.quantile(0.5), "p99_ms": asker.quantile(0.99),
            "disturbed_p50_ms": percentile(sorted(asker.disturbed_ms), 0.5) if asker.disturbed_ms else 0.0,
            "disturbed_p99_ms": percentile(sorted(asker.disturbed_ms), 0.99) if asker.disturbed_ms else 0.0,
        }  # fmt: skip


async def _computing(vehicle: Node, asking: "asyncio.Task[None]") -> str | None:
    """The unit that runs a stage now; None: the request was answered before one was seen."""
    while not asking.done():
        for node in vehicle.driver.look(lambda engine, _: engine.inference.under_way()):
            if node != vehicle.id:
                return str(node)
        await asyncio.sleep(0.0005)
    return None


async def never_slower(folder: Path, requests: int, manner: str) -> dict[str, Any]:
    """See the module."""
    slower, busy = MANNERS[manner]
    slowdown = slower * ALONE_SLOWDOWN
    model = _prepare(folder, ["v1", "v2", "r1"])
    how = InferenceSection(emulate_slowdown=ALONE_SLOWDOWN)
    alone = InferenceSection(emulate_slowdown=ALONE_SLOWDOWN, offload=False)
    async with AsyncExitStack() as stack:
        vehicles = [
            await stack.enter_async_context(meshnode.open(_config(folder, "v1", (), how, path=model, split="latency"))),
            await stack.enter_async_context(meshnode.open(_config(folder, "v2", (), alone, path=model))),
        ]
        await stack.enter_async_context(_opened_units(folder, vehicles, ["r1"], slowdown, busy))
        given = _given(model)
        askers = [_Asker(vehicle, given) for vehicle in vehicles]
        with contextlib.suppress(TimeoutError):  # a slow unit may be in no plan
            await asyncio.wait_for(_planned(vehicles[0]), 20)
        order = random.Random(1)
        for _ in range(requests):
            for asker in order.sample(askers, 2):
                await asker.ask()
        split, plain = askers
        return {
            "requests": requests, "failed": split.failed, "wrong": split.wrong, "split": split.split / requests,
            "p50_ms": split.quantile(0.5), "p50_ratio": split.quantile(0.5) / plain.quantile(0.5),
            "p99_ms": split.quantile(0.99), "p99_ratio": split.quantile(0.99) / plain.quantile(0.99),
        }  # fmt: skip


def missed_bars(figures: dict[str, Any]) -> list[str]:
    """The promises that were not kept, one sentence each."""
    missed = []
    if seen := figures.get("kills"):
        if seen["requests"] != seen["answered"] or seen["wrong"]:
            missed.append(f"of {seen['requests']} requests {seen['answered']} were answered, {seen['wrong']} wrongly")
        if seen["replayed"] < seen["wanted"]:
            missed.append(f"{seen['replayed']} stages began again from a boundary, fewer than {seen['wanted']}")
    for name in MANNERS:
        if seen := figures.get(f"never_slower_{name}"):
            for measure, bar in (("p50_ratio", P50_BAR), ("p99_ratio", P99_BAR)):
                if seen[measure] > bar:
                    missed.append(f"beside a unit that is {name} {measure} is {seen[measure]:.3f}, above {bar}")
            if seen["failed"] or seen["wrong"]:
                missed.append(f"beside a unit that is {name} {seen['failed']} failed and {seen['wrong']} were wrong")
    return missed


def _shown(figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("pipelines", __doc__, "a bar is missed")
    parser.add_argument("--only", choices=["kills", *(f"never-slower-{name}" for name in MANNERS)], action="append")
    count = between(1, 100_000)
    parser.add_argument("--requests", type=count, default=1_000, help="of each caller (default: %(default)s)")
    parser.add_argument("--kills", type=count, default=100, help="default: %(default)s")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    with measuring("pipelines") as folder:
        for part in options.only or ["kills", *(f"never-slower-{name}" for name in MANNERS)]:
            place = folder / part
            place.mkdir()
            if part == "kills":
                seen = asyncio.run(kills(place, options.requests, options.kills))
            else:
                seen = asyncio.run(never_slower(place, options.requests, part.removeprefix("never-slower-")))
            figures[part.replace("-", "_")] = seen
            print(f"{part}: {_shown(seen)}", flush=True)
    return finish(options, figures, missed_bars(figures))


if __name__ == "__main__":
    sys.exit(main())
