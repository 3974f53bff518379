"""Frames between a node and the relay: records up, what became of them down."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from protocols.base import limits
from protocols.wire.fields import Count, Id, Text
from protocols.wire.readings import Reading


class Record(Struct, frozen=True, array_like=True, gc=False):
    """A curated reading on its way to the relay. ``(origin node, sequence)`` names it for ever."""

    sequence: Annotated[int, Meta(ge=1)]
    """Given by the curating node, without gaps: 1, 2, 3, …"""
    rule: Text
    """The curation rule that chose it."""
    reading: Reading


class Fate(Struct, frozen=True, array_like=True, gc=False):
    """What became of the records ``first`` to ``last`` that will never be delivered."""

    first: Annotated[int, Meta(ge=1)]
    last: Annotated[int, Meta(ge=1)]
    state: Literal["expired", "evicted", "refused"]


class Batch(Struct, frozen=True, array_like=True, gc=False, tag=64):
    """Node to relay: records in order of sequence, and the fates of those that are missing."""

    major: Count
    minor: Count
    node: Id
    incarnation: Count
    next_sequence: Annotated[int, Meta(ge=1)]
    """The sequence that the next record will get: the relay can tell how many it has yet to see."""
    records: Annotated[tuple[Record, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)] = ()
    fates: Annotated[tuple[Fate, ...], Meta(max_length=limits.MAX_FATES_PER_BATCH)] = ()


class RefusedRecord(Struct, frozen=True, array_like=True, gc=False):
    """A record that the relay will never take."""

    sequence: Count
    reason: Text


class Acknowledgement(Struct, frozen=True, array_like=True, gc=False, tag=65):
    """Relay to node, sent after the batch is on disk."""

    stored: Annotated[tuple[Count, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)]
    """Sequences now in the store, those among them that already were included."""
    refused: Annotated[tuple[RefusedRecord, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)] = ()


class RelayRefusal(Struct, frozen=True, array_like=True, gc=False, tag=66):
    """Relay to node: nothing of the batch was taken."""

    code: Text
    """``version``, ``identity``, ``malformed``, ``storage`` (try again later) or a newer word."""
    detail: Text = ""


RelayFrame = Batch | Acknowledgement | RelayRefusal
