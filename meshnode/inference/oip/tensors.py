"""Tensors of a request, out of JSON or out of the bytes behind it.

What enters is untrusted. The number of elements is compared with the shape before any of them is made into an object,
and then only some thousands of them are objects at a time: a number in JSON takes up to 16 times its text as one. Only
:class:`InputInvalid` leaves. Its message names the input, the value and what to do.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from meshnode.inference.oip.forms import InputForm, place_of, value_at
from meshnode.models import Element, element_of_open_inference
from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WAYS_OUT: Final = {
    "BYTES": "tensors of the mesh hold numbers and no texts. Send an encoded file as UINT8 of the shape [its length]",
    "BF16": "it does not travel. Convert the tensor to FP32",
}
"""For types of the protocol that the mesh does not have."""
_PIECE_BYTES: Final = 64 * 1024
"""What is made into objects at a time takes a few milliseconds, after which another thread can run."""
_BESIDE_LISTS: Final = bytes(set(range(256)) - set(b"[,]"))

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
        return shaped(np.frombuffer(data, np.uint8).astype(np.bool_), form)
    return shaped(np.frombuffer(data, element.short), form)


def tensor_of_json(form: InputForm) -> "NDArray[Any]":
    """Elements in JSON: in one list, or in lists inside one another as the shape says.

    In a tensor of floats, null is NaN, and the texts that ``forms`` makes of what is not JSON are what they say.

    :raises InputInvalid: they are not of that type, or not as many as the shape needs.
    """
    import numpy as np

    element, count = element_of(form), prod(form.shape)
    flat = _flat(form, bytes(form.data).strip(), count)
    tensor, at = np.zeros(count, element.short), 0
    for piece in _pieces(flat):
        values = _elements(form, element, piece, at)
        tensor[at : at + len(values)] = values
        at += len(values)
    assert at == count, "commas were counted, and no element has one inside"
    return shaped(tensor, form)


def _flat(form: InputForm, raw: bytes, count: int) -> bytes:
    """The elements with commas between them. :raises InputInvalid: they are more or fewer, or in other lists."""
    is_empty = not raw.translate(None, b"[], \t\r\n")
    given = 0 if is_empty else raw.count(b",") + 1
    if given != count:
        raise InputInvalid(
            f"input {form.name!r} of shape {list(form.shape)} has {count} elements, its data has {given}: correct one "
            "of them"
        )
    if is_empty:
        return b""
    lists = raw.translate(None, _BESIDE_LISTS)
    if count == 1 and not lists:
        return raw
    if raw.startswith(b"["):
        if lists == b"[" + b"," * (count - 1) + b"]":
            return raw[1:-1]
        if len(lists) == _lists_bytes(form.shape) and lists == _lists(form.shape):
            return raw.translate(None, b"[]")
    raise InputInvalid(
        f"the lists in the data of input {form.name!r} do not have the shape {list(form.shape)}: nest them so, or send "
        "one list of all elements"
    )


def _lists_bytes(shape: Sequence[int]) -> int:
    return prod(shape) - 1 + 2 * sum(prod(shape[:depth]) for depth in range(len(shape)))


def _lists(shape: Sequence[int]) -> bytes:
    """The brackets and commas of a tensor of that shape in JSON."""
    lists = b""
    for size in reversed(shape):
        lists = b"[" + b",".join([lists] * size) + b"]"
    return lists


def _pieces(flat: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(flat):
        comma = flat.find(b",", at + _PIECE_BYTES)
        end = comma if comma >= 0 else len(flat)
        yield b"[" + flat[at:end] + b"]"
        at = end + 1


def _elements(form: InputForm, element: Element, piece: bytes, at: int) -> "NDArray[Any]":
    """The elements of one piece, which begins at element ``at``. :raises InputInvalid: one is not of that type."""
    import numpy as np

    is_float = element.short[0] == "f"
    try:
        values = np.array(_decoder(element.short).decode(piece), "f8" if is_float else element.short)
    except msgspec.ValidationError as error:
        place = place_of(error)
        number = at + int(place.strip("[]") or 0)
        raise InputInvalid(
            f"element {number} of input {form.name!r} is {value_at(piece, place)}: {form.datatype} takes "
            f"{taken(element)}"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputInvalid(f"the data of input {form.name!r} can't be read: {str(error)[:120]}") from error
    except OverflowError as error:  # beyond 64 bits, of UINT64 only
        raise InputInvalid(
            f"input {form.name!r} has a larger element: {form.datatype} takes {taken(element)}"
        ) from error
    return _narrowed(values, form, element, at) if is_float else values


@cache
def _decoder(short: str) -> "msgspec.json.Decoder[Any]":
    """Decodes a list of elements of that type."""
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
    return msgspec.json.Decoder(list[kind])


def taken(element: Element) -> str:
    """The values that a type takes, in words."""
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


def _narrowed(wide: "NDArray[Any]", form: InputForm, element: Element, at: int) -> "NDArray[Any]":
    """``wide`` in the wanted precision. :raises InputInvalid: a number is beyond what that type can hold."""
    import numpy as np

    with np.errstate(over="ignore"):
        narrow = wide.astype(element.short)
    beyond = np.isinf(narrow) & np.isfinite(wide)
    if beyond.any():
        first = int(beyond.argmax())
        raise InputInvalid(
            f"element {at + first} of input {form.name!r} is {wide[first]:g}: {form.datatype} holds numbers up to "
            f"{float(np.finfo(narrow.dtype).max):g}. Scale the input, or use another type if the model takes it"
        )
    return narrow


def shaped(flat: "NDArray[Any]", form: InputForm) -> "NDArray[Any]":
    """The elements in the shape of an input. :raises InputInvalid: there is no such shape."""
    try:
        return flat.reshape(form.shape)
    except (ValueError, OverflowError) as error:  # [0, 2^40, 2^40] has no elements, but is not a valid shape
        raise InputInvalid(f"input {form.name!r} has the shape {list(form.shape)}: {error}") from error
