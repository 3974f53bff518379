"""Frames of a simulation: which of them wake their receivers, and that receivers can share what was decoded."""

import msgspec
import pytest

from protocols.base.errors import RemoteProtocolError
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.inference import InferRequest
from protocols.wire.membership import Goodbye, Heartbeat
from protocols.wire.readings import EventTime, Position, Provenance, Reading, Readings
from sims.virtual.frames import SharedDecoder, readings_in

READING = Reading("veh/n1/x", "n1", 1, 0.5, Position(1.0, 2.0, 3.0), EventTime(4, 5), Provenance("sim", "1"))


def decoder() -> SharedDecoder:
    """As a driver makes it, by default."""
    return SharedDecoder(decode_untrusted_node_frame)


@pytest.mark.parametrize("suspects", [(), ("veh-1",), ("veh-1", "veh-2")])
def test_heartbeat_that_asks_for_an_answer_is_not_calm(suspects: tuple[str, ...]) -> None:
    """Its receiver would answer a tick too late if it slept on; others would wake for nothing, ten times a second."""
    asking = decoder().frame_of(encode_frame(Heartbeat(1, 2, 3, 4, 5, suspects, True)))
    plain = decoder().frame_of(encode_frame(Heartbeat(1, 2, 3, 4, 5, suspects)))
    assert (asking.calm, plain.calm) == (False, True)
    assert plain.accuses == asking.accuses == bool(suspects)


def test_heartbeat_of_a_newer_minor_version_is_judged_by_its_field_and_not_by_its_last_byte() -> None:
    """Newer versions append fields, so that the last byte of a frame is not its answer flag."""
    fields = (2, 1, 2, 3, 4, 5, (), True, False)
    assert not decoder().frame_of(msgspec.msgpack.encode(fields)).calm
    assert decoder().frame_of(msgspec.msgpack.encode((*fields[:7], False, True))).calm


def test_other_frames_wake_their_receivers() -> None:
    """Whether something follows from them, only their receivers know; readings of a publisher are its own to judge."""
    for frame in (Goodbye(1), Readings((READING,))):
        assert not decoder().frame_of(encode_frame(frame)).calm


def test_readings_are_counted_by_frame() -> None:
    """What broke with a pipe has to be accounted for, reading by reading."""
    frames = [decoder().frame_of(encode_frame(frame)) for frame in (Readings((READING,) * 3), Goodbye(1))]
    assert readings_in([*frames, decoder().frame_of(b"\x92\x06\xc1")]) == 3


def test_receivers_share_a_decoded_frame_and_equal_texts() -> None:
    """Eight neighbours decode the same bytes once; a thousand nodes keep one text of each key."""
    shared = decoder()
    first, second = (shared.frame_of(encode_frame(Readings((READING,)))) for _ in range(2))
    assert first.data is not None
    shared.arriving = first
    assert shared(first.data) is shared(first.data) is first.decoded
    assert isinstance(first.decoded, Readings)
    assert isinstance(second.decoded, Readings)
    assert first.decoded == Readings((READING,))
    assert first.decoded.readings[0].key is second.decoded.readings[0].key
    assert first.decoded.readings[0].origin is second.decoded.readings[0].origin


def test_decoded_structs_are_left_as_they_were() -> None:
    """They are frozen: whoever holds one may rely on it, as a decoder that keeps its results does."""
    kept = decode_untrusted_node_frame(encode_frame(Readings((READING,))))
    assert isinstance(kept, Readings)
    key = kept.readings[0].key

    def decode(data: bytes | bytearray) -> Frame:
        del data
        return kept

    shared = SharedDecoder(decode)
    assert shared.same("veh/n1/x") is not key
    shared.frame_of(b"whatever")
    assert kept.readings[0].key is key


def test_requests_are_told_with_their_sender_and_other_frames_are_not() -> None:
    """A check that asks what left a node sees frames, and not what the node says of itself."""
    shared = decoder()
    told: list[tuple[str, str]] = []
    shared.on_request = lambda sender, request: told.append((sender, request.model))
    shared.frame_of(encode_frame(Readings((READING,))), "n1")
    shared.frame_of(encode_frame(InferRequest(7, "plate", "0" * 64, 1, ())), "n2")
    assert told == [("n2", "plate")]


def test_bytes_that_are_no_frame_fail_at_their_receiver() -> None:
    """An engine has to see what a stranger sent it, and to count it."""
    shared = decoder()
    frame = shared.frame_of(b"\x92\x06\xc1")
    assert (frame.decoded, frame.calm, frame.readings) == (None, False, 0)
    shared.arriving = frame
    assert frame.data is not None
    with pytest.raises(RemoteProtocolError):
        shared(frame.data)
