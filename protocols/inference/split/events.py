"""The effects of split inference: what the driver does with plans and with the files of stages.

The driver answers each of them by one call of the machine, which its docstring names.
"""

from msgspec import Struct

from protocols.base import limits
from protocols.base.effects import Effect
from protocols.inference.signature import ModelSignature
from protocols.inference.split.plan import Goal, Home, OwnerOnly, Profile, StageCandidate
from protocols.wire.tensors import NamedTensor


def stage_name(model: str, digest: str) -> str:
    """By which name the owner of a model asks for a stage of it."""
    return f"{model[: limits.MAX_TEXT_CHARS - 17]}:{digest[:16]}"


class Stage(Struct, frozen=True):
    """A stage of a model as its owner has made it."""

    digest: str
    """The SHA-256 of its bytes."""
    signature: ModelSignature
    size_bytes: int
    content: bytes | memoryview = b""
    """Its bytes, to give to neighbours that lack it; empty for one that never leaves this node."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the tensors that it takes."""
        return tuple(each.name for each in self.signature.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors that it gives."""
        return tuple(each.name for each in self.signature.outputs)


class SplitModel(Struct, frozen=True):
    """A model that may be split, as its owner has found it on its graph."""

    name: str
    digest: str
    profile: Profile
    goal: Goal
    """What its plans are made for."""
    run_ns: int
    """What a run of the whole takes on this node; 0: this node can't run any part of it."""
    signature: ModelSignature
    """Of the whole."""
    samples: tuple[NamedTensor, ...] = ()
    """Inputs by which plans are timed."""
    private: bool = False
    """Whether its inputs must not leave this node: neither for the whole nor for the first stage."""
    first_at_home: bool = False
    """Whether the first stage has to run on this node for another reason, such as pictures that are prepared there."""
    memory_bytes: int = 0
    """What its stages may take on this node; 0: anything."""


class StageRange(Struct, frozen=True):
    """The part of a model between two cuts, by their indices; -1 is the beginning, and the number of cuts the end."""

    first: int
    last: int


class MakePlans(Effect, frozen=True):
    """Call :func:`protocols.inference.split.planner.plans` beside the engine's lock, and ``planned`` with the plans."""

    model: str
    profile: Profile
    home: Home | OwnerOnly
    neighbours: tuple[StageCandidate, ...]
    goal: Goal
    first_at_home: bool


class MakeStages(Effect, frozen=True):
    """Make the stages of one plan, load those of ``here``, and call ``stages_made`` with all of them."""

    model: str
    ranges: tuple[StageRange, ...]
    """In the order of computation, from the beginning of the model to its end."""
    here: tuple[StageRange, ...]
    """Those that this node runs itself, or would run if the neighbour that is to run them were gone."""


class KeepStages(Effect, frozen=True):
    """Unload all own stages of a model but these."""

    model: str
    names: frozenset[str]


class FindStage(Effect, frozen=True):
    """Look whether the bytes of a stage are on the disk, and call ``stage_found``."""

    digest: str
    model: str
    whole: str
    size_bytes: int


class StoreChunk(Effect, frozen=True):
    """Append bytes to the file of a stage that is being fetched; ``stage_failed`` when that can't be done."""

    digest: str
    offset: int
    data: bytes


class LoadStage(Effect, frozen=True):
    """Load a stage whose bytes are all there, and measure it; then call ``set_models`` with it, and
    ``stage_loaded``, or ``stage_failed`` when it can't be loaded or has another digest."""

    digest: str
    model: str


class DropStage(Effect, frozen=True):
    """Unload a stage, and give up what was fetched of it."""

    digest: str


SplitEffect = MakePlans | MakeStages | KeepStages | FindStage | StoreChunk | LoadStage | DropStage
