"""The signature of a model: names, types and shapes of inputs and outputs, which answers fit it, and what breaks it.

A request may ask for several runs of one model, one after the other. An input that is given several times, as tensors
of one name, asks for as many: the first run takes the first of these tensors, the second run the second one. What is
given once goes to every run. The answer has the outputs of the first run, then those of the second one, and so on. A
run is the same as that of a request of its own, so its outputs have the same bits.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from protocols.base.errors import InputInvalid
from protocols.wire.inference import Signature, TensorKind
from protocols.wire.tensors import NamedTensor, Tensor


class TensorSignature(Struct, frozen=True):
    """One input or output of a model."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    """None stands for a dimension of any size. No dimensions stand for any number of them, none included: ONNX Runtime
    says the same of a number and of a tensor whose model does not tell."""
    sizes: tuple[str, ...] = ()
    """The name that the model gives to each dimension of any size; empty for others. Dimensions of one name have the
    same size in one run."""

    @property
    def has_any_shape(self) -> bool:
        """Whether it takes any number of dimensions."""
        return not self.shape

    @property
    def kind(self) -> str:
        """Type and shape as people read them."""
        return described(self.dtype, self.shape) if self.shape else f"{self.dtype} of any shape"

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}"


class ModelSignature(Struct, frozen=True):
    """What a model takes and gives."""

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]


def breaks(before: ModelSignature, now: ModelSignature) -> Iterator[str]:
    """Why whoever used one model can't use another one in its place; nothing when that is possible. Inputs may become
    wider and outputs narrower, and there may be more outputs."""
    inputs = {each.name: each for each in now.inputs}
    for old in before.inputs:
        new = inputs.pop(old.name, None)
        if new is None:
            yield f"it lacks the input {old.name!r}"
        elif not _covers(new, old):
            yield f"input {old.name!r} is {new.kind} and was {old.kind}"
    yield from (f"it needs the input {name!r}" for name in inputs)
    outputs = {each.name: each for each in now.outputs}
    for old in before.outputs:
        new = outputs.get(old.name)
        if new is None:
            yield f"it lacks the output {old.name!r}"
        elif not _covers(old, new):
            yield f"output {old.name!r} is {new.kind} and was {old.kind}"


def _covers(wide: TensorSignature, narrow: TensorSignature) -> bool:
    """Whether every tensor that is as ``narrow`` says is as ``wide`` says."""
    if wide.dtype != narrow.dtype:
        return False
    if wide.has_any_shape:
        return True
    return len(wide.shape) == len(narrow.shape) and all(
        size is None or size == have for size, have in zip(wide.shape, narrow.shape, strict=True)
    )


def of_wire(frame: Signature) -> ModelSignature:
    """A signature as a neighbour tells it."""
    inputs, outputs = (
        tuple(
            TensorSignature(
                kind.name, kind.dtype, tuple(None if size < 0 else size for size in kind.shape), kind.sizes
            ) for kind in kinds
        ) for kinds in (frame.inputs, frame.outputs)
    )  # fmt: skip
    return ModelSignature(inputs, outputs)


def to_wire(digest: str, signature: ModelSignature) -> Signature:
    """A signature as neighbours are told it."""
    inputs, outputs = (
        tuple(
            TensorKind(
                each.name, each.dtype,  # type: ignore[arg-type]
                tuple(-1 if size is None else size for size in each.shape), each.sizes,
            ) for each in tensors
        ) for tensors in (signature.inputs, signature.outputs)
    )  # fmt: skip
    return Signature(digest, inputs, outputs)


def described(dtype: str, shape: Sequence[int | None]) -> str:
    """A tensor type as people read it: ``f4[1, 3, ?, ?]``."""
    return f"{dtype}[{', '.join('?' if size is None else str(size) for size in shape)}]"


def misfit(
    signature: ModelSignature | None, inputs: Sequence[NamedTensor], wanted: Sequence[str],
    outputs: Sequence[NamedTensor], runs: int = 1, *, by_name: bool = True,
) -> str:  # fmt: skip
    """Say why ``outputs`` can't be the result of a run on ``inputs``; empty when they can.

    ``signature``: None when this node does not have the model. ``wanted``: the names that were asked for; none: all.
    ``runs``: how many the inputs ask for, see the module. ``by_name``: whether dimensions of one name must have one
    size.
    """
    if runs > 1:
        right: object = None
        for taken, of_one in zip(inputs_of_each(inputs), outputs_of_each(outputs, runs), strict=True):
            tensors = [NamedTensor(name, tensor) for name, tensor in taken.items()]
            told = dict(_named_sizes(signature, tensors)) if signature is not None else {}
            kinds = told, [(named.name, named.tensor.dtype, named.tensor.shape) for named in of_one]
            if kinds == right:
                continue  # as the one before, and most are
            if wrong := misfit(signature, tensors, wanted, of_one, by_name=by_name):
                return wrong
            right = kinds
        return ""
    given = {named.name for named in outputs}
    known = {} if signature is None else {output.name: output for output in signature.outputs}
    expected = set(wanted or known)
    if not given:
        return "the answer has no outputs"
    if expected and given != expected:
        wrong = min(given ^ expected)
        return f"the answer lacks the output {wrong!r}" if wrong in expected else f"the model gives no {wrong[:80]!r}"
    if signature is None:
        return ""
    sizes = dict(_named_sizes(signature, inputs)) if by_name else {}
    for named in outputs:
        output, tensor = known[named.name], named.tensor
        names = output.sizes if by_name else ()
        shape = tuple(
            size if size is not None else sizes.get(name) for size, name in _padded(output.shape, names)
        )  # fmt: skip
        fits = output.has_any_shape or (
            len(tensor.shape) == len(shape)
            and all(size is None or size == have for size, have in zip(shape, tensor.shape, strict=True))
        )
        if tensor.dtype != output.dtype or not fits:
            return (
                f"output {output.name!r} is {described(tensor.dtype, tensor.shape)} instead of "
                f"{described(output.dtype, shape)}"
            )
        for (size, name), have in zip(_padded(output.shape, names), tensor.shape, strict=not output.has_any_shape):
            if size is None and name:
                if sizes.setdefault(name, have) != have:
                    return f"output {output.name!r} is {described(tensor.dtype, tensor.shape)}: {name!r} has two sizes"
    return ""


def _padded(shape: Sequence[int | None], names: Sequence[str]) -> Iterator[tuple[int | None, str]]:
    return ((size, names[at] if at < len(names) else "") for at, size in enumerate(shape))


def _named_sizes(signature: ModelSignature, inputs: Sequence[NamedTensor]) -> Iterator[tuple[str, int]]:
    known = {each.name: each for each in signature.inputs}
    for named in inputs:
        taken = known.get(named.name)
        if taken is not None:
            for name, size in zip(taken.sizes, named.tensor.shape, strict=False):
                if name:
                    yield name, size


# --- several runs ----------------------------------------------------------------------------------------------------
def runs_in(inputs: Sequence[NamedTensor]) -> int:
    """For how many runs these inputs ask."""
    names = [named.name for named in inputs]
    if len(set(names)) == len(names):
        return 1
    return max(Counter(names).values())


def inputs_of_each(inputs: Iterable[NamedTensor]) -> list[dict[str, Tensor]]:
    """The inputs of each run, by name.

    :raises InputInvalid: one input is given twice and another one three times.
    """
    given: dict[str, list[Tensor]] = {}
    for named in inputs:
        given.setdefault(named.name, []).append(named.tensor)
    runs = max(map(len, given.values()), default=1)
    for name, tensors in given.items():
        if len(tensors) not in (1, runs):
            raise InputInvalid(
                f"input {name[:80]!r} is given {len(tensors)} times, and another one {runs} times: give one tensor of "
                "each for every run"
            )
    return [{name: tensors[run % len(tensors)] for name, tensors in given.items()} for run in range(runs)]


def outputs_of_each(outputs: Sequence[NamedTensor], runs: int) -> list[Sequence[NamedTensor]]:
    """The outputs of each run. If so many runs can't have given them, some have none."""
    each = len(outputs) // runs if len(outputs) % runs == 0 else 0
    return [outputs[run * each : (run + 1) * each] for run in range(runs)]
