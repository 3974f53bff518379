"""How much of what is asked of the mesh it gives, counted in the same way for both harnesses.

- A reading is *offered* to each node that subscribes to it, runs, and is in good range of its origin when it is
  published.
- A reading is *useful* to a node that gets it for the first time within its lifespan. A node in poorer range, and one
  that it reaches over hops, counts too. So more may be useful than is offered.
- Both count readings that are published in the *measured span*: from the instant at which the scenario starts its
  last node until the end of the run. It is the whole run when the last node would start later than that.
- An *urgent* reading has a priority of ``URGENT`` or more. It is missed at a node to which it is offered in the
  measured span and that does not get it within its lifespan, for whatever reason, a crash of the node among them.
- The *age of information* at a node is the time since the newest reading that it has of another node was published, or
  since both have been there and in range, whichever is shorter (Kaul, Yates and Gruteser, "Real-time status: How often
  should one update?", INFOCOM 2012). A pair that has heard nothing yet therefore has an age, too.

Not counted: readings whose key the scenario's traffic does not have.
"""

from collections.abc import Sequence
from typing import Final

from protocols.links.queues import URGENT
from sims.results.histogram import Histogram
from sims.results.result import Result
from sims.scenario.file import Scenario

SECOND_NS: Final = 1_000_000_000
MAX_OPEN: Final = 20_000
"""The number of urgent readings under way that are followed: those of a thousand nodes for 20 s at 1 Hz."""
_TOLD_LATE_NS: Final = 2 * SECOND_NS
"""How much later than it happens a delivery may be told. Whoever simulates tells many of them together."""
_ENDLESS_NS: Final = 1 << 62
_GOLDEN: Final = 0.6180339887498949
"""The fractional parts of multiples of the golden ratio fill a second evenly, however many they are."""


def sample_ns(number: int) -> int:
    """When ages are looked at for the ``number``-th time, counted from 1: once in each second, at another part of it
    each time. Sources keep their periods, so looks at whole seconds would always see the same part of a period."""
    return (number - 1) * SECOND_NS + int(number * _GOLDEN % 1 * SECOND_NS)


class _Open:
    """An urgent reading, and the nodes that have not got it yet."""

    __slots__ = ("number", "until_ns", "waiting")

    def __init__(self, until_ns: int, waiting: set[int]) -> None:
        self.until_ns, self.waiting, self.number = until_ns, waiting, len(waiting)


class _Kind:
    """The readings of one ``[[traffic]]``."""

    __slots__ = ("lifespan_ns", "open", "urgent", "wanting")

    def __init__(self, lifespan_ms: int, urgent: bool, wanting: list[bool]) -> None:
        self.lifespan_ns = lifespan_ms * 1_000_000 if lifespan_ms else _ENDLESS_NS
        self.urgent = urgent
        self.wanting = wanting
        """By number of a node: whether it subscribes."""
        self.open: dict[tuple[str, int], _Open] = {}
        """Urgent readings under way by key and sequence, in the order in which their lifespans end."""


class Goodput:
    """The account of one run. Times are nanoseconds since its start, and nodes go by their numbers."""

    def __init__(self, scenario: Scenario) -> None:
        last_s = max(group.start_s + (group.count - 1) * group.stagger_s for group in scenario.groups)
        self.begin_ns = int(last_s * SECOND_NS) if last_s < scenario.duration_s else 0
        self.offered = self.useful = 0
        self.urgent_wanted = self.urgent_missed = 0
        self._open = self._unfollowed = 0
        self._urgent = Histogram()
        self._kinds: dict[str, _Kind] = {}
        self._heeded: list[list[bool]] = []
        self._read(scenario)

    def _read(self, scenario: Scenario) -> None:
        chunks = {group.name: "rsu" if group.role == "rsu" else "veh" for group in scenario.groups}
        wants: dict[str, set[tuple[str, str]]] = {group.name: set() for group in scenario.groups}
        for traffic in scenario.traffic:
            for name in traffic.to or chunks:
                wants[name].add((chunks[traffic.group], traffic.topic))
        for source in scenario.groups:
            heeded = [False] * len(scenario.names)
            for traffic in scenario.traffic:
                if traffic.group == source.name:
                    series = chunks[source.name], traffic.topic
                    wanting = [series in wants[group.name] for group in scenario.groups for _ in range(group.count)]
                    heeded = [either or other for either, other in zip(heeded, wanting, strict=True)]
                    kind = _Kind(traffic.lifespan_ms, traffic.priority >= URGENT, wanting)
                    for name in scenario.members(source.name):
                        self._kinds[f"{series[0]}/{name}/{series[1]}"] = kind
            self._heeded += [heeded] * source.count

    def expects(self, receiver: int, origin: int) -> bool:
        """Whether a node subscribes to anything that another one publishes."""
        return self._heeded[origin][receiver]

    def published(self, now: int, key: str, sequence: int, near: Sequence[int]) -> None:
        """A reading was published while ``near`` were in good range of its origin, and running."""
        kind = self._kinds.get(key)
        if kind is None or now < self.begin_ns:
            return
        wanting = kind.wanting
        waiting = [number for number in near if wanting[number]]
        self.offered += len(waiting)
        if kind.urgent and waiting:
            self._close_overdue(kind, now - _TOLD_LATE_NS)
            if self._open >= MAX_OPEN:
                self._unfollowed += 1
                return
            self._open += 1
            kind.open[key, sequence] = _Open(now + kind.lifespan_ns, set(waiting))

    def heard(self, receiver: int, key: str) -> "Heard":
        """What a node has heard of a key, which is nothing yet. The harness keeps one for each node and key."""
        return Heard(self, self._kinds.get(key), receiver, key)

    def came_urgent(self, kind: _Kind, receiver: int, key: str, sequence: int, at_ns: int, took_ns: int) -> None:
        """An urgent reading reached a node for the first time."""
        self._urgent.add(took_ns)
        followed = kind.open.get((key, sequence))
        if followed is None or receiver not in followed.waiting or at_ns > followed.until_ns:
            return
        followed.waiting.remove(receiver)
        if not followed.waiting:
            del kind.open[key, sequence]
            self._open -= 1
            self.urgent_wanted += followed.number

    def _close_overdue(self, kind: _Kind, now: int) -> None:
        overdue = []
        for name, followed in kind.open.items():
            if followed.until_ns >= now:
                break
            overdue.append(name)
        for name in overdue:
            followed = kind.open.pop(name)
            self._open -= 1
            self.urgent_wanted += followed.number
            self.urgent_missed += len(followed.waiting)

    def fill(self, result: Result, end_ns: int) -> None:
        """Put the figures into a result. Urgent readings that may still come in time are not judged."""
        span_ns = end_ns - self.begin_ns
        if span_ns > 0:
            result.offered_per_s = self.offered * SECOND_NS / span_ns
            result.useful_per_s = self.useful * SECOND_NS / span_ns
        result.urgent = self._urgent.spread("ms")
        result.urgent_wanted, result.urgent_missed = self.urgent_wanted, self.urgent_missed
        for kind in dict.fromkeys(self._kinds.values()):
            for followed in kind.open.values():
                waiting = len(followed.waiting)
                result.urgent_wanted += followed.number - waiting
                if followed.until_ns <= end_ns:
                    result.urgent_wanted += waiting
                    result.urgent_missed += waiting

    def left_out(self) -> list[str]:
        """What the bound cuts, in words."""
        if not self._unfollowed:
            return []
        return [f"urgent readings: {self._unfollowed} more were under way than the {MAX_OPEN} that are followed"]


class Heard:
    """What one node has heard of one key."""

    __slots__ = (
        "_begin_ns", "_goodput", "_key", "_kind", "_lifespan_ns", "_receiver", "_urgent", "newest_ns", "sequence",
    )  # fmt: skip

    def __init__(self, goodput: Goodput, kind: _Kind | None, receiver: int, key: str) -> None:
        self._goodput, self._kind, self._receiver, self._key = goodput, kind, receiver, key
        self._begin_ns = goodput.begin_ns
        self._lifespan_ns = -1 if kind is None else kind.lifespan_ns
        self._urgent = kind is not None and kind.urgent
        self.newest_ns = self.sequence = -1
        """When the newest reading that came was published, and its sequence."""

    def came(self, at_ns: int, sequence: int, published_ns: int) -> None:
        """A reading reached the node. This is hot: it is called for each delivery."""
        if published_ns < self.newest_ns or sequence == self.sequence:
            return  # it came before, or comes after a newer one
        self.newest_ns, self.sequence = published_ns, sequence
        if published_ns < self._begin_ns:
            return
        took_ns = at_ns - published_ns
        if took_ns <= self._lifespan_ns:
            self._goodput.useful += 1
        if self._urgent:
            assert self._kind is not None, "nothing else is urgent"
            self._goodput.came_urgent(self._kind, self._receiver, self._key, sequence, at_ns, took_ns)
