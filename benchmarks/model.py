"""A model that costs next to nothing (``y = x + 1``), so that a remote run of it shows what the transport costs.

The file is written byte by byte (protobuf wire format of ONNX ``ModelProto``, IR version 8, opset 13): the ``onnx``
package would be a heavy dependency for 150 bytes.
"""

import struct
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


def write_model(path: Path) -> None:
    """Write the model file: input ``x`` and output ``y``, both float32 of shape ``[ELEMENTS]``."""
    one = _varint(2, _FLOAT) + _bytes(8, b"one") + _bytes(9, struct.pack("<f", 1.0))
    node = _bytes(1, INPUT.encode()) + _bytes(1, b"one") + _bytes(2, OUTPUT.encode()) + _bytes(4, b"Add")
    graph = (
        _bytes(1, node)
        + _bytes(2, b"bench")
        + _bytes(5, one)
        + _bytes(11, _tensor(INPUT))
        + _bytes(12, _tensor(OUTPUT))
    )
    path.write_bytes(_varint(1, 8) + _bytes(7, graph) + _bytes(8, _varint(2, 13)))


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
    shape = _bytes(1, _varint(1, ELEMENTS))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _varint(1, _FLOAT) + _bytes(2, shape)))


def _varint(field: int, value: int) -> bytes:
    return _leb128(field << 3) + _leb128(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _leb128(field << 3 | 2) + _leb128(len(data)) + data


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
