"""The contract of every machine.

A machine is one capability of a node without its input and output. The engine tells it what happened. The machine
decides and hands its decisions out as frames, effects and events, which a driver sends, performs and reports. Time is
an argument, in monotonic nanoseconds. A machine never calls another machine and shares no mutable state with it: when
one machine decides something that another must know, the engine carries it there. No method blocks, and none calls
back.

Any neighbour may be hostile, so every machine follows these rules (docs/adr/0020):

- Everything that a peer can fill or wake has a payer: the neighbour for frames and work, the identity for connections,
  the author for what it signed, the origin for records.
- A bounded table is shared by its payers, and when it is full its largest holder gives way
  (:mod:`protocols.base.shares`).
- What a frame costs beyond its decoding is taken from an allowance of its payer (:mod:`protocols.base.allowance`).
- One frame causes a bounded amount of work. What may take longer is done in slices by ``handle_timer``.
- The node's own work never waits behind that of others.
- What a neighbour says of itself counts; what another one says about it never changes that.
- A neighbour is fined for what it did, an author for what it signed, a carrier never for what it could not know.
- What gives way is counted by payer and reason.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from protocols.base.compiling import mypyc_attr
from protocols.base.effects import Effect, Event
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.wire.frame import Frame

_M = TypeVar("_M")

Message = tuple[NodeId | None, Frame]
"""A frame and the neighbour that it is for. None stands for every neighbour to which a lane is open."""


class HeardEntry(NamedTuple):
    """An entry of gossip that this node holds now, as a machine that wants its kind is told of it."""

    author: NodeId
    """Who signed it: the signature was checked."""
    kind: str
    version: int
    age_ns: int
    """Time since it was signed."""
    body: bytes
    source: NodeId
    """The neighbour that it came from; this node for its own, and after a restart whoever it came from before."""
    credential: bytes = b""
    """The certificate of the author. The role in it says what its entries may do."""


class EntryWish(NamedTuple):
    """An entry of gossip that a machine wants this node to sign and spread. It takes the place of the one of its kind
    before."""

    kind: str
    body: bytes
    lifetime_s: int


@mypyc_attr(allow_interpreted_subclasses=True)
class Machine:
    """What the engine asks of each machine. Instants are monotonic nanoseconds.

    A machine inherits from this class, and defines only the methods in which it has something to do or to say.
    """

    name: ClassVar[str]
    """The name of the capability, one word. The names of its counters begin with it."""
    frames: ClassVar[tuple[type[Frame], ...]] = ()
    """The frames that only this machine receives."""
    entry_kinds: ClassVar[frozenset[str]] = frozenset()
    """The kinds of entries of gossip that this machine is told of."""

    def receive(self, frame: Any, source: NodeId, role: Role, now: int) -> None:
        """Take one of :attr:`frames` from a neighbour. The frame's own check has passed."""

    def expects(self, frame: Any, source: NodeId) -> bool:
        """Whether a neighbour was asked for this frame, once. Such a frame costs its sender nothing."""
        return False

    def greetings(self) -> Sequence[Frame]:
        """The frames to send to a neighbour first, as soon as the realtime lane to it is open."""
        return ()

    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        """Note that both directions of the link to a neighbour are open."""

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """Note that a neighbour died, left or restarted. Nothing more comes from its old life."""

    def undeliverable(self, node: NodeId, frame: Frame, now: int) -> None:
        """Note that a frame of this machine could not be queued: the neighbour is gone or does not take frames, or the
        frame is too large."""

    def heard(self, entry: HeardEntry, now: int) -> None:
        """Take an entry of one of :attr:`entry_kinds`, which this node has just accepted or signed itself."""

    def handle_timer(self, now: int) -> None:
        """Do what is due."""

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has to be called at the latest; ``NEVER`` when nothing will be due."""
        return NEVER

    def has_news(self) -> bool:
        """Whether :meth:`messages`, :meth:`events` or :meth:`wishes` has anything. It is asked often, so it must be
        cheap."""
        return False

    def messages(self) -> Sequence[Message]:
        """Frames to queue for neighbours, decided since the last call."""
        return ()

    def wishes(self) -> Sequence[EntryWish]:
        """Entries of gossip to sign, decided since the last call."""
        return ()

    def outgoing(self) -> Sequence[Effect]:
        """Effects decided since the last call."""
        return ()

    def events(self) -> Sequence[Event]:
        """Events decided since the last call."""
        return ()

    def counters(self) -> dict[str, int]:
        """Counters by name. They only grow, except those that the capability's part declares as gauges."""
        return {}


def by_frame(machines: Sequence[Machine]) -> dict[type[Frame], Machine]:
    """The machine that each frame belongs to. :raises LocalProtocolError: when two machines have the same name or
    declare the same frame."""
    names: set[str] = set()
    owners: dict[type[Frame], Machine] = {}
    for machine in machines:
        if machine.name in names:
            raise LocalProtocolError(f"two machines are called {machine.name!r}: rename one, or pass it only once")
        names.add(machine.name)
        for frame in machine.frames:
            if frame in owners:
                raise LocalProtocolError(
                    f"the machines {owners[frame].name!r} and {machine.name!r} both declare the frame {frame.__name__}"
                )
            owners[frame] = machine
    return owners


def machine_of(machines: Sequence[Machine], kind: type[_M]) -> _M:
    """The machine of that class. :raises LocalProtocolError: when there is none."""
    for machine in machines:
        if isinstance(machine, kind):
            return machine
    raise LocalProtocolError(f"this node has no machine {kind.__name__}: pass it when the node is opened")
