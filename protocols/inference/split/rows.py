"""The rows of a batch: how they are cut into shards, and how the outputs of the shards are joined.

A row is one element of axis 0 of the inputs that are divided; the other inputs go to every shard as they are. A shard
is a view of the caller's bytes. Outputs are copied to their place as each shard ends, so that no call copies all.
"""

from collections.abc import Sequence
from math import prod
from typing import Final

from protocols.base.errors import InputInvalid
from protocols.inference.signature import ModelSignature, TensorSignature, described
from protocols.wire.tensors import NamedTensor, Tensor

MAX_SHARDS: Final = 1_024
"""Shards of one batch. Each has a report in the answer."""


class Rows:
    """The inputs of a batch."""

    __slots__ = ("_inputs", "divided", "count", "row_bytes", "same_bytes", "unit")

    def __init__(
        self, model: str, signature: ModelSignature | None, inputs: Sequence[NamedTensor],
        wanted: Sequence[str], divided: Sequence[str],
    ) -> None:  # fmt: skip
        """``signature``: None when nobody says what the model takes. ``wanted``: the outputs; none: all. ``divided``:
        the inputs that are divided. None: those with as many elements on axis 0 as the input that has most, leaving out
        inputs that the model takes as they are.

        :raises InputInvalid: the batch can't be divided; the message says which input or output is the reason.
        """
        taken = {} if signature is None else {each.name: each for each in signature.inputs}
        self._inputs = tuple(inputs)
        self.divided = frozenset(divided or _found(model, inputs, taken))
        """The names of the inputs that are divided."""
        given = {named.name: named.tensor.shape for named in inputs}
        for name in self.divided:
            if not given.get(name):
                kind = "has no dimensions" if name in given else "is not given"
                raise InputInvalid(f"input {name[:80]!r} of model {model!r} {kind}: name an input that has rows")
            if name in taken and _is_picture(taken[name]) and len(given[name]) == 1:
                raise InputInvalid(
                    f"input {name!r} of model {model!r} takes one encoded picture, which has no rows: give decoded "
                    "ones, as the file of the model takes them, or use infer for each picture"
                )
        counts = {given[name][0] for name in self.divided}
        if len(counts) != 1 or 0 in counts:
            told = ", ".join(f"{name!r} {list(given[name])}" for name in sorted(self.divided))
            raise InputInvalid(f"the inputs of a batch need equally many rows, and at least one: given {told}")
        (self.count,) = counts
        """How many rows there are."""
        self.unit = self._unit_of(model, taken, given)
        """How many rows the model takes at a time; 0: any number."""
        divided_bytes = sum(len(named.tensor.data) for named in self._inputs if named.name in self.divided)
        self.row_bytes = divided_bytes // self.count
        """Bytes of one row."""
        self.same_bytes = sum(len(named.tensor.data) for named in self._inputs) - divided_bytes
        """Bytes of the inputs that are not divided."""
        if signature is not None:
            self._check_outputs(model, signature, wanted)

    def _unit_of(
        self, model: str, taken: dict[str, TensorSignature], given: dict[str, tuple[int, ...]]
    ) -> int:  # fmt: skip
        known = [(taken[name], len(given[name])) for name in self.divided if name in taken]
        fixed = {1 if _is_picture(each) and rank > 1 else each.shape[0] for each, rank in known if each.shape} - {None}
        if len(fixed) > 1:
            raise InputInvalid(f"the inputs of model {model!r} have different first sizes: name one, or use infer")
        unit = next(iter(fixed), None) or 0
        if unit and self.count % unit:
            raise InputInvalid(
                f"model {model!r} takes {unit} rows at a time, and {self.count} can't be divided into such shards: "
                f"add {unit - self.count % unit} rows, or give {self.count % unit} fewer"
            )
        return unit

    def _check_outputs(self, model: str, signature: ModelSignature, wanted: Sequence[str]) -> None:
        for output in signature.outputs:
            if output.name not in (wanted or (output.name,)) or output.has_any_shape:
                continue
            if output.shape[0] is not None and output.shape[0] != self.unit:
                raise InputInvalid(
                    f"output {output.name!r} of model {model!r} is {output.kind}: its first size does not follow the "
                    "batch, so outputs of shards can't be joined. Ask for other outputs, or use infer"
                )

    def shard(self, first: int, count: int) -> tuple[NamedTensor, ...]:
        """The inputs of the shard that begins with the row ``first``."""
        return tuple(
            NamedTensor(named.name, _part(named.tensor, first, count)) if named.name in self.divided else named
            for named in self._inputs
        )

    def shard_bytes(self, count: int) -> int:
        """The size of the inputs of a shard with so many rows."""
        return count * self.row_bytes + self.same_bytes


def _found(model: str, inputs: Sequence[NamedTensor], taken: dict[str, TensorSignature]) -> list[str]:
    """The inputs that are divided when the caller names none."""
    with_rows = [named for named in inputs if named.tensor.shape]
    if not with_rows:
        raise InputInvalid(f"no input of model {model!r} is given with rows: give arrays with a first dimension")
    unfit = [
        named for named in with_rows
        if not (known := taken.get(named.name)) or not known.shape or known.shape[0] != named.tensor.shape[0]
    ] or with_rows  # fmt: skip
    most = max(named.tensor.shape[0] for named in unfit)
    return [named.name for named in unfit if named.tensor.shape[0] == most]


def _is_picture(taken: TensorSignature) -> bool:
    """Whether an input may be an encoded picture. Such a model takes the decoded ones too, one at a time."""
    return (taken.dtype, taken.shape) == ("u1", (None,))


def _part(tensor: Tensor, first: int, count: int) -> Tensor:
    row_bytes = len(tensor.data) // tensor.shape[0]
    data = tensor.data[first * row_bytes : (first + count) * row_bytes]
    return Tensor(tensor.dtype, (count, *tensor.shape[1:]), data)


class _Column:
    """One output of all shards."""

    __slots__ = ("data", "dtype", "row_bytes", "shape")

    def __init__(self, tensor: Tensor, rows: int) -> None:
        self.dtype, self.shape = tensor.dtype, tensor.shape[1:]
        self.row_bytes = prod(self.shape) * int(tensor.dtype[1])
        self.data = memoryview(bytearray(rows * self.row_bytes))


class Joined:
    """The outputs of the shards of one batch, in order."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._columns: dict[str, _Column] = {}

    def misfit(self, count: int, outputs: Sequence[NamedTensor]) -> str:
        """Why ``outputs`` can't be those of a shard with so many rows; empty: they can."""
        if self._columns and {named.name for named in outputs} != self._columns.keys():
            return "its outputs are not those of another shard"
        for named in outputs:
            tensor, column = named.tensor, self._columns.get(named.name)
            told = f"output {named.name[:80]!r} is {described(tensor.dtype, tensor.shape)}"
            if not tensor.shape or tensor.shape[0] != count:
                return f"{told} for {count} rows: its first size does not follow the batch"
            if column is not None and (column.dtype, column.shape) != (tensor.dtype, tensor.shape[1:]):
                rest = described(column.dtype, (None, *column.shape))
                return f"{told}, and that of another shard {rest}: they can't be joined"
        return ""

    def bytes_with(self, count: int, outputs: Sequence[NamedTensor]) -> int:
        """What all outputs will take, if those of a shard with so many rows are like ``outputs``."""
        return sum(len(named.tensor.data) for named in outputs) * self._rows // count

    def add(self, first: int, outputs: Sequence[NamedTensor]) -> None:
        """Copy the outputs of the shard that begins with the row ``first``, and that fit, to their place."""
        for named in outputs:
            column = self._columns.get(named.name)
            if column is None:
                column = self._columns[named.name] = _Column(named.tensor, self._rows)
            begin = first * column.row_bytes
            column.data[begin : begin + len(named.tensor.data)] = named.tensor.data

    def tensors(self) -> tuple[NamedTensor, ...]:
        """The outputs, once every shard was added."""
        return tuple(
            NamedTensor(name, Tensor(column.dtype, (self._rows, *column.shape), column.data))
            for name, column in self._columns.items()
        )
