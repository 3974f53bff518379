"""The frames by which a node asks the relay for records, as a vehicle does about a place where it is not.

Readings come in the bytes in which their node sent them, context included. The relay says what time it is there, so
that a node whose clock is wrong still learns how old each reading is.
"""

from typing import Annotated, Final

from msgspec import Meta, Raw, Struct

from protocols.base import limits
from protocols.wire.fields import Count, Id, Key, Latitude, Longitude, Text, check_untrusted_id
from protocols.wire.frame import Frame


class AskedBox(Struct, frozen=True, array_like=True, gc=False):
    """A box in degrees. One whose west is larger than its east crosses 180°."""

    south_deg: Latitude
    west_deg: Longitude
    north_deg: Latitude
    east_deg: Longitude


class RecordsAsked(Frame, frozen=True, array_like=True, gc=False, tag=76):
    """From node to relay: which records have you? (Since 1.8.)"""

    expression: Key
    newest: bool
    """Whether only the newest record of each key is asked for, in the order of keys; else all, the newest one first."""
    since_utc_ns: Count
    """The earliest time of sensing; 0: any."""
    max_age_ms: Count
    """The same as an age, by the clock of the relay; 0: any."""
    box: AskedBox | None
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_TOLD_RECORDS)]
    cursor: Text
    """That of the answer before; empty: from the beginning."""


class ToldRecord(Struct, frozen=True, array_like=True, gc=False):
    """A record that the relay has."""

    node: Id
    """The node that sent it to the relay."""
    rule: Text
    """The rule of curation that chose it."""
    reading: Raw
    """The reading as that node sent it."""


class RecordsTold(Frame, frozen=True, array_like=True, gc=False, tag=77):
    """From relay to node: one page of an answer. (Since 1.8.)"""

    now_utc_ns: Count
    """The time at the relay."""
    records: Annotated[tuple[ToldRecord, ...], Meta(max_length=limits.MAX_TOLD_RECORDS)]
    cursor: Text
    """What to ask for the next page with; empty: there is none."""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when something is sent by nobody."""
        for record in self.records:
            check_untrusted_id(record.node)


RELAY_FRAMES: Final[tuple[type[Frame], ...]] = (RecordsAsked, RecordsTold)
