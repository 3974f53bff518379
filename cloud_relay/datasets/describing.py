"""What the records of a version are like, gathered while they are listed: times, places, quality, and what there is of
each node, rule, key and step of lineage.

Nodes may invent keys, so at most ``MAX_NAMED`` of each are named; records of further ones are counted together.
"""

from collections import Counter
from typing import Final

import msgspec

from cloud_relay.datasets.versions import Extent, KeyShape, NamedCounts, Qualities
from cloud_relay.export.columns import kind_of
from cloud_relay.export.places import PlacesSeen
from cloud_relay.query.forms import value_of
from cloud_relay.query.searching import StoredRecord

MAX_NAMED: Final = 2_000
"""Names of one sort in a version's file: 0.4 MB if keys are of the usual length."""
MAX_PER_KEY: Final = 16
"""Units of a key. One key should have one."""


class Tallying:
    """Counts names, up to ``MAX_NAMED`` of them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._others = 0

    def add(self, name: str) -> bool:
        """Count a name. False: it is one too many."""
        if name in self._counts or len(self._counts) < MAX_NAMED:
            self._counts[name] += 1
            return True
        self._others += 1
        return False

    def tally(self) -> NamedCounts:
        """What was counted; equal counts are in the order of their names."""
        return NamedCounts(dict(sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))), self._others)


class RecordsDescribed:
    """Takes the records of a version one by one."""

    def __init__(self) -> None:
        self._origins, self._rules, self._keys, self._lineage = Tallying(), Tallying(), Tallying(), Tallying()
        self._units: dict[str, list[str]] = {}
        self._kinds: dict[str, list[str]] = {}
        self._places = PlacesSeen()
        self._records = 0
        self._event_ns = self._received_ns = (2**63, -1)
        self._quality = (1.0, 0.0, 0.0)

    def add(self, record: StoredRecord) -> None:
        """Take the next one."""
        fields = record.fields
        self._records += 1
        self._origins.add(fields["origin"])
        self._rules.add(fields["rule"])
        for step in msgspec.json.decode(fields["lineage"]):
            self._lineage.add(step)
        if self._keys.add(fields["key"]):
            _note(self._units.setdefault(fields["key"], []), fields["unit"])
            _note(self._kinds.setdefault(fields["key"], []), kind_of(value_of(record)))
        self._places.add(fields["latitude_deg"], fields["longitude_deg"])
        self._event_ns = _widened(self._event_ns, fields["event_utc_ns"])
        self._received_ns = _widened(self._received_ns, fields["received_utc_ns"])
        least, total, most = self._quality
        self._quality = min(least, fields["quality"]), total + fields["quality"], max(most, fields["quality"])

    def extent(self) -> Extent | None:
        """Times, places and quality; None: there was no record."""
        bounds = self._places.bounds()
        if bounds is None:
            return None
        least, total, most = self._quality
        return Extent(
            *self._event_ns, *self._received_ns, *bounds, quality=Qualities(least, total / self._records, most)
        )

    def origins(self) -> NamedCounts:
        """Records of each node."""
        return self._origins.tally()

    def rules(self) -> NamedCounts:
        """Records of each rule."""
        return self._rules.tally()

    def lineage(self) -> NamedCounts:
        """Records of each step."""
        return self._lineage.tally()

    def keys(self) -> tuple[dict[str, KeyShape], int]:
        """What the records of each key are like, and how many have other keys."""
        tally = self._keys.tally()
        shapes = {
            key: KeyShape(count, tuple(sorted(self._units[key])), tuple(sorted(self._kinds[key])))
            for key, count in tally.named.items()
        }
        return shapes, tally.others


def _note(seen: list[str], word: str) -> None:
    if word not in seen and len(seen) < MAX_PER_KEY:
        seen.append(word)


def _widened(span: tuple[int, int], value: int) -> tuple[int, int]:
    least, most = span
    return min(least, value), max(most, value)
