"""The machine of carrying at either side: at a node without coverage, and at a carrier."""

import hashlib

from protocols.access import AccessTable
from protocols.base.effects import Effect
from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.machine import HeardEntry, Message
from protocols.records.carrying.events import (
    CheckReply,
    SealBatch,
)
from protocols.records.carrying.machine import Carrying
from protocols.records.carrying.sealed import encode_relay_key
from protocols.records.carrying.settings import CarryingSettings
from protocols.records.ledger import BatchPlan
from protocols.wire.carrying.contents import RelayKey
from protocols.wire.carrying.frames import CarrierOffer, RelayReply, SealedState

V1, V2, V3 = NodeId("v-1"), NodeId("v-2"), NodeId("v-3")
PUBLIC = bytes(range(32))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def sealed_id(data: bytes) -> bytes:
    return sha256(data)[:16]


KEY = sha256(PUBLIC)[:8]


class Side:
    """A machine, and what it decided."""

    def __init__(self, rules: AccessTable | None = None, **settings: object) -> None:
        self.now = SECOND
        self.machine = Carrying(
            CarryingSettings(**settings),  # type: ignore[arg-type]
            rules or AccessTable(), lambda certificate, author: certificate == b"relay" and author == "relay-1", sha256,
        )  # fmt: skip
        self.sent: list[Message] = []
        self.effects: list[Effect] = []

    def turn(self) -> "Side":
        self.sent = list(self.machine.messages())
        self.effects = list(self.machine.outgoing())
        return self

    def wait(self, seconds: float) -> "Side":
        """Let time pass, as a driver does: at each timer."""
        until = self.now + int(seconds * SECOND)
        for _ in range(10_000):
            due = self.machine.next_timer_at()
            if due > until:
                break
            self.now = max(self.now, due)
            self.machine.handle_timer(self.now)
        else:
            raise AssertionError("a timer that is always due")
        self.now = until
        return self.turn()

    def counted(self, name: str) -> int:
        return self.machine.counters()[name]


class Origin(Side):
    """A node without coverage that knows the key, with records 1 to 10 that wait."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"after_ns": 0, **settings})  # type: ignore[arg-type]
        self.key_heard()
        self.look()

    def key_heard(self, version: int = 1, key: bytes = PUBLIC, author: str = "relay-1", by: bytes = b"relay") -> None:
        body = encode_relay_key(RelayKey(1, key, zstd=False))
        self.machine.heard(HeardEntry(NodeId(author), "relay-key", version, 0, body, V3, by), self.now)

    def look(self, *, is_reached: bool = False, first: int = 1, issued: int = 11, introduced: bool = True) -> None:
        self.machine.look(is_reached, introduced, first, issued, self.now)

    def offer(self, carrier: NodeId = V2, key: bytes = KEY, room: int = 1 << 20) -> "Side":
        self.machine.receive(CarrierOffer(key, room), carrier, Role.VEHICLE, self.now)
        return self.turn()

    def seal(self, *sequences: int, data: bytes = b"sealed") -> bytes:
        """Do what a driver does for SealBatch."""
        assert [type(effect) for effect in self.effects] == [SealBatch]
        self.machine.sealed(sealed_id(data), BatchPlan(sequences, (), 11), KEY, data, self.now)
        self.turn()
        return sealed_id(data)

    def say(self, sealed: bytes, state: str, carrier: NodeId = V2) -> "Side":
        self.machine.receive(SealedState(sealed, state), carrier, Role.VEHICLE, self.now)
        return self.turn()

    def reply(self, sealed: bytes, *, good: bool = True, refusal: bool = False, carrier: NodeId = V2) -> "Side":
        self.machine.receive(RelayReply(sealed, b"reply"), carrier, Role.VEHICLE, self.now)
        (check,) = self.turn().effects
        assert isinstance(check, CheckReply)
        self.machine.reply_checked(carrier, sealed, self.now, is_believed=good, is_refusal=refusal)
        return self.turn()
