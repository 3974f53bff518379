"""A model on disk that is fit to be released: it has a manifest and a golden vector."""

from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIZE: Final = 64


def write_model(folder: Path, name: str = "plate", *, scale: float = 2.0, golden: bool = True, **io: Any) -> Path:
    """A model that multiplies, with its manifest and one golden vector."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, weights = io.get("shape", ["n", SIZE]), np.full((SIZE, SIZE), scale, "f4")
    graph = helper.make_graph(
        [helper.make_node("MatMul", [io.get("takes", "x"), "w"], [io.get("gives", "y")])], "g",
        [helper.make_tensor_value_info(io.get("takes", "x"), TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(io.get("gives", "y"), TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    manifest = 'licence = "Apache-2.0"\n'
    if golden:
        array = np.ones((1, SIZE), "f4")
        np.save(folder / "in.npy", array)
        np.save(folder / "out.npy", array @ weights)
        manifest += '[[golden]]\ninputs = { x = "in.npy" }\noutputs = { y = "out.npy" }\n'
    (folder / f"{name}.toml").write_text(manifest)
    return path
