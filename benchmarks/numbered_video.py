"""Videos whose frames carry their number, as stripes that survive any codec, and a detector that reads it slowly."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS: Final = 16
_STRIPE: Final = 16
"""Pixels across one bit: a block of most codecs."""
WIDTH: Final = BITS * _STRIPE
HEIGHT: Final = 64
_OPTIONS: Final = {"libx264": {"preset": "veryfast", "sc_threshold": "0"}}
"""Key frames come only where they are asked for."""
_WORK: Final = 384
"""The side of the matrices that the detector multiplies to be slow."""


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> "NDArray[Any]":
    """A frame ``uint8[height, width, 3]`` with its number, the highest bit at the left."""
    import numpy as np

    bits = np.array([255 if number >> bit & 1 else 0 for bit in reversed(range(BITS))], np.uint8)
    row = np.repeat(bits, width // BITS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(rgb: "NDArray[Any]") -> int:
    """The number in a picture."""
    import numpy as np

    columns = rgb.astype(np.float32).mean(axis=(0, 2)).reshape(BITS, -1).mean(axis=1)
    return int(sum(1 << bit for bit, light in zip(reversed(range(BITS)), columns, strict=True) if light > 127))


def write_video(
    path: Path, frames: int, codec: str = "mpeg4", rate_hz: int = 30, width: int = WIDTH, height: int = HEIGHT,
    turned_deg: int = 0, container: str | None = None, gop: int = 30,
) -> None:  # fmt: skip
    """Write a video of that many frames. ``turned_deg``: what it says of its orientation, counter-clockwise."""
    import av

    output = av.open(str(path), "w", format=container)
    stream: Any = output.add_stream(codec, rate=rate_hz, options=_OPTIONS.get(codec, {}))
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    stream.gop_size = gop
    stream.bit_rate = 4_000_000
    if turned_deg:
        stream.set_display_rotation(turned_deg)
    for number in range(frames):
        for packet in stream.encode(av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")):
            output.mux(packet)
    for packet in stream.encode():
        output.mux(packet)
    output.close()


def write_detector(path: Path, rounds: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    """A model whose ``number float32[1]`` is that of a frame ``image uint8[1, height, width, 3]``, after ``rounds``
    multiplications of matrices that it also puts into ``work``."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([1 << bit for bit in reversed(range(BITS))], np.float32).reshape(BITS, 1)
    square = (np.eye(_WORK) * 0.5).astype(np.float32)
    initial: dict[str, Any] = {
        "shape": np.array([height, BITS, width // BITS * 3], np.int64),
        "half": np.array(127.0, np.float32), "weights": weights, "square": square,
        "rounds": np.array(rounds, np.int64), "go_on": np.array(True),
    }  # fmt: skip
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "square"], ["y"]),
            helper.make_node("Identity", ["condition"], ["condition_out"]),
        ],
        "again",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [_WORK, _WORK]),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [_WORK, _WORK]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["light"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["light", "shape"], ["stripes"]),
            helper.make_node("ReduceMean", ["stripes"], ["means"], axes=[0, 2], keepdims=0),
            helper.make_node("Greater", ["means", "half"], ["on"]),
            helper.make_node("Cast", ["on"], ["bits"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["bits", "weights"], ["number"]),
            helper.make_node("Loop", ["rounds", "go_on", "square"], ["worked"], body=body),
            helper.make_node("ReduceMax", ["worked"], ["work"], keepdims=0),
        ],
        "numbered",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, height, width, 3])],
        [
            helper.make_tensor_value_info("number", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("work", TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(array, name) for name, array in initial.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
