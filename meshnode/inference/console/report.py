"""Who ran what: the outcome of each request of ``meshnode infer``, and a table of all of them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Self

from meshnode.console.printing import printable
from protocols.base.errors import BudgetExhausted, InputInvalid, LocalProtocolError, MeshError, ModelUnknown
from protocols.inference.relay import where_ran

_OUTCOMES: Final[tuple[tuple[type[MeshError], str], ...]] = (
    (InputInvalid, "invalid"),
    (LocalProtocolError, "invalid"),
    (ModelUnknown, "unknown"),
    (BudgetExhausted, "late"),
)
_MAX_ERROR_CHARS: Final = 1_000
_PARTS_HEAD: Final = ("part", "node", "where", "requests", "compute p50", "queue p50", "total p50", "max ms", "replays")
_MAX_NODES_SHOWN: Final = 4
_HEAD: Final = (
    "node", "where", "requests", "compute p50", "max ms", "queue p50", "max ms", "total p50", "max ms", "hedged",
    "replayed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PartLine:
    """A stage or a shard of one request. Times are in milliseconds."""

    kind: str
    index: int
    node: str
    took_ms: float
    compute_ms: float
    queued_ms: float
    replays: int


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
    parts: tuple[PartLine, ...] = ()
    """Of a request that was divided, as far as the node tells them."""

    @classmethod
    def done(cls, name: str, parameters: dict[str, Any]) -> Self:
        """The report of a request that was answered, from the parameters of the answer."""
        runs = [run.rpartition(":") for run in str(parameters.get("attempts", "")).split(",") if run]
        compute_ms, queued_ms, took_ms = (
            float(parameters.get(f"{key}_ms", 0)) for key in ("compute", "queued", "took")
        )
        ran_on = printable(str(parameters.get("ran_on", "?")))
        attempts, parts = tuple((run[0], run[2]) for run in runs), _parts(str(parameters.get("parts") or "[]"))
        return cls(name, "done", "", ran_on, compute_ms, queued_ms, took_ms, attempts, parts)

    @classmethod
    def failed(cls, name: str, error: MeshError) -> Self:
        """The report of a request without a result."""
        kind = next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), "failed")
        return cls(name, kind, printable(str(error), _MAX_ERROR_CHARS))

    @property
    def nodes(self) -> str:
        """Who computed it: one node, or those of its parts in their order."""
        nodes = list(dict.fromkeys(part.node for part in self.parts)) or [self.ran_on]
        more = f"+{len(nodes) - _MAX_NODES_SHOWN}" if len(nodes) > _MAX_NODES_SHOWN else ""
        return "+".join(nodes[:_MAX_NODES_SHOWN]) + more

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
            f"{self.name}  done  {self.nodes} ({_where(self.nodes, here)})  compute {self.compute_ms:.1f} ms, queue "
            f"{self.queued_ms:.1f} ms, total {self.took_ms:.1f} ms" + (f"  after {', '.join(others)}" if others else "")
        )


def _parts(text: str) -> tuple[PartLine, ...]:
    """Those in the parameter of an answer; none when it is of a kind that this version does not know."""
    try:
        return tuple(
            PartLine(
                printable(str(part["kind"])), int(part["index"]), printable(str(part["node"])), float(part["took_ms"]),
                float(part["compute_ms"]), float(part["queued_ms"]), int(part["replays"]),
            )
            for part in json.loads(text)
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return ()


def _where(node: str, here: str) -> str:
    return "divided" if "+" in node else where_ran(node, here)


def parts_table(reports: Sequence[RequestReport], here: str) -> Iterator[str]:
    """The lines of a table with a row for each stage and node that ran it, and for each node that ran shards; none when
    no request was divided."""
    rows: dict[tuple[str, int, str], list[PartLine]] = {}
    for part in (part for report in reports for part in report.parts):
        row = (part.kind, part.index if part.kind == "stage" else 0, part.node)
        rows.setdefault(row, []).append(part)
    if rows:
        yield from _aligned([_PARTS_HEAD, *(
            (
                f"{kind} {index + 1}" if kind == "stage" else f"{kind}s", node, _where(node, here), str(len(parts)),
                f"{median(part.compute_ms for part in parts):.1f}", f"{median(part.queued_ms for part in parts):.1f}",
                *_times([part.took_ms for part in parts]), str(sum(part.replays for part in parts)),
            )
            for (kind, index, node), parts in sorted(rows.items())
        )], 3)  # fmt: skip


def table(reports: Sequence[RequestReport], here: str) -> Iterator[str]:
    """The lines of a table with a row for each node that computed, the busiest first, and one for each kind of
    failure."""
    rows: list[tuple[str, ...]] = [_HEAD]
    nodes = Counter(report.nodes for report in reports if report.outcome == "done")
    for node, count in nodes.most_common():
        own = [report for report in reports if report.outcome == "done" and report.nodes == node]
        rows.append((
            node, _where(node, here), str(count), *_times([report.compute_ms for report in own]),
            *_times([report.queued_ms for report in own]), *_times([report.took_ms for report in own]),
            str(sum(report.hedged for report in own)), str(sum(report.replayed for report in own)),
        ))  # fmt: skip
    failures = Counter(report.outcome for report in reports if report.outcome != "done")
    rows += [("-", outcome, str(count), *["-"] * 8) for outcome, count in failures.most_common()]
    yield from _aligned(rows, 2)


def _aligned(rows: Sequence[Sequence[str]], texts: int) -> Iterator[str]:
    """``texts``: how many columns are texts; the others are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:texts], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[texts:], widths[texts:], strict=True)]
        yield "  ".join((*left, *right))


def _times(values_ms: Sequence[float]) -> tuple[str, str]:
    return f"{median(values_ms):.1f}", f"{max(values_ms):.1f}"
