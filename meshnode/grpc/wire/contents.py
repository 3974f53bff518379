"""Tensors of typed contents: one repeated field for each kind of element.

The number of elements is compared with the shape before any of them is made into an object.
"""

from math import prod
from typing import TYPE_CHECKING, Any, Final

from meshnode.inference.oip.forms import InputForm
from meshnode.inference.oip.tensors import element_of, shaped, taken
from meshnode.models import Element
from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIELDS: Final = {
    "b1": ("bool_contents", "b1"),
    "i1": ("int_contents", "i4"),
    "i2": ("int_contents", "i4"),
    "i4": ("int_contents", "i4"),
    "i8": ("int64_contents", "i8"),
    "u1": ("uint_contents", "u4"),
    "u2": ("uint_contents", "u4"),
    "u4": ("uint_contents", "u4"),
    "u8": ("uint64_contents", "u8"),
    "f4": ("fp32_contents", "f4"),
    "f8": ("fp64_contents", "f8"),
}
"""By kind of element: the field that has it, and the kind of the field's own elements."""


def tensor_of_contents(form: InputForm, contents: Any) -> "NDArray[Any]":
    """The tensor of an ``InferTensorContents``.

    :raises InputInvalid: its type can't stand there, the elements are in another field, don't fit into the type, or
        are not as many as the shape needs.
    """
    import numpy as np

    element, count = element_of(form), prod(form.shape)
    if element.short not in _FIELDS:
        raise InputInvalid(
            f"input {form.name!r} is of {form.datatype}, which has no typed contents: send raw_input_contents"
        )
    name, wide = _FIELDS[element.short]
    if others := [field.name for field, _ in contents.ListFields() if field.name != name]:
        raise InputInvalid(f"input {form.name!r} of {form.datatype} has {others[0]}: its elements belong into {name}")
    given = getattr(contents, name)
    if len(given) != count:
        raise InputInvalid(
            f"input {form.name!r} of shape {list(form.shape)} has {count} elements, its {name} has {len(given)}: "
            "correct one of them"
        )
    flat = np.fromiter(given, wide, count)
    return shaped(flat if wide == element.short else _narrowed(flat, form, element), form)


def _narrowed(wide: "NDArray[Any]", form: InputForm, element: Element) -> "NDArray[Any]":
    """``wide`` in fewer bits. :raises InputInvalid: an element does not fit."""
    narrow = wide.astype(element.short)
    wrong = narrow != wide
    if wrong.any():
        first = int(wrong.argmax())
        raise InputInvalid(
            f"element {first} of input {form.name!r} is {wide[first]}: {form.datatype} takes {taken(element)}"
        )
    return narrow
