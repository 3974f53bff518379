"""Which group of an aggregate a record belongs to.

Cells are squares in degrees, counted from the South Pole and from 180° west, and named by their south-western corner.
Places are rounded to 1e-7° before, about a centimetre, so a place that is said to be on an edge is in the cell that
begins there. The meridians 180° and −180° are one, and a pole is one point: its longitude is taken as −180°.
"""

from typing import Final, NamedTuple

from cloud_relay.aggregates.definition import AggregateDefinition

UNITS_PER_DEGREE: Final = 10_000_000
_HALF_CIRCLE: Final = 180 * UNITS_PER_DEGREE
_QUARTER_CIRCLE: Final = 90 * UNITS_PER_DEGREE


class AggregateRecord(NamedTuple):
    """What an aggregate needs of a record that was stored."""

    origin: str
    """The node that sent it."""
    rule: str
    key: str
    unit: str
    latitude_deg: float
    longitude_deg: float
    event_utc_ns: int
    received_utc_ns: int
    value: str
    """As the store's JSON."""
    encoded: bytes


class GroupName(NamedTuple):
    """Names a group of one aggregate, in the order in which groups are shown. What groups are not formed by is empty,
    or 0."""

    bucket_utc_ns: int
    """When its span of time begins."""
    key: str
    origin: str
    rule: str
    unit: str
    """Numbers of different units are never put together."""
    south_e7: int
    """The edge of its cell in 1e-7°."""
    west_e7: int


def group_of(definition: AggregateDefinition, record: AggregateRecord) -> GroupName:
    """The group of a record that the aggregate is about."""
    by, cell = definition.by, (0, 0)
    if definition.cell_e7 is not None:
        cell = cell_of(record.latitude_deg, record.longitude_deg, definition.cell_e7)
    return GroupName(
        record.event_utc_ns - record.event_utc_ns % definition.bucket_ns,
        record.key if "key" in by else "",
        record.origin if "origin" in by else "",
        record.rule if "rule" in by else "",
        record.unit,
        *cell,
    )


def cell_of(latitude_deg: float, longitude_deg: float, cell_e7: int) -> tuple[int, int]:
    """The southern and the western edge of the cell of a place."""
    south = round(latitude_deg * UNITS_PER_DEGREE) + _QUARTER_CIRCLE
    west = round(longitude_deg * UNITS_PER_DEGREE) + _HALF_CIRCLE
    if south in (0, 2 * _QUARTER_CIRCLE) or west == 2 * _HALF_CIRCLE:
        west = 0
    return south // cell_e7 * cell_e7 - _QUARTER_CIRCLE, west // cell_e7 * cell_e7 - _HALF_CIRCLE
