"""The report of an outcome: a table for people, ``bench.json`` for programs, and the promised bars.

``bench.json`` is a list of ``{"name", "unit", "ours", "peer", "peer_value", "ratio"}``, one entry for each measure and
peer, with medians over the runs; ``ratio`` is above 1 where ours is better. ``bench_runs.json`` beside it has every
single run, and the machine that it ran on.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.contender import NAMES, OURS, PEERS
from benchmarks.schedule import Outcome

UNITS = {
    "reading_64B_p50": "us",
    "reading_64B_p99": "us",
    "reading_16KiB_p50": "us",
    "readings_per_s": "1/s",
    "gathered_readings_per_s": "1/s",
    "tensor_1MB_bytes_per_s": "B/s",
    "remote_inference_overhead": "ms",
}
"""The measures that are reported."""
RATES = frozenset({"readings_per_s", "gathered_readings_per_s", "tensor_1MB_bytes_per_s"})
"""The measures of which more is better. Of the others less is better."""

P50_BAR = 1.4
"""The one-way p50 of a 64 B reading may be at most this many times that of bare pynng."""
P99_BAR = 2.0
READINGS_BAR = 150_000.0
"""The least number of small readings a second into one callback."""
INFERENCE_BAR_MS = 3.0
ZENOH_BARS = {
    "reading_64B_p50": 2.0,
    "reading_64B_p99": 2.0,
    "reading_16KiB_p50": 1.0,
    "gathered_readings_per_s": 1.5,
    "tensor_1MB_bytes_per_s": 1.0,
}
"""By measure: the least factor by which ours has to be better than zenoh."""


def ratio(measure: str, ours: float, peer: float) -> float:
    """The factor by which ours is better."""
    return ours / peer if measure in RATES else peer / ours


def entries(outcome: Outcome) -> list[dict[str, Any]]:
    """The content of ``bench.json``."""
    found = []
    for measure, unit in UNITS.items():
        ours = outcome.median(measure, "ours")
        for peer in PEERS:
            value = outcome.median(measure, peer)
            if ours is not None and value is not None:
                found.append(
                    {
                        "name": measure,
                        "unit": unit,
                        "ours": _significant(ours),
                        "peer": peer,
                        "peer_value": _significant(value),
                        "ratio": round(ratio(measure, ours, value), 3),
                    }
                )
    return found


def write(outcome: Outcome, path: Path) -> None:
    """Write ``path`` (``bench.json``) and ``bench_runs.json`` in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries(outcome), indent=1) + "\n", encoding="utf-8")
    runs = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        },
        "versions": dict(sorted(outcome.versions.items())),
        "runs": outcome.values,
        "failures": outcome.failures,
    }
    path.with_name("bench_runs.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def table(outcome: Outcome) -> str:
    """All measures as plain text: the median, least and greatest value of the runs, and ratios."""
    rows = [("measure", "unit", *(title for name in NAMES for title in _titles(name)))]
    for measure, unit in UNITS.items():
        if measure not in outcome.values:
            continue
        ours = outcome.median(measure, "ours")
        cells = [measure, unit]
        for name in NAMES:
            value = outcome.median(measure, name)
            cells.append("-" if value is None else _with_spread(value, outcome.values[measure][name]))
            if name != "ours":
                cells.append("" if ours is None or value is None else f"{ratio(measure, ours, value):.2f}x")
        rows.append(tuple(cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = max((len(runs) for by_name in outcome.values.values() for runs in by_name.values()), default=0)
    lines.append(f"median (least..most) of {count} interleaved runs; a ratio above 1 means that ours is better")
    for name, failures in outcome.failures.items():
        verdict = "FAILED" if name == OURS else "LEFT OUT"
        lines += [f"{verdict} {name}, {failure}" for failure in failures]
    return "\n".join(lines)


def status(outcome: Outcome, missed: list[str]) -> int:
    """The exit status: 1 when ours failed, when a promise in ``missed`` was missed, or when nothing was measured.

    A peer that fails does not change it: its row is missing, and the table says why.
    """
    return 1 if OURS in outcome.failures or missed or not outcome.values else 0


def missed_bars(outcome: Outcome) -> list[str]:
    """The bars that were missed, one sentence each. A bar that could not be measured counts as missed."""
    missed = []
    for measure, bar in (("reading_64B_p50", P50_BAR), ("reading_64B_p99", P99_BAR)):
        ours, pynng = outcome.median(measure, "ours"), outcome.median(measure, "pynng")
        if ours is None or pynng is None:
            missed.append(f"{measure} was not measured beside pynng")
        elif ours > bar * pynng:
            missed.append(f"{measure} is {ours:.1f} us, above {bar} times the {pynng:.1f} us of bare pynng")
    rate = outcome.median("readings_per_s", "ours")
    if rate is None or rate < READINGS_BAR:
        missed.append(f"readings_per_s is {_shown(rate or 0)}, below {READINGS_BAR:,.0f}")
    for measure, bar in ZENOH_BARS.items():
        ours, zenoh = outcome.median(measure, "ours"), outcome.median(measure, "zenoh")
        if ours is None or zenoh is None:
            missed.append(f"{measure} was not measured beside zenoh")
        elif ratio(measure, ours, zenoh) < bar:
            missed.append(f"{measure} is {ratio(measure, ours, zenoh):.2f} times as good as zenoh's, below {bar}")
    overhead = outcome.median("remote_inference_overhead", "ours")
    if overhead is None or overhead >= INFERENCE_BAR_MS:
        shown = "not measured" if overhead is None else f"{overhead:.2f} ms"
        missed.append(f"remote_inference_overhead is {shown}: it has to be below {INFERENCE_BAR_MS:.0f} ms")
    return missed


def _titles(name: str) -> tuple[str, ...]:
    return (name,) if name == "ours" else (name, "ratio")


def _with_spread(median: float, runs: list[float]) -> str:
    return f"{_shown(median)} ({_shown(min(runs))}..{_shown(max(runs))})"


def _significant(value: float) -> float:
    return float(f"{value:.5g}")


def _shown(value: float) -> str:
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"
