"""``python -m benchmarks.placing``: what it is worth to let neighbours compute, and what it costs when they are bad.

All nodes are real processes on loopback with mutual TLS. Their models are *timed*: a run takes a given time without
using the processor, so that two cores can stand for a dozen computers. Queues, budgets, offers, the wire and all
decisions are those of any model.

- ``never-slower``: two nodes ask in turn, one request at a time. One may ask two neighbours, the other computes
  everything itself. The neighbours are idle and twice as fast, busy with requests of their own, three times as slow,
  flaky (one run in ten takes ten times as long), or liars that are three times as slow and claim to be a hundred times
  as fast. Bars: p50 at most 1.03 times, p99 at most 1.15 times that without neighbours; of the requests to idle
  neighbours at least 40 % leave home.
- ``hedging``: ten neighbours, each of which stalls tenfold in 3 % of its runs. Two nodes without the model ask in turn,
  one with hedges and one without. Bars: p99 with hedges at most a third, at most 5 % more runs.
- ``kills``: three neighbours compute for one node, and one that has a run under way is killed with SIGKILL again and
  again. Bar: each request gets one right answer.

It prints the figures and writes ``build/placing.json``.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from benchmarks import command
from benchmarks.children import Child
from benchmarks.command import between, finish, measuring
from benchmarks.measures import percentile
from meshnode.config.sections import DiscoverySection, IdentitySection, ListenSection, NodeConfig, NodeSection
from meshnode.http.section import HttpSection
from meshnode.identity import create_mesh, issue
from meshnode.inference.section import InferenceSection
from meshnode.links.transport import Address
from meshnode.node import Node
from meshnode.trial.node import ECHOED_BYTES, INPUT, OUTPUT, TrialModel, TrialNode, echoed
from protocols.base.errors import MeshError
from protocols.base.ids import node_id
from protocols.wire.readings import Position
from protocols.wire.tensors import tensor_of

MODEL: Final = "timed"
COMPUTE_MS: Final = 20.0
INPUT_BYTES: Final = 30_000
DEADLINE_MS: Final = 5_000
P50_BAR, P99_BAR, LEAVING_BAR = 1.03, 1.15, 0.4
HEDGED_P99_BAR, HEDGED_RUNS_BAR = 1 / 3, 1.05
OWN_REQUESTS_OF_BUSY: Final = 3
"""Requests of its own that a busy neighbour always has under way."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a neighbour behaves."""

    slowed: float = 1.0
    """Times ``COMPUTE_MS``."""
    understated: float = 1.0
    stalled_share: float = 0.0
    busy: bool = False


MANNERS: Final = {
    "idle": Manner(0.5),
    "busy": Manner(0.5, busy=True),
    "slow": Manner(3.0),
    "flaky": Manner(0.5, stalled_share=0.1),
    "lying": Manner(3.0, understated=100.0),
}


def _config(
    folder: Path, name: str, seeds: tuple[Address, ...] = (), offload: bool = True, hedge: bool = True
) -> NodeConfig:
    return NodeConfig(
        node=NodeSection(id=node_id(name), state_dir=folder / name / "state", position=Position(48.7657, 11.4237, 1.0)),
        identity=IdentitySection.in_folder(folder / name, name),
        listen=ListenSection(host="127.0.0.1"),
        discovery=DiscoverySection(mdns=False, seeds=seeds),
        sections=(HttpSection(enabled=False), InferenceSection(offload=offload, hedge=hedge)),
    )


@contextlib.asynccontextmanager
async def _opened(config: NodeConfig, folder: Path, manner: Manner | None) -> AsyncIterator[Node]:
    """A running node; ``manner``: how its timed model behaves; None: it has none."""
    timed = () if manner is None else (TrialModel(name=MODEL, compute_ms=COMPUTE_MS),)
    configured = TrialNode(config, folder, timed)
    if manner is not None:
        configured.slow_models(manner.slowed)
        configured.understate_load(manner.understated)
        configured.condition.stalled_share = manner.stalled_share
    async with configured as node:
        yield node


def _neighbour(folder: Path, name: str, seeds: tuple[Address, ...], manner: Manner, orders: Connection) -> None:
    async def main() -> None:
        # A busy one keeps its own requests: otherwise it would have the callers compute them, one more than the other.
        async with _opened(_config(folder, name, seeds, offload=not manner.busy), folder, manner) as node:
            # A real model is warmed up when it is loaded; the first run of a timed one imports NumPy.
            await node.infer(MODEL, {INPUT: tensor_of(bytes(100))}, deadline_ms=DEADLINE_MS)
            own = [asyncio.create_task(_busy(node)) for _ in range(OWN_REQUESTS_OF_BUSY if manner.busy else 0)]
            orders.send(node.port)
            await asyncio.to_thread(_wait, orders)
            for task in own:
                task.cancel()
            await asyncio.gather(*own, return_exceptions=True)

    asyncio.run(main())


async def _busy(node: Node) -> None:
    while True:
        with contextlib.suppress(MeshError):
            await node.infer(MODEL, {INPUT: tensor_of(bytes(100))}, deadline_ms=DEADLINE_MS, hedge=False)


def _wait(orders: Connection) -> None:
    with contextlib.suppress(EOFError):
        orders.recv()


class Neighbours:
    """Neighbours in processes of their own."""

    def __init__(self, folder: Path, seeds: tuple[Address, ...], manner: Manner) -> None:
        self._folder, self._seeds, self._manner = folder, seeds, manner
        self._context = multiprocessing.get_context("spawn")
        self.running: dict[str, Child] = {}

    def start(self, name: str) -> None:
        """Start one; its answer follows."""
        self.running[name] = Child(self._context, _neighbour, self._folder, name, self._seeds, self._manner)

    def kill(self, name: str) -> None:
        """End one as a power cut does."""
        child = self.running.pop(name)
        pid = child.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        child.process.join()
        child.orders.close()

    def close(self) -> None:
        """End all."""
        for child in self.running.values():
            child.end()


@contextlib.contextmanager
def _house(names: tuple[str, ...]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="placing-") as place:
        folder = Path(place)
        create_mesh(folder / "authority", "bench")
        for name in names:
            issue(folder / "authority", "vehicle", name, folder / name)
        yield folder


@contextlib.asynccontextmanager
async def _crowd(folder: Path, callers: list[Node], names: list[str], manner: Manner) -> AsyncIterator[Neighbours]:
    """Neighbours that all callers have met and whose offers they know."""
    neighbours = Neighbours(folder, tuple(Address("127.0.0.1", caller.port) for caller in callers), manner)
    try:
        for name in names:
            neighbours.start(name)
        for child in list(neighbours.running.values()):
            await asyncio.to_thread(child.answer)
        await _offered(callers, names)
        yield neighbours
    finally:
        await asyncio.to_thread(neighbours.close)


async def _offered(callers: list[Node], names: list[str]) -> None:
    ends_at = time.monotonic() + 60
    while any(len([p for p in caller.peers() if p.node in names and p.offers]) < len(names) for caller in callers):
        if time.monotonic() > ends_at:
            raise TimeoutError("the neighbours did not all offer the model")
        await asyncio.sleep(0.02)


class Asked:
    """What the requests of one caller have taken."""

    def __init__(self, caller: Node) -> None:
        self._caller = caller
        self.took_ms: list[float] = []
        self.away = self.failed = self.wrong = 0
        self._next = 0

    async def ask(self) -> None:
        """One request, answered."""
        self._next += 1
        data = f"{self._caller.id} {self._next} ".encode().rjust(ECHOED_BYTES) + bytes(INPUT_BYTES - ECHOED_BYTES)
        began = time.perf_counter()
        try:
            result = await self._caller.infer(MODEL, {INPUT: tensor_of(data)}, deadline_ms=DEADLINE_MS)
        except MeshError as error:
            print(f"  {self._caller.id}: {error}", file=sys.stderr)
            self.failed += 1
            return
        self.took_ms.append((time.perf_counter() - began) * 1e3)
        answer = result.outputs[OUTPUT].tobytes()
        self.wrong += answer != echoed(data, len(answer))
        self.away += result.ran_on != self._caller.id

    def quantile(self, share: float) -> float:
        """Of the times, in milliseconds."""
        return percentile(sorted(self.took_ms), share) if self.took_ms else float("nan")

    def counter(self, name: str) -> int:
        """One of the caller's counters of inference."""
        return int(self._caller.statistics()[f"inference_{name}"])


async def _in_turn(requests: int, askers: list[Asked]) -> None:
    order = random.Random(1)
    for _ in range(requests):
        for asker in order.sample(askers, len(askers)):
            await asker.ask()


async def never_slower(requests: int, only: list[str]) -> dict[str, Any]:
    """See the module."""
    figures: dict[str, Any] = {}
    for name, manner in MANNERS.items():
        if only and name not in only:
            continue
        with _house(("on", "off", "n1", "n2")) as folder:
            async with AsyncExitStack() as stack:
                callers = [
                    await stack.enter_async_context(
                        _opened(_config(folder, caller, offload=caller == "on"), folder, Manner())
                    )
                    for caller in ("on", "off")
                ]
                await stack.enter_async_context(_crowd(folder, callers, ["n1", "n2"], manner))
                on, off = map(Asked, callers)
                await _in_turn(requests, [on, off])
                figures[name] = {
                    "requests": requests, "failed": on.failed, "wrong": on.wrong, "away": on.away / requests,
                    "p50_ms": on.quantile(0.5), "p50_ratio": on.quantile(0.5) / off.quantile(0.5),
                    "p99_ms": on.quantile(0.99), "p99_ratio": on.quantile(0.99) / off.quantile(0.99),
                    "hedged": on.counter("hedged"), "rescued": on.counter("rescued"),
                }  # fmt: skip
        print(f"never-slower, neighbours {name}: {_shown(figures[name])}", flush=True)
    return figures


async def hedging(requests: int) -> dict[str, Any]:
    """See the module."""
    names = [f"n{number}" for number in range(10)]
    with _house(("with", "without", *names)) as folder:
        async with AsyncExitStack() as stack:
            callers = [
                await stack.enter_async_context(_opened(_config(folder, caller, hedge=caller == "with"), folder, None))
                for caller in ("with", "without")
            ]
            await stack.enter_async_context(_crowd(folder, callers, names, Manner(stalled_share=0.03)))
            hedged, plain = map(Asked, callers)
            await _in_turn(requests, [hedged, plain])
            figures = {
                "requests": requests, "failed": hedged.failed + plain.failed, "wrong": hedged.wrong + plain.wrong,
                "p50_ms": hedged.quantile(0.5), "p99_ms": hedged.quantile(0.99), "plain_p50_ms": plain.quantile(0.5),
                "plain_p99_ms": plain.quantile(0.99), "p99_ratio": hedged.quantile(0.99) / plain.quantile(0.99),
                "runs_ratio": hedged.counter("run_there") / requests, "denied": hedged.counter("hedges_denied"),
            }  # fmt: skip
    print(f"hedging: {_shown(figures)}", flush=True)
    return figures


async def kills(requests: int, wanted: int) -> dict[str, Any]:
    """See the module."""
    names = ["n1", "n2", "n3"]
    with _house(("caller", *names)) as folder:
        async with (
            _opened(_config(folder, "caller"), folder, None) as caller,
            _crowd(folder, [caller], names, Manner()) as neighbours,
        ):
            asked = Asked(caller)
            left, places = iter(range(requests)), asyncio.Semaphore(0)

            async def ask() -> None:
                for _ in left:
                    await places.acquire()
                    await asked.ask()

            killed = 0
            tasks = [asyncio.create_task(ask()) for _ in range(2)]
            while killed < wanted and not all(task.done() for task in tasks):
                for _ in range(max(requests // wanted, 1)):
                    places.release()
                victim = await _computing(caller, places, tasks)
                if victim is None:
                    break
                await asyncio.to_thread(neighbours.kill, victim)
                killed += 1
                neighbours.start(victim)
                await asyncio.to_thread(neighbours.running[victim].answer)
                await _offered([caller], [victim])
            for _ in range(requests):
                places.release()
            await asyncio.gather(*tasks)
            figures = {
                "requests": requests, "answered": len(asked.took_ms), "wrong": asked.wrong, "failed": asked.failed,
                "killed": killed, "replayed": asked.counter("replayed"), "p50_ms": asked.quantile(0.5),
                "p99_ms": asked.quantile(0.99), "answers": asked.counter("answered"),
            }  # fmt: skip
    print(f"kills: {_shown(figures)}", flush=True)
    return figures


async def _computing(caller: Node, places: asyncio.Semaphore, tasks: list[asyncio.Task[None]]) -> str | None:
    """A neighbour that has a run under way, as soon as there is one; None: all is done. When all requests of a round
    were answered before one was seen, there is one more."""
    while not all(task.done() for task in tasks):
        for _ in range(200):
            if runs := caller.ask("inference_runs"):
                return str(runs[0])
            await asyncio.sleep(0.001)
        places.release()
    return None


def missed_bars(figures: dict[str, Any]) -> list[str]:
    """The promises that were not kept, one sentence each."""
    missed = []
    for name, seen in figures.get("never_slower", {}).items():
        for measure, bar in (("p50_ratio", P50_BAR), ("p99_ratio", P99_BAR)):
            if seen[measure] > bar:
                missed.append(f"with {name} neighbours {measure} is {seen[measure]:.3f}, above {bar}")
        if seen["failed"] or seen["wrong"]:
            missed.append(f"with {name} neighbours {seen['failed']} requests failed and {seen['wrong']} were wrong")
        if name == "idle" and seen["away"] < LEAVING_BAR:
            missed.append(f"{seen['away']:.0%} left for idle neighbours, less than {LEAVING_BAR:.0%}")
    if seen := figures.get("hedging"):
        if seen["p99_ratio"] > HEDGED_P99_BAR:
            missed.append(f"p99 with hedges is {seen['p99_ratio']:.2f} of that without, above a third")
        if seen["runs_ratio"] > HEDGED_RUNS_BAR:
            missed.append(f"hedging needs {seen['runs_ratio']:.3f} times the runs, above {HEDGED_RUNS_BAR}")
    if (seen := figures.get("kills")) and not (
        seen["requests"] == seen["answered"] == seen["answers"] and not seen["wrong"]
    ):
        missed.append(f"of {seen['requests']} requests {seen['answered']} were answered, {seen['wrong']} wrongly")
    return missed


def _shown(figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("placing", __doc__, "a bar is missed")
    parser.add_argument("--only", choices=["never-slower", "hedging", "kills"], action="append", default=[])
    parser.add_argument("--neighbours", choices=list(MANNERS), action="append", default=[])
    count = between(1, 100_000)
    parser.add_argument("--requests", type=count, default=1_000, help="of each caller (default: %(default)s)")
    parser.add_argument("--kills", type=count, default=100, help="default: %(default)s")
    parser.add_argument("--rounds", type=count, default=1, help="repeat all, and judge the medians")
    options = parser.parse_args(arguments)
    parts: dict[str, Callable[[], Any]] = {
        "never-slower": partial(never_slower, options.requests, options.neighbours),
        "hedging": partial(hedging, options.requests),
        "kills": partial(kills, options.requests, options.kills),
    }
    wanted = {name: part for name, part in parts.items() if not options.only or name in options.only}
    with measuring("placing"):
        rounds = [
            {name.replace("-", "_"): asyncio.run(part()) for name, part in wanted.items()}
            for _ in range(options.rounds)
        ]
    figures = _medians(rounds)
    return finish(options, {"medians": figures, "rounds": rounds}, missed_bars(figures))


def _medians(rounds: list[Any]) -> Any:
    """Of figures of one form, the median of each."""
    if isinstance(rounds[0], dict):
        return {name: _medians([each[name] for each in rounds]) for name in rounds[0]}
    return statistics.median(rounds)


if __name__ == "__main__":
    sys.exit(main())
