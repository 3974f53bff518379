"""The configuration of a node: TOML in, one frozen ``NodeConfig`` out, checked once and wholly.

Invariants: a ``NodeConfig`` that exists is valid; durations and sizes carry their unit in their name; paths from a file
are relative to that file. ``docs/reference/configuration.md`` is made from the declarations here (see
``config_reference``).
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from meshnode.config.parsing import HOST, UNREADABLE, Problem, Section, TableReader, problem_report, shown
from meshnode.links.transport import Address, CredentialFiles
from protocols.access import AccessRule
from protocols.base import limits
from protocols.base.errors import ConfigError, InvalidKey, InvalidName
from protocols.base.ids import NodeId, node_id
from protocols.base.keys import checked_expression
from protocols.wire.readings import Position

MAX_CONFIG_BYTES: Final = 1024 * 1024
"""Largest configuration file: a wrong path could name a disk image."""
_ISSUE: Final = "create it with 'meshnode mesh issue', or correct the path"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _check_host(value: str) -> str | None:
    return None if HOST.fullmatch(value) else "is not a host: use an IP address or a host name"


def _check_loopback(value: str) -> str | None:
    try:
        loopback = ipaddress.ip_address(value).is_loopback
    except ValueError:
        loopback = value == "localhost"
    if loopback:
        return None
    return "is reachable by others, and HTTP here asks nobody who they are: use '127.0.0.1', with a proxy before it"


def _check_announced(value: str) -> str | None:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return "is not an IP address: announce numbers, a neighbour may have no DNS"
    if address.is_unspecified or address.is_multicast:
        return "can't be dialled: announce an address that neighbours reach"
    return None


def _check_interface(value: str) -> str | None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return "is not an IP address: name an interface by one of its addresses"
    return None


def _check_expression(value: str) -> str | None:
    try:
        checked_expression(value)
    except InvalidKey as error:
        return str(error)
    return None


def _check_name(value: str) -> str | None:
    return None if _NAME.fullmatch(value) else "is not a name: use up to 100 letters, digits and inner . _ -"


def _check_rule(rule: AccessRule) -> str | None:
    keys = rule.keys.replace("{id}", "x")
    if "{" in keys or "}" in keys:
        return f"keys {rule.keys[:80]!r} have braces that match nothing: only {{id}}, the node that asks, is filled in"
    return _check_expression(keys)


Bound = Annotated[str, Meta(extra={"check": _check_host})]
Name = Annotated[str, Meta(extra={"check": _check_name})]
CheckedRule = Annotated[AccessRule, Meta(extra={"check": _check_rule})]
Loopback = Annotated[str, Meta(extra={"check": _check_loopback})]
Expression = Annotated[str, Meta(extra={"check": _check_expression})]
Announced = Annotated[str, Meta(extra={"check": _check_announced})]
Interface = Annotated[str, Meta(extra={"check": _check_interface})]


class NodeSection(Section, frozen=True, kw_only=True):
    """Who the node is."""

    id: Annotated[
        NodeId, Meta(description="Name of the node, unique in its mesh; must equal the one in its certificate.")
    ]
    state_dir: Annotated[Path, Meta(description="Folder for what must survive a restart: outbox, incarnation.")] = Path(
        "state"
    )
    position: Annotated[
        Position | None,
        Meta(
            description="Fixed position of a node that does not move, WGS 84: `{ latitude_deg, longitude_deg, "
            "accuracy_m, altitude_m, heading_deg }`, the last two optional. A moving node gets it from a sensor.",
        ),
    ] = None
    clock_uncertainty_ms: Annotated[
        float,
        Meta(ge=0, le=3_600_000, description="Half width of the interval around this clock that holds the true time."),
    ] = 10.0


class IdentitySection(Section, frozen=True, kw_only=True):
    """The files that prove who the node is, PEM."""

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
        names = _identity_names(node)
        return cls(**{key: folder / name for key, name in names.items()})

    @property
    def credentials(self) -> CredentialFiles:
        """The same three files, as the transport takes them."""
        return CredentialFiles(certificate=self.certificate, key=self.key, authority=self.authority)


class ListenSection(Section, frozen=True, kw_only=True):
    """Where neighbours reach the node. TLS 1.3 with certificates on both sides, always."""

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
            description="Of the receiving thread of `express`, on which callbacks run too, among all programs of the "
            "computer: `high` (nice -10) and `realtime` (round robin) as far as the system allows it."
        ),
    ] = "high"

    host: Annotated[Bound, Meta(description="Address to listen on; `0.0.0.0` or `::` for all of the host.")] = "0.0.0.0"  # noqa: S104 - neighbours come from outside; both sides of every connection show a certificate
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port of the inbox; 0 takes any free one.")] = 0
    advertise: Annotated[
        tuple[Announced, ...],
        Meta(
            max_length=limits.MAX_ADVERT_ADDRESSES,
            description="IP addresses announced to neighbours; empty: those of the host.",
        ),
    ] = ()


class DiscoverySection(Section, frozen=True, kw_only=True):
    """How the node finds neighbours."""

    mdns: Annotated[bool, Meta(description="Announce and listen by mDNS.")] = True
    interfaces: Annotated[
        tuple[Interface, ...], Meta(description="IP addresses of the interfaces that mDNS uses; empty: all.")
    ] = ()
    seeds: Annotated[
        tuple[Address, ...],
        Meta(max_length=limits.MAX_ADVERTS, description="Neighbours to dial without mDNS: `host:port`."),
    ] = ()

    def conflicts(self) -> Iterator[Problem]:
        """Interfaces of a discovery that is off."""
        if self.interfaces and not self.mdns:
            yield Problem("interfaces", None, "is given but mdns = false: remove it, or set mdns = true")


class HttpSection(Section, frozen=True, kw_only=True):
    """Health, metrics and inference for programs on the same host."""

    enabled: Annotated[bool, Meta(description="Serve HTTP.")] = True
    host: Annotated[Loopback, Meta(description="Loopback address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port; 0 takes any free one.")] = 8470


class LocalSection(Section, frozen=True, kw_only=True):
    """Other programs on this computer that publish, subscribe and infer through the node (`meshnode.connect`)."""

    enabled: Annotated[bool, Meta(description="Let them connect.")] = True
    socket: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=1_000,
            description="Path of the Unix socket, in `[node] state_dir` unless it is absolute; at most "
            f"{limits.MAX_SOCKET_PATH_BYTES} bytes in all.",
        ),
    ] = "local.sock"
    mode: Annotated[
        Literal["0600", "0660"],
        Meta(
            description="Who may connect: `0600` the user that the node runs as, `0660` the socket's group too (that "
            "of the node's process, or of a folder with the set-group-ID bit)."
        ),
    ] = "0600"


class MembershipSection(Section, frozen=True, kw_only=True):
    """How fast a silent neighbour is given up. Lower is a faster fail-over and more false alarms on busy computers."""

    heartbeat_interval_ms: Annotated[int, Meta(ge=50, le=10_000, description="Time between heartbeats.")] = (
        limits.HEARTBEAT_INTERVAL_NS // limits.MS
    )
    suspect_after_silence_ms: Annotated[
        int,
        Meta(ge=100, le=120_000, description="Silence on an open link until suspicion; at least twice the heartbeat."),
    ] = limits.SUSPECT_AFTER_SILENCE_NS // limits.MS
    suspicion_min_ms: Annotated[
        int, Meta(ge=10, le=120_000, description="From suspect to dead when every other neighbour agrees.")
    ] = limits.SUSPICION_MIN_NS // limits.MS
    suspicion_max_ms: Annotated[
        int, Meta(ge=10, le=120_000, description="From suspect to dead when nobody agrees.")
    ] = limits.SUSPICION_MAX_NS // limits.MS
    lost_link_suspicion_ms: Annotated[
        int, Meta(ge=10, le=120_000, description="From suspect to dead when the neighbour's connections are gone too.")
    ] = limits.LOST_LINK_SUSPICION_NS // limits.MS
    dial_timeout_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="A dialled neighbour that has not answered by then is given up.")
    ] = limits.DIAL_TIMEOUT_NS // limits.MS
    max_neighbours: Annotated[
        int, Meta(ge=1, le=limits.MAX_NEIGHBOURS, description="Neighbours at once; further ones are refused.")
    ] = limits.MAX_NEIGHBOURS

    def conflicts(self) -> Iterator[Problem]:
        """Times that contradict one another."""
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
    """Who may do what. What no rule allows is denied."""

    rules: Annotated[
        tuple[CheckedRule, ...] | None,
        Meta(
            max_length=1_000,
            description='Rules `{ role = "vehicle", verb = "publish", keys = "veh/{id}/**" }`; verbs `publish`, '
            "`subscribe`, `infer`; `{id}` stands for the node that asks. Replaces the built-in table.",
            extra={"default": "built-in table"},
        ),
    ] = None


class ModelSection(Section, frozen=True, kw_only=True):
    """A model that the node can run."""

    path: Annotated[
        Path, Meta(description="The ONNX file.", extra={"file": "copy the ONNX file there, or correct the path"})
    ]
    threads: Annotated[int, Meta(ge=1, le=256, description="Threads that one run uses.")] = 1
    serve: Annotated[bool, Meta(description="Compute it for neighbours too.")] = True
    warm_up: Annotated[
        Mapping[str, tuple[int, ...]],
        Meta(
            max_length=limits.MAX_TENSORS,
            description="Shapes, by input, of the zeros it is timed with at the start; needed where the model leaves "
            "sizes open, as in `{ image = [1, 3, 640, 640] }`.",
        ),
    ] = {}
    optimisation: Annotated[
        Literal["disabled", "basic", "extended", "all"],
        Meta(
            description="ONNX Runtime's graph optimisation. Nodes that share a model use the same level: answers of "
            "different levels differ in the last digits."
        ),
    ] = "basic"


class InferenceSection(Section, frozen=True, kw_only=True):
    """How the node computes, and when it lets others."""

    workers: Annotated[int, Meta(ge=1, le=64, description="Runs at the same time.")] = 1
    local: Annotated[
        bool, Meta(description="Compute own requests here when that is fastest; false: neighbours only.")
    ] = True
    hedge: Annotated[bool, Meta(description="Ask a second neighbour when the first is late.")] = True
    deadline_ms: Annotated[
        int, Meta(ge=1, le=limits.MAX_BUDGET_MS, description="Deadline of requests that name none.")
    ] = 1_000
    emulate_slowdown: Annotated[
        float,
        Meta(
            ge=1,
            le=1_000,
            description="Each run takes this many times longer: emulates a slower device class in tests.",
        ),
    ] = 1.0


class SensorSection(Section, frozen=True, kw_only=True):
    """A source of readings. Keys other than `driver` go to the driver, which checks them."""

    free_keys: ClassVar[str | None] = "options"

    driver: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=100,
            description="Name of the driver: an entry point of the group `meshnode.sensors`.",
        ),
    ]
    options: Annotated[Mapping[str, Any], Meta(description="All other keys of the table.")] = {}


class CurationSection(Section, frozen=True, kw_only=True):
    """Which readings become records for the relay."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=limits.MAX_TEXT_CHARS,
            description="Name of the rule, unique; stands in each record.",
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
        Meta(ge=1, le=366 * 86_400, description="A record not delivered by then is dropped and counted as expired."),
    ] = 86_400
    priority: Annotated[
        int, Meta(ge=0, le=7, description="7 is the most urgent; a full outbox drops the lowest first.")
    ] = 3


class OutboxSection(Section, frozen=True, kw_only=True):
    """The records that wait for the relay, on disk."""

    max_records: Annotated[int, Meta(ge=1, le=100_000_000, description="Records kept at most.")] = 100_000
    max_mib: Annotated[int, Meta(ge=1, le=1_048_576, description="Size kept at most.")] = 256

    @property
    def max_bytes(self) -> int:
        """``max_mib`` in bytes."""
        return self.max_mib * 1024 * 1024


class RelaySection(Section, frozen=True, kw_only=True):
    """Where records go. Without this table they stay in the outbox."""

    address: Annotated[Address, Meta(description="`host:port` of the relay.")]
    id: Annotated[
        NodeId | None,
        Meta(description="Node id that its certificate must carry.", extra={"default": "any relay of the mesh"}),
    ] = None


class LogSection(Section, frozen=True, kw_only=True):
    """What the node writes to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least severity written.")] = "info"


class NodeConfig(Section, frozen=True, kw_only=True):
    """Everything a node needs to know before it starts. For embedding and tests it can be constructed in Python."""

    node: NodeSection
    identity: IdentitySection
    listen: ListenSection = ListenSection()
    discovery: DiscoverySection = DiscoverySection()
    http: HttpSection = HttpSection()
    local: LocalSection = LocalSection()
    membership: MembershipSection = MembershipSection()
    access: AccessSection = AccessSection()
    models: Annotated[Mapping[Name, ModelSection], Meta(max_length=limits.MAX_OFFERS)] = {}
    inference: InferenceSection = InferenceSection()
    sensors: Annotated[Mapping[Name, SensorSection], Meta(max_length=64)] = {}
    curation: Annotated[tuple[CurationSection, ...], Meta(max_length=256)] = ()
    outbox: OutboxSection = OutboxSection()
    relay: RelaySection | None = None
    log: LogSection = LogSection()

    @property
    def local_socket(self) -> Path:
        """Where applications connect."""
        return self.node.state_dir / self.local.socket

    def conflicts(self) -> Iterator[Problem]:
        """Curation rules of the same name, and a socket that no kernel makes."""
        # A default that is too long is left out by the node, with a warning.
        chosen = self.local.enabled and self.local.socket != LocalSection().socket
        if chosen and (length := len(os.fsencode(self.local_socket))) > limits.MAX_SOCKET_PATH_BYTES:
            yield Problem(
                "local.socket",
                shown(str(self.local_socket)),
                f"is a path of {length} bytes, and Linux allows a socket {limits.MAX_SOCKET_PATH_BYTES}: set a shorter "
                "one, as in '/run/mesh/node.sock', or [local] enabled = false",
            )
        seen: set[str] = set()
        for index, rule in enumerate(self.curation):
            if rule.name in seen:
                yield Problem(f"curation[{index}].name", shown(rule.name), "is used twice: give each rule its own name")
            seen.add(rule.name)


def load(path: Path | str) -> NodeConfig:
    """Read and check a configuration file. Relative paths in it become relative to its folder.

    :raises ConfigError: the file can't be read, or everything that is wrong in it, one line each with key, value and
        the way out.
    """
    path = Path(path)
    table = _read_toml(path)
    reader = TableReader(folder=path.absolute().parent, root=NodeConfig)
    config = reader.read_table(NodeConfig, _with_defaults(table), "")
    if reader.problems:
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    assert config is not UNREADABLE, "a table without problems is readable"
    loaded: NodeConfig = config
    return loaded


def load_local_socket(path: Path | str) -> Path:
    """Where the node of a configuration file lets applications connect. Nothing else in the file is checked, and its
    keys need not be readable: the application may be another user than the node.

    :raises ConfigError: the file can't be read, or it names no such place.
    """
    path = Path(path)
    table = _read_toml(path)
    reader = TableReader(folder=path.absolute().parent, root=NodeConfig)
    node, local = table.get("node"), reader.read_table(LocalSection, table.get("local", {}), "local")
    raw = node.get("state_dir", "state") if isinstance(node, dict) else "state"
    state_dir = reader.read(NodeSection.__annotations__["state_dir"], raw, "node.state_dir")
    if reader.problems:
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    if not local.enabled:
        raise ConfigError(f"{path} has [local] enabled = false, so no application can connect: set it to true")
    socket: Path = state_dir / local.socket
    return socket


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a file: name the TOML file itself")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f'{path} does not exist: correct the path, or write it (two lines are enough: [node] and id = "…")'
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path} can't be read ({reason}): check its path, owner and mode") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes: name the TOML file itself")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line} is not UTF-8 text: save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; correct that line") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path} is not valid TOML: a value is nested too deep or too long; simplify it") from error


def _identity_names(node: str) -> dict[str, str]:
    return {"certificate": f"{node}.crt", "key": f"{node}.key", "authority": "authority.crt"}


def _with_defaults(table: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults that are no constants: paths beside the file, named after ``[node] id``."""
    node, identity = table.get("node"), table.get("identity", {})
    files: dict[str, Any] = _identity_names("")
    try:
        files = _identity_names(node_id(node["id"]))  # type: ignore[index]
    except (KeyError, TypeError, InvalidName):
        files = dict.fromkeys(files, UNREADABLE)  # the id's own problem is enough
    completed = dict(table)
    if isinstance(node, dict):
        completed["node"] = {"state_dir": "state", **node}
    if isinstance(identity, dict):
        completed["identity"] = {**files, **identity}
    return completed
