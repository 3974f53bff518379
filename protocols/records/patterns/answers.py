"""The times at which a reading would have been answered, by partition, as few spans.

A reading that came answers all those that were sensed in some time before it. Spans that touch become one, so that a
reading every second is one span, however long it goes on. Who sensed the first reading of a span pays for it; when
there are too many, the largest holder gives way.
"""

from typing import Final

from protocols.base.shares import SharedRows
from protocols.records.patterns.held import RowDeadlines, WaitingRow

SPAN_BYTES: Final = 1_700
"""What a span takes, with its places in the tables and the longest names."""
_FORGOTTEN_AT_ONCE: Final = 4


class _Span(WaitingRow):
    __slots__ = ("first_ns", "last_ns")

    def __init__(self, partition: str, first_ns: int, last_ns: int, due_ns: int) -> None:
        super().__init__(partition, due_ns)
        self.first_ns, self.last_ns = first_ns, last_ns


class AnsweredTimes:
    """See the module."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._spans: dict[str, list[_Span]] = {}
        self._rows: SharedRows[str, _Span] = SharedRows()
        self._deadlines: RowDeadlines[_Span] = RowDeadlines()
        self.evicted = 0
        """How many spans gave way."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, partition: str, first_ns: int, last_ns: int, due_ns: int, payer: str) -> None:
        """The times from ``first_ns`` to ``last_ns``, both included, are answered; ``due_ns``: when nobody asks about
        them any more, by the monotonic clock."""
        spans = self._spans.setdefault(partition, [])
        touching = [span for span in spans if span.first_ns <= last_ns + 1 and first_ns <= span.last_ns + 1]
        if touching:
            kept = touching[0]
            kept.first_ns = min(first_ns, *(span.first_ns for span in touching))
            kept.last_ns = max(last_ns, *(span.last_ns for span in touching))
            kept.due_ns = max(due_ns, *(span.due_ns for span in touching))
            for span in touching[1:]:
                self._drop(span)
            return
        span = _Span(partition, first_ns, last_ns, due_ns)
        spans.append(span)
        self._rows.add(payer, span)
        self._deadlines.add(span)
        if len(self._rows) > self._max_rows:
            self.evicted += 1
            self._drop(self._rows.next_to_go())

    def hold(self, partition: str, first_ns: int, last_ns: int) -> bool:
        """Whether a time from ``first_ns`` to ``last_ns`` is answered."""
        return any(span.first_ns <= last_ns and first_ns <= span.last_ns for span in self._spans.get(partition, ()))

    def forget_due(self, now: int) -> None:
        """Forget a few spans about which nobody asks any more."""
        for _ in range(_FORGOTTEN_AT_ONCE):
            span = self._deadlines.next()
            if span is None or span.due_ns > now:
                return
            self._drop(span)

    def _drop(self, span: _Span) -> None:
        self._deadlines.discard(span)
        self._rows.remove(span)
        spans = self._spans[span.partition]
        spans.remove(span)
        if not spans:
            del self._spans[span.partition]
