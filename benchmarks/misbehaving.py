"""Models that crash, hang or grow when they are given the input that makes them; zeros are harmless.

They are graphs of ordinary operators, whose harm ONNX Runtime does not prevent (1.20 to 1.31):

- ``crash``: an integer remainder of the smallest number by -1, which x86-64 can't divide (SIGFPE). Other processors
  compute it.
- ``hang``: one MaxPool over a large square. ONNX Runtime ends a run between two operators only.
- ``grow``: a constant of as many numbers as the input says, 96 MB of them, and their exponentials, which take as much
  again. With ``LIMIT_MIB`` the first fit and the second don't.
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, assert_never

from benchmarks.model import bytes_field, number_field

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["crash", "hang", "grow"]
KINDS: Final[tuple[Kind, ...]] = ("crash", "hang", "grow")
INPUT, OUTPUT = "x", "y"
LIMIT_MIB: Final = 160
KERNEL: Final = 300
"""With an input of 700 on each side, one thread computes for a minute or longer."""
_TRIGGERS: Final[dict[Kind, tuple[int, ...]]] = {
    "crash": (-(2**63), 0, 0, 0),
    "hang": (0, 0, 700, 700),
    "grow": (24_000_000, 1, 1, 1),
}
_INT64: Final = 7


def write_misbehaving(path: Path, kind: Kind) -> Path:
    """Write such a model: it takes ``x``, four int64, and gives ``y``, any number of int64."""
    match kind:
        case "crash":
            nodes = _node("Mod", [INPUT, "c"], OUTPUT)
            constant = (-1, -1, -1, -1)
        case "hang":
            kernel = bytes_field(1, b"kernel_shape") + number_field(8, KERNEL) * 2 + number_field(20, 7)
            nodes = (
                _node("Add", [INPUT, "c"], "shape")
                + _node("ConstantOfShape", ["shape"], "picture")
                + _node("MaxPool", ["picture"], "pooled", bytes_field(5, kernel))
                + _node("Shape", ["pooled"], OUTPUT)
            )
            constant = (1, 1, KERNEL, KERNEL)
        case "grow":
            nodes = (
                _node("Add", [INPUT, "c"], "shape")
                + _node("ConstantOfShape", ["shape"], "much")
                + _node("Exp", ["much"], "more")
                + _node("Shape", ["more"], OUTPUT)
            )
            constant = (0, 0, 0, 0)
        case _:
            assert_never(kind)
    initializer = number_field(1, 4) + number_field(2, _INT64) + bytes_field(8, b"c")
    graph = (
        nodes
        + bytes_field(2, b"misbehaving")
        + bytes_field(5, initializer + bytes_field(9, struct.pack("<4q", *constant)))
        + bytes_field(11, _tensor(INPUT, 4))
        + bytes_field(12, _tensor(OUTPUT, None))
    )
    path.write_bytes(number_field(1, 8) + bytes_field(7, graph) + bytes_field(8, number_field(2, 13)))
    return path


def harmless() -> "dict[str, np.ndarray[Any, Any]]":
    """Inputs that each of them computes at once."""
    import numpy as np

    return {INPUT: np.zeros(4, np.int64)}


def trigger(kind: Kind) -> "dict[str, np.ndarray[Any, Any]]":
    """Inputs on which such a model does its harm."""
    import numpy as np

    return {INPUT: np.array(_TRIGGERS[kind], np.int64)}


def _node(operator: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    names = b"".join(bytes_field(1, name.encode()) for name in inputs) + bytes_field(2, output.encode())
    return bytes_field(1, names + bytes_field(4, operator.encode()) + attribute)


def _tensor(name: str, size: int | None) -> bytes:
    kind = number_field(1, _INT64)
    if size is not None:
        kind += bytes_field(2, bytes_field(1, number_field(1, size)))
    return bytes_field(1, name.encode()) + bytes_field(2, bytes_field(1, kind))
