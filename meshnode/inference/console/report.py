"""Who ran what: the outcome of each request of ``meshnode infer``, and a table of all of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Self

from meshnode.console.printing import printable
from protocols.base.errors import BudgetExhausted, InputInvalid, LocalProtocolError, MeshError, ModelUnknown

_OUTCOMES: Final[tuple[tuple[type[MeshError], str], ...]] = (
    (InputInvalid, "invalid"),
    (LocalProtocolError, "invalid"),
    (ModelUnknown, "unknown"),
    (BudgetExhausted, "late"),
)
_MAX_ERROR_CHARS: Final = 1_000
_HEAD: Final = (
    "node", "where", "requests", "compute p50", "max ms", "queue p50", "max ms", "total p50", "max ms", "hedged",
    "replayed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RequestReport:
    """What became of one request. Times are in milliseconds, as the node measured them."""

    name: str
    outcome: str
    """``done``, ``late``, ``invalid``, ``unknown`` or ``failed``."""
    error: str = ""
    ran_on: str = ""
    compute_ms: float = 0.0
    queued_ms: float = 0.0
    took_ms: float = 0.0
    attempts: tuple[tuple[str, str], ...] = ()
    """(node, outcome) of every run."""

    @classmethod
    def done(cls, name: str, parameters: dict[str, Any]) -> Self:
        """The report of a request that was answered, from the parameters of the answer."""
        runs = [run.rpartition(":") for run in str(parameters.get("attempts", "")).split(",") if run]
        compute_ms, queued_ms, took_ms = (
            float(parameters.get(f"{key}_ms", 0)) for key in ("compute", "queued", "took")
        )
        ran_on = printable(str(parameters.get("ran_on", "?")))
        return cls(name, "done", "", ran_on, compute_ms, queued_ms, took_ms, tuple((run[0], run[2]) for run in runs))

    @classmethod
    def failed(cls, name: str, error: MeshError) -> Self:
        """The report of a request without a result."""
        kind = next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), "failed")
        return cls(name, kind, printable(str(error), _MAX_ERROR_CHARS))

    @property
    def hedged(self) -> bool:
        """Whether a second run was started beside one that was late: the loser was cancelled."""
        return any(outcome == "cancelled" for _, outcome in self.attempts)

    @property
    def replayed(self) -> bool:
        """Whether a run ended without a result, so that another one took its place."""
        return any(outcome not in ("done", "cancelled") for _, outcome in self.attempts)

    def line(self, here: str) -> str:
        """The request on one line. ``here``: the id of the node that was asked."""
        if self.outcome != "done":
            return f"{self.name}  {self.outcome}  {self.error}"
        others = [f"{printable(node)} {printable(outcome)}" for node, outcome in self.attempts if outcome != "done"]
        return (
            f"{self.name}  done  {self.ran_on} ({_where(self.ran_on, here)})  compute {self.compute_ms:.1f} ms, queue "
            f"{self.queued_ms:.1f} ms, total {self.took_ms:.1f} ms" + (f"  after {', '.join(others)}" if others else "")
        )


def _where(node: str, here: str) -> str:
    return "here" if node == here else "neighbour"


def table(reports: Sequence[RequestReport], here: str) -> Iterator[str]:
    """The lines of a table with a row for each node that computed, the busiest first, and one for each kind of
    failure."""
    rows: list[tuple[str, ...]] = [_HEAD]
    nodes = Counter(report.ran_on for report in reports if report.outcome == "done")
    for node, count in nodes.most_common():
        own = [report for report in reports if report.ran_on == node]
        rows.append((
            node, _where(node, here), str(count), *_times([report.compute_ms for report in own]),
            *_times([report.queued_ms for report in own]), *_times([report.took_ms for report in own]),
            str(sum(report.hedged for report in own)), str(sum(report.replayed for report in own)),
        ))  # fmt: skip
    failures = Counter(report.outcome for report in reports if report.outcome != "done")
    rows += [("-", outcome, str(count), *["-"] * 8) for outcome, count in failures.most_common()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join((*texts, *numbers))


def _times(values_ms: Sequence[float]) -> tuple[str, str]:
    return f"{median(values_ms):.1f}", f"{max(values_ms):.1f}"
