"""A slow, plain evaluator of windows, which judges the fast one: it keeps all readings and looks at each of them for
every window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocols.records.windows.kinds import FUTURE_NS, SessionWindow, TimeWindow
from protocols.wire.readings import Reading


@dataclass(frozen=True)
class Came:
    """A reading, and when it came."""

    reading: Reading
    utc_ns: int


def once(came: Sequence[Came]) -> list[Came]:
    """Without those that came before."""
    kept: dict[tuple[str, str, int], Came] = {}
    for one in came:
        reading = one.reading
        kept.setdefault((reading.origin, reading.key, reading.sequence), one)
    return [one for one in kept.values() if one.reading.when.utc_ns <= one.utc_ns + FUTURE_NS]


def time_windows(window: TimeWindow, came: Sequence[Came]) -> dict[tuple[str, int], list[Reading]]:
    """The readings of each window, by key and end."""
    found: dict[tuple[str, int], list[Reading]] = {}
    for one in once(came):
        utc_ns = one.reading.when.utc_ns
        first_end_ns = (utc_ns // window.every_ns + 1) * window.every_ns
        for end_ns in range(first_end_ns, first_end_ns + window.size_ns, window.every_ns):
            if end_ns + window.late_ns > one.utc_ns:  # it was open when the reading came
                found.setdefault((one.reading.key, end_ns), []).append(one.reading)
    # A reading counts in the windows that are still open; it may be too late for those before.
    for (key, end_ns), readings in found.items():
        everything = [
            one.reading for one in once(came)
            if one.reading.key == key and end_ns - window.size_ns <= one.reading.when.utc_ns < end_ns
            and end_ns + window.late_ns > one.utc_ns
        ]  # fmt: skip
        assert len(everything) == len(readings)
    return found


def sessions(window: SessionWindow, came: Sequence[Came]) -> dict[tuple[str, int], list[Reading]]:
    """The readings of each session, by key and its last reading. Only for readings that come in the order in which they
    were sensed."""
    found: dict[tuple[str, int], list[Reading]] = {}
    for key in {one.reading.key for one in came}:
        group: list[Reading] = []
        for one in once(came):
            if one.reading.key != key:
                continue
            utc_ns = one.reading.when.utc_ns
            if utc_ns + window.gap_ns + window.late_ns <= one.utc_ns:
                continue
            is_over = group and (
                utc_ns - group[-1].when.utc_ns >= window.gap_ns or utc_ns - group[0].when.utc_ns > window.max_ns
            )
            if is_over:
                found[key, group[-1].when.utc_ns] = group
                group = []
            group.append(one.reading)
        if group:
            found[key, group[-1].when.utc_ns] = group
    return found


def results(readings: Sequence[Reading]) -> dict[str, Any]:
    """What all functions come to."""
    values = [float(reading.value) for reading in readings]
    in_time = sorted(readings, key=lambda reading: reading.when.utc_ns)
    ordered = sorted(values)

    def percentile(share: float) -> float:
        """The nearest rank."""
        return next(v for rank, v in enumerate(ordered, 1) if rank >= share * len(ordered) - 1e-12)

    return {
        "count": len(values), "min": min(values), "max": max(values), "sum": math.fsum(values),
        "mean": math.fsum(values) / len(values), "first": in_time[0].when.utc_ns, "last": in_time[-1].when.utc_ns,
        "distinct": len(set(values)), "p50": percentile(0.5), "p95": percentile(0.95),
    }  # fmt: skip
