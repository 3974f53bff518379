"""The configuration of a node: its own sections, and the one frozen value that holds them and those of its parts.

Invariants: a ``NodeConfig`` that exists is valid; durations and sizes carry their unit in their name.
``docs/reference/configuration.md`` is made from the declarations (see :mod:`meshnode.config.reference`). A capability
declares its sections in its own folder; they are found by :meth:`NodeConfig.of`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from msgspec import Meta
from msgspec.structs import replace

from meshnode.config.kinds import Announced, Bound, CheckedRule, Interface
from meshnode.config.parsing import Problem, Section, shown
from meshnode.links.transport import Address, CredentialFiles
from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.wire.readings import Position

_ISSUE = "create it with 'meshnode mesh issue', or correct the path"
_S = TypeVar("_S", bound="PartSection")


def identity_names(node: str) -> dict[str, str]:
    """The names of the files that ``meshnode.identity.issue`` writes for ``node``, by key of ``[identity]``."""
    return {"certificate": f"{node}.crt", "key": f"{node}.key", "authority": "authority.crt"}


class NodeSection(Section, frozen=True, kw_only=True):
    """The node's name, place and clock."""

    table: ClassVar[str] = "node"

    id: Annotated[NodeId, Meta(description="Name of the node, unique in its mesh; the same as in its certificate.")]
    state_dir: Annotated[Path, Meta(description="Folder for what must survive a restart: outbox, incarnation.")] = Path(
        "state"
    )
    position: Annotated[
        Position | None,
        Meta(
            description="Fixed position of a node that does not move, WGS 84: `{ latitude_deg, longitude_deg, "
            "accuracy_m, altitude_m, heading_deg }`, the last two optional. A sensor gives that of a moving node.",
        ),
    ] = None
    clock_uncertainty_ms: Annotated[
        float,
        Meta(ge=0, le=3_600_000, description="Half width of the interval around this clock that holds the true time."),
    ] = 10.0


class IdentitySection(Section, frozen=True, kw_only=True):
    """The PEM files that prove who the node is."""

    table: ClassVar[str] = "identity"

    certificate: Annotated[
        Path,
        Meta(description="The node's certificate.", extra={"file": _ISSUE, "default": "`<id>.crt` beside the file"}),
    ]
    key: Annotated[
        Path,
        Meta(
            description="Its private key, mode 0600.", extra={"file": _ISSUE, "default": "`<id>.key` beside the file"}
        ),
    ]
    authority: Annotated[
        Path,
        Meta(
            description="The certificate of the mesh's authority.",
            extra={"file": _ISSUE, "default": "`authority.crt` beside the file"},
        ),
    ]

    @classmethod
    def in_folder(cls, folder: Path, node: str) -> "IdentitySection":
        """The files that ``meshnode.identity.issue`` writes for ``node`` into ``folder``."""
        names = identity_names(node)
        return cls(**{key: folder / name for key, name in names.items()})

    @property
    def credentials(self) -> CredentialFiles:
        """The same three files, as the transport takes them."""
        return CredentialFiles(certificate=self.certificate, key=self.key, authority=self.authority)


class ListenSection(Section, frozen=True, kw_only=True):
    """Where neighbours reach the node. TLS 1.3 with certificates on both sides, always."""

    table: ClassVar[str] = "listen"

    link_engine: Annotated[
        Literal["express", "nng"],
        Meta(
            description="What carries the links: `express` (OpenSSL) or `nng` (libnng with Mbed TLS). Both speak the "
            "same wire; nodes with different engines are neighbours like any others."
        ),
    ] = "express"
    spin_us: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="While frames come in quick succession, the receiving thread of `express` stays awake this "
            "long for the next one; 0: never. Ten readings a second do not make it stay awake; answers to answers do, "
            "and then it takes a core.",
        ),
    ] = 200
    priority: Annotated[
        Literal["normal", "high", "realtime"],
        Meta(
            description="Priority of the receiving thread of `express`, on which callbacks run too, among all programs "
            "of the computer: `high` (nice -10) and `realtime` (round robin) only if the system allows it."
        ),
    ] = "high"
    host: Annotated[
        Bound,
        Meta(
            description="Address to listen on; `0.0.0.0` or `::` for all of the host. The node waits for one that the "
            "host does not have yet."
        ),
    ] = "0.0.0.0"  # noqa: S104 - neighbours come from outside; both sides of every connection show a certificate
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port of the inbox; 0 takes any free one.")] = 0
    advertise: Annotated[
        tuple[Announced, ...],
        Meta(
            max_length=limits.MAX_ADVERT_ADDRESSES,
            description="IP addresses to announce to neighbours; empty: those that the host has at the time.",
        ),
    ] = ()


class DiscoverySection(Section, frozen=True, kw_only=True):
    """How the node finds neighbours."""

    table: ClassVar[str] = "discovery"

    mdns: Annotated[bool, Meta(description="Announce and listen by mDNS.")] = True
    interfaces: Annotated[
        tuple[Interface, ...],
        Meta(
            description="IP addresses of the interfaces that mDNS uses; empty: all. The node waits for those that the "
            "host does not have yet."
        ),
    ] = ()
    seeds: Annotated[
        tuple[Address, ...],
        Meta(
            max_length=limits.MAX_ADVERTS,
            description="Neighbours to dial without mDNS: `host:port`. Every address of a name is tried.",
        ),
    ] = ()

    def conflicts(self) -> Iterator[Problem]:
        """Interfaces that are given although mDNS is off."""
        if self.interfaces and not self.mdns:
            yield Problem("interfaces", None, "is given but mdns = false: remove it, or set mdns = true")


class MembershipSection(Section, frozen=True, kw_only=True):
    """How fast a silent neighbour is given up. Lower values detect failures faster and raise more false alarms on busy
    computers."""

    table: ClassVar[str] = "membership"

    heartbeat_interval_ms: Annotated[int, Meta(ge=50, le=10_000, description="Time between heartbeats.")] = (
        limits.HEARTBEAT_INTERVAL_NS // limits.MS
    )
    suspect_after_silence_ms: Annotated[
        int,
        Meta(ge=100, le=120_000, description="Silence on an open link until suspicion; at least twice the heartbeat."),
    ] = limits.SUSPECT_AFTER_SILENCE_NS // limits.MS
    suspicion_min_ms: Annotated[
        int, Meta(ge=10, le=120_000, description="Time from suspect to dead when every other neighbour agrees.")
    ] = limits.SUSPICION_MIN_NS // limits.MS
    suspicion_max_ms: Annotated[
        int, Meta(ge=10, le=120_000, description="Time from suspect to dead when nobody agrees.")
    ] = limits.SUSPICION_MAX_NS // limits.MS
    lost_link_suspicion_ms: Annotated[
        int, Meta(ge=10, le=120_000, description="Time from suspect to dead if its connections are gone too.")
    ] = limits.LOST_LINK_SUSPICION_NS // limits.MS
    dial_timeout_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="A dialled neighbour that has not answered by then is given up.")
    ] = limits.DIAL_TIMEOUT_NS // limits.MS
    max_neighbours: Annotated[
        int, Meta(ge=1, le=limits.MAX_NEIGHBOURS, description="The most neighbours at once; further ones are refused.")
    ] = limits.MAX_NEIGHBOURS

    def conflicts(self) -> Iterator[Problem]:
        """Pairs of times that contradict each other."""
        if self.suspect_after_silence_ms < 2 * self.heartbeat_interval_ms:
            yield Problem(
                "suspect_after_silence_ms",
                shown(self.suspect_after_silence_ms),
                "one late heartbeat would raise suspicion: use at least twice heartbeat_interval_ms "
                f"({2 * self.heartbeat_interval_ms})",
            )
        if self.suspicion_min_ms > self.suspicion_max_ms:
            yield Problem(
                "suspicion_min_ms",
                shown(self.suspicion_min_ms),
                f"is above suspicion_max_ms ({self.suspicion_max_ms}): lower it, or raise the other",
            )


class AccessSection(Section, frozen=True, kw_only=True):
    """Who may publish, subscribe, infer and offer what, and have which releases. What no rule allows is denied."""

    table: ClassVar[str] = "access"

    rules: Annotated[
        tuple[CheckedRule, ...] | None,
        Meta(
            max_length=1_000,
            description='Rules `{ role = "vehicle", verb = "publish", keys = "veh/{id}/**" }`; verbs `publish`, '
            "`subscribe`, `infer`, `offer`, `release`, `carry`; `{id}` stands for the node that asks. Replaces the "
            "built-in table, whose rules for `offer`, `release` and `carry` stay in force if none is given for that "
            "verb.",
            extra={"default": "built-in table"},
        ),
    ] = None


class LogSection(Section, frozen=True, kw_only=True):
    """What the node writes to standard error."""

    table: ClassVar[str] = "log"

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least severity written.")] = "info"


class PartSection(Section, frozen=True, kw_only=True):
    """A section that a part of the node declares; see :mod:`meshnode.part`."""

    def conflicts_in(self, config: "NodeConfig") -> Iterator[Problem]:
        """Problems that show only when the section is seen together with the others."""
        return iter(())


class NodeConfig(Section, frozen=True, kw_only=True):
    """Everything a node needs to know before it starts. For embedding and tests it can be constructed in Python."""

    node: NodeSection
    identity: IdentitySection
    listen: ListenSection = ListenSection()
    discovery: DiscoverySection = DiscoverySection()
    membership: MembershipSection = MembershipSection()
    access: AccessSection = AccessSection()
    log: LogSection = LogSection()
    sections: tuple[PartSection, ...] = ()
    """The sections of the node's parts, at most one of each table. A table that is left out has its defaults."""

    def given(self, kind: type[_S]) -> _S | None:
        """The section of that kind, if there is one."""
        return next((section for section in self.sections if isinstance(section, kind)), None)

    def of(self, kind: type[_S]) -> _S:
        """The section of that kind, or its defaults. It must not be used for kinds with required keys."""
        return self.given(kind) or kind()

    def with_sections(self, *sections: PartSection) -> Self:
        """The same configuration with ``sections`` in place of those of the same tables."""
        tables = {section.table for section in sections}
        kept = tuple(section for section in self.sections if section.table not in tables)
        return replace(self, sections=(*kept, *sections))

    def conflicts(self) -> Iterator[Problem]:
        """Sections given twice, and what contradicts another section."""
        seen: set[str] = set()
        for section in self.sections:
            if section.table in seen:
                yield Problem(section.table, None, "is given twice: give each section once")
            seen.add(section.table)
            yield from section.conflicts_in(self)
