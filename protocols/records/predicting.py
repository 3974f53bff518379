"""A rule that has a model compute something of each reading, and derives a reading from the prediction.

Readings wait for their turn; the newest goes first, because a prediction of what was a second ago is worth less. Where
too many wait, the oldest gives way. Who waits for longer than the deadline is ``late``, and so is a prediction that
takes longer than what is left of it. Whoever computes answers each question once (:class:`PredictionWanted`), and what
a rule that is used no more has asked for comes to nothing.

What is derived was sensed where, when and as well as the reading, and has its lineage. It comes back to the curator
like any other reading, so that further rules can build on it.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Literal

from msgspec.structs import replace

from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MAX_LINEAGE, MAX_TENSORS, SECOND
from protocols.base.time import NEVER
from protocols.records.curation import CurationOutput, ReadingDerived
from protocols.records.deriving.output import Output
from protocols.records.deriving.rule import DerivingRule, Partition
from protocols.records.deriving.sources import Source
from protocols.records.patterns.held import held_bytes
from protocols.records.wanted import PredictionWanted
from protocols.records.windows.rule import MIB
from protocols.wire.readings import Reading

MAX_INPUT_BYTES: Final = 8 * MIB
"""A larger reading is left out (``unfit``): so many may wait."""
MAX_WAITING: Final = 16
MAX_AT_ONCE: Final = 8
MAX_DEADLINE_NS: Final = 60 * SECOND
_numbers = count(1)
"""Numbers of questions. Each is given once: a rule that takes the place of another one of its name must not take an
answer to what that has asked."""
Failure = Literal["", "late", "not_predicted"]
"""Why there is no prediction; empty: there is one."""


@dataclass(frozen=True, slots=True)
class ModelStep:
    """What is computed.

    :raises LocalProtocolError: a field is out of range.
    """

    model: str
    input_name: str = ""
    """The name of its only input; empty: values are maps by name."""
    outputs: tuple[str, ...] = ()
    """Those that are wanted; none: all."""
    deadline_ns: int = SECOND
    max_waiting: int = 4
    at_once: int = 1

    def __post_init__(self) -> None:
        if not self.model:
            raise LocalProtocolError("a prediction needs a model: name one")
        if len(self.outputs) > MAX_TENSORS:
            raise BoundExceeded(f"{len(self.outputs)} outputs are wanted: name at most {MAX_TENSORS}")
        if not 0 < self.deadline_ns <= MAX_DEADLINE_NS:
            raise BoundExceeded(f"the deadline is {self.deadline_ns} ns: use at most {MAX_DEADLINE_NS // SECOND} s")
        if not (1 <= self.max_waiting <= MAX_WAITING and 1 <= self.at_once <= MAX_AT_ONCE):
            raise BoundExceeded(
                f"max_waiting is {self.max_waiting} and at_once {self.at_once}: use 1 to {MAX_WAITING}, and 1 to "
                f"{MAX_AT_ONCE}"
            )


@dataclass(frozen=True, slots=True)
class _Asked:
    reading: Reading
    value: Any
    key: str
    ends_ns: int


class PredictionRule(DerivingRule):
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    def __init__(
        self, name: str, node: NodeId, source: Source, step: ModelStep, output: Output, partition: Partition
    ) -> None:  # fmt: skip
        super().__init__(name, node, (source,), output, partition)
        self.step = step
        self.max_state_bytes = (step.max_waiting + step.at_once) * MAX_INPUT_BYTES
        self._waiting: deque[_Asked] = deque()
        self._asked: dict[int, _Asked] = {}

    def counters(self) -> Mapping[str, int]:
        """Readings derived, and readings left out by reason."""
        return self._counts

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        taken = self._taken_for(reading)
        if taken is None:
            return ()
        value, key = taken
        if len(reading.how.lineage) >= MAX_LINEAGE or held_bytes(reading, key) > MAX_INPUT_BYTES:
            self._counts["unfit"] += 1
            return ()
        self._counts["taken"] += 1
        self._waiting.append(_Asked(reading, value, key, now + self.step.deadline_ns))
        questions = self._ask(now)
        while len(self._waiting) > self.step.max_waiting:
            self._waiting.popleft()
            self._counts["gave_way"] += 1
        return questions

    def predicted(self, number: int, value: Any, failure: Failure, now: MonotonicNs) -> Sequence[CurationOutput]:
        """See ``Pattern.predicted``."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return ()
        if failure:
            self._counts[failure] += 1
            return self._ask(now)
        self._counts["derived"] += 1
        output, reading = self.output, asked.reading
        how = replace(reading.how, unit=output.unit)
        derived = ReadingDerived(
            self.name, asked.key, value, reading.where, reading.when, how, output.priority, output.lifespan_ms
        )
        return (derived, *self._ask(now))

    def waits_for(self, wanted: PredictionWanted) -> bool:
        """See :class:`DerivingRule`."""
        return wanted.number in self._asked

    def _ask(self, now: int) -> list[PredictionWanted]:
        questions: list[PredictionWanted] = []
        while self._waiting and len(self._asked) < self.step.at_once:
            asked, step = self._waiting.pop(), self.step
            if asked.ends_ns <= now:
                self._counts["late"] += 1
                continue
            number = next(_numbers)
            self._asked[number] = asked
            questions.append(PredictionWanted(
                self.name, number, step.model, asked.value, step.input_name, step.outputs, asked.ends_ns - now
            ))  # fmt: skip
        return questions

    def handle_timer(self, now: MonotonicNs) -> Sequence[CurationOutput]:
        """Nothing is ever due: who waits is looked at when an answer comes."""
        return ()

    def next_timer_at(self) -> int:
        """See ``Pattern.next_timer_at``."""
        return NEVER
