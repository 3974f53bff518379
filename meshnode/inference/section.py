"""The sections of inference: models, and how they are computed."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from meshnode.config.kinds import Name
from meshnode.config.parsing import Problem, Section
from meshnode.config.sections import PartSection
from meshnode.models import ModelSpec
from meshnode.models.providers import PROVIDERS
from protocols.base import limits

_DIGEST: Final = re.compile("[0-9a-f]{64}")


def _check_digest(value: str) -> str | None:
    return None if _DIGEST.fullmatch(value) else "is not a digest: use the 64 digits that sha256sum prints"


class ModelSection(Section, frozen=True, kw_only=True):
    """A model that the node can run, or that it only has neighbours compute."""

    path: Annotated[
        Path | None,
        Meta(
            description="The ONNX file. Without it, neighbours compute the model; `digest` then says which file is "
            "meant. A file that can't be loaded is tried again when it has changed. Weights in files of their own are "
            "read from its folder, and so is its [manifest](manifest.md): `plate.toml` for `plate.onnx`. Outputs that "
            "can't travel (text, ZipMap) are left out; the log and `meshnode doctor` say which.",
        ),
    ] = None
    digest: Annotated[
        str | None,
        Meta(
            description="SHA-256 of the ONNX file, 64 hexadecimal digits. With weights in files of their own, it is "
            "that of the SHA-256 of the ONNX file and of each of these files, in the order of their names, as 32 bytes "
            "each. What a [manifest](manifest.md#digest) says about inputs, outputs and preprocessing is added to it. "
            "`meshnode doctor` prints its beginning, and `/v1/models` all of it. A file that differs is not loaded, "
            "and neighbours that offer another one are not asked.",
            extra={"check": _check_digest},
        ),
    ] = None
    threads: Annotated[int, Meta(ge=1, le=256, description="Threads that one run uses.")] = 1
    serve: Annotated[bool, Meta(description="Compute it for neighbours too.")] = True
    fallback: Annotated[
        Name | None,
        Meta(
            description="A smaller model of this section that takes the same inputs. It runs in place of this one when "
            "this one would probably miss the deadline of a request; the answer names the model that ran.",
        ),
    ] = None
    warm_up: Annotated[
        Mapping[str, tuple[int, ...]],
        Meta(
            max_length=limits.MAX_TENSORS,
            description="Shapes, by input, of the zeros it is timed with at the start; needed where the model leaves "
            "sizes open, as in `{ image = [1, 3, 640, 640] }`. An input with preprocessing needs none.",
        ),
    ] = {}
    optimisation: Annotated[
        Literal["disabled", "basic", "extended", "all"],
        Meta(
            description="ONNX Runtime's graph optimisation. Nodes that share a model use the same level: answers of "
            "different levels differ in the last digits."
        ),
    ] = "basic"

    memory_limit_mib: Annotated[
        int | None,
        Meta(
            ge=1,
            le=1_048_576,
            description="Memory in MiB that the model may take in its worker process, its weights included. A run that "
            "wants more fails, and the process is started again. Without it: `memory_mib` of the model's "
            "manifest, or else 1024 and four times the size of its files, which are in memory up to three times while "
            "they are loaded.",
        ),
    ] = None

    split: Annotated[
        Literal["off", "latency", "throughput"],
        Meta(
            description="Cut the model, and let neighbours run [stages](../howto/run-a-model-in-parts.md) of it: so "
            "that one request is done sooner, or so that more of them are done in a second. A request still runs whole "
            "wherever that is as fast. Needs `pip install meshnode[split]` on this node."
        ),
    ] = "off"
    whole: Annotated[
        bool,
        Meta(
            description="Load the whole model on this node. false: only the stages that its plan gives to this node, "
            "of a model that is too large or too slow for it. Needs `split`."
        ),
    ] = True

    def conflicts(self) -> Iterator[Problem]:
        """Neither a file nor a digest, or nothing that could be split."""
        if self.path is None and self.digest is None:
            yield Problem("path", None, "is missing: add it, or add digest to have neighbours compute the model")
        if self.split != "off" and self.path is None:
            yield Problem("split", self.split, "needs the file of the model: add path, or remove split")
        if self.split != "off" and self.optimisation != "basic":
            yield Problem("split", self.split, "needs optimisation = 'basic': only then stages give the same bits")
        if not self.whole and self.split == "off":
            yield Problem("whole", "false", "leaves nothing to run: set split, or remove path to have neighbours do it")

    def spec(self, name: str, providers: tuple[str, ...] = ("cpu",)) -> ModelSpec | None:
        """The model as it is loaded, by one of ``providers``; None when only neighbours compute it."""
        if self.path is None:
            return None
        return ModelSpec(
            name, self.path, self.threads, self.serve, self.optimisation, self.warm_up, self.digest, providers,
            self.memory_limit_mib,
        )  # fmt: skip


class ModelsSection(PartSection, frozen=True, kw_only=True):
    """The models that the node can run."""

    table: ClassVar[str] = "models"
    free_keys: ClassVar[str | None] = "models"

    models: Annotated[
        Mapping[Name, ModelSection], Meta(max_length=limits.MAX_OFFERS, description="The models by name.")
    ] = {}

    @property
    def pinned(self) -> dict[str, str]:
        """The digests that are given, by name of the model."""
        return {name: model.digest for name, model in self.models.items() if model.digest is not None}

    @property
    def fallbacks(self) -> dict[str, str]:
        """The smaller model of each model that has one, by name."""
        return {name: model.fallback for name, model in self.models.items() if model.fallback is not None}

    def conflicts(self) -> Iterator[Problem]:
        """A fallback that is not there."""
        for name, smaller in self.fallbacks.items():
            if smaller not in self.models:
                hint = ", ".join(sorted(self.models.keys() - {name})) or "none"
                yield Problem(f"{name}.fallback", smaller, f"is no model of this configuration: there are {hint}")


class InferenceSection(PartSection, frozen=True, kw_only=True):
    """How the node computes, and when it asks others."""

    table: ClassVar[str] = "inference"

    workers: Annotated[int, Meta(ge=1, le=64, description="How many runs go on at the same time.")] = 1
    isolation: Annotated[
        Literal["process", "none"],
        Meta(
            description="`process`: each model has a worker process of its own, so that one that crashes, hangs or "
            "grows hurts nothing else. `none`: models run in the node's process, which saves some memory and about "
            "0.1 ms a run; then nothing bounds what a model takes."
        ),
    ] = "process"
    providers: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            max_length=16,
            description="Execution providers of ONNX Runtime, the preferred one first: "
            f"{', '.join(f'`{name}`' for name in PROVIDERS)}. The log names each that the installed onnxruntime lacks, "
            "and the next is taken. Answers are equal bit for bit only when the same provider computes them, and "
            "offers don't tell it, so nodes that share a model use the same one.",
        ),
    ] = ("cpu",)
    accept_stages: Annotated[
        bool,
        Meta(
            description="Run [stages](../howto/run-a-model-in-parts.md) of models for neighbours: parts of models that "
            "they have cut, whose bytes they give to this node, at most 512 MiB each. The table of access decides by "
            "the name of the whole model. Each stage has a worker process of its own, so `isolation` must be `process`."
        ),
    ] = False
    max_stages: Annotated[
        int,
        Meta(
            ge=1,
            le=16,
            description="Stages of neighbours held at the same time. Each may take 512 MiB and four times the size of "
            "its file; who holds most gives way.",
        ),
    ] = 4
    stage_threads: Annotated[int, Meta(ge=1, le=256, description="Threads of one run of a neighbour's stage.")] = 1
    stage_cache_mib: Annotated[
        int, Meta(ge=16, le=1_048_576, description="MiB of stages that are kept in `stages` of the state folder.")
    ] = 2_048
    local: Annotated[
        bool, Meta(description="Compute own requests here when that is fastest; false: neighbours only.")
    ] = True
    offload: Annotated[
        bool,
        Meta(
            description="Have neighbours compute own requests when they are clearly faster; false: only what this node "
            "can't compute itself."
        ),
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

    def conflicts(self) -> Iterator[Problem]:
        """Stages of others in the process of the node."""
        if self.accept_stages and self.isolation != "process":
            yield Problem("accept_stages", "true", "needs isolation = 'process': a stage may crash or grow")
