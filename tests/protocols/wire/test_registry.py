"""Numbers of frames: each declared once, and none ever used again for something else."""

import msgspec
import pytest

from protocols.access import AccessTable
from protocols.base.errors import LocalProtocolError, RemoteProtocolError, UnknownFrame
from protocols.engine import Engine
from protocols.gossip.machine import Gossip
from protocols.inference.machine import Inference
from protocols.links.drops import Drops
from protocols.local import APPLICATION_FRAMES, LOCAL_NODE_FRAMES
from protocols.membership.machine import Membership
from protocols.multicast.machine import Multicast
from protocols.readings.machine import Router
from protocols.records.carrying.machine import Carrying
from protocols.releases.machine import Releases
from protocols.wire import registry
from protocols.wire.codec import FrameSet, encode_frame, node_frames
from protocols.wire.fields import Count
from protocols.wire.frame import Frame, number_of
from protocols.wire.membership import Hello, Refusal
from protocols.wire.records import Acknowledgement

NUMBERS = {
    "Hello": 1, "Heartbeat": 2, "Goodbye": 3, "Refusal": 4, "Interest": 5, "Readings": 6, "Offers": 7,
    "InferRequest": 8, "InferAnswer": 9, "InferCancel": 10, "GossipDigest": 11, "GossipHave": 12, "GossipPull": 13,
    "GossipEntries": 14, "SignedReadings": 15, "Signature": 16, "StageAsked": 17, "StageWanted": 18, "StageChunk": 19,
    "StageState": 20, "ContentWanted": 21, "ContentHave": 22, "ChunkWanted": 23, "ChunkPiece": 24, "ChunkRefused": 25,
    "ChunksComing": 26, "CarrierOffer": 27, "SealedBatch": 28, "SealedState": 29, "RelayReply": 30,
    "SenderKey": 31, "Heard": 32,
    "Batch": 64, "Acknowledgement": 65, "RelayRefusal": 66, "ReleasesAsked": 67, "ReleasesTold": 68,
    "RelayChunkWanted": 69, "RelayChunk": 70, "RelayKeyAsked": 71, "RelayKeyTold": 72, "CarriedBatch": 73,
    "CarriedReply": 74, "PackedBatch": 75, "RecordsAsked": 76, "RecordsTold": 77, "OffersAsked": 78,
    "OffersTold": 79,
}  # fmt: skip
"""Every number that was ever given away. A frame is added here and never changed; one that goes is retired."""


class Newcomer(Frame, frozen=True, array_like=True, gc=False, tag=62):
    number: Count


class Usurper(Frame, frozen=True, array_like=True, gc=False, tag=4):
    number: Count


class Stray(Frame, frozen=True, array_like=True, gc=False, tag=65):
    number: Count


def test_numbers_of_frames_stay_as_they_were_given() -> None:
    """Nodes of different ages meet: a number that changes its meaning is a wrong frame at every older node."""
    frames = (*registry.NODE_FRAMES, *registry.RELAY_FRAMES)
    assert {frame.__name__: number_of(frame) for frame in frames} == NUMBERS
    assert not registry.RETIRED_NUMBERS & set(NUMBERS.values())


def test_every_frame_between_nodes_belongs_to_one_machine() -> None:
    """A frame that no machine declares would be received by nobody."""
    declared = [
        frame
        for machine in (Membership, Router, Inference, Gossip, Releases, Carrying, Multicast)
        for frame in machine.frames
    ]
    assert sorted(frame.__name__ for frame in declared) == sorted(frame.__name__ for frame in registry.NODE_FRAMES)


def test_frames_of_local_applications_keep_clear_of_the_wire() -> None:
    """Only the readings' frame has the same number on purpose: a lane's queue makes both."""
    local = APPLICATION_FRAMES.numbers | LOCAL_NODE_FRAMES.numbers
    assert local & set(NUMBERS.values()) == {NUMBERS["Readings"]}


@pytest.mark.parametrize("frame", [Usurper, Stray])
def test_frame_with_a_number_that_is_taken_is_refused_by_name(frame: type[Frame]) -> None:
    """Found when a node opens, not when two neighbours misunderstand each other."""
    with pytest.raises(LocalProtocolError, match=f"{frame.__name__} declares the number {number_of(frame)}"):
        node_frames((frame,))


def test_frame_with_a_retired_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old nodes would take it for what it was."""
    monkeypatch.setattr("protocols.wire.codec.RETIRED_NUMBERS", frozenset({62}))
    with pytest.raises(LocalProtocolError, match="Newcomer declares the number 62"):
        node_frames((Newcomer,))


def test_frame_that_was_added_is_decoded_and_others_still_are() -> None:
    """A capability adds its frames to those that are there."""
    frames = node_frames((Newcomer,))
    for frame in (Newcomer(7), Refusal("full")):
        assert frames.decode_untrusted(encode_frame(frame)) == frame
    with pytest.raises(UnknownFrame):
        node_frames().decode_untrusted(encode_frame(Newcomer(7)))


def test_frame_of_another_connection_is_malformed_and_not_merely_unknown() -> None:
    """An unknown frame is skipped; one that has no business here ends the link."""
    with pytest.raises(RemoteProtocolError) as caught:
        node_frames().decode_untrusted(encode_frame(Acknowledgement((1,))))
    assert type(caught.value) is RemoteProtocolError


def test_check_of_a_frame_is_made_by_every_set_that_has_it() -> None:
    """A check that stood in one decoder would be missing in the next."""
    bad = msgspec.msgpack.encode([1, 1, 1, "not an id!", 1, 7000, "realtime"])
    with pytest.raises(RemoteProtocolError):
        FrameSet((Hello, Refusal)).decode_untrusted(bad)


def test_engine_refuses_two_machines_of_one_name_or_frame() -> None:
    """The later would silently take the frames of the earlier, or its counters."""
    from random import Random

    from tests.tools.lone_node_fixture import engine

    settings = engine("me").settings
    twice = Inference(settings.node, AccessTable(), lambda _: [], Drops(), Random(1))
    with pytest.raises(LocalProtocolError, match="inference"):
        Engine(settings, Random(1), machines=(twice,))
