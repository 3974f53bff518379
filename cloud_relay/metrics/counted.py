"""The statistics of the relay's parts as metrics: whatever a part counts by name is here without a line of its own.

A number is a family ``cloud_relay_<name>``. A part that has a mapping of numbers is a family with the label ``what``;
one that has a mapping of mappings, as for several sinks by name, has the label ``part``, too. What is true or false in
a part is 1 or 0. Texts and None are left out. Invariant: the number of series is bounded whatever a part tells: of each
family the first ``MAX_NAMES`` names of one mapping have a series, and the rest share ``other``.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from cloud_relay.metrics.families import Labels, counter, gauge

if TYPE_CHECKING:
    from prometheus_client.core import Metric

MAX_NAMES: Final = 64
GAUGES: Final = frozenset({
    "requesters", "batches_waiting", "store_bytes", "waiting", "backlog", "backlog_bytes", "behind", "open", "releases",
    "orders_running", "orders_paused", "orders_aborted", "orders_promoted", "oldest_waits_s",
    "working", "delivering", "delivered_utc_s", "held",
})  # fmt: skip
"""Names in statistics that go up and down, in whichever part; all others only grow."""


class CountedParts:
    """Turns statistics into families. It remembers which names had a series."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}

    def families(self, statistics: Mapping[str, Any]) -> "Iterable[Metric]":
        """One family for each number, and one or two for each part."""
        for name, told in sorted(statistics.items()):
            plain = re.sub(r"\W", "_", name)
            if _is_number(told):
                make = gauge if name in GAUGES else counter
                yield make(plain, f"See {name!r} in the reference.", [((), float(told))])
            elif isinstance(told, Mapping):
                yield from self._of_part(plain, told)

    def _of_part(self, name: str, told: Mapping[str, Any]) -> "Iterable[Metric]":
        nested = any(isinstance(value, Mapping) for value in told.values())
        labels = ("part", "what") if nested else ("what",)
        sums: dict[bool, dict[Labels, float]] = {False: {}, True: {}}
        for path, value in _numbers(told, nested=nested):
            series = sums[path[-1] in GAUGES]
            bounded = tuple(self._bounded(f"{name}.{place}", part) for place, part in enumerate(path))
            series[bounded] = series.get(bounded, 0.0) + value
        if sums[False] or not sums[True]:
            yield counter(name, f"What {name!r} has counted.", sorted(sums[False].items()), *labels)
        if sums[True]:
            yield gauge(f"{name}_now", f"How {name!r} is now.", sorted(sums[True].items()), *labels)

    def _bounded(self, of: str, value: str) -> str:
        seen = self._seen.setdefault(of, set())
        if value not in seen:
            if len(seen) >= MAX_NAMES:
                return "other"
            seen.add(value)
        return value


def _numbers(told: Mapping[str, Any], *, nested: bool) -> Iterable[tuple[Labels, float]]:
    for name, value in told.items():
        if isinstance(value, int | float):
            yield (("", name) if nested else (name,)), float(value)
        elif isinstance(value, Mapping):
            yield from (((name, inner), float(each)) for inner, each in value.items() if isinstance(each, int | float))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
