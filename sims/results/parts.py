"""Counts who ran which part of the requests that were divided: stages of a pipeline, shards of a batch.

A request says of each part who computed it and how many bytes went in and came out. Which cuts a stage lies between
follows from these sizes. Of two cuts with the same size the first one that can be meant is named.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from protocols.inference.events import PartReport
from sims.results.histogram import Histogram
from sims.results.result import PartRuns
from sims.scenario.file import Inference, Scenario

MAX_ROWS: Final = 200
"""Parts that are told apart. Each plan of each model has a few."""


class _Row:
    __slots__ = ("compute", "runs", "took")

    def __init__(self, runs: PartRuns) -> None:
        self.runs = runs
        self.took, self.compute = Histogram(), Histogram()


class Parts:
    """The parts of all requests of a run."""

    def __init__(self, scenario: Scenario) -> None:
        self._works = scenario.models
        self._groups = {name: group for group in scenario.groups for name in scenario.members(group.name)}
        self._rows: dict[tuple[str, str, int, int, str, str, str], _Row] = {}
        self._uncounted = 0

    def add(self, node: str, model: str, parts: Sequence[PartReport]) -> None:
        """Count the parts of one request of ``node``."""
        for part, between in zip(parts, _between(self._works.get(model), parts), strict=True):
            group = self._groups.get(part.node)
            by = "here" if part.node == node else part.node if group is None else group.name
            place = (part.index, len(parts)) if part.kind == "stage" else (0, 0)
            key = (model, part.kind, *place, between, by, "" if group is None else group.device)
            row = self._rows.get(key)
            if row is None:
                if len(self._rows) >= MAX_ROWS:
                    self._uncounted += 1
                    continue
                row = self._rows[key] = _Row(PartRuns(*key))
            row.runs.runs += 1
            row.runs.replays += part.replays
            row.runs.input_bytes, row.runs.output_bytes = part.input_bytes, part.output_bytes
            row.took.add(part.took_ns)
            row.compute.add(part.compute_us * 1_000)

    def runs(self) -> list[PartRuns]:
        """What was counted: by model, number of parts and place among them, and who ran a part most often first."""
        for row in self._rows.values():
            row.runs.took_p50_ms = row.took.spread("ms").quantiles["p50"]
            row.runs.compute_p50_ms = row.compute.spread("ms").quantiles["p50"]
        return sorted(
            (row.runs for row in self._rows.values()),
            key=lambda r: (r.model, r.kind, r.of, r.index, r.between, -r.runs, r.by, r.device),
        )  # fmt: skip

    def left_out(self) -> list[str]:
        """What the bound cut, in words."""
        return [f"parts: {self._uncounted} runs beside the first {MAX_ROWS} kinds"] if self._uncounted else []


def _between(work: Inference | None, parts: Sequence[PartReport]) -> Iterator[str]:
    """Where each of the parts of a request begins and ends, in words; empty for shards."""
    cuts = work.cuts if work is not None else ()
    begins, next_cut = "inputs", 0
    for part in parts:
        if part.kind != "stage":
            yield ""
            continue
        ends = "outputs"
        if part.index < len(parts) - 1:
            sizes = (number for number in range(next_cut, len(cuts)) if cuts[number].size_bytes == part.output_bytes)
            cut = next(sizes, None)
            ends, next_cut = ("?", next_cut) if cut is None else (f"cut {cut + 1}", cut + 1)
        yield f"{begins} to {ends}"
        begins = ends
