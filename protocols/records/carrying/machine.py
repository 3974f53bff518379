"""Carrying: records of a node without coverage go to the relay by way of a neighbour.

Each node has two sides. ``handing`` gives sealed batches of this node to neighbours that say they reach the relay.
``holding`` carries those of others. A batch that is carried is never given on to a third node.

    node                      carrier                       relay
     │ ◄── CarrierOffer ──────── │ ──── RelayKeyAsked ───────► │
     │ ◄── gossip: relay-key ─── │ ◄─── RelayKeyTold ───────── │
     │ ─── SealedBatch ────────► │                             │
     │ ◄── SealedState taken ─── │ ──── CarriedBatch ────────► │
     │ ◄── RelayReply ────────── │ ◄─── CarriedReply ───────── │
     │ ─── SealedState known ──► │                             │

The driver tells how the uplink of this node stands (:meth:`Carrying.look`) and performs the effects.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, assert_never

from protocols.access import AccessTable
from protocols.base.effects import Effect, Event
from protocols.base.ids import NodeId, Role
from protocols.machine import HeardEntry, Machine, Message
from protocols.records.carrying.events import CarryingDecisions
from protocols.records.carrying.handing import Handing
from protocols.records.carrying.holding import CarriedItem, Holding
from protocols.records.carrying.settings import CarryingSettings
from protocols.records.ledger import BatchPlan
from protocols.wire.carrying.contents import RELAY_KEY_KIND
from protocols.wire.carrying.frames import FRAMES, CarrierOffer, CarryingFrame, RelayReply, SealedBatch, SealedState
from protocols.wire.frame import Frame


class Carrying(Machine):
    """See the module. Instants are monotonic nanoseconds."""

    name: ClassVar[str] = "carrying"
    frames: ClassVar[tuple[type[Frame], ...]] = FRAMES
    entry_kinds: ClassVar[frozenset[str]] = frozenset({RELAY_KEY_KIND})

    def __init__(
        self, settings: CarryingSettings, access: AccessTable, is_relay: Callable[[bytes, NodeId], bool],
        hash_bytes: Callable[[bytes], bytes],
    ) -> None:  # fmt: skip
        """``is_relay(certificate, author)``: whether the authority of the mesh says that the author is a relay.
        ``hash_bytes`` is SHA-256."""
        self._decided = CarryingDecisions()
        self._handing = Handing(settings, is_relay, hash_bytes, self._decided)
        self._holding = Holding(settings, access, hash_bytes, self._decided)

    # --- neighbours --------------------------------------------------------------------------------------------------
    def receive(self, frame: CarryingFrame, source: NodeId, role: Role, now: int) -> None:
        """See :class:`Machine`."""
        match frame:
            case CarrierOffer():
                self._handing.offered(frame, source, now)
            case SealedBatch():
                self._holding.given(frame, source, role, now)
            case SealedState(sealed, state):
                if state == "known":
                    self._holding.known(sealed, source)
                else:
                    self._handing.state(frame, source, now)
            case RelayReply():
                self._handing.replied(frame, source)
            case _:
                assert_never(frame)

    def greetings(self) -> Sequence[Frame]:
        """See :class:`Machine`."""
        offer = self._holding.offer()
        return (offer,) if offer.key else ()

    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        """See :class:`Machine`."""
        self._holding.met(node)

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """See :class:`Machine`."""
        self._holding.gone(node)
        self._handing.gone(node, now)

    def undeliverable(self, node: NodeId, frame: Frame, now: int) -> None:
        """See :class:`Machine`."""
        if isinstance(frame, SealedBatch):
            self._handing.undeliverable(node, frame, now)
        elif isinstance(frame, RelayReply):
            self._holding.undeliverable(node, frame)

    def heard(self, entry: HeardEntry, now: int) -> None:
        """See :class:`Machine`."""
        self._handing.heard(entry, now)

    # --- from the driver ---------------------------------------------------------------------------------------------
    def look(self, is_reached: bool, is_introduced: bool, first: int, issued: int, now: int) -> None:
        """How the uplink of this node stands: see :meth:`Handing.look`."""
        self._handing.look(is_reached, is_introduced, first, issued, now)

    def sealed(self, sealed: bytes, plan: BatchPlan, key: bytes, data: bytes, now: int) -> None:
        """A batch was sealed; ``sealed`` is its id."""
        self._handing.sealed(sealed, plan, key, data, now)

    def nothing_sealed(self, now: int, pause_ns: int = 0) -> None:
        """There is nothing to seal. ``pause_ns``: or it was not possible, so try again later."""
        self._handing.nothing_sealed(now, pause_ns)

    def reply_checked(
        self, carrier: NodeId, sealed: bytes, now: int, *, is_believed: bool, is_refusal: bool = False, detail: str = ""
    ) -> None:  # fmt: skip
        """A reply was checked, and the ledger told."""
        self._handing.reply_checked(
            carrier, sealed, now, is_believed=is_believed, is_refusal=is_refusal, detail=detail
        )  # fmt: skip

    def relay_answered(self, key: bytes, now: int) -> None:
        """The relay answers this node; ``key`` is the id of its sealing key."""
        self._holding.relay_answered(key, now)

    def uploaded(self, sealed: bytes, reply: bytes, code: str, now: int) -> None:
        """A carried batch was brought to the relay: see :meth:`Holding.uploaded`."""
        self._holding.uploaded(sealed, reply, code, now)

    def restored(self, items: Iterable[CarriedItem], now: int) -> None:
        """What was carried when the last life of this node ended."""
        self._holding.restored(items, now)

    def lost(self, sealed: bytes, now: int) -> None:
        """A carried batch is not on the disk."""
        self._holding.lost(sealed)

    # --- to the driver -----------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """See :class:`Machine`."""
        self._handing.handle_timer(now)
        self._holding.handle_timer(now)

    def next_timer_at(self) -> int:
        """See :class:`Machine`."""
        return min(self._handing.next_timer_at(), self._holding.next_timer_at())

    def has_news(self) -> bool:
        """See :class:`Machine`."""
        return bool(self._decided.messages or self._decided.events)

    def messages(self) -> Sequence[Message]:
        """See :class:`Machine`."""
        messages, self._decided.messages = self._decided.messages, []
        return messages

    def outgoing(self) -> Sequence[Effect]:
        """See :class:`Machine`."""
        effects, self._decided.effects = self._decided.effects, []
        return effects

    def events(self) -> Sequence[Event]:
        """See :class:`Machine`."""
        events, self._decided.events = self._decided.events, []
        return events

    @property
    def carriers(self) -> list[NodeId]:
        """The neighbours that carry for this node, to a relay whose key it knows."""
        return self._handing.carriers

    def counters(self) -> dict[str, int]:
        """See :class:`Machine`. ``on_their_way``, ``held`` and ``held_bytes`` go up and down."""
        return {
            "on_their_way": self._handing.on_their_way, "held": self._holding.held,
            "held_bytes": self._holding.held_bytes, **self._handing.counts, **self._holding.counts,
        }  # fmt: skip
