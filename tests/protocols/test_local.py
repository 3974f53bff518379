"""Frames between a node and its applications: what comes back, what is refused, and versions that differ."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import local
from protocols.base import errors, limits
from protocols.base.effects import Event
from protocols.base.errors import MeshError, NotPermitted, RemoteProtocolError, UnknownFrame, ValueUnsupported
from protocols.base.ids import NodeId
from protocols.events import DuplicateIdentity
from protocols.inference.events import Answered
from protocols.membership.events import PeerRefused
from protocols.readings.events import DeadlineMissed
from protocols.releases.events import ReleaseState, RolloutState
from protocols.wire.parcels import frame_of_encoded_readings
from protocols.wire.readings import Reading
from protocols.wire.tensors import NamedTensor, Tensor
from tests.tools.strategies import HERE, MODEST, NAMED_TENSORS, READINGS

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**63) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
LIE = NamedTensor("x", Tensor("f4", (1_000,), memoryview(b"abc")))


def by_application(frame: Any) -> Any:
    """The frame as the node decodes it."""
    return local.decode_untrusted_application_frame(local.encode_local(frame))


def by_node(frame: Any) -> Any:
    """The frame as the application decodes it."""
    return local.decode_untrusted_local_node_frame(local.encode_local(frame))


@MODEST
@given(PLAIN, NAMED_TENSORS)
def test_frames_come_back_equal_on_the_side_that_they_are_for(content: Any, tensors: tuple[NamedTensor, ...]) -> None:
    """Arguments and answers of parts of a node are plain data that this module knows nothing of."""
    for asked in (local.Ask(1, "peers", content), local.Infer(2, "plate", tensors), local.Locate(HERE)):
        assert by_application(asked) == asked
    for said in (local.Told(1, content), local.Inferred(2, outputs=tensors, took_ms=1.5), local.Done(3, "", "x")):
        assert by_node(said) == said


@MODEST
@given(READINGS, st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x100, 2**32]))
def test_parcel_of_any_label_is_the_reading_that_was_put_into_it(one: Reading, label: int) -> None:
    """The label is the number of a subscription, and those grow for as long as the node runs."""
    data = frame_of_encoded_readings([local.encode_parcel(label, one)] * 2)
    frame = local.decode_untrusted_local_node_frame(data)
    assert isinstance(frame, local.Parcels)
    assert [parcel.label for parcel in frame.parcels] == [label] * 2
    assert [local.decode_untrusted_parcel(parcel) for parcel in frame.parcels] == [one] * 2


def test_parcel_that_holds_no_reading_is_malformed() -> None:
    """An application is a stranger too: another exception in the node would end it for all the others."""
    for raw in (b"\xc0", b"\x90", b"\x97" + b"\x01" * 7):
        with pytest.raises(RemoteProtocolError):
            local.decode_untrusted_parcel(local.Parcel(0, msgspec.Raw(raw)))


def test_tensor_that_is_a_lie_is_refused_on_both_sides() -> None:
    """NumPy would read past its end."""
    for decoded in (
        lambda: by_application(local.Infer(1, "plate", (LIE,))), lambda: by_node(local.Inferred(1, outputs=(LIE,))),
    ):  # fmt: skip
        with pytest.raises(RemoteProtocolError):
            decoded()


def test_frame_of_the_other_direction_is_refused() -> None:
    """A program that takes itself for a node, or a node for an application, is a mistake and no newer version."""
    with pytest.raises(RemoteProtocolError):
        by_application(local.Done(1))
    with pytest.raises(RemoteProtocolError):
        by_node(local.Flush(1))
    with pytest.raises(UnknownFrame):
        local.decode_untrusted_local_node_frame(b"\x92\x7e\x01")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "content",
    [object(), {1: {2**80: 1}}, "\ud800", nested(100_000), bytes(limits.MAX_FRAME_BYTES)],
    ids=["object", "number", "surrogate", "nested", "large"],
)
def test_content_that_can_not_travel_is_refused_at_its_source(content: Any) -> None:
    """A part that answers so must not end the connection of the application that asked."""
    for frame in (local.Ask(1, "x", content), local.Told(1, content)):
        with pytest.raises(ValueUnsupported):
            local.encode_local(frame)


def test_answer_is_converted_to_its_type_or_refused() -> None:
    """The node may be of another version than the application's library."""
    rows = [(("peer", "veh/a/x", "stale"), 3)]
    assert local.told(by_node(local.Told(1, rows)).content, local.DROPS) == rows
    assert local.told(None, local.POSITION) is None
    with pytest.raises(RemoteProtocolError, match="answer is malformed"):
        local.told({"frames": "many"}, local.STATISTICS)


def event_of(frame: local.Happened) -> Event | None:
    kind = local.event_kind(frame)
    return None if kind is None else local.told(frame.fields, kind)


@pytest.mark.parametrize(
    "event",
    [
        DuplicateIdentity(NodeId("me"), True, "host"),
        PeerRefused("stranger", "mesh", "another mesh"),
        ReleaseState("models/plate", 7, "failed", "errors"),
        RolloutState(3, "models/plate", 7, "halted", "2 failed"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_event_comes_back_as_its_own_type(event: Any) -> None:
    """An application matches on types, as a program inside the node does."""
    frame = local.happened(event)
    assert frame is not None
    assert event_of(by_node(frame)) == event


def test_event_that_is_not_for_applications_or_unknown_is_left_out() -> None:
    """Some have frames of their own, and a newer node has some that this library does not know."""
    missed = DeadlineMissed(1, "a", "veh/a/x")
    assert local.happened(missed) is None
    assert event_of(local.Happened("DeadlineMissed", msgspec.structs.asdict(missed))) is None
    assert event_of(local.Happened("Answered", {})) is None, f"{Answered} has a frame of its own"
    assert event_of(local.Happened("SomethingNew", {"x": 1})) is None
    with pytest.raises(RemoteProtocolError):
        event_of(local.Happened("DuplicateIdentity", {"node": 7}))


def test_error_keeps_its_class_or_becomes_the_root_of_all() -> None:
    """``except NotPermitted`` must work in an application as it does in the node."""
    error = local.error_named("NotPermitted", "the access table denies it")
    assert type(error) is NotPermitted
    assert str(error) == "the access table denies it"
    for name in ("UnknownFrame", "ErrorOfAnewerNode", "", "MeshError", "SystemExit"):
        assert type(local.error_named(name, "x")) is MeshError
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, MeshError) and kind is not UnknownFrame:
            assert type(local.error_named(kind.__name__, "x")) is kind
