"""The relay's configuration: one TOML file, parsed once into frozen types.

    [relay]
    id = "relay-1"
    host = "0.0.0.0"            # where nodes connect to
    port = 7450                 # 0: any free one, printed at the start
    state_dir = "state"

    [identity]                  # defaults: <id>.crt, <id>.key and authority.crt beside this file
    certificate = "relay-1.crt"
    key = "relay-1.key"
    authority = "authority.crt"
    sealing_key = "state/sealing.key"  # made when it is not there; default: sealing.key in state_dir

    [store]
    path = "state/relay.sqlite" # default: relay.sqlite in state_dir
    # url = "postgresql://relay@db.example/records"  # instead of path: PostgreSQL, which several relays may share
    # password_file = "db.password"                  # default: PGPASSWORD or ~/.pgpass has it
    pack_after_s = 86400        # records that are older are packed, and take a tenth of the space
    pack_beyond = 262144        # and all but so many of the newest, however old they are
    max_mb = 0                  # beyond so many megabytes the oldest records are deleted; 0: never

    [[retention]]               # how long records are kept; the first whose keys match decides, and others are kept
    keys = "veh/*/debug/**"
    max_age_s = 604800          # since the relay received them; 0: for ever

    [ingest]
    receipts = "accepted"       # "required": records without a receipt are refused

    [[aggregate]]               # any number, see cloud_relay.aggregates.definition
    name = "speed"
    key = "veh/*/speed"
    bucket = "1h"

    [releases]
    folder = "state/releases"   # default: releases in state_dir

    [http]                      # records over HTTP; without the table there is no server
    host = "127.0.0.1"
    port = 8480                 # 0: any free one, printed at the start
    tokens = "none"             # "required": each request shows a token
    certificate = "relay.pem"   # TLS; beyond loopback, TLS and tokens or certificates are demanded
    key = "relay.key"
    certificates = "none"       # "accepted": a certificate of the mesh with the role tool lets in, too
    operators = ["ops-1"]       # ids of tools whose certificate is that of an operator

    [access]                    # as in the configurations of the nodes; default: the built-in table
    rules = [{ role = "vehicle", verb = "publish", keys = "veh/{id}/**" }]

    [[sink]]                    # where records are sent on to: see cloud_relay.sinks.settings
    name = "lake"
    kind = "parquet"
    url = "s3://records/mesh"

    [[training]]                # when a model is trained again: see cloud_relay.learning.retraining.triggers
    recipe = "hotspot.toml"
    records = 10_000

    [models.plate]              # what is computed for nodes: see cloud_relay.inference.section
    path = "plate.onnx"

    [inference]
    workers = 1

Relative paths are relative to the file. An unknown key is an error, because a misspelt one would be ignored in silence
otherwise.
"""

import difflib
import ipaddress
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cloud_relay.aggregates.definition import AggregateDefinition, untrusted_definitions
from cloud_relay.store.places import StorePlace, postgres_place
from meshnode.links.transport import CredentialFiles
from protocols.access import AccessRule, AccessTable
from protocols.base.errors import ConfigError, InvalidKey, InvalidName, LocalProtocolError
from protocols.base.ids import NodeId, node_id
from protocols.base.keys import checked_expression

DEFAULT_PORT = 7450
DEFAULT_HTTP_PORT = 8480
MAX_CONFIG_BYTES = 1024 * 1024
"""A file that is larger than this is not a configuration, but was named by mistake."""

_KEYS = {
    "relay": ("id", "host", "port", "state_dir"),
    "identity": ("certificate", "key", "authority", "sealing_key"),
    "store": ("path", "url", "password_file", "pack_after_s", "pack_beyond", "max_mb"),
    "ingest": ("receipts",),
    "releases": ("folder",),
    "http": ("host", "port", "tokens", "certificate", "key", "certificates", "operators"),
    "access": ("rules",),
}
_LISTS = ("aggregate", "retention", "sink", "training")
"""Tables that may be there several times. Whoever uses them checks them."""
_CHECKED_LATER = ("models", "inference")
"""Tables that whoever uses them checks, too."""
_ONLY_IN_SQLITE = ("pack_after_s", "pack_beyond")
"""What ``[store]`` can't have beside ``url``."""
_RETENTION_KEYS = ("keys", "max_age_s")
MAX_RETENTION_RULES = 256
"""Each is compared with each key that a pack has."""
MAX_SECONDS = 100 * 366 * 86_400
_WANTED: dict[type, str] = {str: "text in quotes", int: "a whole number"}
_T = TypeVar("_T", str, int)


@dataclass(frozen=True, slots=True)
class CertificateRules:
    """Who gets in over HTTP by a certificate of the mesh."""

    authority: Path
    operators: frozenset[NodeId] = frozenset()
    """Tools that are operators; all others are viewers."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """What the HTTP server needs."""

    host: str
    port: int
    tokens_required: bool
    tls: tuple[Path, Path] | None
    """The files of the certificate and of its key."""
    store: StorePlace
    state_dir: Path
    certificates: CertificateRules | None = None
    """None: nobody gets in by a certificate."""


@dataclass(frozen=True, slots=True)
class KeepingConfig:
    """How records are kept."""

    pack_after_s: int
    pack_beyond: int
    max_bytes: int | None
    """None: the store may have any size."""
    retention: tuple[tuple[str, int | None], ...]
    """Key expressions, each with the seconds that records are kept; None: for ever."""


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """What ``cloud-relay run`` needs."""

    node: NodeId
    host: str
    port: int
    state_dir: Path
    credentials: CredentialFiles
    sealing_key: Path
    """The key that opens batches which nodes carry for others. It is made when it is not there."""
    store: StorePlace
    keeping: KeepingConfig
    receipts_required: bool
    """Whether batches with records have to have a receipt."""
    releases: Path
    """The repository of releases; it need not be there."""
    access: AccessTable
    http: HttpConfig | None
    """None: there is no server."""
    path: Path
    """The file that this is in."""
    trainings: tuple[dict[str, Any], ...]
    """The tables ``[[training]]`` as they are. ``cloud_relay.learning.retraining.triggers`` checks them."""
    sinks: tuple[dict[str, Any], ...]
    """The tables ``[[sink]]`` as they are. :func:`cloud_relay.sinks.settings.sinks_of` checks them."""
    aggregates: tuple[AggregateDefinition, ...] = ()
    """What the store keeps beside the records."""
    models: dict[str, Any] = field(default_factory=dict)
    inference: dict[str, Any] = field(default_factory=dict)
    """The tables ``[models.<name>]`` and ``[inference]`` as they are. :mod:`cloud_relay.inference.section` checks
    them."""


def load_config(path: Path) -> RelayConfig:
    """Read and check a configuration. Its relative paths are relative to its folder, wherever it is read from.

    :raises ConfigError: names file, key and value.
    """
    path = path.absolute()
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes: name a relay's configuration")
        tables = tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}: name an existing file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return _Parser(path, tables).parse()


class _Parser:
    def __init__(self, path: Path, tables: dict[str, Any]) -> None:
        self._path = path
        self._tables = tables

    def parse(self) -> RelayConfig:
        self._check_names("", self._tables, (*_KEYS, *_LISTS, *_CHECKED_LATER))
        for table, keys in _KEYS.items():
            self._check_names(f"{table}.", self._table(table), keys)
        name = self._value("relay", "id", "")
        if not name:
            raise ConfigError(
                f'{self._path}: relay.id is missing: name the relay as in its certificate, id = "relay-1"'
            )
        try:
            node = node_id(name)
        except InvalidName as error:
            raise ConfigError(f"{self._path}: relay.id: {error}") from error
        port = self._port("relay", DEFAULT_PORT)
        state_dir = self._file("relay", "state_dir", "state")
        store = self._store(state_dir)
        authority = self._file("identity", "authority", "authority.crt")
        return RelayConfig(
            node=node,
            host=self._value("relay", "host", "0.0.0.0"),  # noqa: S104 - a relay is there to be reached
            port=port,
            state_dir=state_dir,
            credentials=CredentialFiles(
                self._file("identity", "certificate", f"{node}.crt"),
                self._file("identity", "key", f"{node}.key"),
                authority,
            ),
            store=store,
            keeping=self._keeping(),
            sealing_key=self._file("identity", "sealing_key", str(state_dir / "sealing.key")),
            receipts_required=self._choice("ingest", "receipts", ("accepted", "required")) == "required",
            releases=self._file("releases", "folder", str(state_dir / "releases")),
            access=self._access(),
            http=self._http(store, state_dir, authority) if "http" in self._tables else None,
            path=self._path,
            trainings=self._list("training"),
            sinks=self._list("sink"),
            aggregates=self._aggregates(),
            models=self._table("models"),
            inference=self._table("inference"),
        )

    def _table(self, name: str) -> dict[str, Any]:
        content = self._tables.get(name, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{self._path}: {name} is {_shown(content)}: write a table, [{name}]")
        return content

    def _aggregates(self) -> tuple[AggregateDefinition, ...]:
        try:
            return untrusted_definitions(self._tables.get("aggregate", []))
        except LocalProtocolError as error:
            raise ConfigError(f"{self._path}: {error}") from error

    def _keeping(self) -> KeepingConfig:
        max_mb = self._number("store", "max_mb", 0, 2**40)
        rules = self._tables.get("retention", [])
        if not isinstance(rules, list) or len(rules) > MAX_RETENTION_RULES:
            raise ConfigError(
                f"{self._path}: retention is {_shown(rules)}: write at most {MAX_RETENTION_RULES} tables, [[retention]]"
            )
        return KeepingConfig(
            pack_after_s=self._number("store", "pack_after_s", 86_400, MAX_SECONDS),
            pack_beyond=self._number("store", "pack_beyond", 262_144, 2**40),
            max_bytes=max_mb * 1_000_000 or None,
            retention=tuple(self._retention_rule(number, rule) for number, rule in enumerate(rules, 1)),
        )

    def _retention_rule(self, number: int, rule: object) -> tuple[str, int | None]:
        name = f"retention, number {number}"
        if not isinstance(rule, dict):
            raise ConfigError(f"{self._path}: {name}: is {_shown(rule)}: write a table, [[retention]]")
        self._check_names(f"{name}: ", rule, _RETENTION_KEYS)
        keys, max_age_s = rule.get("keys", "**"), rule.get("max_age_s")
        if type(max_age_s) is not int or not 0 <= max_age_s <= MAX_SECONDS:
            raise ConfigError(
                f"{self._path}: {name}: max_age_s is {_shown(max_age_s)}: write a whole number of seconds up to "
                f"{MAX_SECONDS}; 0 keeps records for ever"
            )
        try:
            checked = checked_expression(keys if isinstance(keys, str) else "")
        except InvalidKey as error:
            raise ConfigError(f"{self._path}: {name}: keys is {_shown(keys)}: {error}") from error
        return checked, max_age_s or None

    def _number(self, table: str, key: str, default: int, most: int) -> int:
        value = self._value(table, key, default)
        if not 0 <= value <= most:
            raise ConfigError(f"{self._path}: {table}.{key} is {value}: use 0 to {most}")
        return value

    def _store(self, state_dir: Path) -> StorePlace:
        given = self._tables.get("store", {})
        if "url" not in given:
            if "password_file" in given:
                raise ConfigError(
                    f"{self._path}: store.password_file is for a store with a url: add it, or remove this"
                )
            return self._file("store", "path", str(state_dir / "relay.sqlite"))
        if "path" in given:
            raise ConfigError(f"{self._path}: store has both path and url: keep one of them")
        for name in _ONLY_IN_SQLITE:
            if name in given:
                raise ConfigError(
                    f"{self._path}: store.{name} is for a store in SQLite only: PostgreSQL compresses large rows by "
                    "itself: remove it, or store.url"
                )
        password_file = self._file("store", "password_file", "") if "password_file" in given else None
        try:
            return postgres_place(self._value("store", "url", ""), self._path.parent, password_file)
        except ConfigError as error:
            raise ConfigError(f"{self._path}: store.url: {error}") from error

    def _http(self, store: StorePlace, state_dir: Path, authority: Path) -> HttpConfig:
        given = self._tables["http"]
        host = self._value("http", "host", "127.0.0.1")
        tokens_required = self._choice("http", "tokens", ("none", "required")) == "required"
        tls = None
        if "certificate" in given or "key" in given:
            tls = self._file("http", "certificate", ""), self._file("http", "key", "")
        certificates = self._certificates(authority, has_tls=tls is not None)
        if not _is_loopback(host) and not (tls and (tokens_required or certificates)):
            raise ConfigError(
                f'{self._path}: http.host is {_shown(host)}, which others can reach: set tokens = "required", '
                'certificate and key there too (or certificates = "accepted"), or host = "127.0.0.1"'
            )
        port = self._port("http", DEFAULT_HTTP_PORT)
        return HttpConfig(host, port, tokens_required, tls, store, state_dir, certificates)

    def _certificates(self, authority: Path, *, has_tls: bool) -> CertificateRules | None:
        operators = self._tables["http"].get("operators", [])
        if not (isinstance(operators, list) and all(isinstance(name, str) for name in operators)):
            raise ConfigError(f'{self._path}: http.operators is {_shown(operators)}: write ids of tools, ["ops-1"]')
        try:
            known = frozenset(node_id(name) for name in operators)
        except InvalidName as error:
            raise ConfigError(f"{self._path}: http.operators: {error}") from error
        if self._choice("http", "certificates", ("none", "accepted")) == "none":
            if known:
                raise ConfigError(
                    f"{self._path}: http.operators says whose certificates are those of operators: set certificates = "
                    '"accepted" too, or take it out'
                )
            return None
        if not has_tls:
            raise ConfigError(
                f'{self._path}: http.certificates is "accepted", which needs TLS: set certificate and key there too'
            )
        return CertificateRules(authority, known)

    def _list(self, name: str) -> tuple[dict[str, Any], ...]:
        tables = self._tables.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConfigError(f"{self._path}: {name} is {_shown(tables)}: write tables, [[{name}]]")
        return tuple(tables)

    def _port(self, table: str, default: int) -> int:
        port = self._value(table, "port", default)
        if not 0 <= port <= 65_535:
            raise ConfigError(f"{self._path}: {table}.port is {port}: use 0 to 65535")
        return port

    def _check_names(self, prefix: str, content: dict[str, Any], known: tuple[str, ...]) -> None:
        for name in content:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                way_out = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
                raise ConfigError(f"{self._path}: unknown key {prefix + name!r}: {way_out}")

    def _value(self, table: str, key: str, default: _T) -> _T:
        value = self._tables.get(table, {}).get(key, default)
        if type(value) is not type(default):
            raise ConfigError(f"{self._path}: {table}.{key} is {_shown(value)}: write {_WANTED[type(default)]}")
        return value

    def _choice(self, table: str, key: str, choices: tuple[str, ...]) -> str:
        """One of several words, of which the first one is the default."""
        value = self._value(table, key, choices[0])
        if value not in choices:
            raise ConfigError(
                f"{self._path}: {table}.{key} is {_shown(value)}: write " + " or ".join(f'"{c}"' for c in choices)
            )
        return value

    def _access(self) -> AccessTable:
        rules = self._tables.get("access", {}).get("rules")
        if rules is None:
            return AccessTable()
        try:
            return AccessTable(msgspec.convert(rules, tuple[AccessRule, ...]))
        except (msgspec.ValidationError, InvalidKey) as error:
            raise ConfigError(
                f"{self._path}: access.rules: {error}: write rules as at the nodes, "
                '{ role = "vehicle", verb = "publish", keys = "veh/{id}/**" }'
            ) from error

    def _file(self, table: str, key: str, default: str) -> Path:
        value = self._value(table, key, default)
        if not value or "\0" in value:
            raise ConfigError(f"{self._path}: {table}.{key} is {_shown(value)}: name a file or folder")
        return self._path.parent / value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(value: object) -> str:
    return f"{str(value)[:80]!r} ({type(value).__name__})"
