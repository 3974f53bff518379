"""What is known of a version beside the list of its records."""

from dataclasses import replace
from typing import Final

from msgspec import Struct

from cloud_relay.query.selection import Query, untrusted_query
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND

FORM: Final = 1


class NamedCounts(Struct, frozen=True):
    """How many records had each of several names, the most frequent first."""

    named: dict[str, int]
    others: int
    """Records whose names are not listed, because there are too many."""


class KeyShape(Struct, frozen=True):
    """What the records of one key are like."""

    records: int
    units: tuple[str, ...]
    kinds: tuple[str, ...]
    """Of the values: ``float``, ``map`` and so on."""


class Qualities(Struct, frozen=True):
    """How good the nodes held the readings to be."""

    min: float
    mean: float
    max: float


class Extent(Struct, frozen=True):
    """Which times and places the records of a version have. A version without records has none."""

    first_utc_ns: int
    last_utc_ns: int
    received_first_utc_ns: int
    received_last_utc_ns: int
    west_deg: float
    south_deg: float
    east_deg: float
    """Less than west where the box crosses 180°."""
    north_deg: float
    quality: Qualities


class VersionForm(Struct, frozen=True):
    """Which form a version's file has. Of other forms nothing else is known."""

    form: int


class DatasetVersion(Struct, frozen=True, forbid_unknown_fields=True):
    """A version, as its file has it."""

    form: int
    digest: str
    """See :mod:`cloud_relay.datasets.digest`."""
    records: int
    question: dict[str, str]
    """The filters as they were given."""
    asked_utc_ns: int
    """Ages in the question count from then."""
    until_utc_ns: int
    """Records that were sensed from then on don't belong to it, whatever the question says."""
    extent: Extent | None
    origins: NamedCounts
    rules: NamedCounts
    lineage: NamedCounts
    """Records by step; one with two steps counts twice."""
    keys: dict[str, KeyShape]
    other_keys: int
    """Records whose keys are not listed, because there are too many."""
    licence: str = ""
    notes: str = ""
    software: str = ""

    def query(self) -> Query:
        """The question with its times as they were then, oldest first, without a limit."""
        asked = untrusted_query(self.question, UtcNs(self.asked_utc_ns))
        return narrowed(asked, None if self.extent is None else self.extent.first_utc_ns, self.until_utc_ns)

    @property
    def made_utc_s(self) -> int:
        """When it was made."""
        return self.asked_utc_ns // SECOND


def narrowed(query: Query, since_utc_ns: int | None, until_utc_ns: int) -> Query:
    """A question about all records, oldest first, within narrower times."""
    since = query.since_utc_ns if since_utc_ns is None else since_utc_ns
    return replace(query, since_utc_ns=since, until_utc_ns=until_utc_ns, limit=2**63, newest_first=False)
