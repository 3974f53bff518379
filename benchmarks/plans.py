"""``python -m benchmarks.plans``: whether the plan that a node chooses is as good as the best one that there is.

A simulated vehicle with a small board has a private model with four cuts, and a roadside unit with a graphics processor
runs stages of it. The link between them carries 1, 10 or 100 Mb/s. At each speed the vehicle first plans for itself,
without knowing the link, and asks for one inference after the other. Then each possible plan is forced on it in turn:
the first stage at home, one at the unit, and what is left at home. One of them is to compute all at home. Bar: the
median of the requests is at most a tenth longer than with the best forced plan.

The figures are the same on every machine. It prints a table, writes ``build/plans.json``, and ends with status 1 when
the bar is missed, without ``--check`` too. A plan that gains less than a tenth is not followed, on purpose.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import command
from benchmarks.command import between, finish
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS, SECOND
from protocols.engine import Engine
from protocols.inference.events import Answered
from protocols.inference.split.events import MakePlans
from protocols.inference.split.plan import CutPoint, PlacedStage, price
from protocols.wire.tensors import NamedTensor, tensor_of
from sims.checks.contract import INPUT
from sims.scenario.devices import DEVICES
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.compute import Worker
from sims.world.models import Model, StageFiles, private_models
from sims.world.stages import Stages, stage_effects

CAR, UNIT = NodeId("car"), NodeId("unit")
MODEL: Final = Model(
    "plate", 150 * MS, 4_000, 150_000,
    (
        CutPoint(400_000, 0.06, 100_000), CutPoint(100_000, 0.2, 400_000), CutPoint(20_000, 0.5, 1_000_000),
        CutPoint(6_000, 0.8, 2_400_000),
    ),
    3_000_000, "latency", private=True,
)  # fmt: skip
SPEEDS_MBPS: Final = (1.0, 10.0, 100.0)
DELAY_NS: Final = 2 * MS
PERIOD_NS: Final = SECOND
BUDGET_NS: Final = 30 * SECOND
LEARNING_S: Final = 240
"""After this, plans that were made with what is known of the link are in force: stages of 9 MB take 72 s at 1 Mb/s."""
IN_FORCE_NS: Final = 120 * SECOND
"""How long it may take until a forced plan is in force. One that fills a link for seconds makes its neighbour doubtful
now and then, and has to come into force again."""
LAST: Final = 20
"""The requests whose times are compared."""
BAR: Final = 1.1

Placed = tuple[PlacedStage, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """How long requests took, and by which stages the last one was answered."""

    median_ms: float
    stages: tuple[str, ...]


class _Forced(Stages):
    """Makes one plan, whatever it costs."""

    stages: Placed = ()

    def _plan(self, effect: MakePlans) -> None:
        plan = price(effect.profile, effect.home, effect.neighbours, self.stages)
        made = [plan] if plan is not None else []
        self._driver.act(self._node, lambda engine, now: engine.inference.split.planned(effect.model, made, now))


def possible() -> list[Placed]:
    """All plans that divide the model: first home, then the unit, and what is left at home."""
    end = len(MODEL.cuts)
    return [
        tuple(
            PlacedStage(first, last, node)
            for first, last, node in ((-1, leaves, CAR), (leaves, returns, UNIT), (returns, end, CAR)) if first < last
        )
        for leaves in range(end) for returns in range(leaves + 1, end + 1)
    ]  # fmt: skip


def described(stages: Sequence[PlacedStage]) -> str:
    """A plan as the table shows it: where each stage ends, in cuts from 1 on."""
    end = len(MODEL.cuts)
    return ", ".join(f"{each.node} to {'the end' if each.last == end else each.last + 1}" for each in stages)


def timed(speed_mbps: float, learning_s: int, forced: Placed | None = None, *, whole: bool = False) -> Timed:
    """Run a vehicle and a unit. ``forced``: a plan that takes the place of its own; ``whole``: it has no plan."""
    stages: dict[int, Stages] = {}
    sim = SimDriver(1, capabilities=[stage_effects(stages)])
    files = StageFiles([MODEL])
    for name, role, device in ((CAR, Role.VEHICLE, "single-board"), (UNIT, Role.RSU, "rsu-gpu")):
        node, is_car = sim.add(name, role), name == CAR
        worker = Worker(sim, node, [MODEL] if is_car else [], DEVICES[device].factor)
        node.compute = worker.perform
        made = (_Forced if forced is not None else Stages)(
            sim, node, worker, DEVICES[device], files, owned=(MODEL,) if is_car and not whole else (),
            private=private_models([MODEL]), accepts=not is_car,
        )  # fmt: skip
        if isinstance(made, _Forced) and forced is not None:
            made.stages = forced
        stages[node.number] = made
        worker.begin()
        made.begin()
    for sender, receiver in ((CAR, UNIT), (UNIT, CAR)):
        sim.shape(sender, receiver, DELAY_NS, int(speed_mbps * 125_000))
    sim.meet()
    sim.run_for(SECOND)
    car = sim.nodes[CAR]
    asker = _Asker(sim, car)
    if forced is None:
        while sim.now < learning_s * SECOND:
            asker.ask()
            sim.run_for(PERIOD_NS)
        answers = [asker.ask() for _ in range(LAST)]
    else:
        answers = [asker.follow(forced, speed_mbps) for _ in range(LAST)]
    return Timed(statistics.median(answer.took_ns for answer in answers) / MS, _ran(answers[-1]))


class _Asker:
    """Asks for one inference after the other."""

    def __init__(self, sim: SimDriver, node: SimNode) -> None:
        self._sim, self._node = sim, node
        self._image = (NamedTensor(INPUT, tensor_of(bytes(MODEL.input_bytes))),)

    def ask(self) -> Answered:
        """Ask as an application does, and let time pass until the answer is there. :raises TimeoutError: there is
        none."""
        return self._answer(lambda engine, now: engine.inference.ask(MODEL.name, self._image, (), BUDGET_NS, True, now))

    def follow(self, plan: Placed, speed_mbps: float) -> Answered:
        """Ask for a pipeline by the plan in force, whatever it costs. :raises TimeoutError: it can't be done."""
        split = self._node.engine.inference.split
        by_ns = self._sim.now + IN_FORCE_NS
        while (force := split._splits[MODEL.name].force) is None:
            if self._sim.now > by_ns:
                raise TimeoutError(f"the plan {described(plan)!r} is not in force at {speed_mbps:g} Mb/s")
            self._sim.run_for(PERIOD_NS)
        staged = force.staged
        answer = self._answer(
            lambda engine, now: split.pipelines.begin(staged, self._image, (), BUDGET_NS, hedge=False, now=now)
        )
        if [part.node for part in answer.parts] != [stage.node for stage in plan]:
            raise TimeoutError(f"the plan {described(plan)!r} was not followed at {speed_mbps:g} Mb/s")
        return answer

    def _answer(self, begin: Callable[[Engine, int], object]) -> Answered:
        self._node.events.clear()
        self._sim.act(self._node, begin)
        while True:
            self._sim.run_for(MS)
            for _, event in self._node.events:
                if type(event) is Answered:
                    if event.winner is None:
                        raise TimeoutError(f"a request failed: {event.detail}")
                    return event


def _ran(answer: Answered) -> tuple[str, ...]:
    """By which stages a request was answered; the sizes of their outputs tell where they ended."""
    sizes = {cut.size_bytes: number for number, cut in enumerate(MODEL.cuts, 1)}
    return tuple(f"{part.node} to {sizes.get(part.output_bytes, 'the end')}" for part in answer.parts) or (
        f"{answer.winner.node if answer.winner is not None else '?'} to the end",
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    parser = command.parser("plans", __doc__, "a chosen plan is not within a tenth of the best")
    parser.add_argument("--speed", type=between(0.5, 1_000.0), action="append", default=[], help="Mb/s; repeatable")
    parser.add_argument("--learning-s", type=between(30, 3_600), default=LEARNING_S, help="default: %(default)s")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    missed = []
    print(f"{'Mb/s':>5} {'chosen ms':>10} {'best ms':>9} {'home ms':>9}  chosen | best")
    for speed in options.speed or SPEEDS_MBPS:
        chosen = timed(speed, options.learning_s)
        others = {"all at home": timed(speed, options.learning_s, whole=True).median_ms}
        others |= {described(plan): timed(speed, options.learning_s, plan).median_ms for plan in possible()}
        best = min(others, key=lambda plan: others[plan])
        print(
            f"{speed:5g} {chosen.median_ms:10.1f} {others[best]:9.1f} {others['all at home']:9.1f}  "
            f"{', '.join(chosen.stages)} | {best}",
            flush=True,
        )
        figures[f"{speed:g}"] = {"chosen_ms": chosen.median_ms, "chosen": chosen.stages, "forced_ms": others}
        if chosen.median_ms > BAR * others[best]:
            missed.append(
                f"at {speed:g} Mb/s the chosen plan takes {chosen.median_ms:.1f} ms, and {best!r} {others[best]:.1f} ms"
            )
    finish(options, {"speeds_mbps": figures}, missed)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
