"""Tensors of a request, out of JSON or out of the bytes behind it.

What enters is untrusted. The number of elements is compared with the shape before any of them is made into an object,
and only :class:`InputInvalid` leaves. Its message names the input, the value and what to do.
"""

import re
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from meshnode.inference.oip.forms import InputForm, place_of, value_at
from meshnode.models import Element, element_of_open_inference
from protocols.base.errors import InputInvalid
from protocols.base.limits import MAX_TENSOR_DIMENSIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WAYS_OUT: Final = {
    "BYTES": "tensors of the mesh hold numbers and no texts. Send an encoded file as UINT8 of the shape [its length]",
    "BF16": "it does not travel. Convert the tensor to FP32",
}
"""For types of the protocol that the mesh does not have."""
_LISTS: Final = re.compile(rb"[\s\[]*")
_MAX_EMPTY_BYTES: Final = 4_096
"""The data of a tensor without elements: nothing but brackets."""

NotFinite = Literal["NaN", "Infinity", "-Infinity"]


def element_of(form: InputForm) -> Element:
    """The element type of an input. :raises InputInvalid: it is unknown, or does not travel."""
    if form.datatype in _WAYS_OUT:
        raise InputInvalid(f"input {form.name!r} is of {form.datatype}: {_WAYS_OUT[form.datatype]}")
    try:
        return element_of_open_inference(form.datatype)
    except InputInvalid as error:
        raise InputInvalid(f"input {form.name!r}: {error}") from error


def tensor_of_bytes(form: InputForm, data: memoryview) -> "NDArray[Any]":
    """Raw little-endian elements in C order. No copy is made, except of BOOL.

    :raises InputInvalid: there are more or fewer bytes than the shape needs.
    """
    import numpy as np

    element = element_of(form)
    expected = prod(form.shape) * element.size_bytes
    if len(data) != expected:
        raise InputInvalid(
            f"input {form.name!r} of {form.datatype} {list(form.shape)} has {expected} bytes, {len(data)} are given"
        )
    if element.short == "b1":  # a byte other than 0 or 1 is not a bool to compiled code
        return _shaped(np.frombuffer(data, np.uint8).astype(np.bool_), form)
    return _shaped(np.frombuffer(data, element.short), form)


def tensor_of_json(form: InputForm) -> "NDArray[Any]":
    """Elements in JSON: in one list, or in as many lists inside one another as the shape has sizes.

    In a tensor of floats, null is NaN, and the texts that ``forms`` makes of what is not JSON are what they say.

    :raises InputInvalid: they are not of that type, or not as many as the shape needs.
    """
    import numpy as np

    element, raw, count = element_of(form), bytes(form.data), prod(form.shape)
    depth = _LISTS.match(raw)[0].count(b"[")  # type: ignore[index]
    # Lists inside one another have as many commas as one list of all, unless some are empty.
    given = raw.count(b",") + 1 if count or len(raw) > _MAX_EMPTY_BYTES else 0
    if given != count:
        raise InputInvalid(
            f"input {form.name!r} of shape {list(form.shape)} has {count} elements, its data has {given}: correct one "
            "of them"
        )
    if depth > MAX_TENSOR_DIMENSIONS:
        raise InputInvalid(f"the data of input {form.name!r} has {depth} lists inside one another: send one list")
    try:
        values = _decoder(element.short, depth).decode(raw)
    except msgspec.ValidationError as error:
        place = place_of(error)
        where = f" at {place}" if place else ""
        raise InputInvalid(
            f"the data of input {form.name!r}{where} is {value_at(raw, place)}: {form.datatype} takes {_taken(element)}"
        ) from error
    is_float = element.short[0] == "f"
    try:
        tensor = np.array(values, "f8" if is_float else element.short)
    except ValueError as error:
        raise InputInvalid(f"the data of input {form.name!r} has lists of different lengths: send one list") from error
    except OverflowError as error:
        raise InputInvalid(
            f"the data of input {form.name!r} has a larger number: {form.datatype} takes {_taken(element)}"
        ) from error
    if is_float:
        tensor = _narrowed(tensor, form, element)
    if tensor.size != count or (tensor.ndim > 1 and tensor.shape != form.shape):
        raise InputInvalid(
            f"input {form.name!r} has the shape {list(form.shape)}, its data is of shape {list(tensor.shape)}: correct "
            "one of them, or send one list"
        )
    return _shaped(tensor, form)


@cache
def _decoder(short: str, depth: int) -> "msgspec.json.Decoder[Any]":
    """Decodes so many lists inside one another of elements of that type."""
    bits = int(short[1]) * 8
    kind: Any
    match short[0]:
        case "b":
            kind = bool | Annotated[int, Meta(ge=0, le=1)]
        case "f":
            kind = float | None | NotFinite
        case "i":
            kind = Annotated[int, Meta(ge=-(2 ** (bits - 1)), le=2 ** (bits - 1) - 1)]
        case _:
            kind = Annotated[int, Meta(ge=0, le=2**bits - 1)] if bits < 64 else Annotated[int, Meta(ge=0)]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _taken(element: Element) -> str:
    bits = element.size_bytes * 8
    match element.short[0]:
        case "b":
            return "true and false, or 0 and 1"
        case "f":
            return "numbers, and null or NaN for what is not a number"
        case "i":
            return f"whole numbers from {-(2 ** (bits - 1))} to {2 ** (bits - 1) - 1}"
        case _:
            return f"whole numbers from 0 to {2**bits - 1}"


def _narrowed(wide: "NDArray[Any]", form: InputForm, element: Element) -> "NDArray[Any]":
    """``wide`` in the wanted precision. :raises InputInvalid: a number is beyond what that type can hold."""
    import numpy as np

    with np.errstate(over="ignore"):
        narrow = wide.astype(element.short)
    beyond = np.isinf(narrow) & np.isfinite(wide)
    if beyond.any():
        raise InputInvalid(
            f"the data of input {form.name!r} has {wide[beyond][0]:g}: {form.datatype} holds numbers up to "
            f"{float(np.finfo(narrow.dtype).max):g}. Scale the input, or use another type if the model takes it"
        )
    return narrow


def _shaped(flat: "NDArray[Any]", form: InputForm) -> "NDArray[Any]":
    try:
        return flat.reshape(form.shape)
    except (ValueError, OverflowError) as error:  # [0, 2^40, 2^40] has no elements, but is not a valid shape
        raise InputInvalid(f"input {form.name!r} has the shape {list(form.shape)}: {error}") from error
