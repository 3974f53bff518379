"""Writes small ONNX files without the ``onnx`` package: a chain of one operator, encoded as protobuf by hand.

Follows ``onnx.proto`` (ModelProto and below) at operator set 13; leaves out everything that such a chain doesn't need.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

_ELEMENT_NUMBERS = {
    "f4": 1, "u1": 2, "i1": 3, "u2": 4, "i2": 5, "i4": 6, "i8": 7, "string": 8, "b1": 9, "f2": 10, "f8": 11,
    "u4": 12, "u8": 13,
}  # fmt: skip
_BINARY = frozenset({"Add", "Sub", "Mul", "MatMul", "Mod", "Tile"})


def write_model(
    path: Path,
    input_shape: Sequence[int | str] | None,
    op: str = "Identity",
    *,
    dtype: str = "f4",
    repeat: int = 1,
    input_name: str = "x",
    output_name: str = "y",
    opset: int = 13,
) -> Path:
    """Write ``y = op(op(…(x)))``, ``repeat`` times, and return ``path``.

    A binary operator gets its input twice: ``Add`` doubles, ``Mul`` squares. A text in the shape is a dynamic size. No
    shape: the model does not tell it.
    """
    path.write_bytes(model_bytes(input_shape, op, dtype, repeat, input_name, output_name, opset))
    return path


def model_bytes(
    input_shape: Sequence[int | str] | None,
    op: str = "Identity",
    dtype: str = "f4",
    repeat: int = 1,
    input_name: str = "x",
    output_name: str = "y",
    opset: int = 13,
) -> bytes:
    """The bytes of such a file."""
    names = [input_name, *(f"t{i}" for i in range(1, repeat)), output_name]
    nodes = b"".join(
        _message(1, _text(1, source) * (2 if op in _BINARY else 1) + _text(2, target) + _text(4, op))
        for source, target in pairwise(names)
    )
    graph = nodes + _text(2, "tiny")
    graph += _message(11, _tensor_type(input_name, dtype, input_shape))
    graph += _message(12, _tensor_type(output_name, dtype, input_shape))
    return _number(1, 8) + _text(2, "tests") + _message(7, graph) + _message(8, _text(1, "") + _number(2, opset))


def _tensor_type(name: str, dtype: str, shape: Sequence[int | str] | None) -> bytes:
    tensor = _number(1, _ELEMENT_NUMBERS[dtype])
    if shape is not None:
        sizes = [_text(2, size) if isinstance(size, str) else _number(1, size) for size in shape]
        tensor += _message(2, b"".join(_message(1, size) for size in sizes))
    return _text(1, name) + _message(2, _message(1, tensor))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())
