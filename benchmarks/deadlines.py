"""``python -m benchmarks.deadlines``: how many requests are answered in time, by where they are computed.

A simulated neighbourhood in virtual time, in which all are in reach of each other: four single-board computers, four
car computers, two roadside units and a server, each with one worker. All but the server ask for inferences at random
(Poisson), equally often; the load is the share of what all computers can do together. The policies:

- ``ours``: as nodes decide;
- ``local``: each computes everything itself;
- ``random``: any computer, by lot;
- ``least-loaded``: the one with the shortest queue, by what the neighbours report; of several, by lot.

The others have no hedges and refuse nothing, but a run whose deadline has passed is not begun. Bar: at each load, no
policy answers a larger share in time than ours. The figures are the means over the seeds; they are the same on every
machine. It prints a table and writes ``build/deadlines.json``.
"""

import sys
from collections.abc import Callable
from random import Random
from typing import Any, Final

from benchmarks import command
from benchmarks.command import between, finish
from protocols.base.errors import BoundExceeded
from protocols.base.ids import Role
from protocols.base.limits import MS, SECOND
from protocols.inference.asking import Asking
from protocols.inference.events import Answered
from protocols.inference.placement import Candidate
from protocols.inference.requests import OwnRequest
from protocols.wire.tensors import NamedTensor, tensor_of
from sims.scenario.devices import DEVICES
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.compute import Model, Worker

COMPUTERS: Final = {"single-board": 4, "car-computer": 4, "rsu": 2, "server": 1}
COMPUTE_MS: Final = 40
DEADLINE_MS: Final = 250
INPUT_BYTES: Final = 30_000
LINK_BYTES_PER_S: Final = 5_000_000
LINK_DELAY_NS: Final = 2 * MS
LOADS: Final = (0.3, 0.5, 0.7, 0.8, 0.9)
WARM_UP_NS: Final = 10 * SECOND
POLICIES: Final = ("ours", "local", "random", "least-loaded")

Chosen = Callable[[OwnRequest, int], list[Candidate]]


def _everybody(asking: Asking, request: OwnRequest, now: int) -> list[Candidate]:
    work = request.demand
    here = asking.candidates.here(request, request.model, work, now)
    return [*([here] if here is not None else []), *asking.candidates.there(request, request.model, work, now)]


def _by_lot(asking: Asking, lot: Random) -> Chosen:
    def candidates(request: OwnRequest, now: int) -> list[Candidate]:
        everybody = _everybody(asking, request, now)
        lot.shuffle(everybody)
        return everybody

    return candidates


def _by_queue(asking: Asking, lot: Random) -> Chosen:
    def queue_ns(candidate: Candidate, now: int) -> int:
        if candidate.node == asking._node:
            return candidate.queue_ns
        return asking.loads.queue_ns(candidate.node, now)

    def candidates(request: OwnRequest, now: int) -> list[Candidate]:
        everybody = _everybody(asking, request, now)
        lot.shuffle(everybody)
        return sorted(everybody, key=lambda candidate: queue_ns(candidate, now))

    return candidates


def _set_policy(node: SimNode, policy: str, lot: Random) -> None:
    asking = node.engine.inference._asking
    if policy == "local":
        asking.candidates.offload = False
    elif policy == "random":
        asking._candidates = _by_lot(asking, lot)  # type: ignore[method-assign, assignment]
    elif policy == "least-loaded":
        asking._candidates = _by_queue(asking, lot)  # type: ignore[method-assign, assignment]


def in_time(policy: str, load: float, seed: int, seconds: int) -> float:
    """The share of the requests that are answered in time."""
    sim, random = SimDriver(seed), Random(f"{seed}/deadlines")
    nodes: list[SimNode] = []
    workers: list[Worker] = []
    model = Model("model", COMPUTE_MS * MS, 1_000)
    for device, count in COMPUTERS.items():
        for number in range(count):
            nodes.append(sim.add(f"{device}-{number}", Role.VEHICLE if device == "car-computer" else Role.RSU))
            workers.append(Worker(sim, nodes[-1], [model], DEVICES[device].factor))
            nodes[-1].compute = workers[-1].perform
            _set_policy(nodes[-1], policy, random)
    for sender in nodes:
        for receiver in nodes:
            if sender is not receiver:
                sim.shape(sender.name, receiver.name, LINK_DELAY_NS, LINK_BYTES_PER_S)
    sim.meet()
    sim.run_for(SECOND)
    for worker in workers:
        worker.begin()
    sim.run_for(SECOND)
    askers = [node for node in nodes if not node.name.startswith("server")]
    runs_per_s = sum(count / DEVICES[device].factor for device, count in COMPUTERS.items()) * 1_000 / COMPUTE_MS
    mean_ns = SECOND * len(askers) / (load * runs_per_s)
    data = NamedTensor("x", tensor_of(bytes(INPUT_BYTES)))
    ends_ns = sim.now + WARM_UP_NS + seconds * SECOND
    counts_ns = sim.now + WARM_UP_NS
    asked: set[tuple[str, int]] = set()

    def ask(node: SimNode) -> None:
        if sim.now < ends_ns:
            sim.push(sim.now + int(random.expovariate(1 / mean_ns)), ask, node)

            def begin(engine: Any, now: int) -> None:
                try:
                    number = engine.inference.ask("model", (data,), (), DEADLINE_MS * MS, policy == "ours", now)
                except BoundExceeded:
                    number = -1 - len(asked)  # no request has it, so it counts as not answered
                if sim.now >= counts_ns:
                    asked.add((node.name, number))

            sim.act(node, begin)

    for node in askers:
        sim.push(sim.now + int(random.expovariate(1 / mean_ns)), ask, node)
    sim.run_until(ends_ns + SECOND)
    answered = sum(
        event.winner is not None and (node.name, event.request) in asked
        for node in askers for _, event in node.events if type(event) is Answered
    )  # fmt: skip
    return answered / len(asked)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("deadlines", __doc__, "another policy is better at some load")
    parser.add_argument("--load", type=between(0.01, 2.0), action="append", default=[])
    parser.add_argument("--seconds", type=between(1, 3_600), default=60, help="default: %(default)s")
    parser.add_argument("--seeds", type=between(1, 100), default=3, help="default: %(default)s")
    options = parser.parse_args(arguments)
    figures: dict[str, dict[str, float]] = {}
    missed = []
    print("load " + " ".join(f"{policy:>13}" for policy in POLICIES))
    for load in options.load or LOADS:
        seeds = range(1, options.seeds + 1)
        shares = {
            policy: sum(in_time(policy, load, seed, options.seconds) for seed in seeds) / options.seeds
            for policy in POLICIES
        }
        figures[f"{load:g}"] = shares
        print(f"{load:4g} " + " ".join(f"{share:13.4f}" for share in shares.values()), flush=True)
        best = max(POLICIES[1:], key=lambda policy: shares[policy])
        if shares[best] > shares["ours"]:
            missed.append(f"at a load of {load:g}, {best} is better: {shares[best]:.2%}, ours {shares['ours']:.2%}")
    return finish(options, {"shares": figures}, missed)


if __name__ == "__main__":
    sys.exit(main())
