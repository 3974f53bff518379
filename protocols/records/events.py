"""The effects and events of the uplink."""

from enum import StrEnum

from protocols.base.effects import Effect, Event
from protocols.records.ledger import BatchPlan


class UplinkState(StrEnum):
    """Whether the relay takes a node's records, and if not, what kind of fault prevents it."""

    STARTING = "starting"
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    STORAGE = "storage"
    """A disk, here or at the relay, does not take records."""
    HELD = "held"
    """Records may not take the way that leads to the relay now, except urgent ones."""
    STOPPED = "stopped"


# --- effects -------------------------------------------------------------------------------------------------------
class SendBatch(Effect, frozen=True):
    """Read the records of ``plan``, send them with :meth:`Uplink.batch`, and report what became of it: with
    :meth:`Uplink.receive`, :meth:`Uplink.unanswered` or :meth:`Uplink.unreadable`."""

    plan: BatchPlan
    timeout_ns: int
    """When no answer has come after this time, it is :meth:`Uplink.unanswered`."""


class SaveLedger(Effect, frozen=True):
    """Write the ledger's changes in one transaction, and report with :meth:`Uplink.saved` or
    :meth:`Uplink.not_saved`."""


class ShiftSequences(Effect, frozen=True):
    """Write the ledger's changes, then add ``shift`` to every sequence in storage; report as for
    :class:`SaveLedger`."""

    shift: int


UplinkEffect = SendBatch | SaveLedger | ShiftSequences


# --- events --------------------------------------------------------------------------------------------------------
class UplinkChanged(Event, frozen=True):
    """The uplink entered another state."""

    state: UplinkState
    detail: str


class RecordsDelivered(Event, frozen=True):
    """The relay has these records on disk."""

    sequences: tuple[int, ...]


class RecordRefused(Event, frozen=True):
    """The relay will never take this record."""

    sequence: int
    reason: str


class RecordsRenumbered(Event, frozen=True):
    """The memory of this node was lost: its records now begin at ``first_sequence``, where the relay stands."""

    first_sequence: int


UplinkEvent = UplinkChanged | RecordsDelivered | RecordRefused | RecordsRenumbered
