"""Small ONNX models with what makes cutting hard: bodies that capture tensors, sizes that values decide on, operators
that ONNX itself does not know. Written in ONNX's own text form."""

from pathlib import Path
from typing import Final

import onnx

CHAIN: Final = """
chain (float[?, 4] x) => (float[?, 4] y) {
    a = Relu(x)
    b = Sigmoid(a)
    y = Tanh(b)
}
"""
CAPTURED: Final = """
captured (float[4] x, bool c) => (float[4] y) {
    a = Relu(x)
    b = Sigmoid(a)
    d = Tanh(b)
    y = If (c) <
        then_branch = yes () => (float[4] yes_y) { yes_y = Add(a, d) },
        else_branch = no () => (float[4] no_y) { no_y = Mul(d, d) }
    >
}
"""
NESTED: Final = """
nested (float[4] x, bool c) => (float[4] y) {
    a = Relu(x)
    b = Sigmoid(a)
    d = Tanh(b)
    e = Exp(d)
    y = If (c) <
        then_branch = yes () => (float[4] yes_y) {
            n = Not(c)
            yes_y = If (n) <
                then_branch = inner_yes () => (float[4] inner_y) { inner_y = Add(a, e) },
                else_branch = inner_no () => (float[4] inner_z) { inner_z = Mul(b, b) }
            >
        },
        else_branch = no () => (float[4] no_y) { no_y = Sub(x, e) }
    >
}
"""
LOOP: Final = """
loop (float[4] x) => (float[4] y) {
    a = Relu(x)
    b = Sigmoid(a)
    count = Constant <value = int64 {3}> ()
    going = Constant <value = bool {1}> ()
    y = Loop (count, going, b) <
        body = step (int64 i, bool on, float[4] z) => (bool on_then, float[4] z_then) {
            on_then = Identity(on)
            z_then = Add(z, a)
        }
    >
}
"""
VALUES_DECIDE: Final = """
sizes (float[2, 8] x) => (int64[2, k] y) {
    a = Relu(x)
    found = NonZero(a)
    more = Add(found, found)
    y = Mul(more, found)
}
"""
FOREIGN: Final = """
foreign (float[1, 8] x) => (float[1, 8] y) {
    a = Relu(x)
    b = com.microsoft.FastGelu(a)
    d = com.microsoft.QuickGelu(b)
    y = Tanh(d)
}
"""
UNKNOWN: Final = """
unknown (float[1, 8] x) => (float[1, 8] y) {
    a = Relu(x)
    y = com.example.Guess(a)
}
"""
RANDOM: Final = """
random (float[1, 8] x) => (float[1, 8] y) {
    a = Relu(x)
    n = RandomNormalLike(a)
    b = Add(a, n)
    y = Tanh(b)
}
"""
WIDE: Final = """
wide (float[1, 8] x) => (float[1, 8] y) {
    a, b, d, e = Split <axis = 1, num_outputs = 4> (x)
    y = Concat <axis = 1> (e, d, b, a)
}
"""
CONSTANT_OUTPUT: Final = """
constant (float[1, 2] x) => (float[1, 2] y, float[2] always, float[1, 2] same) <float[2] w = {1, 2}> {
    a = Relu(x)
    always = Add(w, w)
    same = Identity(x)
    y = Add(a, always)
}
"""


def write_text(path: Path, text: str) -> Path:
    """Write a model from its text form, and return ``path``."""
    head = '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1, "com.example" : 1]>'
    path.write_bytes(onnx.parser.parse_model(head + text).SerializeToString())
    return path


def write_external(path: Path, weights: str) -> Path:
    """Write a model of three operators whose weights are in a file of that name beside it, and return ``path``."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(7)
    tensors = [numpy_helper.from_array(random.standard_normal((64, 64)).astype("f4"), f"w{at}") for at in range(2)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w0"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("MatMul", ["b", "w1"], ["y"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        tensors,
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save_model(model, path, save_as_external_data=True, location=weights, size_threshold=0)
    return path
