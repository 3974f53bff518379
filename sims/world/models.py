"""The models of a simulated mesh, and the parts into which they can be cut.

A model with cuts is a row of *steps*, one before each cut and one behind the last. A stage is some of these steps. What
a run gives shows which steps it ran, and on what (:func:`sims.checks.contract.computed_from`).

The bytes of a stage are a line that says what it is, and zeros for its weights. They travel like those of a real one,
and take no memory until somebody looks at them. The digest is that of the line and its length.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from protocols.base import limits
from protocols.inference.signature import ModelSignature, TensorSignature
from protocols.inference.split.events import SplitModel, Stage, StageRange, stage_name
from protocols.inference.split.plan import CutPoint, Goal, Profile
from protocols.wire.tensors import NamedTensor, Tensor, tensor_of
from sims.checks.contract import INPUT, computed_from, computed_rows, repeated, steps_of
from sims.scenario.file import Scenario

OUTPUT: Final = "y"
GRAPH_BYTES: Final = 4_096
"""What a stage has beside its weights."""


class Model(NamedTuple):
    """A model. Every node that has it computes the same."""

    name: str
    compute_ns: int
    """The time of one run on a ``car-computer``."""
    output_bytes: int
    input_bytes: int = 0
    """This, and what follows, is only needed of a model that can be cut."""
    cuts: tuple[CutPoint, ...] = ()
    weight_bytes: int = 0
    goal: Goal | None = None
    """What its plans are made for; None: it is not split."""
    private: bool = False
    """Whether its inputs must not leave the node that asks."""
    takes_rows: bool = False
    """Whether it takes any number of rows, each as large and as slow as is said above."""

    @property
    def profile(self) -> Profile:
        """Its cuts as plans need them."""
        return Profile(self.input_bytes, self.output_bytes, self.cuts, self.weight_bytes)

    @property
    def whole(self) -> "Part":
        """All of it."""
        return Part(self, -1, len(self.cuts))

    def split(self, run_ns: int) -> SplitModel:
        """What an engine has to know of it. ``run_ns``: the time of one run on that node."""
        assert self.goal is not None
        samples = (NamedTensor(INPUT, tensor_of(bytes(self.input_bytes))),)
        whole = self.whole
        return SplitModel(
            self.name, whole.digest, self.profile, self.goal, run_ns, whole.described, samples, self.private
        )  # fmt: skip


class Part(NamedTuple):
    """A part of a model between two cuts, by their indices as in :class:`StageRange`."""

    model: Model
    first: int
    last: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the model."""
        return self.first < 0 and self.last == len(self.model.cuts)

    @property
    def title(self) -> bytes:
        """The line at the beginning of its bytes."""
        return f"{self.model.name} {self.first} {self.last} {self.size_bytes}\n".encode()

    @property
    def digest(self) -> str:
        """Stands for its bytes."""
        return hashlib.sha256(self.model.name.encode() if self.is_whole else self.title).hexdigest()

    @property
    def name(self) -> str:
        """By which it is asked for."""
        return self.model.name if self.is_whole else stage_name(self.model.name, self.digest)

    @property
    def size_bytes(self) -> int:
        """Of its bytes."""
        before, after = self._ends
        return GRAPH_BYTES + after.weight_bytes - before.weight_bytes

    @property
    def compute_ns(self) -> int:
        """The time of one run on a ``car-computer``."""
        if self.is_whole:
            return self.model.compute_ns
        before, after = self._ends
        return int((after.share - before.share) * self.model.compute_ns)

    @property
    def _ends(self) -> tuple[CutPoint, CutPoint]:
        boundaries = self.model.profile.boundaries
        return boundaries[self.first + 1], boundaries[self.last + 1]

    @property
    def signature(self) -> ModelSignature | None:
        """What it takes and gives; None of a model that can neither be cut nor takes rows: whatever it is."""
        return self.described if self.model.cuts or self.model.takes_rows else None

    @property
    def described(self) -> ModelSignature:
        """What it takes and gives."""
        before, after = self._ends
        rows: tuple[int | None, ...] = (None,) if self.model.takes_rows else ()
        taken = TensorSignature(self._boundary(self.first), "u1", (*rows, before.size_bytes))
        given = TensorSignature(self._boundary(self.last), "u1", (*rows, after.size_bytes))
        return ModelSignature((taken,), (given,))

    def _boundary(self, cut: int) -> str:
        if cut < 0:
            return INPUT
        return OUTPUT if cut == len(self.model.cuts) else f"cut-{cut}"

    def rows_in(self, inputs: tuple[NamedTensor, ...]) -> int:
        """How many times as long as one row these inputs take."""
        return inputs[0].tensor.shape[0] if self.model.takes_rows else 1

    def run(self, inputs: tuple[NamedTensor, ...]) -> tuple[NamedTensor, ...]:
        """Compute. Inputs that no step before it can have given lead to a result that no check takes for right."""
        steps = steps_of(self.model.name, len(self.model.cuts))[self.first + 1 : self.last + 1]
        before, after = self._ends
        if self.model.takes_rows:
            rows = self.rows_in(inputs)
            data = computed_rows(rows, inputs, after.size_bytes)
            return (NamedTensor(OUTPUT, Tensor("u1", (rows, after.size_bytes), memoryview(data))),)
        if self.first >= 0:
            data = bytes(inputs[0].tensor.data)
            if data != repeated(data[:32], before.size_bytes):
                inputs = (NamedTensor(inputs[0].name, tensor_of(hashlib.sha256(data).digest())),)
        return (NamedTensor(self._boundary(self.last), tensor_of(computed_from(inputs, after.size_bytes, steps))),)


class StageFiles:
    """The stages of all models of a run. Nodes that cut a model at the same places make the same bytes."""

    def __init__(self, models: Iterable[Model] = ()) -> None:
        self._models = {model.name: model for model in models}
        self._made: dict[tuple[str, StageRange], Stage] = {}

    def made(self, model: str, between: StageRange) -> Stage:
        """A stage of a model."""
        stage = self._made.get((model, between))
        if stage is None:
            part = self.part(model, between)
            title, content = part.title, bytearray(part.size_bytes)
            content[: len(title)] = title
            stage = Stage(part.digest, part.described, part.size_bytes, memoryview(content))
            self._made[model, between] = stage
        return stage

    def part(self, model: str, between: StageRange) -> Part:
        """The part of a model that a stage is."""
        return Part(self._models[model], between.first, between.last)

    def part_in(self, beginning: bytes) -> Part | None:
        """The part whose bytes begin so; None: that is no stage."""
        words = beginning.partition(b"\n")[0].decode("ascii", "replace").split()
        if len(words) != 4 or words[0] not in self._models:
            return None
        return Part(self._models[words[0]], int(words[1]), int(words[2]))


def models_of(scenario: Scenario) -> list[Model]:
    """The models of a scenario, one for each of its inferences."""
    return [
        Model(
            name, int(work.compute_ms * limits.MS), work.output_bytes, work.input_bytes,
            tuple(CutPoint(cut.size_bytes, cut.share, cut.weight_bytes) for cut in work.cuts), work.weight_bytes,
            work.split if work.cuts and work.split != "off" else None, work.private, work.rows > 1,
        )
        for name, work in scenario.models.items()
    ]  # fmt: skip


def private_models(models: Iterable[Model]) -> frozenset[str]:
    """The names of those whose inputs must not leave the node that asks."""
    return frozenset(model.name for model in models if model.private)
