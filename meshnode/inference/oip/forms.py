"""The JSON of a request as it is written, and what is said about JSON that is not a request.

An optional field that is null counts as absent: clients with optional fields send all of them. Unknown fields are
skipped, because extensions of the protocol add some.

``NaN``, ``Infinity`` and ``-Infinity`` are not JSON, but clients in Python and C++ write them. They are read as texts
of the same letters, which the tensors of floats understand.
"""

import re
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from meshnode.http.guard import BadRequest
from protocols.base import limits
from protocols.wire.fields import Text

Parameters = dict[str, Any]
_Form = TypeVar("_Form", bound=Struct)

_LITERAL: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|-?Infinity|NaN', re.DOTALL)
"""A text, in which nothing is looked for, or a number that JSON does not have."""
_PLACE: Final = re.compile(r" - at `\$(\S*)`$")
_STEP: Final = re.compile(r"\.(\w+)|\[(\d+)\]")
_SHOWN_CHARS: Final = 40
_NOT_SHOWN: Final = "not what it should be"
_SEARCHED_BYTES: Final = 256 * 1024
"""A value is not looked for in a longer list: each element of it becomes an object."""


class InputForm(Struct, frozen=True):
    """One entry of ``inputs``."""

    name: Text
    datatype: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=limits.MAX_TENSOR_DIMENSIONS)]
    parameters: Parameters | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")

    def parameter(self, name: str) -> Any:
        """The value of a parameter; None when it is absent."""
        return (self.parameters or {}).get(name)


class OutputForm(Struct, frozen=True):
    """One entry of ``outputs``."""

    name: Text
    parameters: Parameters | None = None

    def parameter(self, name: str) -> Any:
        """The value of a parameter; None when it is absent."""
        return (self.parameters or {}).get(name)


class RequestForm(Struct, frozen=True):
    """The JSON part of a request to compute."""

    inputs: Annotated[tuple[InputForm, ...], Meta(max_length=limits.MAX_TENSORS)]
    id: Annotated[str, Meta(max_length=1_000)] | None = None
    parameters: Parameters | None = None
    outputs: Annotated[tuple[OutputForm, ...], Meta(max_length=limits.MAX_TENSORS)] | None = None


class IndexForm(Struct, frozen=True):
    """A request for the list of models."""

    ready: bool | None = None


_requests: Final = msgspec.json.Decoder(RequestForm)
_indexes: Final = msgspec.json.Decoder(IndexForm)


def request_form(head: memoryview) -> RequestForm:
    """The JSON part of a request to compute. :raises BadRequest: it is not one; names the field and its value."""
    return _decoded(_requests, head, "an inference request")


def index_form(body: bytes) -> IndexForm:
    """A request for the list of models, which may be empty. :raises BadRequest: it is not one."""
    return _decoded(_indexes, memoryview(body), "a request for the index") if body.strip() else IndexForm()


def _decoded(decoder: "msgspec.json.Decoder[_Form]", head: memoryview, what: str) -> _Form:
    try:
        try:
            return decoder.decode(head)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            if b"NaN" not in (raw := bytes(head)) and b"Infinity" not in raw:
                raise
            head = memoryview(_LITERAL.sub(_as_text, raw))
            return decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the JSON part is not {what}: {explained(error, head)}") from error


def _as_text(found: "re.Match[bytes]") -> bytes:
    return found[0] if found[0].startswith(b'"') else b'"%s"' % found[0]


# --- faults ----------------------------------------------------------------------------------------------------------
def explained(error: Exception, text: bytes | memoryview) -> str:
    """What is wrong in a JSON text that could not be decoded, with the place and the value if it has them."""
    message = str(error)
    found = _PLACE.search(message)
    if not isinstance(error, msgspec.ValidationError) or found is None:
        return message[:200]
    place = found[1]
    return f"{place.lstrip('.')} is {value_at(text, place)}: {message[: found.start()][:120]}"


def place_of(error: msgspec.ValidationError) -> str:
    """The place of a fault in its JSON text, such as ``.inputs[0].name``; empty: the whole text is meant."""
    found = _PLACE.search(str(error))
    return found[1] if found is not None else ""


def value_at(text: bytes | memoryview, place: str) -> str:
    """The value at a place of a JSON text, as it is written there, cut to what a message can show."""
    raw = bytes(text)
    try:
        for name, index in _STEP.findall(place):
            if name:
                raw = bytes(msgspec.json.decode(raw, type=dict[str, msgspec.Raw])[name])
            elif len(raw) > _SEARCHED_BYTES:
                return _NOT_SHOWN
            else:
                raw = bytes(msgspec.json.decode(raw, type=list[msgspec.Raw])[int(index)])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # the text has another fault behind this one
        return _NOT_SHOWN
    shown = raw.strip().decode("utf-8", "replace")
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"
