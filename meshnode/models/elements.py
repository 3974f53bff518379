"""Element types of tensors, each under the names that the wire, ONNX Runtime and the Open Inference Protocol give it.

This is the only table of its kind. Strings, sequences, bfloat16 and 4- or 8-bit floats are left out: they don't travel.
"""

from dataclasses import dataclass
from typing import Final, Literal

from protocols.base.errors import InputInvalid, ModelInvalid

Short = Literal["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
"""The kind of an element and its size in bytes, as in ``protocols.wire.tensors.Tensor``."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element type."""

    short: Short
    onnx: str
    """The name that ONNX Runtime gives to a tensor of it: ``tensor(float)``."""
    open_inference: str
    """The name of the Open Inference Protocol v2: ``FP32``."""

    @property
    def size_bytes(self) -> int:
        """Bytes per element."""
        return int(self.short[1])


ELEMENTS: Final = (
    Element("b1", "tensor(bool)", "BOOL"),
    Element("i1", "tensor(int8)", "INT8"),
    Element("i2", "tensor(int16)", "INT16"),
    Element("i4", "tensor(int32)", "INT32"),
    Element("i8", "tensor(int64)", "INT64"),
    Element("u1", "tensor(uint8)", "UINT8"),
    Element("u2", "tensor(uint16)", "UINT16"),
    Element("u4", "tensor(uint32)", "UINT32"),
    Element("u8", "tensor(uint64)", "UINT64"),
    Element("f2", "tensor(float16)", "FP16"),
    Element("f4", "tensor(float)", "FP32"),
    Element("f8", "tensor(double)", "FP64"),
)

_BY_SHORT = {element.short: element for element in ELEMENTS}
_BY_ONNX = {element.onnx: element for element in ELEMENTS}
_BY_OPEN_INFERENCE = {element.open_inference: element for element in ELEMENTS}


def element_of_short(short: str) -> Element:
    """The element type that the wire calls ``short``. :raises InputInvalid: for a name that is not in the table."""
    element = _BY_SHORT.get(short)  # type: ignore[call-overload]
    if element is None:
        raise InputInvalid(f"element type {short!r} is unknown: use one of {', '.join(_BY_SHORT)}")
    return element  # type: ignore[no-any-return]


def element_of_onnx(onnx: str) -> Element:
    """The element type of what ONNX Runtime calls ``onnx``. :raises ModelInvalid: when it can't travel."""
    element = _BY_ONNX.get(onnx)
    if element is not None:
        return element
    if onnx.startswith("seq(map("):
        way_out = "export the model with options={'zipmap': False}"
    elif onnx == "tensor(string)":
        way_out = "train or export the model with numbers as labels"
    else:
        way_out = f"export the model with tensors of {', '.join(each.onnx[7:-1] for each in ELEMENTS)}"
    raise ModelInvalid(f"type {onnx} can't travel between nodes: {way_out}")


def element_of_open_inference(name: str) -> Element:
    """The element type that an Open Inference Protocol client calls ``name``. :raises InputInvalid: it is unknown."""
    element = _BY_OPEN_INFERENCE.get(name)
    if element is None:
        raise InputInvalid(f"datatype {name[:40]!r} is not supported: use one of {', '.join(_BY_OPEN_INFERENCE)}")
    return element
