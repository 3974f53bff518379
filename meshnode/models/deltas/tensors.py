"""Where the weights lie in an ONNX file, found in its bytes.

An ONNX file is a protobuf message. Its tensors are looked up without the library of ONNX, which would read the file and
write another one: a delta has to give back the very bytes. See ``onnx.proto`` for the numbers of the fields. Whatever
is not understood is passed over, because a tensor that is not found only makes a delta larger.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_DEPTH: Final = 8
"""Of graphs in nodes of graphs."""
MIN_TENSOR_BYTES: Final = 64
"""A smaller tensor is not worth a segment of its own."""
_ITEM_BYTES: Final = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 4, 15: 8, 16: 2}
"""By the data type of a tensor. Complex numbers are two elements."""
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_OUTPUT, _NODE_ATTRIBUTE = 2, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_DIMS, _TYPE, _FLOATS, _NAME, _RAW, _DOUBLES = 1, 2, 4, 8, 9, 10
_PACKED: Final = {_FLOATS: 4, _DOUBLES: 8}


class StoredTensor(NamedTuple):
    """The place of a tensor's elements in a file."""

    name: str
    kind: tuple[object, ...]
    """Type, sizes and form of its elements: equal for tensors whose bytes can be compared."""
    at: int
    size_bytes: int
    item_bytes: int


class _Field(NamedTuple):
    number: int
    value: int
    """Of a number; otherwise where it begins."""
    end: int
    """0: a number."""


def stored_tensors(content: bytes) -> list[StoredTensor]:
    """The tensors of an ONNX file, in the order of their places; none if it is no such file."""
    found: list[StoredTensor] = []
    try:
        for field in _fields(content, 0, len(content)):
            if field.number == _MODEL_GRAPH and field.end:
                found.extend(_of_graph(content, field.value, field.end, 0))
    except (IndexError, ValueError):
        return []
    return sorted(found, key=lambda tensor: tensor.at)


def _of_graph(content: bytes, begin: int, end: int, depth: int) -> Iterator[StoredTensor]:
    for field in _fields(content, begin, end):
        if field.number == _GRAPH_INITIALIZER and field.end:
            yield from _of_tensor(content, field.value, field.end, "")
        elif field.number == _GRAPH_NODE and field.end:
            yield from _of_node(content, field.value, field.end, depth)


def _of_node(content: bytes, begin: int, end: int, depth: int) -> Iterator[StoredTensor]:
    output = ""
    for field in _fields(content, begin, end):
        if field.number == _NODE_OUTPUT and field.end and not output:
            output = content[field.value : field.end].decode("utf-8", "replace")
        elif field.number == _NODE_ATTRIBUTE and field.end:
            for inner in _fields(content, field.value, field.end):
                if inner.number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS) and inner.end:
                    yield from _of_tensor(content, inner.value, inner.end, output)
                elif inner.number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) and inner.end and depth < MAX_DEPTH:
                    yield from _of_graph(content, inner.value, inner.end, depth + 1)


def _of_tensor(content: bytes, begin: int, end: int, name: str) -> Iterator[StoredTensor]:
    dims: list[object] = []
    data_type, place = 0, (0, 0, 0)
    for number, value, stop in _fields(content, begin, end):
        if number == _DIMS:
            dims.append(content[value:stop] if stop else value)
        elif number == _TYPE and not stop:
            data_type = value
        elif number == _NAME and stop:
            name = content[value:stop].decode("utf-8", "replace") or name
        elif number in (_FLOATS, _RAW, _DOUBLES) and stop - value >= MIN_TENSOR_BYTES:
            place = (number, value, stop)
    form, at, stop = place
    if form:
        item, size = _PACKED.get(form, _ITEM_BYTES.get(data_type, 1)), stop - at
        yield StoredTensor(name, (data_type, form, size, *dims), at, size, item if size % item == 0 else 1)


def _fields(content: bytes, at: int, end: int) -> Iterator[_Field]:
    """The fields of a protobuf message. :raises ValueError: it is none."""
    while at < end:
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield _Field(number, value, 0)
        elif kind == 2:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError("a field reaches beyond its message")
            yield _Field(number, at, at + size)
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the wire type {kind}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number has more than ten bytes")
