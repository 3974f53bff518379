"""The readings of all peers: packing and unpacking, validation, deduplication and callbacks.

The peers carry the same fields as a reading of ours, in the same MessagePack layout, through the fastest public codec
there is for Python (msgspec, which parses and validates in one pass). So a difference between contenders comes from
the runtime around the codec, never from the choice of a slower one. Arrays are packed with one copy and unpacked with
none.

Invariant: a frame is one reading, as in a program that has a socket and no mesh.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import msgspec

from protocols.wire.fields import Count, Id, Key
from protocols.wire.readings import EventTime, Position, Provenance
from protocols.wire.tensors import Tensor, tensor_of

WHERE = Position(48.7665, 11.4258, 1.5, 374.0, 90.0)
HOW = Provenance("bench", "1")
CLOCK_UNCERTAINTY_NS = 10_000_000


class Small(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """A reading of a plain value."""

    key: Key
    origin: Id
    sequence: Count
    value: Any
    where: Position
    when: EventTime
    how: Provenance
    priority: int = 3
    lifespan_ms: int = 0
    hops: int = 0


class Large(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """A reading of an array, whose bytes are a view into the frame."""

    key: Key
    origin: Id
    sequence: Count
    value: Tensor
    where: Position
    when: EventTime
    how: Provenance
    priority: int = 3
    lifespan_ms: int = 0
    hops: int = 0


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """A request to compute a model."""

    request: Count
    value: Tensor


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """The outcome of a request, and the time that the model itself took."""

    request: Count
    compute_ns: Count
    value: Tensor


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Small | Large | Request | Answer).decode


def pack_request(request: int, array: Any) -> bytes:
    """Pack a request for inference into a frame."""
    return _encode(Request(request, tensor_of(array)))


def pack_answer(request: int, compute_ns: int, array: Any) -> bytes:
    """Pack an answer into a frame."""
    return _encode(Answer(request, compute_ns, tensor_of(array)))


def publisher(send: Callable[[bytes], object], key: str, origin: str) -> Callable[[Any], None]:
    """A function that sends its argument, a plain value or a NumPy array, as the next reading of ``key``."""
    sequences = itertools.count(1)

    def put(value: Any) -> None:
        when = EventTime(time.time_ns(), CLOCK_UNCERTAINTY_NS)
        if isinstance(value, float | bytes):
            send(_encode(Small(key, origin, next(sequences), value, WHERE, when, HOW)))
        else:
            send(_encode(Large(key, origin, next(sequences), tensor_of(value), WHERE, when, HOW)))

    return put


class Inbox:
    """Takes frames on one thread, and calls back with new readings."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], int] = {}
        self._callbacks: dict[str, Callable[[Any], object]] = {}
        self.on_request: Callable[[Request], None] = _ignore
        self.on_answer: Callable[[Answer], None] = _ignore

    def subscribe(self, key: str, callback: Callable[[Any], object]) -> None:
        """Call ``callback(reading)`` for each new reading of ``key``, on the receiving thread."""
        self._callbacks[key] = callback

    def receive(self, frame: bytes | memoryview) -> None:
        """Handle one frame. :raises msgspec.DecodeError: when it is not one of the four."""
        message = _decode(frame)
        if type(message) is Request:
            self.on_request(message)
        elif type(message) is Answer:
            self.on_answer(message)
        else:
            stream = (message.origin, message.key)
            if self._newest.get(stream, 0) < message.sequence:
                self._newest[stream] = message.sequence
                self._callbacks.get(message.key, _ignore)(message)


def _ignore(_message: Any) -> None:
    """Ignore a frame that nobody waits for, or not yet."""
