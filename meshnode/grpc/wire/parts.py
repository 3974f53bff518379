"""A request to compute in two parts: what protobuf parses, and the raw tensors, which stay where they are.

Two bytes of a message can become an object of a hundred when it is parsed, and one byte of a packed array eight: 64 MiB
of empty inputs would take gigabytes. So the fields are counted before that, only as deep as parsing makes objects of
them, and with a bound after which counting ends. Only :class:`BadRequest` leaves.
"""

from dataclasses import dataclass
from typing import Final

from meshnode.grpc.wire.fields import untrusted_fields
from meshnode.http.guard import BadRequest

MAX_FIELDS: Final = 8_192
"""Fields of one message with all that are inside it: a request of 32 inputs and outputs has some hundreds."""
MAX_TYPED_BYTES: Final = 16 * 1024 * 1024
"""Tensors in typed contents: each element becomes up to eight bytes, and then an object of Python for a moment."""
_Inside = dict[int, "_Inside"]
"""The fields that are messages themselves, by number."""
_PARAMETERS: Final[_Inside] = {2: {}}
_CONTENTS: Final[_Inside] = {}
_INPUT: Final[_Inside] = {4: _PARAMETERS, 5: _CONTENTS}
_REQUEST: Final[_Inside] = {4: _PARAMETERS, 5: _INPUT, 6: {2: _PARAMETERS}}
_SHAPE: Final = 3
_RAW: Final = 7


@dataclass(frozen=True, slots=True)
class RequestParts:
    """The parts of a ``ModelInferRequest``."""

    head: bytes
    """The message without ``raw_input_contents``."""
    raw: list[memoryview]
    """What these are."""
    typed_bytes: int
    """How much of the head is typed contents and shapes."""


def untrusted_parts(data: bytes) -> RequestParts:
    """Look through a request and part it. :raises BadRequest: it is no message, or would become too large."""
    view, heads, raw = memoryview(data), list[memoryview](), list[memoryview]()
    count = typed_bytes = 0
    waiting: list[tuple[_Inside, int, int]] = [(_REQUEST, 0, len(data))]
    while waiting:
        inside, at, end = waiting.pop()
        for field in untrusted_fields(data, at, end):
            count += 1
            if count > MAX_FIELDS:
                raise BadRequest(
                    f"the message has more than {MAX_FIELDS} fields: pack the elements of typed contents, or send "
                    "raw_input_contents"
                )
            if inside is _REQUEST and field.number == _RAW and field.has_length:
                raw.append(view[field.start : field.stop])
                continue
            if inside is _REQUEST:
                heads.append(view[field.begin : field.stop])
            if inside is _CONTENTS or (inside is _INPUT and field.number == _SHAPE):
                typed_bytes += field.stop - field.start
            elif field.has_length and field.number in inside:
                waiting.append((inside[field.number], field.start, field.stop))
    if typed_bytes > MAX_TYPED_BYTES:
        raise BadRequest(
            f"typed contents have {typed_bytes} bytes, at most {MAX_TYPED_BYTES} are read: send raw_input_contents", 413
        )
    return RequestParts(b"".join(heads), raw, typed_bytes)
