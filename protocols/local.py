"""The frames between a node and an application on the same computer, and their bytes.

An application opens with ``Open``; the node answers with ``Welcome`` or ``Closing``. From then on either side may send
at any time. Readings travel in ``Parcels``, everything else in the other frames. As on the wire between nodes, a frame
is a MessagePack array ``[type, field, …]``, unknown types and extra trailing fields are skipped, and untrusted bytes
enter through ``decode_untrusted_…`` only. ``docs/reference/local.md`` describes every field.

``Parcels`` has the same type number and outer form as ``Readings``, so :class:`protocols.links.queues.LaneQueue` can
make frames of both.
"""

from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from protocols.access import AccessRule
from protocols.base import errors, limits
from protocols.base.effects import Event
from protocols.base.errors import MeshError, RemoteProtocolError, UnknownFrame, ValueUnsupported
from protocols.base.ids import Role
from protocols.inference.events import PartReport, RunReport
from protocols.inference.split.batches.rows import MAX_SHARDS
from protocols.peers import PeerView
from protocols.wire.codec import FrameSet
from protocols.wire.fields import Count, Id, Key, Text
from protocols.wire.frame import Frame
from protocols.wire.parcels import decode_untrusted_reading, encode_reading
from protocols.wire.readings import Position, Reading
from protocols.wire.tensors import NamedTensor, check_untrusted_tensor

LOCAL_MAJOR = 1
"""A node and an application whose versions differ here refuse each other."""
LOCAL_MINOR = 4
"""Version 1 allows any subject in ``Ask``, and an argument; version 2 has ``every`` in ``Subscribe``; version 4
divides batches."""

MAX_TOLD_ATTEMPTS: Final = 64
"""Runs of one inference that are told; of one that was divided, only those that gave no result."""
Detail = Annotated[str, Meta(max_length=4_096)]
SOCKET_VARIABLE = "MESHNODE_SOCKET"
"""The variable of the environment that tells an application the socket of the node that has started it."""
FIRST_SUBJECTS = frozenset({"peers", "statistics", "drops", "models", "position", "uplink"})
"""The subjects that a node of version 1.0 answers. It treats any other subject as a malformed frame; a newer node
answers with an error instead."""

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


class Parcels(Frame, frozen=True, array_like=True, gc=False, tag=6):
    """One or more readings. The node publishes those that an application sends; their origin and sequence are then the
    application's own."""

    parcels: Annotated[tuple[Parcel, ...], Meta(max_length=limits.MAX_READINGS_PER_FRAME)]


# --- application to node -------------------------------------------------------------------------------------------
class Open(Frame, frozen=True, array_like=True, gc=False, tag=96):
    """The first frame of a connection."""

    major: Count
    minor: Count
    name: Text
    """A name for logs and counters of the node. It need not be unique."""


class Subscribe(Frame, frozen=True, array_like=True, gc=False, tag=97):
    """Subscribes. ``question`` becomes the number of the subscription. ``Done`` answers it, after the last known
    values."""

    question: Count
    expression: Key
    deadline_ms: Annotated[int, Meta(ge=0, le=limits.MAX_LIFESPAN_MS)] = 0
    min_interval_us: Annotated[int, Meta(ge=0, le=limits.MAX_LIFESPAN_MS * 1_000)] = 0
    conflate: bool = False
    history: bool = True
    hops: Annotated[int, Meta(ge=0, le=limits.MAX_HOPS)] = 0
    own: bool = True
    every: bool = False


class Unsubscribe(Frame, frozen=True, array_like=True, gc=False, tag=98):
    """Ends a subscription. Readings for it may still be on their way."""

    subscription: Count


class Infer(Frame, frozen=True, array_like=True, gc=False, tag=99):
    """Has a model computed by the node that is fastest. ``Inferred`` answers it."""

    request: Count
    model: Text
    inputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=MAX_SHARDS + limits.MAX_TENSORS)]
    """Of a batch, one name may have several, which are its rows."""
    outputs: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    deadline_ms: Annotated[int, Meta(ge=1, le=limits.MAX_BUDGET_MS)] | None = None
    hedge: bool | None = None
    shard: Annotated[int, Meta(ge=0)] | None = None
    """The request is a batch, whose shards have so many rows; 0: the node chooses. None: it is not divided. (Since
    1.4.)"""
    divided: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    """The inputs of a batch that have rows; empty: the node looks which. (Since 1.4.)"""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when an input does not fit its shape."""
        for named in self.inputs:
            check_untrusted_tensor(named.tensor)


class CancelInfer(Frame, frozen=True, array_like=True, gc=False, tag=100):
    """Says that the answer is no longer wanted. None will come."""

    request: Count


class Ask(Frame, frozen=True, array_like=True, gc=False, tag=101):
    """Ask a part of the node. The node answers with ``Told``, or with ``Done`` and an error when no part answers
    ``subject``."""

    question: Count
    subject: Text
    argument: Any = None
    """Plain data, in the form that the subject expects."""


class Flush(Frame, frozen=True, array_like=True, gc=False, tag=102):
    """Asks to be told when everything sent before it was published or refused. ``Done`` answers it."""

    question: Count


class Locate(Frame, frozen=True, array_like=True, gc=False, tag=103):
    """Says where the node is now."""

    position: Position | None


ApplicationFrame = Open | Parcels | Subscribe | Unsubscribe | Infer | CancelInfer | Ask | Flush | Locate


# --- node to application -------------------------------------------------------------------------------------------
class Welcome(Frame, frozen=True, array_like=True, gc=False, tag=112):
    """Says who the node is, and what it may publish. An application checks these rules before it puts.

    ``rules`` has only rules with the verb ``publish``. A library refuses verbs that it does not know.
    """

    major: Count
    minor: Count
    application: Count
    mesh: Id
    node: Id
    role: Role
    incarnation: Count
    rules: Annotated[tuple[AccessRule, ...], Meta(max_length=1_000)]


class Closing(Frame, frozen=True, array_like=True, gc=False, tag=113):
    """The last frame of a connection. ``code``: ``version``, ``full``, ``malformed``, ``leaving`` or a newer word."""

    code: Text
    detail: Detail = ""


class Done(Frame, frozen=True, array_like=True, gc=False, tag=114):
    """A ``Subscribe`` or ``Flush`` was carried out, or ``error`` (the name of a class of the error tree) says why
    not."""

    question: Count
    error: Text = ""
    detail: Detail = ""


class Told(Frame, frozen=True, array_like=True, gc=False, tag=115):
    """The answer to ``Ask``; :func:`told` converts its content to a type."""

    question: Count
    content: Any


class Inferred(Frame, frozen=True, array_like=True, gc=False, tag=116):
    """The result of an inference, or ``error`` (the name of a class of the error tree) says why there is none."""

    request: Count
    error: Text = ""
    detail: Detail = ""
    outputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    ran_on: Annotated[str, Meta(max_length=80)] = ""
    """The id of a node, or ``relay/`` and that of the relay."""
    took_ms: float = 0.0
    compute_ms: float = 0.0
    queued_ms: float = 0.0
    attempts: Annotated[tuple[RunReport, ...], Meta(max_length=MAX_TOLD_ATTEMPTS)] = ()
    model: Text = ""
    """The model that ran. (Since 1.3.)"""
    parts: Annotated[tuple[PartReport, ...], Meta(max_length=MAX_SHARDS)] = ()
    """Who computed which stage or shard, when the request was divided. (Since 1.4.)"""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when an output does not fit its shape."""
        for named in self.outputs:
            check_untrusted_tensor(named.tensor)


class Refused(Frame, frozen=True, array_like=True, gc=False, tag=117):
    """A reading sent to be published was refused. It has its key, the application's count of it, and the reason."""

    key: Text
    sequence: Count
    error: Text
    detail: Detail


class Happened(Frame, frozen=True, array_like=True, gc=False, tag=118):
    """An event of the node: the name of its type, and its fields by name. :func:`event_kind` tells its type."""

    kind: Text
    fields: dict[str, Any]


class Missed(Frame, frozen=True, array_like=True, gc=False, tag=119):
    """A stream was silent for longer than the deadline of a subscription."""

    subscription: Count
    origin: Text
    key: Text


class Fallen(Frame, frozen=True, array_like=True, gc=False, tag=120):
    """How many readings of one subscription were dropped since it was made, because the application was too slow."""

    subscription: Count
    dropped: Count


LocalNodeFrame = Welcome | Parcels | Closing | Done | Told | Inferred | Refused | Happened | Missed | Fallen


# --- contents of answers -------------------------------------------------------------------------------------------
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
for _kind in (PEERS, STATISTICS, DROPS, MODELS, POSITION):
    msgspec.json.Decoder(_kind)  # so that msgspec knows them before threads ask for them, see meshnode.typed

_ERRORS: dict[str, type[MeshError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MeshError) and kind is not UnknownFrame
}


def told(content: object, kind: type[_T]) -> _T:
    """The content of ``Told`` as ``kind``. :raises RemoteProtocolError: when it is not of that type."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"the node's answer is malformed: {error}") from error


def happened(event: Event) -> Happened | None:
    """The frame of an event; None for an event that is not for applications."""
    return Happened(type(event).__name__, msgspec.structs.asdict(event)) if event.for_applications else None


def event_kind(frame: Happened) -> type[Event] | None:
    """What the fields of a frame are :func:`told` as; None for an event that this program does not know."""
    for kind in Event.__subclasses__():  # declared by the capabilities that this program has loaded
        if kind.__name__ == frame.kind and kind.for_applications:
            return kind
    return None


def error_named(name: str, detail: str) -> MeshError:
    """An error of the class with that name, or of the root class when a newer version added the name."""
    return _ERRORS.get(name, MeshError)(detail)


# --- bytes ---------------------------------------------------------------------------------------------------------
_encoder = msgspec.msgpack.Encoder()
APPLICATION_FRAMES: Final = FrameSet((
    Open, Parcels, Subscribe, Unsubscribe, Infer, CancelInfer, Ask, Flush, Locate,
))  # fmt: skip
"""The frames from an application to its node."""
LOCAL_NODE_FRAMES: Final = FrameSet((
    Welcome, Parcels, Closing, Done, Told, Inferred, Refused, Happened, Missed, Fallen,
))  # fmt: skip
"""The frames from a node to its applications."""


def encode_local(frame: ApplicationFrame | LocalNodeFrame) -> bytes:
    """Encode one frame. :raises ValueUnsupported: when it is larger than ``MAX_FRAME_BYTES``, or holds a value that
    MessagePack has no form for or that is nested too deeply."""
    try:
        data = _encoder.encode(frame)
    except RecursionError as error:
        raise ValueUnsupported(f"a {type(frame).__name__} can't travel: it is nested too deeply") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueUnsupported(f"a {type(frame).__name__} can't travel: {error}") from error
    if len(data) > limits.MAX_FRAME_BYTES:
        raise ValueUnsupported(
            f"{len(data)} bytes are too large for a frame of {limits.MAX_FRAME_BYTES}: send fewer or smaller tensors"
        )
    return data


def encode_parcel(label: int, reading: Reading) -> bytes:
    """Encode one parcel as it stands inside ``Parcels``; ``frame_of_encoded_readings`` makes the frame of up to 64.

    :raises ValueUnsupported: when the reading's value can't travel or is too large.
    """
    encoded = encode_reading(reading)
    head = bytes((0x92, label)) if label < 0x80 else b"\x92" + _encoder.encode(label)
    return head + encoded


def decode_untrusted_parcel(parcel: Parcel) -> Reading:
    """The reading in a parcel. Its tensors are views into the frame. :raises RemoteProtocolError: when it is not a
    reading."""
    return decode_untrusted_reading(memoryview(parcel.reading))


def decode_untrusted_application_frame(data: bytes | bytearray) -> ApplicationFrame:
    """Parse a frame from an application; it raises the errors of
    :meth:`~protocols.wire.codec.FrameSet.decode_untrusted`."""
    frame: Any = APPLICATION_FRAMES.decode_untrusted(data)
    decoded: ApplicationFrame = frame
    return decoded


def decode_untrusted_local_node_frame(data: bytes | bytearray) -> LocalNodeFrame:
    """Parse a frame from a node; it raises the errors of :func:`decode_untrusted_application_frame`."""
    frame: Any = LOCAL_NODE_FRAMES.decode_untrusted(data)
    decoded: LocalNodeFrame = frame
    return decoded
