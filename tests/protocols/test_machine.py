"""The contract of machines: one that defines nothing is harmless, and what it would do is done by nobody else."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

import pytest

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import Incarnation, NodeId, Role
from protocols.base.time import NEVER
from protocols.engine import Engine
from protocols.machine import Machine, Message, by_frame
from protocols.settings import NodeSettings
from protocols.wire.frame import Frame
from tests.tools.driven_engine import Driven
from tests.tools.strategies import MESH


class Note(Frame, frozen=True, array_like=True, gc=False, tag=91):
    """A frame of a further capability."""

    text: str


class Bare(Machine):
    """It has a name and a frame, and nothing to do or to say."""

    name: ClassVar[str] = "bare"
    frames: ClassVar[tuple[type[Frame], ...]] = (Note,)


class Herald(Bare):
    """It tells all neighbours what is new, and greets them with it."""

    def __init__(self) -> None:
        self.text, self._is_told = "old", True

    def say(self, text: str) -> None:
        self.text, self._is_told = text, False

    def greetings(self) -> Sequence[Frame]:
        return (Note(self.text),)

    def has_news(self) -> bool:
        return not self._is_told

    def messages(self) -> Sequence[Message]:
        self._is_told = True
        return ((None, Note(self.text)),)


class Twin(Bare):
    """Another one of the same name."""


def test_machine_that_defines_nothing_decides_nothing_whatever_happens() -> None:
    """A capability begins with a name; everything else may come later."""
    machine = Bare()
    machine.neighbour_met(NodeId("a"), Role.RSU, 1)
    machine.receive(Note("hello"), NodeId("a"), Role.RSU, 2)
    machine.undeliverable(NodeId("a"), Note("hello"), 3)
    machine.neighbour_gone(NodeId("a"), 4)
    machine.handle_timer(5)
    assert not machine.has_news()
    for decided in (machine.greetings(), machine.messages(), machine.outgoing(), machine.events()):
        assert tuple(decided) == ()
    assert machine.counters() == {}
    assert machine.next_timer_at() == NEVER


def test_engine_finds_its_machines_by_class_and_names_one_that_is_missing() -> None:
    """A part of a node asks for its machine when it is opened, and a program may have left that out."""
    settings = NodeSettings(MESH, NodeId("me"), Role.VEHICLE, Incarnation(1), 7000)
    bare = Bare()
    engine = Engine(settings, Random(1), machines=[bare])
    assert engine.machine(Bare) is bare
    assert engine.machine(type(engine.gossip)) is engine.gossip
    with pytest.raises(LocalProtocolError, match="no machine Twin"):
        engine.machine(Twin)
    engine.handle_timer(0)
    assert not [name for name in engine.statistics() if name.startswith("bare_")]


def test_machines_of_one_name_or_one_frame_are_refused_and_both_named() -> None:
    """Their counters or their frames would be taken for each other's."""
    other = type("Other", (Machine,), {"name": "other", "frames": (Note,)})
    with pytest.raises(LocalProtocolError, match="'bare'"):
        by_frame([Bare(), Twin()])
    with pytest.raises(LocalProtocolError, match=r"'bare' and 'other' both declare the frame Note"):
        by_frame([Bare(), other()])
    assert by_frame([Bare()]).keys() == {Note}


@pytest.mark.parametrize("says_hello", [False, True], ids=["before its Hello", "after its Hello"])
def test_what_a_machine_tells_all_reaches_whoever_was_greeted(says_hello: bool) -> None:
    """A neighbour that was greeted before, and said Hello after, learned it only when it was told again: a chunk that
    had to be fetched waited half a minute for that."""
    herald = Herald()
    driven = Driven(says_hello, (herald,))
    assert Note("old") in driven.sent()
    herald.say("new")
    driven.engine.carry(driven.now)
    assert driven.sent() == [Note("new")]
