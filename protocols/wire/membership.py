"""The frames of membership, and the version of the protocol."""

from typing import Annotated, Final, Literal

from msgspec import Meta

from protocols.base import limits
from protocols.wire.fields import U16, Count, Id, Text, check_untrusted_id
from protocols.wire.frame import Frame, SmallFrame

MAJOR = 1
"""Nodes whose versions differ here refuse each other."""

MINOR = 9
"""Version 0 had no gossip, version 1 no signed readings, version 2 no wants of every reading, version 3 no load in
answers and no 95th percentiles in offers, version 4 no stages, version 5 no releases, version 6 no receipts,
version 7 no questions to the relay and no multicast, and version 8 no inference at the relay and no requests for
several runs."""


class Hello(SmallFrame, frozen=True, array_like=True, gc=False, tag=1):
    """The first frame of every pipe. It says who the sender is, which version it speaks, and where to dial back."""

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


class Heartbeat(SmallFrame, frozen=True, array_like=True, gc=False, tag=2):
    """Proves life in one direction, and by its echo in the other."""

    sequence: Count
    sent_ns: Count
    """The sender's monotonic clock. Only the sender uses it, when it comes back as an echo."""
    echo_sequence: Count
    """The newest heartbeat heard from the receiver. 0: none was heard, which shows an asymmetric link."""
    echo_sent_ns: Count
    echo_held_ns: Count
    """How long the sender had the echoed heartbeat before it sent this one."""
    suspects: Annotated[tuple[Id, ...], Meta(max_length=limits.MAX_SUSPECTS_PER_HEARTBEAT)] = ()
    answer: bool = False
    """Whether the receiver should send one back at once. It is under suspicion, and can refute it so."""


class Goodbye(SmallFrame, frozen=True, array_like=True, gc=False, tag=3):
    """The sender leaves on purpose."""

    incarnation: Count
    reason: Text = ""


class Refusal(SmallFrame, frozen=True, array_like=True, gc=False, tag=4):
    """Says why the sender won't talk to the receiver, which should not redial in a loop."""

    code: Text
    """``version``, ``identity``, ``duplicate``, ``full`` or a newer word."""
    detail: Text = ""


FRAMES: Final[tuple[type[Frame], ...]] = (Hello, Heartbeat, Goodbye, Refusal)
