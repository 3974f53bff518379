"""Open windows as bytes, so that they survive a restart.

A store of rows keeps what :meth:`Restorable.changed` gives, at most a second old. When the node was killed, its windows
are those of the last time that they were saved. Those of them that were derived since are given up, because a record
must not come twice. So are windows of counts, which know no time.

:class:`WindowTally` says which windows were derived, and counts the readings in open ones. Whoever keeps both at every
moment knows after a kill what to give up, and how many readings were lost: those in no window that was restored.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from protocols.base.errors import LocalProtocolError
from protocols.records.windows.summary import Functions, Summary


class SavedSummary(Struct, frozen=True, array_like=True):
    """See :class:`protocols.records.windows.summary.Summary`."""

    count: int
    total: float
    rest: float
    least: float
    greatest: float
    first: Any
    last: Any
    first_ns: int
    last_ns: int
    values: bytes
    sketched_numbers: bytes | None
    digests: list[int]
    sketched_digests: bytes | None
    box_deg: tuple[float, float, float, float]
    accuracy_m: float
    quality: float
    uncertainty_ns: int
    lineage: tuple[str, ...]


class SavedRow(Struct, frozen=True, array_like=True):
    """A pane, a session or the panes of one partition."""

    partition: str
    payer: str
    number: int
    summaries: tuple[SavedSummary, ...]
    open_from: int = 0
    """Of a pane, the number of the first window with it that is open: others were closed before its readings came."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """How a node ended."""

    derived_ns: int
    """Every window of time that was over later than this was not derived."""
    clean: bool
    """Whether its windows were saved when it ended."""


@dataclass(slots=True)
class WindowTally:
    """Where readings are that were taken. Rules may share one."""

    held: int = 0
    """How many are in open windows."""
    gone: int = 0
    """How many were in windows that were derived."""
    derived_ns: int = 0
    """When the last window of time was over that was derived, in UTC."""


class Restorable(Protocol):
    """Something whose rows can be saved."""

    @property
    def has_changed(self) -> bool:
        """Whether :meth:`changed` would give any."""

    def track(self, is_on: bool) -> None:
        """Begin to note which rows change, with all that there are, or end it. Nothing is noted at first."""

    def changed(self, most: int) -> list[tuple[str, bytes | None]]:
        """At most so many rows that have changed since they were given last, by name; None: it is gone."""

    def restore(self, rows: Iterable[bytes], state: SavedState, now: int, utc_now: int) -> None:
        """Take rows that were saved, before the first reading. :raises LocalProtocolError: one is damaged."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SavedRow)


def encoded_row(
    partition: str, payer: str, number: int, summaries: Iterable[Summary], open_from: int = 0
) -> bytes:  # fmt: skip
    """A row as bytes."""
    return _encoder.encode(SavedRow(partition, payer, number, tuple(map(_saved, summaries)), open_from))


def decoded_row(data: bytes) -> SavedRow:
    """A row out of bytes. :raises LocalProtocolError: when they are not one."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise LocalProtocolError(f"a saved window can't be read: {error}") from error


def restored(saved: SavedSummary, functions: Functions) -> Summary:
    """The summary of a row. :raises LocalProtocolError: when a sketch of it can't be read."""
    summary = Summary()
    summary.count, summary.total, summary.rest = saved.count, saved.total, saved.rest
    summary.least, summary.greatest = saved.least, saved.greatest
    summary.first, summary.last, summary.first_ns, summary.last_ns = (
        saved.first, saved.last, saved.first_ns, saved.last_ns,
    )  # fmt: skip
    try:
        if functions.shares:
            summary.values = array("d", saved.values)
            if saved.sketched_numbers is not None:
                summary.sketched_numbers = functions.sketches.percentiles(saved.sketched_numbers)
        if functions.distinct:
            summary.digests = set(saved.digests)
            if saved.sketched_digests is not None:
                summary.sketched_digests = functions.sketches.distinct(saved.sketched_digests)
    except (ValueError, RuntimeError) as error:
        raise LocalProtocolError(f"a saved window can't be read: {error}") from error
    summary.south_deg, summary.west_deg, summary.north_deg, summary.east_deg = saved.box_deg
    summary.accuracy_m, summary.quality, summary.uncertainty_ns = (
        saved.accuracy_m, saved.quality, saved.uncertainty_ns,
    )  # fmt: skip
    summary.lineage = saved.lineage
    return summary


def _saved(summary: Summary) -> SavedSummary:
    numbers, distinct = summary.sketched_numbers, summary.sketched_digests
    return SavedSummary(
        summary.count, summary.total, summary.rest, summary.least, summary.greatest, summary.first, summary.last,
        summary.first_ns, summary.last_ns, b"" if summary.values is None else summary.values.tobytes(),
        None if numbers is None else numbers.saved(), list(summary.digests or ()),
        None if distinct is None else distinct.saved(),
        (summary.south_deg, summary.west_deg, summary.north_deg, summary.east_deg), summary.accuracy_m,
        summary.quality, summary.uncertainty_ns, summary.lineage,
    )  # fmt: skip
