"""One reading that another one did not follow: *after A no B for t*.

It is derived by the clock of this node, ``late_ns`` after ``t`` has passed since *A* was sensed, and never before. What
counts is when a *B* was sensed: one that was sensed in time cancels the absence also when it comes late, as long as it
comes before that. Each *A* is judged alone; one *B* cancels those of all *A* that it follows in time. A reading that is
both an *A* and a *B* doesn't answer itself, so with one source for both the rule derives that something fell silent.

With ``certain``, an absence is derived only when no *B* can have been sensed from the beginning of the interval of *A*
to ``t`` after its end; and an *A* whose clock may be wrong by more than ``t`` is left out (``uncertain``). However
uncertain a *B* is, it was sensed before it came.

Under pressure on the memory, an *A* that gives way is not derived. A *B* that gave way no longer answers an *A* that
comes after it.

The value of a derived reading is a map: ``after``, with key, origin, sequence, time and value of *A*, and
``until_ns``, when ``t`` had passed. That is when it was sensed.
"""

from collections.abc import Sequence

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.records.curation import CurationOutput
from protocols.records.deriving.output import Output
from protocols.records.deriving.rule import Partition
from protocols.records.deriving.sources import Source
from protocols.records.patterns.answers import SPAN_BYTES, AnsweredTimes
from protocols.records.patterns.base import AT_ONCE, PatternRule, described
from protocols.records.patterns.held import HeldReadings, bytes_for
from protocols.records.patterns.nearness import Nearness
from protocols.records.windows.kinds import FUTURE_NS
from protocols.records.windows.rule import undivided
from protocols.wire.readings import EventTime, Reading


class AbsenceRule(PatternRule):
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    def __init__(
        self, name: str, node: NodeId, first: Source, then: Source, nearness: Nearness, output: Output,
        partition: Partition = undivided, max_partitions: int = 1_000, max_held: int = 32,
    ) -> None:  # fmt: skip
        """``partition`` gives the name of the partition of a reading; ``max_held``: how many *A* of one partition may
        wait. :raises BoundExceeded: when what it holds could need more than ``MAX_STATE_BYTES``; :raises
        LocalProtocolError: when ``nearness`` has a distance."""
        super().__init__(name, node, (first, then), nearness, output, partition, max_partitions, max_held)
        if nearness.within_m is not None:
            raise LocalProtocolError(
                f"within_m is {nearness.within_m:g}: what did not come has no distance; leave within_m out, or choose "
                "readings by their place in the source"
            )
        span_ns = nearness.span_ns
        max_spans = self.max_partitions * (5 + -(-(nearness.late_ns + 2 * FUTURE_NS) // span_ns))
        waiting_bytes = bytes_for(self.max_partitions, max_held)
        self.max_state_bytes = self._check_state(waiting_bytes + max_spans * SPAN_BYTES, max_held)
        self._waiting = HeldReadings(self.max_partitions, max_held)
        self._answered = AnsweredTimes(max_spans)

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        due = self.handle_timer(now) if self._waiting.due_ns() <= now else ()
        taken = self._taken(reading, is_own, utc_now)
        if taken is None:
            return due
        partition, (first, then) = taken
        self._answered.forget_due(now)
        is_waiting = first is not None and not self._is_answered(partition, first)
        if then is not None:
            self._answer(partition, then, now, utc_now)
        if first is not None and is_waiting:
            self._waiting.put(partition, first, self._known_ns(first) + now - utc_now)
        return due

    def handle_timer(self, now: MonotonicNs) -> Sequence[CurationOutput]:
        """See ``Pattern.handle_timer``."""
        derived: list[CurationOutput] = []
        for _ in range(AT_ONCE):
            held = self._waiting.take_due(now)
            if held is None:
                break
            first = held.reading
            until_ns = first.when.utc_ns + self.nearness.span_ns
            when = EventTime(until_ns, first.when.uncertainty_ns)
            value = {"after": described(first), "until_ns": until_ns}
            derived += self._derived(held.partition, (first,), value, when)
        return derived

    def next_timer_at(self) -> int:
        """See ``Pattern.next_timer_at``."""
        return self._waiting.due_ns()

    def _evicted(self) -> int:
        return self._waiting.evicted + self._answered.evicted

    def _known_ns(self, first: Reading) -> int:
        """When it is known, in UTC, that nothing followed a reading."""
        return first.when.utc_ns + self.nearness.span_ns + self.nearness.late_ns

    def _is_answered(self, partition: str, first: Reading) -> bool:
        """Whether a reading doesn't wait: what follows it has come already, or it is too uncertain."""
        wrong_ns = self._wrong_ns(first)
        if wrong_ns > self.nearness.span_ns:
            self._counts["uncertain"] += 1
            return True
        return self._answered.hold(partition, first.when.utc_ns - wrong_ns, first.when.utc_ns + wrong_ns)

    def _answer(self, partition: str, then: Reading, now: int, utc_now: int) -> None:
        """Cancel those that wait and that ``then`` follows, and remember it for those that will come."""
        utc_ns, span_ns, wrong_ns = then.when.utc_ns, self.nearness.span_ns, self._wrong_ns(then)
        is_certain = self.nearness.certain
        first_ns = utc_ns - wrong_ns - span_ns
        last_ns = min(utc_ns + wrong_ns, utc_now + FUTURE_NS) if is_certain else utc_ns - 1
        reach_ns = span_ns if is_certain else 0  # no reading that waits is more uncertain
        for held in self._waiting.between(partition, first_ns - reach_ns, last_ns + reach_ns):
            at_ns, held_wrong_ns = held.reading.when.utc_ns, self._wrong_ns(held.reading)
            if first_ns <= at_ns + held_wrong_ns and at_ns - held_wrong_ns <= last_ns:
                self._waiting.drop(held)
        due_ns = now - utc_now + last_ns + reach_ns + span_ns + self.nearness.late_ns
        self._answered.add(partition, first_ns, last_ns, due_ns, then.origin)

    def _wrong_ns(self, reading: Reading) -> int:
        return reading.when.uncertainty_ns if self.nearness.certain else 0
