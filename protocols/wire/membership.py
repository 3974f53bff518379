"""Frames that neighbours meet, stay and part with, and the version of the protocol."""

from typing import Annotated, Final, Literal

from msgspec import Meta

from protocols.base import limits
from protocols.wire.fields import U16, Count, Id, Text, check_untrusted_id
from protocols.wire.frame import Frame

MAJOR = 1
"""Versions that differ here refuse one another."""

MINOR = 1
"""0 knew no gossip."""


class Hello(Frame, frozen=True, array_like=True, gc=False, tag=1):
    """First frame of every pipe: who speaks, in which version, and where to dial back."""

    major: Count
    minor: Count
    node: Id
    incarnation: Count
    inbox_port: U16
    lane: Literal["realtime", "bulk"]
    addresses: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_ADVERT_ADDRESSES)] = ()

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when ``node`` is no id."""
        check_untrusted_id(self.node)


class Heartbeat(Frame, frozen=True, array_like=True, gc=False, tag=2):
    """Proof of life in one direction, and by its echo of the other."""

    sequence: Count
    sent_ns: Count
    """The sender's monotonic clock; only the sender reads it, from the echo."""
    echo_sequence: Count
    """Newest heartbeat heard from the receiver; 0: none, so that an asymmetric link shows."""
    echo_sent_ns: Count
    echo_held_ns: Count
    """How long the echoed heartbeat lay here."""
    suspects: Annotated[tuple[Id, ...], Meta(max_length=limits.MAX_SUSPECTS_PER_HEARTBEAT)] = ()
    answer: bool = False
    """Send one back at once: the receiver is under suspicion and may refute it."""

    @property
    def calm(self) -> bool:
        """Whether a receiver that suspects nobody has nothing to do about it at once."""
        return not self.answer


class Goodbye(Frame, frozen=True, array_like=True, gc=False, tag=3):
    """The sender leaves on purpose."""

    incarnation: Count
    reason: Text = ""


class Refusal(Frame, frozen=True, array_like=True, gc=False, tag=4):
    """The sender won't talk to the receiver, and why; the receiver should not redial in a loop."""

    code: Text
    """``version``, ``identity``, ``duplicate``, ``full`` or a newer word."""
    detail: Text = ""


FRAMES: Final[tuple[type[Frame], ...]] = (Hello, Heartbeat, Goodbye, Refusal)
