"""What the records of one transaction add to which groups. Nothing is looked up while they come: a batch of a vehicle
has many records of few groups, and each group is then read and written once."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import AggregateRecord, GroupName, group_of
from cloud_relay.aggregates.measuring import Measured, measured
from protocols.base.keys import matches
from protocols.base.limits import SECOND

MAX_AHEAD_NS: Final = 86_400 * SECOND
"""A record that was sensed so long after it was received tells a wrong time. It belongs to no group: a node could push
the buckets of all others out of an aggregate with buckets of the year 2200."""
_MAX_REMEMBERED: Final = 65_536
"""Pairs of key and rule for which it is remembered which aggregates are about them."""


class GroupTally(NamedTuple):
    """What is added to one group."""

    origin: str
    """Whose record was the first."""
    readings: list[Measured]


class Tallies:
    """Of some aggregates, by their numbers."""

    def __init__(self, definitions: Mapping[int, AggregateDefinition]) -> None:
        self._definitions = dict(definitions)
        self._about: dict[tuple[str, str], tuple[int, ...]] = {}
        self.groups: dict[tuple[int, GroupName], GroupTally] = {}
        self.ahead: dict[int, int] = {}
        """Records that are too far ahead of their time, by aggregate."""

    def note(self, record: AggregateRecord) -> None:
        """Add a record to the groups of all these aggregates that are about it."""
        for number in self._aggregates_of(record.key, record.rule):
            if record.event_utc_ns - record.received_utc_ns > MAX_AHEAD_NS:
                self.ahead[number] = self.ahead.get(number, 0) + 1
                continue
            definition = self._definitions[number]
            name = (number, group_of(definition, record))
            reading = measured(record.value, record.encoded, definition.field)
            tally = self.groups.get(name)
            if tally is None:
                self.groups[name] = GroupTally(record.origin, [reading])
            else:
                tally.readings.append(reading)

    def clear(self) -> None:
        """Begin anew."""
        self.groups.clear()
        self.ahead.clear()

    def _aggregates_of(self, key: str, rule: str) -> tuple[int, ...]:
        found = self._about.get((key, rule))
        if found is None:
            if len(self._about) >= _MAX_REMEMBERED:
                self._about.clear()
            found = tuple(
                number
                for number, definition in self._definitions.items()
                if definition.rule in (None, rule) and matches(definition.key, key)
            )
            self._about[key, rule] = found
        return found
