"""Machines of inference that are linked to each other in virtual time, a model of three stages, and one of rows.

The first adds up: each stage appends its number to the bytes that it is given, so that the outputs show which stages
ran, and in which order. The second gives for each row its number, doubled, so that the outputs show whether each was
computed once and stands in its place.
"""

import hashlib
from array import array
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from msgspec import structs

from protocols.access import DEFAULT_RULES, AccessRule, AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.reach import Reach
from protocols.inference.events import Answered, CancelCompute, Compute
from protocols.inference.machine import Inference
from protocols.inference.placement import LocalModel
from protocols.inference.signature import ModelSignature, TensorSignature
from protocols.inference.split.events import (
    DropStage,
    FindStage,
    KeepStages,
    LoadStage,
    MakePlans,
    MakeStages,
    SplitModel,
    Stage,
    StageRange,
    StoreChunk,
    stage_name,
)
from protocols.inference.split.plan import CutPoint, Goal, Plan, Profile
from protocols.inference.split.planner import plans
from protocols.links.drops import Drops
from protocols.wire.inference import InferAnswer, Offers
from protocols.wire.tensors import NamedTensor, tensor_of

MS, SECOND = limits.MS, limits.SECOND
WHOLE, ROWS = (hashlib.sha256(name).hexdigest() for name in (b"whole", b"rows"))
CUTS = (CutPoint(2_000, 0.25, 100_000), CutPoint(1_000, 0.5, 200_000))
PROFILE = Profile(10_000, 100, CUTS, 400_000)
IMAGE = (NamedTensor("t0", tensor_of(bytes(10_000))),)


def stage_content(range_: StageRange) -> bytes:
    """The bytes of a stage; 300 kB, so that it is fetched in several chunks."""
    return f"{range_.first}:{range_.last}".encode().ljust(300_000, b".")


def signature(first: int, last: int) -> ModelSignature:
    """Tensors are named after the boundary that they cross."""
    names = f"t{first + 1}", f"t{last + 1}"
    taken, given = (TensorSignature(name, "u1", (None,)) for name in names)
    return ModelSignature((taken,), (given,))


def batch_of(count: int) -> tuple[NamedTensor, ...]:
    """The inputs of the model of rows: their numbers."""
    return (NamedTensor("x", tensor_of(array("i", range(count)))),)


def rows_of(answered: Answered) -> list[int]:
    """The numbers of the rows in the outputs, in their order."""
    (named,) = answered.outputs
    return [value // 2 for value in named.tensor.data.cast("i")]


class Linked:
    """One machine among others."""

    def __init__(self, mesh: "Mesh", name: str, run_ns: int, rules: tuple[AccessRule, ...]) -> None:
        """``run_ns``: of the whole model."""
        self.mesh, self.node, self.run_ns = mesh, NodeId(name), run_ns
        self.drops = Drops()
        self.machine = Inference(self.node, AccessTable(rules), self._reachable, self.drops, Random(1))
        self.models: dict[str, LocalModel] = {}
        self.runs: list[tuple[str, NodeId | None]] = []
        """Every run that was begun: its model, and who asked for it."""
        self.row_ns = 0
        """What a row of the model of rows takes."""
        self.disk: dict[str, bytes] = {}
        self.answered: list[Answered] = []
        self.hears = True
        self.is_old = False
        """Whether it knows no requests for several runs."""
        self.lies: Callable[[InferAnswer], InferAnswer] = lambda answer: answer
        self.planner: Callable[[MakePlans], list[Plan]] = lambda effect: plans(
            effect.profile, effect.home, effect.neighbours, effect.goal, first_at_home=effect.first_at_home
        )  # fmt: skip
        self._under_way: set[int] = set()
        self._free_ns = 0

    def _reachable(self, now: int) -> list[Reach]:
        others = (other for other in self.mesh.nodes if other is not self and other.hears)
        return [Reach(other.node, 2 * self.mesh.way_ns) for other in others]

    def has(self, name: str = "plate", served: bool = True) -> None:
        """Load the whole model."""
        self._load(LocalModel(name, WHOLE, self.run_ns, 0, served, signature=signature(-1, 2)))

    def has_rows(self, row_ns: int, unit: int | None = None, output_rows: int | None = None) -> None:
        """Load the model of rows. ``unit``: how many it takes at a time; None: any number. ``output_rows``: as its
        signature says."""
        self.row_ns = row_ns
        tensors = (TensorSignature("x", "i4", (unit,)), TensorSignature("y", "i4", (output_rows or unit,)))
        self._load(LocalModel(
            "rows", ROWS, row_ns * (unit or 1), 0, True, signature=ModelSignature(tensors[:1], tensors[1:])
        ))  # fmt: skip

    def _load(self, model: LocalModel) -> None:
        self.models[model.name] = model
        self.machine.set_models(tuple(self.models.values()), self.mesh.now)

    def split(self, goal: Goal = "latency", name: str = "plate", **more: Any) -> None:
        """Let the model be split."""
        fields = {"run_ns": self.run_ns, "signature": signature(-1, 2), "samples": IMAGE, **more}
        self.machine.split.set_model(SplitModel(name, WHOLE, PROFILE, goal, **fields), self.mesh.now)

    def ask(self, budget_ns: int = SECOND, name: str = "plate") -> int:
        number = self.machine.ask(name, IMAGE, (), budget_ns, True, self.mesh.now)
        self.settle()
        return number

    def ask_rows(self, count: int, budget_ns: int = 60 * SECOND, hedge: bool = True, size: int = 0) -> int:
        number = self.machine.ask_batch("rows", batch_of(count), (), budget_ns, hedge, self.mesh.now, (), size)
        self.settle()
        return number

    def settle(self) -> None:
        """Perform what the machine decided."""
        machine, mesh = self.machine, self.mesh
        while True:
            effects, messages, events = machine.outgoing(), machine.messages(), machine.events()
            self.answered += events
            if not (effects or messages or events):
                return
            for to, frame in messages:
                for other in mesh.nodes:
                    if other is not self and to in (None, other.node):
                        mesh.after(mesh.way_ns, other, lambda other=other, frame=frame: other._hear(self, frame))
            for effect in effects:
                self._perform(effect)

    def _hear(self, source: "Linked", frame: Any) -> None:
        if isinstance(frame, Offers) and source.is_old:
            frame = structs.replace(frame, runs=1)
        if source.hears:
            self.machine.receive(frame, source.node, Role.RSU, self.mesh.now)

    def _perform(self, effect: Any) -> None:
        machine, mesh = self.machine, self.mesh
        match effect:
            case Compute():
                self._compute(effect)
            case CancelCompute():
                self._under_way.discard(effect.run)
            case MakePlans():
                made = self.planner(effect)
                mesh.after(MS, self, lambda: machine.split.planned(effect.model, made, mesh.now))
            case MakeStages():
                stages = []
                for range_ in effect.ranges:
                    content = stage_content(range_)
                    stage = Stage(
                        hashlib.sha256(content).hexdigest(), signature(range_.first, range_.last), len(content), content
                    )
                    stages.append((range_, stage))
                    if range_ in effect.here:
                        self._load(self._stage_model(stage, "", range_, effect.model))
                mesh.after(MS, self, lambda: machine.split.stages_made(effect.model, effect.ranges, stages, mesh.now))
            case KeepStages():
                self.models = {
                    name: model for name, model in self.models.items()
                    if not name.startswith(f"{effect.model}:") or model.stage_of or name in effect.names
                }  # fmt: skip
                machine.set_models(tuple(self.models.values()), mesh.now)
            case FindStage():
                is_there = len(self.disk.get(effect.digest, b"")) == effect.size_bytes
                mesh.after(MS, self, lambda: machine.hosting.found(effect.digest, is_there, mesh.now))
            case StoreChunk():
                self.disk[effect.digest] = self.disk.get(effect.digest, b"")[: effect.offset] + effect.data
            case LoadStage():
                mesh.after(MS, self, lambda: self._load_stage(effect))
            case DropStage():
                self.models = {name: model for name, model in self.models.items() if model.digest != effect.digest}
                machine.set_models(tuple(self.models.values()), mesh.now)

    def _load_stage(self, effect: LoadStage) -> None:
        content = self.disk[effect.digest]
        if hashlib.sha256(content).hexdigest() != effect.digest:
            del self.disk[effect.digest]
            self.machine.hosting.failed(effect.digest, "the bytes have another digest")
            return
        first, last = map(int, content.rstrip(b".").decode().split(":"))
        range_ = StageRange(first, last)
        stage = Stage(effect.digest, signature(first, last), len(content))
        self._load(self._stage_model(stage, effect.model, range_))
        self.machine.hosting.loaded(effect.digest, self._run_ns(range_), self.mesh.now)

    def _stage_model(self, stage: Stage, whole: str, range_: StageRange, model: str = "plate") -> LocalModel:
        name = stage_name(whole or model, stage.digest)
        return LocalModel(
            name, stage.digest, self._run_ns(range_), 0, bool(whole), signature=stage.signature, stage_of=whole
        )  # fmt: skip

    def _run_ns(self, range_: StageRange) -> int:
        boundaries = PROFILE.boundaries
        return int((boundaries[range_.last + 1].share - boundaries[range_.first + 1].share) * self.run_ns)

    def _compute(self, effect: Compute) -> None:
        model = self.models.get(effect.model)
        now = self.mesh.now
        if model is None:
            self.machine.computed(effect.run, InferAnswer(0, "unknown"), now)
            return
        self.runs.append((effect.model, effect.asked_by))
        self._under_way.add(effect.run)
        begins_ns = max(self._free_ns, now)
        outputs, compute_ns = self._result(effect, model)
        self._free_ns = begins_ns + compute_ns

        def done() -> None:
            if effect.run in self._under_way:
                self._under_way.discard(effect.run)
                queued_ns = begins_ns - now
                answer = InferAnswer(0, "done", outputs, queued_ns // 1_000, compute_ns // 1_000)
                self.machine.computed(effect.run, self.lies(answer), self.mesh.now)

        self.mesh.after(self._free_ns - now, self, done)

    def _result(self, effect: Compute, model: LocalModel) -> tuple[tuple[NamedTensor, ...], int]:
        """The outputs of all runs, and what these take."""
        given = effect.inputs[0]
        if effect.model == "rows":
            assert len(effect.inputs) == 1 or not self.is_old
            runs = [named.tensor.data.cast("i") for named in effect.inputs]
            outputs = (NamedTensor("y", tensor_of(array("i", (2 * each for each in numbers)))) for numbers in runs)
            return tuple(outputs), sum(map(len, runs)) * self.row_ns
        assert model.signature is not None
        output = model.signature.outputs[0]
        first, last = int(given.name[1]), int(output.name[1])
        marks = bytes(given.tensor.data)[-first:] if first else b""
        marks += b"".join(number.to_bytes() for number in range(first, last))
        tensor = tensor_of(marks.rjust(PROFILE.boundaries[last].size_bytes, b"."))
        return (NamedTensor(output.name, tensor),), model.compute_ns


class Mesh:
    """Machines in reach of each other, and their clock."""

    def __init__(self, way_ns: int = MS) -> None:
        """``way_ns``: what a frame takes, whatever its size."""
        self.now, self.way_ns = 0, way_ns
        self.nodes: list[Linked] = []
        self._due: list[tuple[int, int, Linked, Callable[[], None]]] = []
        self._numbers = count()

    def add(
        self, name: str, run_ns: int = 0, accepts: bool = True, rules: tuple[AccessRule, ...] = DEFAULT_RULES
    ) -> Linked:  # fmt: skip
        """A node whose run of the whole model of stages takes ``run_ns``."""
        node = Linked(self, name, run_ns, rules)
        node.machine.hosting.accepts = accepts
        for other in self.nodes:
            other.machine.neighbour_met(node.node, Role.RSU, self.now)
            node.machine.neighbour_met(other.node, Role.RSU, self.now)
        self.nodes.append(node)
        return node

    def kill(self, node: Linked) -> None:
        """A node ends without a word, and everybody notices at once."""
        node.hears = False
        self.nodes.remove(node)
        for other in self.nodes:
            other.machine.neighbour_gone(node.node, self.now)
            other.settle()

    def after(self, delay_ns: int, node: Linked, do: Callable[[], None]) -> None:
        """Do something later, and perform what the machine of ``node`` decides then."""
        heappush(self._due, (self.now + delay_ns, next(self._numbers), node, do))

    def run(self, until: Callable[[], bool], at_most_ns: int = 60 * SECOND) -> None:
        """Let time pass until something is true. :raises AssertionError: it does not become true."""
        end_ns = self.now + at_most_ns
        while not until():
            timers = [(node.machine.next_timer_at(), node) for node in self.nodes]
            timer_ns, timed = min(timers, key=lambda timer: timer[0])
            if self._due and self._due[0][0] <= timer_ns:
                at_ns, _, node, do = heappop(self._due)
                assert at_ns <= end_ns, "it did not become true"
                self.now = max(at_ns, self.now)
                if node.hears:
                    do()
            else:
                assert timer_ns <= end_ns, "it did not become true"
                self.now, node = max(timer_ns, self.now), timed
                node.machine.handle_timer(self.now)
            node.settle()
