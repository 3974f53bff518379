"""What the parts of a simulation share: virtual time, the nodes, the medium, and the observer."""

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from protocols.base.effects import Event
from protocols.base.ids import NodeId
from protocols.wire.readings import Reading
from sims.media.contract import Links
from sims.virtual.arrivals import Arrival, Issue, Series
from sims.virtual.frames import SimFrame
from sims.virtual.node import Pipe, SimNode
from sims.virtual.processors import Processors
from sims.virtual.timeline import Timeline


class Observer(Protocol):
    """The observer of a run. It is called as things happen, and must not call the driver."""

    def delivered(self, node: SimNode, arrivals: Sequence[Arrival]) -> None:
        """Readings reached the subscriptions of a node, in this order. The call may come late, but it comes before the
        next event, crash or new life of that node. :meth:`sims.virtual.driver.SimDriver.run_until` reports everything
        that came before its end."""

    def event(self, node: SimNode, event: Event) -> None:
        """The engine of a node reported an event."""

    def frame_accepted(self, node: SimNode, pipe: Pipe) -> None:
        """The engine took readings from a frame: the first such frame of this pipe, and each one of an unverified
        pipe."""

    def life_began(self, node: SimNode) -> None:
        """A life began with a fresh engine that nothing has happened to."""


class Simulation(Timeline, metaclass=ABCMeta):
    """The state that all parts share. Its abstract methods are what pipes and connections ask of the processes at their
    ends; :class:`sims.virtual.processes.Processes` implements them."""

    def __init__(self, links: Links, observer: Observer | None, processors: Processors | None) -> None:
        """``observer``: None means that nodes keep what they see. ``processors``: those that all nodes share; None
        gives each node its own."""
        super().__init__()
        self.links = links
        """The medium."""
        self.nodes: dict[NodeId, SimNode] = {}
        self.numbered: list[SimNode] = []
        """The same nodes, by number."""
        self.processors = processors
        self.observer: Observer = observer or _Keeper(self)
        self._series: dict[tuple[str, str], Series] = {}

    def issue_of(self, reading: Reading) -> Issue:
        """The issue of a reading, for the observer. One issue should serve all nodes that the reading reaches."""
        name = reading.origin, reading.key
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = Series(*name)
        node = self.nodes.get(NodeId(reading.origin))
        if node is None:
            return Issue(reading, series, -1, -1)
        return Issue(reading, series, node.number, node.sent_at(reading.sequence), node.followed)

    def issue_in(self, frame: SimFrame, reading: Reading) -> Issue:
        """The issue of a reading in a frame, made once for all receivers."""
        if frame.issue is None:
            frame.issue = self.issue_of(reading)
            return frame.issue
        if frame.others is None:
            frame.others = []
        for issue in frame.others:
            if issue.reading is reading:
                return issue
        issue = self.issue_of(reading)
        frame.others.append(issue)
        return issue

    # --- asked of the processes ------------------------------------------------------------------------------------
    @abstractmethod
    def take_in(self, node: SimNode, until_ns: int, *, awakes: bool = False) -> bool:
        """A node takes in the frames that came until ``until_ns``, each with the time of its arrival, as far as its CPU
        has time. Returns False when frames wait for its CPU. ``awakes``: the frames are handled before everything else
        that waited for this instant."""

    @abstractmethod
    def look(self, node: SimNode) -> None:
        """One node takes in the calm frames that came before this instant, and the observer is told."""

    @abstractmethod
    def perform(self, node: SimNode) -> None:
        """Do what the engine of a node has decided, hand on its events, and set its timer."""

    @abstractmethod
    def arm(self, node: SimNode) -> None:
        """Schedule the timer of a node for the instant that its engine asks for."""

    @abstractmethod
    def when_awake(self, node: SimNode, due_ns: int, handler: Callable[[Any], None], argument: Any) -> None:
        """Call ``handler(argument)`` at ``due_ns``, or when the process of ``node`` has CPU again. It is not called
        when the process was killed by then."""

    @abstractmethod
    def give_up(self, pipe: Pipe) -> None:
        """The kernel of the sender gives up a pipe whose receiver was out of reach for too long."""


class _Keeper:
    """Lets nodes keep what they see, for small runs."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def delivered(self, node: SimNode, arrivals: Sequence[Arrival]) -> None:
        for at_ns, issue in arrivals:
            if node.on_reading is not None:
                node.on_reading(issue.reading)
            else:
                node.received.append((at_ns, issue.reading))

    def event(self, node: SimNode, event: Event) -> None:
        node.events.append((self._timeline.now, event))

    def frame_accepted(self, node: SimNode, pipe: Pipe) -> None:
        pass

    def life_began(self, node: SimNode) -> None:
        pass
