"""Who asked for the runs by which a release is judged: no neighbour alone decides about it.

Whoever may ask for inferences can choose inputs that a good model can't take, or takes long for. So the failures of the
one neighbour with the most of them don't count, as soon as enough runs were asked for by others. Where hardly anybody
else asks all count, because a release that fails for its only user is a bad one.
"""

import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from protocols.releases.rollout.health import FEW_RUNS

MAX_ASKERS: Final = 64
"""Neighbours that are told apart. Vehicles pass by without end; of those above, the one with the fewest failures counts
as others do from then on."""
_P95_SHARE: Final = 20
"""Whoever asked for less than one in so many runs can't move their 95th percentile much."""

Asker = str | None
"""The neighbour that asked; None: this node."""
Timed = tuple[Asker, int]
"""Who asked for a run, and what it took in nanoseconds."""


@dataclass(slots=True)
class _Count:
    runs: int = 0
    bad: int = 0


class AskedRuns:
    """Runs, and how many of them were bad in some way, by who asked for them. Its methods may be called from any
    thread."""

    def __init__(self) -> None:
        self._counts: dict[Asker, _Count] = {None: _Count()}
        self._lock = threading.Lock()

    def note(self, asker: Asker, *, is_bad: bool) -> None:
        """One more run."""
        with self._lock:
            if asker not in self._counts:
                if len(self._counts) > MAX_ASKERS:
                    self._fold()
                self._counts[asker] = _Count()
            count = self._counts[asker]
            count.runs += 1
            count.bad += is_bad

    def _fold(self) -> None:
        least = min((asker for asker in self._counts if asker is not None), key=lambda asker: self._counts[asker].bad)
        folded, own = self._counts.pop(least), self._counts[None]
        own.runs += folded.runs
        own.bad += folded.bad

    def counted(self) -> tuple[int, int]:
        """How many runs count, and how many of them were bad."""
        with self._lock:
            counts = [(asker, _Count(count.runs, count.bad)) for asker, count in self._counts.items()]
        runs, bad = sum(count.runs for _, count in counts), sum(count.bad for _, count in counts)
        neighbours = [count for asker, count in counts if asker is not None]
        worst = max(neighbours, key=lambda count: count.bad, default=_Count())
        if runs - worst.runs < FEW_RUNS:
            return runs, bad
        return runs - worst.bad, bad - worst.bad


def p95s_ns(now: Collection[Timed], before: Collection[Timed]) -> tuple[int, int]:
    """The 95th percentiles of the last runs of two releases, 0 where there were none. Without the one neighbour without
    which they differ the least, if others asked for enough runs of both."""
    found = [(_p95_ns(now), _p95_ns(before))]
    for asker in _frequent(now) | _frequent(before):
        rests = [[run for run in runs if run[0] != asker] for runs in (now, before)]
        if min(map(len, rests)) >= FEW_RUNS:
            found.append((_p95_ns(rests[0]), _p95_ns(rests[1])))
    return min(found, key=lambda p95s: p95s[0] / p95s[1] if p95s[1] else 0)


def _frequent(runs: Collection[Timed]) -> set[Asker]:
    counts = Counter(asker for asker, _ in runs)
    return {asker for asker, count in counts.items() if asker is not None and count * _P95_SHARE >= len(runs)}


def _p95_ns(runs: Collection[Timed]) -> int:
    ordered = sorted(took_ns for _, took_ns in runs)
    return ordered[-(-95 * len(ordered) // 100) - 1] if ordered else 0
