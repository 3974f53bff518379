"""Liveness checks: what must have happened some time after the last fault, and what should happen in some runs.

They judge only nodes that could keep the promise: nodes that were up, and in good range of one another, for all of
``checks.settle_s`` before the end. The end itself lies at least that long after the last fault.
"""

from collections.abc import Sequence

from protocols.base import limits
from protocols.base.effects import Event
from protocols.inference.events import Answered
from protocols.membership.events import NeighbourDead, NeighbourRefuted, PeerRefused
from protocols.membership.neighbour import State
from protocols.wire.tensors import NamedTensor
from sims.checks.contract import Check, KnownEntry, WorldView, register
from sims.results.result import Recorder
from sims.virtual.arrivals import Arrival

JUDGED_NODES = 200
"""At most this many nodes are judged, evenly spread over the names. A fault that affects many shows in these too."""
DEADLINE_SLACK_NS = 50 * limits.MS
"""Room for timers and a busy CPU."""


def _some(names: Sequence[str]) -> list[str]:
    step = max(len(names) / JUDGED_NODES, 1.0)
    return [names[int(number * step)] for number in range(min(len(names), JUDGED_NODES))]


class _Settled(Check):
    """The base of checks that judge nodes which were in reach of one another, without a break, for all of
    ``checks.settle_s`` before the end."""

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._settle_ns = round(world.scenario.checks.settle_s * limits.SECOND)
        self._from_ns = round(world.scenario.duration_s * limits.SECOND) - self._settle_ns
        self._judged = _some(world.names)
        self._near: dict[str, Sequence[str]] = {}
        self._seen: dict[str, Sequence[str]] = {}
        """By node: who was in range at the last look."""
        self._disturbed: set[str] = set()

    def sampled(self, now: int) -> None:
        """See :class:`Check`."""
        if now < self._from_ns:
            return
        world, first = self.world, not self._seen
        for name in self._judged:
            if world.slowed(name) or (world.running(name) and world.since(name) > self._from_ns):
                self._disturbed.add(name)
            in_range = world.in_range(name)
            if first:
                self._near[name] = in_range
            elif in_range is not self._seen[name]:
                still = frozenset(in_range)
                self._near[name] = [other for other in self._near[name] if other in still]
            self._seen[name] = in_range

    def crashing(self, node: str) -> None:
        """See :class:`Check`."""
        if self.world.now >= self._from_ns:
            self._disturbed.add(node)

    def settled(self, now: int, faults_end_ns: int) -> bool:
        """Whether the last fault is long enough ago for a verdict."""
        return now - faults_end_ns >= self._settle_ns

    def undisturbed(self, name: str) -> bool:
        """Whether a node was up all the time, or down all the time."""
        return name not in self._disturbed

    def near(self, name: str) -> Sequence[str]:
        """The nodes in reach of one all the time, running or not."""
        return self._near.get(name, ())


@register
class MembershipConverges(_Settled):
    """A node that is in reach and up is an alive neighbour that was met; a node that is down is not."""

    name = "membership_converges"

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        world = self.world
        if not self.settled(now, faults_end_ns):
            return
        most = world.settings.max_neighbours
        for name in self._judged:
            near = self.near(name)
            if not world.running(name) or not self.undisturbed(name) or len(near) > most:
                continue
            views = {view.node: view for view in world.peers(name)}
            for other in near:
                if not self.undisturbed(other) or len(self.near(other)) > most:
                    continue
                view = views.get(other)  # type: ignore[call-overload]
                if world.running(other):
                    state = "nobody" if view is None else f"{view.state}, {'met' if view.met else 'not met'}"
                    kept = view is not None and view.met and view.state is State.ALIVE
                    self.judge(kept, "" if kept else f"{other} is in reach of {name}, to which it is {state}")
                else:
                    kept = view is None or view.state in (State.DEAD, State.LEFT)
                    self.judge(kept, "" if kept else f"{other} is down, and {name} holds it for {view and view.state}")


@register
class ReadingsFlow(_Settled):
    """Subscribers get readings of every publisher in reach again."""

    name = "readings_flow"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        scenario = world.scenario
        self._armed = False
        self._came: dict[str, dict[str, int]] = {name: {} for name in world.names}
        """By reader and origin: when the newest reading arrived."""
        self._slowest_ns: dict[str, int] = {}
        self._wanted: dict[str, set[str]] = {}
        for traffic in scenario.traffic:
            period_ns = round(limits.SECOND / traffic.rate_hz)
            readers = {member for group in traffic.to for member in scenario.members(group)} or set(scenario.names)
            for name in scenario.members(traffic.group):
                self._wanted.setdefault(name, set()).update(readers)
                self._slowest_ns[name] = max(self._slowest_ns.get(name, 0), period_ns)

    def delivered(self, node: str, arrivals: Sequence[Arrival]) -> None:
        """See :class:`Check`."""
        if self._armed:
            came = self._came[node]
            for at_ns, issue in arrivals:
                came[issue.series.origin] = at_ns

    def sampled(self, now: int) -> None:
        """See :class:`Check`."""
        super().sampled(now)
        self._armed = now >= self._from_ns

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        if not self.settled(now, faults_end_ns):
            return
        for name in self._judged:
            if not self.world.running(name) or not self.undisturbed(name):
                continue
            for origin in self.near(name):
                if name not in self._wanted.get(origin, ()) or not self.world.running(origin):
                    continue
                if not self.undisturbed(origin):
                    continue
                age_ns = now - self._came[name].get(origin, self._from_ns)
                kept = age_ns <= 3 * self._slowest_ns[origin] + limits.SECOND
                self.judge(kept, "" if kept else f"{name} got nothing from {origin} for {age_ns / 1e9:.3f} s")


@register
class RequestsEndByDeadline(Check):
    """Each request has an answer, or a failure, when its deadline is over. Nodes from which a fault takes CPU are not
    judged."""

    name = "requests_end_by_deadline"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._open: dict[str, dict[int, int]] = {}

    def started(self, node: str) -> None:
        """See :class:`Check`."""
        self._open[node] = {}

    def asked(
        self, node: str, request: int, inputs: tuple[NamedTensor, ...], deadline_ns: int, model: str
    ) -> None:  # fmt: skip
        """See :class:`Check`."""
        del inputs, model
        self._open.setdefault(node, {})[request] = deadline_ns

    def answered(self, node: str, answer: Answered) -> None:
        """See :class:`Check`."""
        deadline_ns = self._open.get(node, {}).pop(answer.request, None)
        if deadline_ns is not None:
            late_ns = self.world.now - deadline_ns
            kept = late_ns <= DEADLINE_SLACK_NS
            self.judge(kept, "" if kept else f"request {answer.request} of {node} ended {late_ns / 1e6:.0f} ms late")

    def sampled(self, now: int) -> None:
        """See :class:`Check`."""
        for node, requests in self._open.items():
            if self.world.slowed(node) or not self.world.running(node):
                requests.clear()
                continue
            for request in [number for number, due_ns in requests.items() if now > due_ns + DEADLINE_SLACK_NS]:
                del requests[request]
                self.judge(False, f"request {request} of {node} is past its deadline without an answer")


@register
class NewestEntryEverywhere(_Settled):
    """Nodes that can reach one another, over however many hops, hold the same newest entry of every author."""

    name = "newest_entry_everywhere"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._newest: dict[tuple[str, str], int] = {}
        """By author and kind: the newest version that was made early enough to be judged."""

    def authored(self, node: str, entry: KnownEntry) -> None:
        """See :class:`Check`."""
        del node
        if self.world.now <= self._from_ns:
            key = (entry.author, entry.kind)
            self._newest[key] = max(entry.version, self._newest.get(key, -1))

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        if not self.settled(now, faults_end_ns):
            return
        for island in self._islands():
            held = {
                name: {(entry.author, entry.kind): entry.version for entry in self.world.entries(name)}
                for name in island
            }
            for key, newest in self._newest.items():
                there = max((min(entries.get(key, -1), newest) for entries in held.values()), default=-1)
                if there < 0:
                    continue
                for name, entries in held.items():
                    kept = entries.get(key, -1) >= there
                    what = f"version {there} of the {key[1]} entry of {key[0]}"
                    self.judge(kept, "" if kept else f"{name} lacks {what}: it has {entries.get(key, 'none')}")

    def _islands(self) -> list[list[str]]:
        """Undisturbed running nodes, grouped by who reaches whom."""
        names = [n for n in self._judged if self.world.running(n) and self.undisturbed(n)]
        left, islands = dict.fromkeys(names), []
        while left:
            island = [left.popitem()[0]]
            for name in island:
                for other in self.near(name):
                    if other in left:
                        del left[other]
                        island.append(other)
            islands.append(sorted(island))
        return islands


@register
class RecordsArrive(_Settled):
    """A node that could reach the relay for all of ``checks.settle_s`` holds no waiting records that are older."""

    name = "records_arrive"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        groups = [group.name for group in world.scenario.groups if group.relay]
        self._senders = _some([name for group in groups for name in world.scenario.members(group)])
        self._cut_off: set[str] = set()

    def sampled(self, now: int) -> None:
        """See :class:`Check`."""
        super().sampled(now)
        if now >= self._from_ns:
            self._cut_off.update(name for name in self._senders if not self.world.covered(name))

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        world = self.world
        if not self.settled(now, faults_end_ns):
            return
        for name in self._senders:
            if name in self._cut_off or not world.running(name) or not self.undisturbed(name):
                continue
            since_ns = world.waiting_since_ns(name)
            kept = since_ns is None or since_ns >= self._from_ns
            self.judge(kept, "" if kept else f"a record of {name} has waited since {(since_ns or 0) / 1e9:.3f} s")


@register
class Sometimes(Check):
    """It judges nothing. It notes how often the things happened that faults are meant to provoke."""

    name = "sometimes"
    judges = False

    def event(self, node: str, event: Event) -> None:
        """See :class:`Check`."""
        match event:
            case NeighbourDead():
                self.occurred("death", node, event.node)
            case NeighbourRefuted():
                self.occurred("refutation", node, event.node)
            case PeerRefused():
                self.occurred("refusal", node, event.who, event.code)
            case Answered(winner=winner, parts=parts) if winner is not None and parts:
                for part in parts:
                    if part.replays:
                        self.occurred("replay", node, part.node, f"{part.kind} {part.index + 1} of {len(parts)}")
            case Answered(winner=winner) if winner is not None:
                for run in event.attempts:
                    if run is not winner and (run.outcome != "cancelled" or run.took_ns > winner.took_ns):
                        what = "fallback" if winner.node == node else "failover"
                        self.occurred(what, node, winner.node, f"{run.node}: {run.outcome}")
                        break
            case _:
                pass
