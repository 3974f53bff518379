"""What the engine has to know of a model that is split, from the description of its cuts."""

from typing import TYPE_CHECKING, Final

from meshnode.inference.section import ModelSection
from meshnode.models import ModelSpec
from meshnode.models.cutting import Cut, CutDescription, CutTensor
from meshnode.models.manifest import Manifest, read_manifest
from meshnode.models.preprocessing import example
from protocols.inference.signature import ModelSignature, TensorSignature
from protocols.inference.split.events import SplitModel
from protocols.inference.split.plan import CutPoint, Profile
from protocols.wire.tensors import NamedTensor, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PARTS: Final = {"raw": 1, "f16": 2, "u8": 4}
"""How many times fewer bytes a rounded tensor has than one of 32 bits, by form of the boundary."""


def split_model(
    spec: ModelSpec, section: ModelSection, description: CutDescription, slowdown: float
) -> tuple[SplitModel, tuple[int, ...]]:
    """The model, and for each cut that plans may use its index in ``description``.

    ``slowdown``: how many times as long runs take on this node as they were measured.

    Inputs of a private model must not leave this node, so cuts behind which one of them is still needed are left out.
    Other inputs that are needed behind a cut travel with it, to the neighbour only.
    """
    assert section.split != "off"
    manifest = read_manifest(spec.path)
    private = manifest.split.first_cut_at_home
    sizes = {each.name: each.size_bytes for each in description.inputs}
    usable = [
        (index, cut) for index, cut in enumerate(description.cuts)
        if not (cut.inputs and (private or manifest.preprocessing))
    ]  # fmt: skip
    profile = Profile(
        sum(sizes.values()),
        sum(each.size_bytes for each in description.outputs),
        tuple(_points([cut for _, cut in usable], sizes, _travelling(description, manifest))),
        description.weight_bytes,
    )
    model = SplitModel(
        spec.name,
        description.digest,
        profile,
        section.split,
        int(description.run_us * 1_000 * slowdown),
        _signature(description, manifest),
        _samples(description, manifest),
        private,
        bool(manifest.preprocessing),
    )
    return model, tuple(index for index, _ in usable)


def _points(
    cuts: list[Cut], sizes: dict[str, int], travelling: "Callable[[CutTensor], int]"
) -> "Iterator[CutPoint]":  # fmt: skip
    for cut in cuts:
        yield CutPoint(
            sum(map(travelling, cut.tensors)), cut.share, cut.weight_bytes, sum(sizes[name] for name in cut.inputs)
        )  # fmt: skip


def _travelling(description: CutDescription, manifest: Manifest) -> "Callable[[CutTensor], int]":
    """A function that tells the bytes of a tensor between stages."""
    outputs = {each.name for each in description.outputs}
    part = _PARTS[manifest.split.boundary]

    def size_bytes(tensor: CutTensor) -> int:
        return tensor.size_bytes // part if tensor.dtype == "f4" and tensor.name not in outputs else tensor.size_bytes

    return size_bytes


def _signature(description: CutDescription, manifest: Manifest) -> ModelSignature:
    inputs = tuple(
        TensorSignature(each.name, "u1", (None,)) if each.name in manifest.preprocessing
        else TensorSignature(each.name, each.dtype, each.shape)
        for each in description.inputs
    )  # fmt: skip
    return ModelSignature(inputs, tuple(TensorSignature(e.name, e.dtype, e.shape) for e in description.outputs))


def _samples(description: CutDescription, manifest: Manifest) -> tuple[NamedTensor, ...]:
    """Inputs by which plans are timed: zeros, and grey pictures."""
    import numpy as np

    return tuple(
        NamedTensor(each.name, tensor_of(
            np.frombuffer(example(manifest.preprocessing[each.name]), np.uint8)
            if each.name in manifest.preprocessing else np.zeros(each.shape, each.dtype)
        ))
        for each in description.inputs
    )  # fmt: skip
