"""The JSON of a request as it is written, and what is said about JSON that is not a request.

An optional field that is null counts as absent: clients with optional fields send all of them. Unknown fields are
skipped, because extensions of the protocol add some.

``NaN``, ``Infinity`` and ``-Infinity`` are not JSON, but clients in Python and C++ write them. They are read as texts
of the same letters, which the tensors of floats understand.
"""

import re
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from meshnode.http.guard import BadRequest
from meshnode.inference.oip.calls import Parameters
from protocols.base import limits
from protocols.inference.split.batches.rows import MAX_SHARDS
from protocols.wire.fields import Text

_NULL: Final = msgspec.Raw(b"null")
_Form = TypeVar("_Form", bound=Struct)

_LITERAL: Final = re.compile(
    rb'(-?Infinity|NaN)|(?>(?:[^"NI-]++|"(?>(?:[^"\\]++|\\.)*)"?|-(?!Infinity)|N(?!aN)|I(?!nfinity)){1,4096})|.',
    re.DOTALL,
)
"""A number that JSON does not have, or what stands before the next one. A text is passed over as a whole, also one that
does not end: to begin again behind its first quote takes time with the square of its length. Groups are atomic, because
CPython before 3.11.5 gets possessive ones with a lookahead wrong (its issue 100061)."""
_MAX_LITERAL_BYTES: Final = 8 * 1024 * 1024
"""A JSON part with such numbers: each takes a microsecond to find, and a long one has millions."""
MAX_PARAMETERS_BYTES: Final = 16 * 1024
"""The parameters of a request, an input or an output. Each of them becomes an object."""
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
    parameters: msgspec.Raw = _NULL
    data: msgspec.Raw = _NULL


class OutputForm(Struct, frozen=True):
    """One entry of ``outputs``."""

    name: Text
    parameters: msgspec.Raw = _NULL


class RequestForm(Struct, frozen=True):
    """The JSON part of a request to compute."""

    inputs: Annotated[tuple[InputForm, ...], Meta(max_length=MAX_SHARDS + limits.MAX_TENSORS)]
    """Of a batch, the pictures of one input are one by one."""
    id: Annotated[str, Meta(max_length=1_000)] | None = None
    parameters: msgspec.Raw = _NULL
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
            head = _with_texts(raw)
            return decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the JSON part is not {what}: {explained(error, head)}") from error


def _with_texts(raw: bytes) -> memoryview:
    """``raw`` with texts in place of numbers that JSON does not have. Written into one buffer: as many pieces would
    take 50 times the memory."""
    if len(raw) > _MAX_LITERAL_BYTES:
        raise BadRequest(
            f"the JSON part has NaN or Infinity in {len(raw)} bytes, at most {_MAX_LITERAL_BYTES} are searched for "
            "them: send the tensors as binary data"
        )
    out = bytearray()
    for found in _LITERAL.finditer(raw):
        out += b'"%s"' % found[1] if found[1] else found[0]
    return memoryview(out)


def parameters_of(raw: msgspec.Raw, where: str) -> Parameters:
    """The parameters of ``where``; those that are null are left out.

    :raises BadRequest: they are not an object, or too many.
    """
    text = bytes(raw)
    if len(text) > MAX_PARAMETERS_BYTES:
        raise BadRequest(
            f"the parameters of {where} have {len(text)} bytes: give at most {MAX_PARAMETERS_BYTES}, without tensors"
        )
    try:
        parameters = msgspec.json.decode(text, type=Parameters | None) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(
            f'the parameters of {where} are {value_at(text, "")}: give an object, as in {{"timeout": 500000}}'
        ) from error
    return {name: value for name, value in parameters.items() if value is not None}


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
