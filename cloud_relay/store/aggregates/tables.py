"""The tables of kept aggregates.

``aggregates`` has what each one is, how far it is filled from the records that were there before it, and what it does
not have. ``aggregate_groups`` has what is kept of each group, see :mod:`cloud_relay.aggregates.summary`. Each change of
a group gets a number, which only grows, so whoever has seen a number has seen all changes below it. The last one is in
``aggregate_changes``.
"""

from typing import Final

from cloud_relay.aggregates.grouping import GroupName

TABLES: Final = """
CREATE TABLE aggregates (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, identity TEXT NOT NULL, percentiles TEXT NOT NULL,
    max_groups INTEGER NOT NULL, dropped INTEGER NOT NULL DEFAULT 0, made_utc_ns INTEGER NOT NULL,
    filled_to INTEGER NOT NULL, fill_end INTEGER NOT NULL, floor_utc_ns INTEGER NOT NULL DEFAULT 0,
    below_floor INTEGER NOT NULL DEFAULT 0, beyond INTEGER NOT NULL DEFAULT 0, beyond_named TEXT NOT NULL DEFAULT '',
    ahead INTEGER NOT NULL DEFAULT 0, let_go INTEGER NOT NULL DEFAULT 0);
CREATE TABLE aggregate_groups (
    number INTEGER PRIMARY KEY, aggregate INTEGER NOT NULL, bucket_utc_ns INTEGER NOT NULL, key TEXT NOT NULL,
    origin TEXT NOT NULL, rule TEXT NOT NULL, unit TEXT NOT NULL, south_e7 INTEGER NOT NULL, west_e7 INTEGER NOT NULL,
    opened_by TEXT NOT NULL, change INTEGER NOT NULL, summary BLOB NOT NULL);
CREATE UNIQUE INDEX aggregate_groups_in_order ON aggregate_groups
    (aggregate, bucket_utc_ns, key, origin, rule, unit, south_e7, west_e7);
CREATE UNIQUE INDEX aggregate_groups_by_change ON aggregate_groups (aggregate, change);
CREATE INDEX aggregate_groups_by_opener ON aggregate_groups (aggregate, opened_by, bucket_utc_ns);
CREATE TABLE aggregate_changes (last INTEGER NOT NULL);
INSERT INTO aggregate_changes VALUES (0)
"""
"""What version 3 did not have."""
NAME_COLUMNS: Final = ", ".join(GroupName._fields)
"""Those of a group's name, in order."""
