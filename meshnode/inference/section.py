"""The sections of inference: models, and how they are computed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from meshnode.config.kinds import Name
from meshnode.config.parsing import Section
from meshnode.config.sections import PartSection
from protocols.base import limits


class ModelSection(Section, frozen=True, kw_only=True):
    """A model that the node can run."""

    path: Annotated[
        Path, Meta(description="The ONNX file.", extra={"file": "copy the ONNX file there, or correct the path"})
    ]
    threads: Annotated[int, Meta(ge=1, le=256, description="Threads that one run uses.")] = 1
    serve: Annotated[bool, Meta(description="Compute it for neighbours too.")] = True
    warm_up: Annotated[
        Mapping[str, tuple[int, ...]],
        Meta(
            max_length=limits.MAX_TENSORS,
            description="Shapes, by input, of the zeros it is timed with at the start; needed where the model leaves "
            "sizes open, as in `{ image = [1, 3, 640, 640] }`.",
        ),
    ] = {}
    optimisation: Annotated[
        Literal["disabled", "basic", "extended", "all"],
        Meta(
            description="ONNX Runtime's graph optimisation. Nodes that share a model use the same level: answers of "
            "different levels differ in the last digits."
        ),
    ] = "basic"


class ModelsSection(PartSection, frozen=True, kw_only=True):
    """The models that the node can run."""

    table: ClassVar[str] = "models"
    free_keys: ClassVar[str | None] = "models"

    models: Annotated[
        Mapping[Name, ModelSection], Meta(max_length=limits.MAX_OFFERS, description="The models by name.")
    ] = {}


class InferenceSection(PartSection, frozen=True, kw_only=True):
    """How the node computes, and when it asks others."""

    table: ClassVar[str] = "inference"

    workers: Annotated[int, Meta(ge=1, le=64, description="How many runs go on at the same time.")] = 1
    local: Annotated[
        bool, Meta(description="Compute own requests here when that is fastest; false: neighbours only.")
    ] = True
    hedge: Annotated[bool, Meta(description="Ask a second neighbour when the first is late.")] = True
    deadline_ms: Annotated[
        int, Meta(ge=1, le=limits.MAX_BUDGET_MS, description="Deadline of requests that name none.")
    ] = 1_000
    emulate_slowdown: Annotated[
        float,
        Meta(
            ge=1,
            le=1_000,
            description="Each run takes this many times longer: emulates a slower device class in tests.",
        ),
    ] = 1.0
