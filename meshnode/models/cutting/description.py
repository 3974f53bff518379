"""What is known about the cuts of a model, and about a stage that was made of it."""

from msgspec import Struct

from protocols.base.ids import ModelDigest
from protocols.inference.signature import TensorSignature, described


class CutTensor(Struct, frozen=True):
    """A tensor of a model: an input, an output, or what a cut carries."""

    name: str
    dtype: str
    """As on the wire: ``f4``."""
    shape: tuple[int, ...]
    """Where the values of an input decide on a size, it is the one that a run on a sample gave."""
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.name}: {described(self.dtype, self.shape)}"


class Cut(Struct, frozen=True):
    """A place where a model can be cut."""

    at: int
    """How many nodes of the optimised model, in their order, are before it."""
    tensors: tuple[CutTensor, ...]
    """What nodes before it compute and nodes behind it use: at least one. Inputs of the model and what is computed of
    constants alone are not among them."""
    inputs: tuple[str, ...]
    """Inputs of the model that nodes behind it use. Whoever has the model computed has them already."""
    size_bytes: int
    """Of its tensors together."""
    share: float
    """The part of the run time of the model that the nodes before it take, 0 to 1."""
    weight_bytes: int
    """Of the weights that nodes before it use."""


class CutDescription(Struct, frozen=True):
    """The cuts of a model for one set of shapes of its inputs."""

    digest: ModelDigest
    """Of the whole model, as ``LoadedModel.digest``."""
    inputs: tuple[CutTensor, ...]
    """The tensors that the file takes. Stages compute for these shapes only: most refuse others, and those of a model
    that fixed sizes would change compute something wrong of them."""
    outputs: tuple[CutTensor, ...]
    """Those that can travel."""
    cuts: tuple[Cut, ...]
    """In the order of the nodes. Empty: the model runs whole, and ``notes`` say why."""
    nodes: int
    """Nodes of the optimised model."""
    run_us: int
    """The time of a run of the whole model on this computer when nothing disturbs it, in microseconds."""
    weight_bytes: int
    """Of all weights that its nodes use."""
    notes: tuple[str, ...]
    """What whoever looks at the cuts should know, in whole sentences."""


class StageFile(Struct, frozen=True):
    """A stage of a model as a file in a :class:`~.stages.StageFolder`. It is loaded as any other model is."""

    digest: ModelDigest
    """As ``LoadedModel.digest``: the SHA-256 of its bytes, into which the manifest is counted if it has one."""
    path: str
    size_bytes: int
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    manifest: str = ""
    """The text of the manifest beside the file, which tells how encoded pictures become its inputs. Empty: it has
    none."""
    error: float = 0.0
    """How much rounded boundaries changed an output of the whole chain, as ``boundary_error`` of its manifest counts;
    0: its bits are those of the whole."""
