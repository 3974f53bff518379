"""The frames between a node and an application on the same computer, and their bytes.

An application opens with ``Open``; the node answers with ``Welcome`` or ``Closing``. From then on both send what they
have. Readings travel in ``Parcels``, everything else in the other frames. As on the wire between nodes a frame is a
MessagePack array ``[type, field, …]``, unknown types and extra trailing fields are skipped, and untrusted bytes enter
through ``decode_untrusted_…`` only. ``docs/reference/local.md`` describes every field.

``Parcels`` has the type and the outer form of ``Readings``, so that :class:`protocols.links.queues.LaneQueue` makes
both.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from protocols.access import AccessRule
from protocols.base import errors, limits
from protocols.base.errors import MeshError, RemoteProtocolError, UnknownFrame, ValueUnsupported
from protocols.base.ids import Role
from protocols.engine import PeerView
from protocols.events import (
    DeadlineMissed,
    DuplicateIdentity,
    Event,
    NeighbourDead,
    NeighbourLeft,
    NeighbourMet,
    NeighbourRefuted,
    NeighbourSuspected,
    PeerRefused,
    RunReport,
)
from protocols.wire.codec import decode_untrusted_reading, encode_reading
from protocols.wire.fields import Count, Id, Key, Text
from protocols.wire.readings import Position, Reading
from protocols.wire.tensors import NamedTensor

LOCAL_MAJOR = 1
"""Versions that differ here refuse one another."""
LOCAL_MINOR = 0

Detail = Annotated[str, Meta(max_length=4_096)]
Subject = Literal["peers", "statistics", "drops", "models", "position", "uplink"]

_T = TypeVar("_T")


# --- readings, both ways -------------------------------------------------------------------------------------------
class Parcel(Struct, frozen=True, array_like=True):
    """A reading and its label."""

    label: Count
    """To the node: ``NODE_POSITION`` or ``OWN_POSITION``. To the application: the subscription it is for."""
    reading: msgspec.Raw


NODE_POSITION = 0
"""The node fills in where it is when it takes the reading; the reading's own position means nothing."""
OWN_POSITION = 1


class Parcels(Struct, frozen=True, array_like=True, tag=6):
    """One or more readings. To the node: to be published; origin and sequence are the application's own count."""

    parcels: Annotated[tuple[Parcel, ...], Meta(max_length=limits.MAX_READINGS_PER_FRAME)]


# --- application to node -------------------------------------------------------------------------------------------
class Open(Struct, frozen=True, array_like=True, tag=96):
    """First frame of a connection."""

    major: Count
    minor: Count
    name: Text
    """For logs and counters of the node; need not be unique."""


class Subscribe(Struct, frozen=True, array_like=True, tag=97):
    """``question`` becomes the number of the subscription. Answered by ``Done``, after the last known values."""

    question: Count
    expression: Key
    deadline_ms: Annotated[int, Meta(ge=0, le=limits.MAX_LIFESPAN_MS)] = 0
    min_interval_us: Annotated[int, Meta(ge=0, le=limits.MAX_LIFESPAN_MS * 1_000)] = 0
    conflate: bool = False
    history: bool = True
    hops: Annotated[int, Meta(ge=0, le=limits.MAX_HOPS)] = 0
    own: bool = True


class Unsubscribe(Struct, frozen=True, array_like=True, tag=98):
    """Readings for it may still be on their way."""

    subscription: Count


class Infer(Struct, frozen=True, array_like=True, tag=99):
    """Have a model computed by whoever is fastest. Answered by ``Inferred``."""

    request: Count
    model: Text
    inputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)]
    outputs: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    deadline_ms: Annotated[int, Meta(ge=1, le=limits.MAX_BUDGET_MS)] | None = None
    hedge: bool | None = None


class CancelInfer(Struct, frozen=True, array_like=True, tag=100):
    """The answer is no longer wanted; none will come."""

    request: Count


class Ask(Struct, frozen=True, array_like=True, tag=101):
    """What the node knows about ``subject``. Answered by ``Told``."""

    question: Count
    subject: Subject


class Flush(Struct, frozen=True, array_like=True, tag=102):
    """Answered by ``Done`` when everything that came before it was published or refused."""

    question: Count


class Locate(Struct, frozen=True, array_like=True, tag=103):
    """Where the node is now."""

    position: Position | None


ApplicationFrame = Open | Parcels | Subscribe | Unsubscribe | Infer | CancelInfer | Ask | Flush | Locate


# --- node to application -------------------------------------------------------------------------------------------
class Welcome(Struct, frozen=True, array_like=True, tag=112):
    """Who the node is, and what it may publish: an application asks this table before it puts."""

    major: Count
    minor: Count
    application: Count
    mesh: Id
    node: Id
    role: Role
    incarnation: Count
    rules: Annotated[tuple[AccessRule, ...], Meta(max_length=1_000)]


class Closing(Struct, frozen=True, array_like=True, tag=113):
    """Last frame of a connection. ``code``: ``version``, ``full``, ``malformed``, ``leaving`` or a newer word."""

    code: Text
    detail: Detail = ""


class Done(Struct, frozen=True, array_like=True, tag=114):
    """A ``Subscribe`` or ``Flush`` was carried out; or ``error``, a name of the error tree, says why not."""

    question: Count
    error: Text = ""
    detail: Detail = ""


class Told(Struct, frozen=True, array_like=True, tag=115):
    """The answer to ``Ask``; :func:`told` gives it its type."""

    question: Count
    content: Any


class Inferred(Struct, frozen=True, array_like=True, tag=116):
    """The result of an inference; or ``error``, a name of the error tree, says why there is none."""

    request: Count
    error: Text = ""
    detail: Detail = ""
    outputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    ran_on: Annotated[str, Meta(max_length=63)] = ""
    took_ms: float = 0.0
    compute_ms: float = 0.0
    queued_ms: float = 0.0
    attempts: Annotated[tuple[RunReport, ...], Meta(max_length=64)] = ()


class Refused(Struct, frozen=True, array_like=True, tag=117):
    """A reading sent to be published was refused: its key, the application's count of it, and why."""

    key: Text
    sequence: Count
    error: Text
    detail: Detail


class Happened(Struct, frozen=True, array_like=True, tag=118):
    """An event of the node: the name of its type, its fields by name. :func:`event_of` gives it its type."""

    kind: Text
    fields: dict[str, Any]


class Missed(Struct, frozen=True, array_like=True, tag=119):
    """A stream was silent for longer than the deadline of a subscription."""

    subscription: Count
    origin: Text
    key: Text


class Fallen(Struct, frozen=True, array_like=True, tag=120):
    """Readings that the application was too slow for, of one subscription, since it was made."""

    subscription: Count
    dropped: Count


LocalNodeFrame = Welcome | Parcels | Closing | Done | Told | Inferred | Refused | Happened | Missed | Fallen


# --- what questions give -------------------------------------------------------------------------------------------
class TensorView(Struct, frozen=True):
    """One input or output of a model; None stands for a dimension of any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class ModelView(Struct, frozen=True):
    """A model loaded in the node."""

    name: str
    digest: str
    inputs: tuple[TensorView, ...]
    outputs: tuple[TensorView, ...]


PEERS = tuple[PeerView, ...]
STATISTICS = dict[str, int]
DROPS = list[tuple[tuple[str, str, str], int]]
MODELS = tuple[ModelView, ...]
POSITION = Position | None

_FORWARDED: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        NeighbourMet, NeighbourSuspected, NeighbourRefuted, NeighbourDead, NeighbourLeft, PeerRefused,
        DuplicateIdentity,
    )
}  # fmt: skip
_ERRORS: dict[str, type[MeshError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MeshError) and kind is not UnknownFrame
}


def told(content: object, kind: type[_T]) -> _T:
    """The content of ``Told`` as ``kind``. :raises RemoteProtocolError: when it is nothing of the kind."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"the node's answer is malformed: {error}") from error


def happened(event: Event | DeadlineMissed) -> Happened | None:
    """The frame of an event; None for those that concern one application only, or an inference of another."""
    kind = type(event).__name__
    return Happened(kind, msgspec.structs.asdict(event)) if kind in _FORWARDED else None


def event_of(frame: Happened) -> Event | None:
    """The event in a frame; None for one of a newer version. :raises RemoteProtocolError: for wrong fields."""
    kind = _FORWARDED.get(frame.kind)
    return None if kind is None else told(frame.fields, kind)


def error_named(name: str, detail: str) -> MeshError:
    """The error of the tree with that name, or its root for one of a newer version."""
    return _ERRORS.get(name, MeshError)(detail)


# --- bytes ---------------------------------------------------------------------------------------------------------
_encoder = msgspec.msgpack.Encoder()
_application_decoder: msgspec.msgpack.Decoder[ApplicationFrame] = msgspec.msgpack.Decoder(ApplicationFrame)
_node_decoder: msgspec.msgpack.Decoder[LocalNodeFrame] = msgspec.msgpack.Decoder(LocalNodeFrame)
_KNOWN_TYPES = frozenset((6, *range(96, 104), *range(112, 121)))


def encode_local(frame: ApplicationFrame | LocalNodeFrame) -> bytes:
    """One frame as bytes. :raises ValueUnsupported: when it is larger than ``MAX_FRAME_BYTES``, or holds a NaN's kin
    that MessagePack has no form for."""
    try:
        data = _encoder.encode(frame)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueUnsupported(f"a {type(frame).__name__} can't travel: {error}") from error
    if len(data) > limits.MAX_FRAME_BYTES:
        raise ValueUnsupported(
            f"{len(data)} bytes are too large for a frame of {limits.MAX_FRAME_BYTES}: send fewer or smaller tensors"
        )
    return data


def encode_parcel(label: int, reading: Reading) -> bytes:
    """One parcel as it stands inside ``Parcels``; ``frame_of_encoded_readings`` makes the frame of up to 64.

    :raises ValueUnsupported: when the reading's value can't travel or is too large.
    """
    encoded = encode_reading(reading)
    head = bytes((0x92, label)) if label < 0x80 else b"\x92" + _encoder.encode(label)
    return head + encoded


def decode_untrusted_parcel(parcel: Parcel) -> Reading:
    """The reading in a parcel; its tensors look into the frame. :raises RemoteProtocolError: when it is none."""
    return decode_untrusted_reading(memoryview(parcel.reading))


def decode_untrusted_application_frame(data: bytes | bytearray) -> ApplicationFrame:
    """Parse a frame from an application. :raises UnknownFrame: for a type of a newer minor version.

    :raises RemoteProtocolError: for anything else that is not a frame.
    """
    frame = _decode_untrusted(_application_decoder, data)
    if type(frame) is Infer:
        _check_untrusted_tensors(frame.inputs)
    return frame


def decode_untrusted_local_node_frame(data: bytes | bytearray) -> LocalNodeFrame:
    """Parse a frame from a node; errors as :func:`decode_untrusted_application_frame`."""
    frame = _decode_untrusted(_node_decoder, data)
    if type(frame) is Inferred:
        _check_untrusted_tensors(frame.outputs)
    return frame


def _decode_untrusted(decoder: msgspec.msgpack.Decoder[_T], data: bytes | bytearray) -> _T:
    if len(data) > limits.MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"a frame of {len(data)} bytes is larger than {limits.MAX_FRAME_BYTES}")
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise RemoteProtocolError("a frame is nested too deeply") from error
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        # the type alone: all of ours are below 128 and stand in the second byte of an array of up to 15
        if len(data) > 1 and 0x91 <= data[0] <= 0x9F and data[1] < 0x80 and data[1] not in _KNOWN_TYPES:
            raise UnknownFrame(data[1]) from error
        raise RemoteProtocolError(f"a frame is malformed: {str(error)[:200]}") from error


def _check_untrusted_tensors(tensors: tuple[NamedTensor, ...]) -> None:
    for named in tensors:
        try:
            _ = named.tensor.__array_interface__
        except ValueError as error:
            raise RemoteProtocolError(f"the tensor {named.name!r} is malformed: {error}") from error
