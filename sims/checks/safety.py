"""Safety checks: what must never happen. They judge as things happen.

Bounds of time have a slack, because timers are handled once a heartbeat and a simulated CPU takes its time. Nodes are
looked at in turns, so that judging a large mesh costs a bounded share of running it.
"""

from collections.abc import Sequence

from protocols.base import limits
from protocols.base.ids import PeerIdentity
from protocols.base.sequences import incarnation_at
from protocols.membership.neighbour import State
from protocols.readings.events import Put
from sims.checks.contract import Check, KnownEntry, WorldView, register
from sims.checks.order import Order
from sims.results.result import Recorder
from sims.virtual.arrivals import Arrival

_ALIVE, _SUSPECT = State.ALIVE, State.SUSPECT  # looked up once, because looking into an enumeration is slow
SAMPLED_NODES = 64
"""The number of nodes that are looked at in one sample. The others follow in the next samples."""


class _Turns:
    """Says which nodes are looked at next: all of a small mesh, a part of a large one."""

    def __init__(self) -> None:
        self._next = 0

    def of(self, names: Sequence[str]) -> list[str]:
        if len(names) <= SAMPLED_NODES:
            return list(names)
        first, self._next = self._next, (self._next + SAMPLED_NODES) % len(names)
        return [names[(first + number) % len(names)] for number in range(SAMPLED_NODES)]


# --- links and membership ------------------------------------------------------------------------------------------
@register
class NoFrameFromUnverified(Check):
    """Readings count only on pipes with a certificate of our mesh, after a Hello of the same id."""

    name = "no_frame_from_unverified"

    def frame_accepted(self, node: str, source: PeerIdentity, verified: bool) -> None:
        """See :class:`Check`."""
        self.judge(verified, "" if verified else f"{node} took readings from the unverified {source.node}")


@register
class NoNeighbourOlderThanLifetime(Check):
    """A neighbour that was not heard for longer than suspicion takes does not count as living. What was heard is what
    the world delivered, and not what the engine believes."""

    name = "no_neighbour_older_than_lifetime"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        settings = world.settings
        self._slack_ns = slack_ns = 2 * settings.heartbeat_interval_ns
        self._suspicion_ns = settings.suspicion_max_ns
        self._mute_ns = settings.dial_timeout_ns + limits.HELLO_TIMEOUT_NS + slack_ns
        self._alive_ns = settings.suspect_after_silence_ns + slack_ns
        self._suspect_ns = self._alive_ns + settings.suspicion_max_ns
        self._excused_until_ns: dict[str, int] = {}
        self._turns = _Turns()

    def sampled(self, now: int) -> None:
        """See :class:`Check`."""
        world = self.world
        for name in world.names:
            if world.slowed(name):  # a node that got no CPU accuses nobody
                self._excused_until_ns[name] = now + max(self._mute_ns, self._suspect_ns)
        for name in self._turns.of(world.names):
            if world.running(name) and now >= self._excused_until_ns.get(name, 0):
                self._look(name, now)

    def _look(self, name: str, now: int) -> None:
        world, kept = self.world, 0
        for neighbour in world.neighbours(name):
            state = neighbour.state
            if state is _ALIVE:
                bound_ns = max(self._alive_ns, neighbour.patience_ns + self._slack_ns)
            elif state is _SUSPECT:
                bound_ns = max(self._alive_ns, neighbour.patience_ns + self._slack_ns) + self._suspicion_ns
            else:
                continue
            heard_ns = world.heard_ns(name, neighbour.node)
            silent_ns = now - (world.since(name) if heard_ns is None else heard_ns)
            if not neighbour.incarnation:  # it accepted our lane, but never sent a Hello itself
                bound_ns = max(self._mute_ns, neighbour.patience_ns + self._slack_ns)
                silent_ns = min(silent_ns, self._believed_ns(name, neighbour.node))
            if silent_ns <= bound_ns:
                kept += 1
            else:
                self.judge(False, f"{name} holds {neighbour.node} for {state} after {silent_ns / 1e9:.3f} s of silence")
        if kept:
            self.judge(True, times=kept)

    def _believed_ns(self, name: str, other: str) -> int:
        """For how long the engine itself has not heard of a neighbour, in nanoseconds."""
        return next(view.silent_ns for view in self.world.peers(name) if view.node == other)


@register
class QueuesWithinBounds(Check):
    """Whatever waits for a neighbour is bounded, and so are the numbers of neighbours and of entries."""

    name = "queues_within_bounds"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._turns = _Turns()

    def sampled(self, now: int) -> None:
        """See :class:`Check`."""
        for name in self._turns.of(self.world.names):
            if not self.world.running(name):
                continue
            engine, known = self.world.engine(name), len(self.world.neighbours(name))
            readings, waiting_bytes = engine.lanes.most_waiting()
            settings = engine.settings
            kept = (
                readings <= 2 * settings.max_queue_readings  # a realtime lane and a bulk lane
                and waiting_bytes <= 2 * limits.MAX_QUEUE_BYTES
                and known <= 4 * settings.membership.max_neighbours
            )
            detail = "" if kept else f"{name} keeps {readings} readings, {waiting_bytes} bytes for one of {known}"
            self.judge(kept, detail)


# --- readings ------------------------------------------------------------------------------------------------------
@register
class ReadingsInOrderOnce(Check):
    """A subscriber gets growing sequences of each origin and key: no reading twice, and none after a newer one."""

    name = "readings_in_order_once"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._orders: dict[str, Order] = {}
        self._lives: dict[str, list[int]] = {}
        self._passed = 0  # told once a sample, because this is the hot path

    def started(self, node: str) -> None:
        """See :class:`Check`."""
        self._orders[node] = Order()
        self._lives.setdefault(node, []).append(self.world.engine(node).settings.incarnation)

    def delivered(self, node: str, arrivals: Sequence[Arrival]) -> None:
        """See :class:`Check`."""
        order = self._orders[node]
        late = order.take(arrivals)
        self._passed += len(arrivals) - len(late)
        for issue in late:
            series, sequence = issue.series, issue.sequence
            before = order.newest[series].sequence
            if sequence > before or self._life(series.origin, sequence) > self._life(series.origin, before):
                # Its clock went back and its disk is lost, so the sequence is smaller and yet newer.
                order.newest[series].sequence = sequence
            else:
                self.judge(False, f"{node} got {series.key} number {sequence} after {before}")

    def _life(self, origin: str, sequence: int) -> int:
        """Which life of its origin a sequence belongs to."""
        lives = self._lives.get(origin, ())
        return max((number for number, life in enumerate(lives) if life == incarnation_at(sequence)), default=-1)

    def sampled(self, now: int) -> None:
        """See :class:`Check`."""
        del now
        self.judge(True, times=self._passed)
        self._passed = 0

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        del faults_end_ns
        self.sampled(now)


@register
class DropsAccounted(Check):
    """Every reading that a neighbour wanted was delivered, is on its way, or was counted with the reason for its loss.

    It is judged once, at the end, over the whole mesh. Scenarios are not judged in which readings are passed on
    (``hops``) by nodes that don't subscribe to them.
    """

    name = "drops_accounted"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._wanted = self._delivered = self._counted = 0
        self._blind = any(traffic.hops and traffic.to for traffic in world.scenario.traffic)

    def published(self, node: str, key: str, put: Put) -> None:
        """See :class:`Check`."""
        del node, key
        self._wanted += put.queued + put.dropped

    def crashing(self, node: str) -> None:
        """See :class:`Check`."""
        self._add(node)

    def _add(self, node: str) -> None:
        engine = self.world.engine(node)
        statistics = engine.statistics()
        self._wanted += statistics["readings_forwarded"]
        self._delivered += statistics["readings_delivered"]
        self._counted += sum(count for (_, key, why), count in engine.drops.items() if key or why in _WHOLE_FRAMES)

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        del now, faults_end_ns
        world = self.world
        if self._blind:
            return
        for name in world.names:
            if world.running(name):
                self._add(name)
        under_way, lost = world.readings_under_way(), world.readings_lost()
        missing = self._wanted - self._delivered - self._counted - under_way - lost
        self.judge(missing <= 0, (
            f"of {self._wanted} readings wanted {self._delivered} were delivered, {self._counted} counted as dropped, "
            f"{under_way} are under way, {lost} broke with their links: {missing} are unaccounted for"
        ))  # fmt: skip


_WHOLE_FRAMES = frozenset(("link_lost",))
"""The reasons that drivers give to ``Engine.frame_lost``, which counts the readings of a frame without their keys."""


# --- gossip --------------------------------------------------------------------------------------------------------
@register
class GossipForwardOnly(Check):
    """What a node holds of an author is only ever replaced by newer versions."""

    name = "gossip_forward_only"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._held: dict[str, dict[tuple[str, str], int]] = {}

    def started(self, node: str) -> None:
        """See :class:`Check`."""
        self._held[node] = {}

    def entry(self, node: str, entry: KnownEntry) -> None:
        """See :class:`Check`."""
        held = self._held.setdefault(node, {})
        before = held.get((entry.author, entry.kind), -1)
        kept = entry.version > before
        what = f"the {entry.kind} entry of {entry.author}"
        self.judge(kept, "" if kept else f"{node} took version {entry.version} of {what} after {before}")
        held[entry.author, entry.kind] = entry.version


@register
class GossipAuthorOnly(Check):
    """Nobody holds an entry that its author did not make, byte for byte."""

    name = "gossip_author_only"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._made: dict[tuple[str, str, int], str] = {}

    def authored(self, node: str, entry: KnownEntry) -> None:
        """See :class:`Check`."""
        if node == entry.author:
            self._made[entry.author, entry.kind, entry.version] = entry.digest

    def entry(self, node: str, entry: KnownEntry) -> None:
        """See :class:`Check`."""
        name = (entry.author, entry.kind, entry.version)
        made = self._made.get(name)
        kept = made is not None and (not made or not entry.digest or made == entry.digest)
        what = f"version {entry.version} of the {entry.kind} entry"
        self.judge(kept, "" if kept else f"{node} holds {what} in the name of {entry.author}, who never made it")

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        del now, faults_end_ns
        for name in self.world.names[:SAMPLED_NODES]:
            if self.world.running(name):
                for entry in self.world.entries(name):
                    self.entry(name, entry)


# --- records -------------------------------------------------------------------------------------------------------
@register
class RecordInOneState(Check):
    """Each record is pending, delivered, expired, evicted or refused, and the relay has each delivered record once."""

    name = "record_in_one_state"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._turns = _Turns()

    def sampled(self, now: int) -> None:
        """See :class:`Check`."""
        del now
        for name in self._turns.of(self.world.names):
            ledger = self.world.ledger(name)
            if ledger is not None:
                kept = ledger.adds_up()
                self.judge(kept, "" if kept else f"the records of {name} don't add up: {ledger.statistics()}")

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        del now, faults_end_ns
        for name in self.world.names:
            ledger = self.world.ledger(name)
            if ledger is None:
                continue
            stored = self.world.stored(name)
            distinct, delivered = len(set(stored)), ledger.counters().delivered
            kept = len(stored) == distinct >= delivered
            self.judge(kept, "" if kept else (
                f"{name} counts {delivered} records as delivered, the relay has {len(stored)}, {distinct} distinct"
            ))  # fmt: skip
            for complaint in self.world.records_complaints(name):
                self.judge(False, complaint)
