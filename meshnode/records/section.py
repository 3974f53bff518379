"""The sections of records: which readings become one, where they wait, and where they go."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from meshnode.config.kinds import Expression
from meshnode.config.parsing import Problem, Section, shown
from meshnode.config.sections import PartSection
from meshnode.links.transport import Address
from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.records.carrying.settings import CarryingSettings

_DAY_S = 86_400


class CurationSection(Section, frozen=True, kw_only=True):
    """Which readings become records for the relay."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=limits.MAX_TEXT_CHARS,
            description="Unique name of the rule, which each of its records carries.",
        ),
    ]
    keys: Annotated[Expression, Meta(description="Key expression of the readings.")]
    min_interval_ms: Annotated[
        int, Meta(ge=0, le=86_400_000, description="At most one record of a key in this time; 0: every reading.")
    ] = 0
    source: Annotated[
        Literal["own", "any"], Meta(description="`own`: readings of this node; `any`: those of neighbours too.")
    ] = "own"
    lifespan_s: Annotated[
        int,
        Meta(
            ge=1,
            le=limits.MAX_RECORD_LIFESPAN_S,
            description="A record not delivered by then is dropped and counted as expired.",
        ),
    ] = 86_400
    priority: Annotated[
        int, Meta(ge=0, le=7, description="7 is the most urgent; a full outbox drops the lowest first.")
    ] = 3


class CurationRulesSection(PartSection, frozen=True, kw_only=True):
    """The rules that choose records."""

    table: ClassVar[str] = "curation"
    listed: ClassVar[str | None] = "rules"

    rules: Annotated[tuple[CurationSection, ...], Meta(max_length=256, description="The rules.")] = ()

    def conflicts(self) -> Iterator[Problem]:
        """Rules of the same name."""
        seen: set[str] = set()
        for index, rule in enumerate(self.rules):
            if rule.name in seen:
                yield Problem(f"[{index}].name", shown(rule.name), "is used twice: give each rule its own name")
            seen.add(rule.name)


class OutboxSection(PartSection, frozen=True, kw_only=True):
    """The records that wait for the relay, on disk."""

    table: ClassVar[str] = "outbox"

    max_records: Annotated[int, Meta(ge=1, le=100_000_000, description="The most records kept.")] = 100_000
    max_mib: Annotated[int, Meta(ge=1, le=1_048_576, description="The most space that they take.")] = 256

    @property
    def max_bytes(self) -> int:
        """``max_mib`` in bytes."""
        return self.max_mib * 1024 * 1024


class RelaySection(PartSection, frozen=True, kw_only=True):
    """Where records go. Without this table they stay in the outbox."""

    table: ClassVar[str] = "relay"

    address: Annotated[Address, Meta(description="`host:port` of the relay.")]
    id: Annotated[
        NodeId | None,
        Meta(description="Node id that its certificate must carry.", extra={"default": "any relay of the mesh"}),
    ] = None
    interfaces: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(
            max_length=16,
            description="Records are sent only while the way to the relay leads over one of these network interfaces; "
            "`wlan*` stands for all whose names begin so.",
            extra={"default": "any"},
        ),
    ] = ()
    urgent_priority: Annotated[
        int | None,
        Meta(
            ge=0, le=7, description="Records of at least this priority are sent over any interface.",
            extra={"default": "none are"},
        ),
    ] = None  # fmt: skip
    bytes_per_s: Annotated[
        int, Meta(ge=0, le=2**40, description="The most that records take of the way to the relay; 0: all of it.")
    ] = 0

    infer: Annotated[
        tuple[Expression, ...],
        Meta(
            max_length=limits.MAX_OFFERS,
            description="Models, by key expression, whose requests the relay may [compute](../howto/infer-at-the-relay"
            ".md) too. Their inputs leave the vehicle then, past any policy of `[egress]`. A model whose manifest has "
            "`first_cut_at_home` is never computed there.",
            extra={"default": "none"},
        ),
    ] = ()

    def conflicts(self) -> Iterator[Problem]:
        """An exception to a rule that is not there."""
        if self.urgent_priority is not None and not self.interfaces:
            yield Problem(
                "urgent_priority", shown(self.urgent_priority),
                "has no effect without interfaces: name those that all records may take, or remove it",
            )  # fmt: skip


class CarryingSection(PartSection, frozen=True, kw_only=True):
    """Records of a node without a way to the relay, which a neighbour carries there, sealed. Without this table the
    node neither hands over nor carries any."""

    table: ClassVar[str] = "carrying"

    hand_over: Annotated[
        bool, Meta(description="Whether neighbours may carry records of this node while it does not reach the relay.")
    ] = True
    carry: Annotated[
        bool, Meta(description="Whether this node carries records of neighbours. It needs `[relay]` for that.")
    ] = True
    after_s: Annotated[
        int,
        Meta(
            ge=0,
            le=_DAY_S,
            description="Seconds for which the relay must be out of reach before records are handed over. Without "
            "`[relay]` they are at once.",
        ),
    ] = 60
    patience_s: Annotated[
        int,
        Meta(
            ge=1,
            le=30 * _DAY_S,
            description="Seconds that a carrier has to bring the relay's reply, before another one gets the batch too.",
        ),
    ] = 3_600
    max_mib: Annotated[
        int, Meta(ge=4, le=65_536, description="MiB that are carried for others; a quarter of them for one node.")
    ] = 64
    max_age_s: Annotated[
        int, Meta(ge=1, le=366 * _DAY_S, description="Seconds after which what is carried is given up.")
    ] = _DAY_S

    def conflicts(self) -> Iterator[Problem]:
        """A table that switches everything off."""
        if not (self.hand_over or self.carry):
            yield Problem("carry", None, "is off, as is hand_over: remove the table, or switch one of them on")

    @property
    def max_bytes(self) -> int:
        """``max_mib`` in bytes."""
        return self.max_mib * 1024 * 1024

    def settings(self, has_relay: bool, relay: NodeId | None) -> CarryingSettings:
        """As the machine takes them. ``relay``: the only one that is believed."""
        return CarryingSettings(
            hands_over=self.hand_over, carries=self.carry, relay=relay,
            after_ns=self.after_s * limits.SECOND if has_relay else 0, patience_ns=self.patience_s * limits.SECOND,
            max_bytes=self.max_bytes, max_age_ns=self.max_age_s * limits.SECOND,
        )  # fmt: skip
