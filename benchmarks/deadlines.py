"""``python -m benchmarks.deadlines``: how many requests are answered in time, by where they are computed.

A neighbourhood in which all are in reach of each other: four single-board computers, four car computers, two roadside
units and a server, each with one worker. All but the server ask for inferences at random (Poisson), equally often; the
load is the share of what all computers can do together. The policies are those of :mod:`benchmarks.policies`.

It is simulated in virtual time. The figures are the means over the seeds; they are the same on every machine. With
``--emulated`` the nodes are real processes on the emulator's wire (:mod:`benchmarks.neighbourhood`), and the policies
take turns, in another order for each load and seed. That needs Linux and root, and a quiet computer.

Bar: at each load, no policy answers a larger share in time than ours. It prints a table and writes
``build/deadlines.json``.
"""

import argparse
import sys
from random import Random
from typing import Any, Final

from msgspec.structs import asdict

from benchmarks import command
from benchmarks.children import ChildFailed
from benchmarks.command import between, finish, measuring
from benchmarks.fleet import machine
from benchmarks.neighbourhood import WARM_UP_S, Neighbourhood, Trial
from benchmarks.policies import (
    COMPUTE_MS,
    COMPUTERS,
    DEADLINE_MS,
    INPUT_BYTES,
    LINK_BYTES_PER_S,
    LINK_DELAY_NS,
    MODEL,
    OUTPUT_BYTES,
    POLICIES,
    SERVER,
    mean_between_ns,
    set_policy,
)
from protocols.base.errors import BoundExceeded
from protocols.base.ids import Role
from protocols.base.limits import MS, SECOND
from protocols.inference.events import Answered
from protocols.wire.tensors import NamedTensor, tensor_of
from sims.errors import EmulatorError
from sims.scenario.devices import DEVICES
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.compute import Model, Worker

LOADS: Final = (0.3, 0.5, 0.7, 0.8, 0.9)
WARM_UP_NS: Final = 10 * SECOND
SECONDS: Final = 60
EMULATED_SECONDS: Final = 40
_TRIES: Final = 3
"""How often an emulated trial is done until the wire was on time."""


def in_time(policy: str, load: float, seed: int, seconds: int) -> float:
    """The share of the requests that are answered in time."""
    sim, random = SimDriver(seed), Random(f"{seed}/deadlines")
    nodes: list[SimNode] = []
    workers: list[Worker] = []
    model = Model(MODEL, COMPUTE_MS * MS, OUTPUT_BYTES)
    for device, count in COMPUTERS.items():
        for number in range(count):
            nodes.append(sim.add(f"{device}-{number}", Role.VEHICLE if device == "car-computer" else Role.RSU))
            workers.append(Worker(sim, nodes[-1], [model], DEVICES[device].factor))
            nodes[-1].compute = workers[-1].perform
            set_policy(nodes[-1].engine.inference._asking, policy, random)
    for sender in nodes:
        for receiver in nodes:
            if sender is not receiver:
                sim.shape(sender.name, receiver.name, LINK_DELAY_NS, LINK_BYTES_PER_S)
    sim.meet()
    sim.run_for(SECOND)
    for worker in workers:
        worker.begin()
    sim.run_for(SECOND)
    askers = [node for node in nodes if not node.name.startswith(SERVER)]
    mean_ns = mean_between_ns(load)
    data = NamedTensor("x", tensor_of(bytes(INPUT_BYTES)))
    ends_ns = sim.now + WARM_UP_NS + seconds * SECOND
    counts_ns = sim.now + WARM_UP_NS
    asked: set[tuple[str, int]] = set()

    def ask(node: SimNode) -> None:
        if sim.now < ends_ns:
            sim.push(sim.now + int(random.expovariate(1 / mean_ns)), ask, node)

            def begin(engine: Any, now: int) -> None:
                try:
                    number = engine.inference.ask(MODEL, (data,), (), DEADLINE_MS * MS, policy == "ours", now)
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


def simulated(options: argparse.Namespace, loads: list[float]) -> dict[str, Any]:
    """The shares by load and policy, in virtual time."""
    seconds, seeds = options.seconds or SECONDS, range(1, options.seeds + 1)
    shares: dict[str, dict[str, float]] = {}
    print("load " + " ".join(f"{policy:>13}" for policy in options.policies))
    for load in loads:
        shares[f"{load:g}"] = at_load = {
            policy: sum(in_time(policy, load, seed, seconds) for seed in seeds) / options.seeds
            for policy in options.policies
        }
        print(f"{load:4g} " + " ".join(f"{share:13.4f}" for share in at_load.values()), flush=True)
    return {"shares": shares}


def emulated(options: argparse.Namespace, loads: list[float]) -> dict[str, Any]:
    """The shares by load and policy of real nodes, with all trials. :raises ChildFailed: they could not be measured."""
    seconds, trials = options.seconds or EMULATED_SECONDS, list[Trial]()
    print(f"{sum(COMPUTERS.values())} real nodes on {machine()['model']}, {machine()['cores']} cores")
    with measuring("the share of deadlines") as folder:
        neighbourhood = Neighbourhood(folder)
        for seed in range(1, options.seeds + 1):
            for load in loads:
                for policy in Random(f"{seed}/{load}/order").sample(options.policies, len(options.policies)):
                    trials.append(_trial(neighbourhood, policy, load, seed, seconds, options.warm_up))
                    print(f"  {_shown(trials[-1])}", flush=True)
    shares: dict[str, dict[str, float]] = {}
    print("load " + " ".join(f"{policy:>22}" for policy in options.policies))
    for load in loads:
        cells, shares[f"{load:g}"] = [], {}
        for policy in options.policies:
            met = [trial for trial in trials if (trial.load, trial.policy) == (load, policy)]
            in_time, asked = sum(trial.in_time for trial in met), sum(trial.asked for trial in met)
            shares[f"{load:g}"][policy] = in_time / max(asked, 1)
            cells.append(f"{f'{in_time} of {asked}':>14} {in_time / max(asked, 1):7.4f}")
        print(f"{load:4g} " + " ".join(cells))
    return {"shares": shares, "trials": [asdict(trial) for trial in trials]}


def _trial(
    neighbourhood: Neighbourhood, policy: str, load: float, seed: int, seconds: float, warm_up_s: float
) -> Trial:
    for _ in range(_TRIES):
        trial = neighbourhood.trial(policy, load, seed, seconds, warm_up_s)
        if trial.on_time:
            return trial
        print(f"  again, because the wire was late: {_shown(trial)}", flush=True)
    raise ChildFailed(f"the wire was late in each of {_TRIES} trials: use a computer with nothing else to do")


def _shown(trial: Trial) -> str:
    return (
        f"seed {trial.seed} load {trial.load:g} {trial.policy}: {trial.in_time} of {trial.asked} in time "
        f"({trial.in_time / max(trial.asked, 1):.2%}), {trial.away} computed away, p50 {trial.p50_ms:.0f} ms, "
        f"p99 {trial.p99_ms:.0f} ms; wire late {trial.wire_late_p99_ms:.2f} ms, processors {trial.busy_share:.0%} busy"
    )


def missed_bars(figures: dict[str, Any]) -> list[str]:
    """Where ours was not the best, one sentence each."""
    missed = []
    for load, shares in figures["shares"].items():
        best = max(shares, key=lambda policy: (shares[policy], policy == "ours"))
        if best != "ours":
            missed.append(f"at a load of {load}, {best} is better: {shares[best]:.2%}, ours {shares['ours']:.2%}")
    return missed + [
        f"{trial['wrong']} answers of {trial['policy']} at a load of {trial['load']:g} were wrong"
        for trial in figures.get("trials", ()) if trial["wrong"]
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("deadlines", __doc__, "another policy is better at some load")
    parser.add_argument("--emulated", action="store_true", help="with real nodes; it takes a minute for each trial")
    parser.add_argument("--load", type=between(0.01, 2.0), action="append", default=[])
    parser.add_argument(
        "--seconds", type=between(1, 3_600), help=f"default: {SECONDS}, with --emulated {EMULATED_SECONDS}"
    )
    parser.add_argument(
        "--warm-up", type=between(0.1, 600.0), default=WARM_UP_S, help="seconds, of --emulated; default: %(default)s"
    )
    parser.add_argument("--policy", choices=POLICIES[1:], action="append", default=[], help="beside ours; default: all")
    parser.add_argument("--seeds", type=between(1, 100), default=3, help="default: %(default)s")
    options = parser.parse_args(arguments)
    loads = options.load or list(LOADS)
    options.policies = [policy for policy in POLICIES if policy == "ours" or policy in (options.policy or POLICIES)]
    try:
        figures = (emulated if options.emulated else simulated)(options, loads)
    except EmulatorError as error:
        print(f"the share of deadlines could not be measured: {error}", file=sys.stderr)
        return 2
    return finish(options, figures, missed_bars(figures))


if __name__ == "__main__":
    sys.exit(main())
