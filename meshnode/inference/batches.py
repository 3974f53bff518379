"""Inputs as tensors: those of a run, and those of a batch, which has rows or encoded pictures one by one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meshnode.models.signature import as_arrays
from protocols.inference.signature import TensorSignature
from protocols.wire.tensors import NamedTensor, Tensor, tensor_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    BatchInputs = Mapping[str, ArrayLike | Tensor | Sequence[bytes | Tensor]]
    """Arrays with rows by name of the input, or encoded pictures one by one."""


def batch_tensors(takes: Sequence[TensorSignature], inputs: Mapping[str, Any]) -> tuple[NamedTensor, ...]:
    """The tensors of ``inputs``. A list of encoded pictures becomes a tensor ``u1[n]`` for each of them, under the same
    name. ``takes``: what the model takes, as far as it is known.

    :raises InputInvalid: as :func:`~meshnode.models.signature.as_arrays`.
    """
    arrays = as_arrays(takes, {name: value for name, value in inputs.items() if not _is_pictures(value)})
    tensors: list[NamedTensor] = []
    for name, value in inputs.items():
        parts = value if _is_pictures(value) else [arrays[name]]
        tensors += [NamedTensor(name, part if isinstance(part, Tensor) else tensor_of(part)) for part in parts]
    return tuple(tensors)


def tensors_of(arrays: Mapping[str, Any]) -> tuple[NamedTensor, ...]:
    """Arrays and wire tensors, as one run takes them."""
    return tuple(
        NamedTensor(name, value if isinstance(value, Tensor) else tensor_of(value)) for name, value in arrays.items()
    )


def by_name(tensors: Sequence[NamedTensor]) -> dict[str, Tensor | list[Tensor]]:
    """The inputs of a batch whose tensors have come over a wire, as :func:`batch_tensors` takes them."""
    found: dict[str, list[Tensor]] = {}
    for named in tensors:
        found.setdefault(named.name, []).append(named.tensor)
    return {name: each[0] if len(each) == 1 else each for name, each in found.items()}


def fresh_room(size_bytes: int) -> memoryview:
    """Memory for joined outputs, with anything in it. NumPy asks the kernel for large pages, and leaves them as they
    are: 130 MB that were zeroed took 270 ms, in which neither this node nor its neighbours got new shards."""
    import numpy as np

    return np.empty(size_bytes, np.uint8).data


def _is_pictures(value: Any) -> bool:
    """Whether it is a list of encoded pictures."""
    kinds = bytes | bytearray | memoryview | Tensor
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, kinds) for each in value)
