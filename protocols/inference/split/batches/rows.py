"""The rows of a batch: how they are cut into shards, and how the outputs of the shards are joined.

A row is one element of axis 0 of the inputs that are divided; the other inputs go to every shard as they are. Rows of
different sizes, such as encoded pictures, are given as tensors of their own, one after the other under the same name.
Of a model that takes a fixed number of rows at a time, such as one picture, a shard is several *runs*
(:mod:`protocols.inference.signature`). A shard is a view of the caller's bytes. Outputs are copied to their place as
each shard ends, so that no call copies all.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Final

from protocols.base import limits
from protocols.base.errors import InputInvalid
from protocols.inference.signature import ModelSignature, TensorSignature, described
from protocols.wire.tensors import NamedTensor, Tensor

MAX_SHARDS: Final = 1_024
"""Shards of one batch. Each has a report in the answer."""


class Rows:
    """The inputs of a batch."""

    __slots__ = ("_given", "_lengths", "count", "divided", "row_bytes", "same_bytes", "unit")

    def __init__(
        self, model: str, signature: ModelSignature | None, inputs: Sequence[NamedTensor],
        wanted: Sequence[str], divided: Collection[str],
    ) -> None:  # fmt: skip
        """``signature``: None when nobody says what the model takes. ``wanted``: the outputs; none: all. ``divided``:
        the inputs that are divided. None: those with as many rows as the input that has most, leaving out inputs that
        the model takes as they are.

        :raises InputInvalid: the batch can't be divided; the message says which input or output is the reason.
        """
        taken = {} if signature is None else {each.name: each for each in signature.inputs}
        self._given: dict[str, list[Tensor]] = {}
        for named in inputs:
            self._given.setdefault(named.name, []).append(named.tensor)
        self._lengths = {name: _length(tensors, taken.get(name)) for name, tensors in self._given.items()}
        self.divided = frozenset(divided) | {name for name, tensors in self._given.items() if len(tensors) > 1}
        """The names of the inputs that are divided."""
        self.divided = self.divided or self._found(model, taken)
        self.count = self._count(model)
        """How many rows there are."""
        self.unit = self._unit_of(model, taken)
        """How many rows the model takes at a time; 0: any number."""
        sizes = {name: sum(len(tensor.data) for tensor in tensors) for name, tensors in self._given.items()}
        divided_bytes = sum(sizes[name] for name in self.divided)
        self.row_bytes = divided_bytes // self.count
        """Bytes of one row, on average."""
        self.same_bytes = sum(sizes.values()) - divided_bytes
        """Bytes of the inputs that are not divided."""
        if signature is not None:
            self._check_outputs(model, signature, wanted)

    def _found(self, model: str, taken: Mapping[str, TensorSignature]) -> frozenset[str]:
        """The inputs that are divided when the caller names none."""
        lengths = {name: length for name, length in self._lengths.items() if length is not None}
        if not lengths:
            raise InputInvalid(f"no input of model {model!r} is given with rows: give arrays with a first dimension")
        unfit = [
            name for name, length in lengths.items()
            if name not in taken or not taken[name].shape or taken[name].shape[0] != length
        ] or lengths  # fmt: skip
        most = max(lengths[name] for name in unfit)
        return frozenset(name for name in unfit if lengths[name] == most)

    def _count(self, model: str) -> int:
        for name in self.divided:
            if self._lengths.get(name) is None:
                kind = "has no dimensions" if name in self._lengths else "is not given"
                raise InputInvalid(f"input {name[:80]!r} of model {model!r} {kind}: name an input that has rows")
        counts = {self._lengths[name] or 0 for name in self.divided}
        if len(counts) != 1 or 0 in counts:
            told = ", ".join(f"{name!r} has {self._lengths[name]}" for name in sorted(self.divided))
            raise InputInvalid(f"the inputs of a batch need equally many rows, and at least one: {told}")
        return counts.pop()

    def _unit_of(self, model: str, taken: Mapping[str, TensorSignature]) -> int:
        fixed = set()
        for name in self.divided:
            known = taken.get(name)
            if len(self._given[name]) > 1 or (known is not None and is_picture(known)):
                fixed.add(1)  # it takes decoded pictures too, one by one
            elif known is not None and known.shape and known.shape[0]:
                fixed.add(known.shape[0])
        if len(fixed) > 1:
            raise InputInvalid(
                f"the inputs of model {model!r} take {' and '.join(map(str, sorted(fixed)))} rows at a time: name "
                "those that are divided, or use infer"
            )
        unit = next(iter(fixed), 0)
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
        step = self.unit or count
        shard: list[NamedTensor] = []
        for name, tensors in self._given.items():
            if name in self.divided:
                starts = range(first, first + count, step)
                shard += [NamedTensor(name, self._part(tensors, start, step)) for start in starts]
            else:
                shard.append(NamedTensor(name, tensors[0]))
        return tuple(shard)

    def fitting(self, first: int, runs: int, most_bytes: int) -> int:
        """How many of the next ``runs`` from the row ``first`` have no more than ``most_bytes`` of inputs together, and
        fit into a frame; at least one."""
        others = len(self._given) - len(self.divided)
        runs = max(min(runs, (limits.MAX_TENSORS - others) // len(self.divided)), 1)
        left_bytes = most_bytes - self.same_bytes
        for run in range(runs):
            start = first + run * self.unit
            left_bytes -= sum(
                len(self._part(tensors, start, self.unit).data)
                for name, tensors in self._given.items() if name in self.divided
            )  # fmt: skip
            if left_bytes < 0:
                return max(run, 1)
        return runs

    def _part(self, tensors: Sequence[Tensor], first: int, count: int) -> Tensor:
        tensor, *others = tensors
        if others or self.count == 1:
            return tensors[first]
        row_bytes = len(tensor.data) // tensor.shape[0]
        data = tensor.data[first * row_bytes : (first + count) * row_bytes]
        return Tensor(tensor.dtype, (count, *tensor.shape[1:]), data)

    def shard_bytes(self, count: int) -> int:
        """The size of the inputs of a shard with so many rows."""
        return count * self.row_bytes + self.same_bytes


def is_picture(taken: TensorSignature) -> bool:
    """Whether an input may be one encoded picture."""
    return (taken.dtype, taken.shape) == ("u1", (None,))


def _length(tensors: Sequence[Tensor], taken: TensorSignature | None) -> int | None:
    """How many rows an input has; None: it has none."""
    if len(tensors) > 1 or (taken is not None and is_picture(taken) and len(tensors[0].shape) == 1):
        return len(tensors)
    return tensors[0].shape[0] if tensors[0].shape else None


Room = Callable[[int], memoryview]
"""Gives memory of so many bytes, with anything in them."""


def zeroed_room(size_bytes: int) -> memoryview:
    """Memory that is zeroed at once, which a driver can do better: 130 MB took 270 ms."""
    return memoryview(bytearray(size_bytes))


class _Column:
    """One output of all shards."""

    __slots__ = ("data", "dtype", "row_bytes", "shape")

    def __init__(self, tensor: Tensor, rows: int, room: Room) -> None:
        self.dtype, self.shape = tensor.dtype, tensor.shape[1:]
        self.row_bytes = prod(self.shape) * int(tensor.dtype[1])
        self.data = room(rows * self.row_bytes)


class Joined:
    """The outputs of the shards of one batch, in order."""

    def __init__(self, rows: int, room: Room = zeroed_room) -> None:
        self._rows, self._room = rows, room
        self._columns: dict[str, _Column] = {}

    def misfit(self, count: int, outputs: Sequence[NamedTensor]) -> str:
        """Why ``outputs`` can't be those of a shard with so many rows; empty: they can."""
        if self._columns and {named.name for named in outputs} != self._columns.keys():
            return "its outputs are not those of another shard"
        for named in outputs:
            tensor, column = named.tensor, self._columns.get(named.name)
            if not tensor.shape or tensor.shape[0] != count:
                return f"{_told(named)} for {count} rows: its first size does not follow the batch"
            if column is not None and (column.dtype, column.shape) != (tensor.dtype, tensor.shape[1:]):
                rest = described(column.dtype, (None, *column.shape))
                return f"{_told(named)}, and that of another shard {rest}: they can't be joined"
        return ""

    def most_runs(self, rows: int, most_bytes: int) -> int:
        """How many runs of so many rows give outputs of at most ``most_bytes``, and fit into a frame. It is known when
        one shard was added."""
        row_bytes = sum(column.row_bytes for column in self._columns.values())
        return min(most_bytes // max(row_bytes * rows, 1), limits.MAX_TENSORS // max(len(self._columns), 1))

    def bytes_with(self, count: int, outputs: Sequence[NamedTensor]) -> int:
        """What all outputs will take, if those of a shard with so many rows are like ``outputs``."""
        return sum(len(named.tensor.data) for named in outputs) * self._rows // count

    def add(self, first: int, outputs: Sequence[NamedTensor]) -> None:
        """Copy the outputs of the shard that begins with the row ``first``, and that fit, to their place."""
        for named in outputs:
            column = self._columns.get(named.name)
            if column is None:
                column = self._columns[named.name] = _Column(named.tensor, self._rows, self._room)
            begin = first * column.row_bytes
            column.data[begin : begin + len(named.tensor.data)] = named.tensor.data

    def tensors(self) -> tuple[NamedTensor, ...]:
        """The outputs, once every shard was added."""
        return tuple(
            NamedTensor(name, Tensor(column.dtype, (self._rows, *column.shape), column.data))
            for name, column in self._columns.items()
        )


def _told(output: NamedTensor) -> str:
    return f"output {output.name[:80]!r} is {described(output.tensor.dtype, output.tensor.shape)}"
