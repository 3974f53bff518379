"""The codec turns frames into MessagePack bytes and back.

Untrusted bytes enter through the functions named ``decode_untrusted…``; they raise :class:`RemoteProtocolError` and
nothing else. The encoders raise :class:`ValueUnsupported` for values that the wire can't carry. Which frames there are
is declared by the frames themselves, see :mod:`protocols.wire.registry`; readings have encoders of their own in
:mod:`protocols.wire.parcels`.
"""

from collections.abc import Iterable
from typing import Any, Final, TypeVar, Union

import msgspec

from protocols.base import limits
from protocols.base.errors import LocalProtocolError, RemoteProtocolError, UnknownFrame, ValueUnsupported
from protocols.base.ids import NodeId
from protocols.wire.encoding.messagepack import has_too_many_elements, untrusted_frame_number
from protocols.wire.encoding.values import (
    COMPOSITE,
    TENSOR_EXTENSION,
    check_untrusted_value,
    decode_untrusted_extension,
)
from protocols.wire.frame import Frame, number_of
from protocols.wire.membership import MAJOR, Heartbeat, Hello
from protocols.wire.readings import Readings
from protocols.wire.registry import NODE_FRAMES, RELAY_FRAMES, RETIRED_NUMBERS
from protocols.wire.tensors import tensor_of

_T = TypeVar("_T")

_HELLO_NUMBER: Final = number_of(Hello)
_HEARTBEAT_NUMBER: Final = number_of(Heartbeat)
_READINGS: Final = Readings  # compiled code then needs no look into a module
_HEARTBEAT: Final = Heartbeat


def _encode_other(value: Any) -> Any:
    return msgspec.msgpack.Ext(TENSOR_EXTENSION, _encoder.encode(tensor_of(value)))


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)


# --- encoding ------------------------------------------------------------------------------------------------------
def encode_frame(frame: Frame) -> bytes:
    """Encode one frame.

    :raises ValueUnsupported: when a value in it can't travel, or the frame is larger than ``MAX_FRAME_BYTES``.
    """
    return bounded(encode(frame.travelling()))


def encode(value: Any) -> bytes:
    """Encode anything. :raises ValueUnsupported: when MessagePack has no form for it."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise ValueUnsupported(
            f"the value can't travel: {error}. Use None, bool, int below 2^64, float, text, bytes, lists, "
            "dicts with text keys, or arrays"
        ) from error


def bounded(data: bytes) -> bytes:
    """Return the bytes of a frame unchanged. :raises ValueUnsupported: when they are too many."""
    if len(data) > limits.MAX_FRAME_BYTES - 16:
        raise ValueUnsupported(
            f"{len(data)} bytes are too large for a frame of {limits.MAX_FRAME_BYTES}: split or shrink it"
        )
    return data


def encode_heartbeat(
    sequence: int, sent_ns: int, echo_sequence: int, echo_sent_ns: int, echo_held_ns: int, suspects: tuple[NodeId, ...],
    answer: bool,
) -> bytes:  # fmt: skip
    """Encode a :class:`Heartbeat` as :func:`encode_frame` does, without making the structure. Nothing else is sent as
    often to neighbours that want no readings."""
    return encode((_HEARTBEAT_NUMBER, sequence, sent_ns, echo_sequence, echo_sent_ns, echo_held_ns, suspects, answer))


# --- decoding ------------------------------------------------------------------------------------------------------
class FrameSet:
    """The frames that one kind of connection carries."""

    def __init__(
        self, frames: Iterable[type[Frame]], elsewhere: Iterable[type[Frame]] = (),
        max_bytes: int = limits.MAX_FRAME_BYTES, bounded_elements: bool = False,
    ) -> None:  # fmt: skip
        """``elsewhere``: frames of other connections, which are malformed here and not unknown. ``max_bytes``: size of
        the largest frame. ``bounded_elements``: whether a frame may have at most ``MAX_ELEMENTS``.

        :raises LocalProtocolError: when two frames declare the same number, or a retired one.
        """
        self._max_bytes, self._bounded_elements = max_bytes, bounded_elements
        by_number: dict[int, type[Frame]] = {}
        here = tuple(frames)
        for frame in (*elsewhere, *here):
            number = number_of(frame)
            if by_number.setdefault(number, frame) is not frame or number in RETIRED_NUMBERS:
                taken = by_number[number].__name__ if by_number[number] is not frame else "a frame that was"
                raise LocalProtocolError(f"{frame.__name__} declares the number {number} of {taken}: choose another")
        self._by_number = by_number
        self.numbers: Final = frozenset(by_number)
        """The numbers of all frames known, those of other connections included."""
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
            Union[here], ext_hook=decode_untrusted_extension  # noqa: UP007 - it is made of a tuple
        )  # fmt: skip

    def decode_untrusted(self, data: bytes | bytearray) -> Frame:
        """Parse a frame. Tensors in the result look into ``data`` and keep it alive.

        :raises UnknownFrame: for a number of a newer minor version.
        :raises RemoteProtocolError: for anything else that is not a frame of this connection.
        """
        if self._bounded_elements and limits.LARGE_FRAME_BYTES < len(data) <= self._max_bytes:
            head = untrusted_frame_number(data)
            if head is None:  # the bounds of its class can't be known
                raise RemoteProtocolError("a large frame does not begin with a short array and its number")
            if head not in self.numbers:
                raise UnknownFrame(head)
            kind = self._by_number[head]
            if has_too_many_elements(data, kind.max_elements, kind.max_text_bytes):
                raise RemoteProtocolError(f"a frame has more than {kind.max_elements} elements, or too long a text")
        try:
            frame: Frame = decode_untrusted(self._decoder, data, self._max_bytes)
        except RemoteProtocolError as error:
            number = untrusted_frame_number(data)
            if number is not None and number not in self.numbers and len(data) <= self._max_bytes:
                raise UnknownFrame(number) from error
            raise
        if type(frame) is _READINGS:  # check_untrusted() written out for the most frequent kind
            for reading in frame.readings:
                if type(reading.value) in COMPOSITE:
                    check_untrusted_value(reading.value)
        elif type(frame) is not _HEARTBEAT:  # the other frequent kind has nothing more to check
            frame.check_untrusted()
        return frame


def node_frames(further: Iterable[type[Frame]] = ()) -> FrameSet:
    """The frames between nodes, and those of further capabilities, whose machines only some nodes have.

    :raises LocalProtocolError: as :class:`FrameSet`.
    """
    unlisted = (frame for frame in further if frame not in NODE_FRAMES)
    return FrameSet((*NODE_FRAMES, *unlisted), RELAY_FRAMES, bounded_elements=True)


NODE_FRAME_SET: Final = node_frames()
_relay_frames: Final = FrameSet(RELAY_FRAMES, NODE_FRAMES, limits.MAX_EXCHANGE_BYTES)
"""Decoding a batch makes no objects of its readings. Each reading is decoded by itself, with its own bound."""
KNOWN_NUMBERS: Final = NODE_FRAME_SET.numbers


def decode_untrusted_node_frame(data: bytes | bytearray) -> Frame:
    """Parse a frame from a neighbour. It raises the errors of :meth:`FrameSet.decode_untrusted`."""
    return NODE_FRAME_SET.decode_untrusted(data)


def decode_untrusted_relay_frame(data: bytes) -> Frame:
    """Parse a frame between node and relay.

    The readings of records are not looked into, see :func:`decode_untrusted_record`.

    :raises RemoteProtocolError: for anything that is not such a frame.
    """
    return _relay_frames.decode_untrusted(data)


def untrusted_other_major(data: bytes | bytearray) -> int | None:
    """The major version in a ``Hello`` when it is not ours, whatever follows it; None for all other frames."""
    if len(data) > 2 and 0x91 <= data[0] <= 0x9F and data[1] == _HELLO_NUMBER and data[2] < 0x80 and data[2] != MAJOR:
        return data[2]
    return None


def decode_untrusted(
    decoder: msgspec.msgpack.Decoder[_T], data: bytes | bytearray | memoryview,
    max_bytes: int = limits.MAX_FRAME_BYTES, bounded_elements: bool = False,
) -> _T:  # fmt: skip
    """Parse anything. Its bytes, and with ``bounded_elements`` its elements, are counted before any object is made.

    :raises RemoteProtocolError: when it is not what the decoder is for.
    """
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"a frame of {len(data)} bytes is larger than {max_bytes}")
    if bounded_elements and len(data) > limits.MAX_ELEMENTS and has_too_many_elements(data):
        raise RemoteProtocolError(f"a frame has more than {limits.MAX_ELEMENTS} elements")
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise RemoteProtocolError("a frame is nested too deeply") from error
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise RemoteProtocolError(f"a frame is malformed: {str(error)[:200]}") from error
