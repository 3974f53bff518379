"""A model that costs next to nothing (``y = x + 1``), so that a remote run of it shows what the transport costs.

The file is written byte by byte (protobuf wire format of ONNX ``ModelProto``, IR version 8, opset 13): the ``onnx``
package would be a heavy dependency for 150 bytes.
"""

import struct
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

NAME = "bench-add"
INPUT = "x"
OUTPUT = "y"
ELEMENTS = 75_000
"""Elements of four bytes each: 300 kB, the size of a small camera frame."""

_FLOAT = 1


def write_model(path: Path, additions: int = 1) -> None:
    """Write the model file: float32 ``x`` and ``y`` of shape ``[ELEMENTS]``, ``y = x + additions``, one by one."""
    one = number_field(2, _FLOAT) + bytes_field(8, b"one") + bytes_field(9, struct.pack("<f", 1.0))
    names = [INPUT, *(f"t{number}" for number in range(1, additions)), OUTPUT]
    nodes = b"".join(
        bytes_field(1, bytes_field(1, taken.encode()) + bytes_field(1, b"one") + bytes_field(2, given.encode())
                    + bytes_field(4, b"Add"))
        for taken, given in pairwise(names)
    )  # fmt: skip
    graph = (
        nodes
        + bytes_field(2, b"bench")
        + bytes_field(5, one)
        + bytes_field(11, _tensor(INPUT))
        + bytes_field(12, _tensor(OUTPUT))
    )
    path.write_bytes(number_field(1, 8) + bytes_field(7, graph) + bytes_field(8, number_field(2, 13)))


def bare_session(path: Path) -> "onnxruntime.InferenceSession":
    """The model in ONNX Runtime, on one thread that doesn't spin, as a node loads it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sample_input() -> "np.ndarray[Any, np.dtype[np.float32]]":
    """An input for it."""
    import numpy as np

    return np.arange(ELEMENTS, dtype=np.float32)


def _tensor(name: str) -> bytes:
    shape = bytes_field(1, number_field(1, ELEMENTS))
    return bytes_field(1, name.encode()) + bytes_field(
        2, bytes_field(1, number_field(1, _FLOAT) + bytes_field(2, shape))
    )


def number_field(field: int, value: int) -> bytes:
    """A number as a field of a protobuf message."""
    return _leb128(field << 3) + _leb128(value)


def bytes_field(field: int, data: bytes) -> bytes:
    """Bytes, a text or a message as a field of a protobuf message."""
    return _leb128(field << 3 | 2) + _leb128(len(data)) + data


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
