"""What this process and the child that cuts tell each other, as JSON: one order, one reply."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from meshnode.models.cutting.description import CutDescription
from meshnode.models.model import ModelSpec
from protocols.base.ids import ModelDigest
from protocols.inference.signature import TensorSignature

GRAPH_FILE: Final = "graph.onnx"
"""The simplified graph in the folder of an order."""


class CutModel(Struct, frozen=True):
    """The model that is cut, and where the child may write."""

    name: str
    path: str
    digest: ModelDigest
    threads: int
    optimisation: str
    warm_up: Mapping[str, tuple[int, ...]]
    providers: tuple[str, ...]
    folder: str

    @property
    def spec(self) -> ModelSpec:
        """As the configuration names it."""
        return ModelSpec(
            self.name, Path(self.path), self.threads, True, self.optimisation,  # type: ignore[arg-type]
            self.warm_up, self.digest, self.providers,
        )  # fmt: skip


def cut_model(spec: ModelSpec, digest: ModelDigest, folder: Path) -> CutModel:
    """The model of a spec whose digest is known."""
    return CutModel(
        spec.name, str(spec.path.absolute()), digest, spec.threads, spec.optimisation, dict(spec.warm_up),
        spec.providers, str(folder),
    )  # fmt: skip


class DescribeOrder(Struct, frozen=True, tag="describe"):
    """Find the cuts, and write the simplified graph to ``GRAPH_FILE`` in the folder."""

    model: CutModel


class StagesOrder(Struct, frozen=True, tag="stages"):
    """Make the stages of a chain and check them. Those to keep are left in the folder."""

    model: CutModel
    graph: str
    """The file of the simplified graph."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ends: tuple[int, ...]
    """How many nodes are before the end of each stage."""


class MadeStage(Struct, frozen=True):
    """A stage in the folder: a file named by its digest, with its manifest beside it if it has one."""

    digest: ModelDigest
    size_bytes: int
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    manifest: str
    error: float = 0.0
    """The largest error of an output of the chain that it was made for; 0: its bits are those of the whole."""


class DescribedReply(Struct, frozen=True, tag="described"):
    """The cuts."""

    description: CutDescription
    graph_digest: str


class StagesReply(Struct, frozen=True, tag="made"):
    """The stages, which together compute what the whole computes."""

    stages: tuple[MadeStage, ...]


class RefusalReply(Struct, frozen=True, tag="refused"):
    """It can't be done."""

    why: str
    is_storage: bool = False
    """Whether the disk is the reason, and not the model."""


CuttingOrder = DescribeOrder | StagesOrder
CuttingReply = DescribedReply | StagesReply | RefusalReply
