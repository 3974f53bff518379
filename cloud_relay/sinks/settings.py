"""The tables ``[[sink]]`` of the relay's configuration.

    [[sink]]
    name = "lake"
    kind = "parquet"                # parquet, postgresql, mqtt, kafka or http
    url = "s3://records/mesh"
    select = { key = "veh/**", min_quality = 0.5 }  # key, origin, rule, box, min_quality; default: everything
    begin = "oldest"                # "newest": a new sink gets what is stored from now on
    max_backlog = 10_000_000        # further behind, the oldest are skipped; default: never
    timeout = "30s"                 # for one delivery
    tls = "on"                      # "off" has to be written to send records in the clear beyond this host
    ca = "ca.pem"                   # default: the authorities of the system
    client_certificate = "relay.pem"
    client_key = "relay.key"

Each kind has keys of its own, see ``_KIND_KEYS``. A password or token is ``{ file = "…" }`` or ``{ env = "…" }``. An
unknown key is an error, because a misspelt one would be ignored in silence otherwise.
"""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from cloud_relay.addresses import hosts_in, split_address
from cloud_relay.config import RelayConfig
from cloud_relay.query.arrivals import STREAM_FILTERS
from cloud_relay.query.selection import Query, untrusted_query
from cloud_relay.sinks.secrecy import Secret, SinkTls
from cloud_relay.spans import untrusted_span_s
from protocols.base.errors import ConfigError, MeshError
from protocols.base.ids import UtcNs

MAX_SINKS: Final = 16
"""Each has a thread and reads the store."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TABLE: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}(\.[a-z_][a-z0-9_]{0,62})?")
_TOPIC: Final = re.compile(r"[A-Za-z0-9._/{}-]{1,200}")
_PLACEHOLDERS: Final = frozenset(("key", "origin", "rule"))


class SinkKind(StrEnum):
    """What is at the other end."""

    PARQUET = "parquet"
    POSTGRESQL = "postgresql"
    MQTT = "mqtt"
    KAFKA = "kafka"
    HTTP = "http"


_SCHEMES: Final[Mapping[SinkKind, tuple[str, ...]]] = {
    SinkKind.PARQUET: (),
    SinkKind.POSTGRESQL: ("postgresql",),
    SinkKind.MQTT: ("mqtt",),
    SinkKind.KAFKA: ("kafka",),
    SinkKind.HTTP: ("https", "http"),
}
_COMMON_KEYS: Final = ("name", "kind", "url", "select", "begin", "max_backlog", "timeout")
_TLS_KEYS: Final = ("tls", "ca", "client_certificate", "client_key")
_KIND_KEYS: Final[Mapping[SinkKind, tuple[str, ...]]] = {
    SinkKind.PARQUET: ("records_per_file", "longest_wait", "options", "secrets", "tls"),
    SinkKind.POSTGRESQL: (*_TLS_KEYS, "user", "password", "table", "create_table"),
    SinkKind.MQTT: (*_TLS_KEYS, "user", "password", "topic"),
    SinkKind.KAFKA: (*_TLS_KEYS, "user", "password", "sasl", "topic", "message_key"),
    SinkKind.HTTP: (*_TLS_KEYS, "token"),
}


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """One table, checked."""

    name: str
    kind: SinkKind
    url: str
    query: Query
    begins_newest: bool
    max_backlog: int | None
    timeout_s: float
    tls: SinkTls | None
    """None: in the clear."""
    secrets: Mapping[str, Secret]
    """By the key of the table, or for Parquet by the option of fsspec."""
    own: Mapping[str, Any]
    """The keys of its kind, with their defaults."""

    def hosts(self, default_port: int) -> list[tuple[str, int]]:
        """The hosts and ports that the address names."""
        return hosts_in(split_address(self.url)[1], default_port)

    @property
    def path(self) -> str:
        """What stands behind the host in the address, without the first slash."""
        return unquote(split_address(self.url)[0].path).removeprefix("/")


def sinks_of(config: RelayConfig) -> list[SinkSettings]:
    """The sinks of a configuration. :raises ConfigError: names file, sink, key and value."""
    if len(config.sinks) > MAX_SINKS:
        raise ConfigError(f"{config.path}: there are {len(config.sinks)} tables [[sink]]: use at most {MAX_SINKS}")
    found: dict[str, SinkSettings] = {}
    for number, table in enumerate(config.sinks, 1):
        settings = _Table(config.path, number, table).parse()
        if settings.name in found:
            raise ConfigError(f"{config.path}: two tables [[sink]] have the name {settings.name!r}: rename one")
        found[settings.name] = settings
    return list(found.values())


class _Table:
    def __init__(self, path: Path, number: int, table: Mapping[str, Any]) -> None:
        self._path, self._table = path, table
        name = table.get("name")
        self._called = f"sink {name!r}" if isinstance(name, str) and name else f"table {number} of [[sink]]"

    def parse(self) -> SinkSettings:
        name = self._text("name", None)
        if _NAME.fullmatch(name) is None:
            raise self._wrong("name", name, "use up to 63 of a-z, 0-9 and '-'")
        kind = SinkKind(self._choice("kind", tuple(SinkKind), None))
        known = (*_COMMON_KEYS, *_KIND_KEYS[kind])
        for key in self._table:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                way_out = f"did you mean {near[0]!r}?" if near else f"a sink of kind {kind} has {', '.join(known)}"
                raise ConfigError(f"{self._path}: {self._called} has an unknown key {key!r}: {way_out}")
        url = self._url(kind)
        return SinkSettings(
            name=name,
            kind=kind,
            url=url,
            query=self._query(),
            begins_newest=self._choice("begin", ("oldest", "newest"), "oldest") == "newest",
            max_backlog=self._number("max_backlog", 1, 2**62) if "max_backlog" in self._table else None,
            timeout_s=self._span_s("timeout", "5m" if kind is SinkKind.PARQUET else "30s"),
            tls=None if kind is SinkKind.PARQUET else self._tls(kind, url),
            secrets=self._secrets(kind),
            own=self._own(kind),
        )

    # --- the keys of each kind -------------------------------------------------------------------------------------
    def _own(self, kind: SinkKind) -> dict[str, Any]:
        match kind:
            case SinkKind.PARQUET:
                return {
                    "records_per_file": self._number("records_per_file", 1, 50_000, 20_000),
                    "longest_wait_s": self._span_s("longest_wait", "5m"),
                    "options": self._options(),
                }
            case SinkKind.POSTGRESQL:
                table = self._text("table", "records")
                if _TABLE.fullmatch(table) is None:
                    raise self._wrong("table", table, "use a name of a-z, 0-9 and '_', with a schema or without")
                return {"user": self._text("user", ""), "table": table, "create_table": self._truth("create_table")}
            case SinkKind.MQTT:
                topic = self._text("topic", "mesh/{key}")
                asked = set(re.findall(r"\{([^{}]*)\}", topic))
                left = re.sub(r"\{[^{}]*\}", "", topic)
                if _TOPIC.fullmatch(topic) is None or not asked <= _PLACEHOLDERS or "{" in left or "}" in left:
                    raise self._wrong("topic", topic, "use letters, digits, . _ - /, and {key}, {origin}, {rule}")
                return {"user": self._text("user", ""), "topic": topic}
            case SinkKind.KAFKA:
                topic = self._text("topic", "records")
                if re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic) is None:
                    raise self._wrong("topic", topic, "use up to 249 letters, digits, '.', '_', '-'")
                return {
                    "user": self._text("user", ""),
                    "topic": topic,
                    "message_key": self._choice("message_key", ("origin", "key", "id"), "origin"),
                    "sasl": self._choice("sasl", ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"), "SCRAM-SHA-512"),
                }
            case SinkKind.HTTP:
                return {}

    def _options(self) -> dict[str, Any]:
        options = self._table.get("options", {})
        if not isinstance(options, dict):
            raise self._wrong("options", options, 'write a table as in { endpoint_url = "https://…" }')
        self._check_options("options", options, may_be_clear=self._choice("tls", ("on", "off"), "on") == "off")
        return options

    def _check_options(self, place: str, options: Mapping[str, Any], *, may_be_clear: bool) -> None:
        """Tables in it too, such as ``client_kwargs``, which a driver hands on to the library below it."""
        for name, value in options.items():
            key = f"{place}.{name}"
            if re.search(r"secret|password|token|credential|(^|_)key$", name):
                raise self._wrong(
                    key, "…", f'put it into secrets, as in secrets = {{ {name} = {{ file = "secret" }} }}'
                )
            if isinstance(value, dict):
                self._check_options(key, value, may_be_clear=may_be_clear)
            elif name == "endpoint_url" and str(value).lower().startswith("http://") and not may_be_clear:
                try:
                    hosts = hosts_in(split_address(str(value))[1], 80)
                except ValueError as error:
                    raise self._wrong(key, value, f"{error}: write one as in https://host/") from error
                if not all(_is_loopback(host) for host, _ in hosts):
                    raise self._wrong(key, value, _CLEAR)

    def _secrets(self, kind: SinkKind) -> dict[str, Secret]:
        if kind is SinkKind.PARQUET:
            given = self._table.get("secrets", {})
            if not isinstance(given, dict):
                raise self._wrong("secrets", given, 'write a table as in { secret = { env = "S3_SECRET" } }')
            return {name: self._secret(f"secrets.{name}", value) for name, value in given.items()}
        return {
            key: self._secret(key, self._table[key])
            for key in ("password", "token")
            if key in _KIND_KEYS[kind] and key in self._table
        }

    def _secret(self, key: str, value: Any) -> Secret:
        match value:
            case {"file": str(file), **rest} if file and not rest and "\0" not in file:
                secret = Secret(f"{self._path}: {self._called}: {key}", self._path.parent / file)
            case {"env": str(name), **rest} if name and not rest:
                secret = Secret(f"{self._path}: {self._called}: {key}", None, name)
            case _:
                raise self._wrong(key, "…", 'write { file = "FILE" } or { env = "VARIABLE" }, not the secret itself')
        secret.read()
        return secret

    # --- addresses and TLS -----------------------------------------------------------------------------------------
    def _url(self, kind: SinkKind) -> str:
        url = self._text("url", None)
        schemes = _SCHEMES[kind] or ("file", "s3", "abfs", "gs")
        example = f"write one as in {schemes[0]}://{'/var/records' if kind is SinkKind.PARQUET else 'host/'}"
        try:
            address, hosts = split_address(url)
            if "@" in hosts:
                raise ConfigError(
                    f"{self._path}: {self._called}: url has a user or password in it, which would be shown: use the "
                    "keys user and password, or secrets"
                )
            if not address.scheme or (_SCHEMES[kind] and address.scheme not in schemes) or not url.isprintable():
                raise self._wrong("url", url, example)
            if kind is not SinkKind.PARQUET:
                hosts_in(hosts, 1)
                if address.query and kind is not SinkKind.HTTP:
                    raise self._wrong("url", url, "leave out what follows the '?': each setting has a key")
            if kind is SinkKind.POSTGRESQL and not address.path.strip("/"):
                raise self._wrong("url", url, "name the database, as in postgresql://host/records")
        except ValueError as error:
            raise self._wrong("url", url, f"{error}: {example}") from error
        return url

    def _tls(self, kind: SinkKind, url: str) -> SinkTls | None:
        address, hosts = split_address(url)
        local = all(_is_loopback(host) for host, _ in hosts_in(hosts, 1))
        said = self._choice("tls", ("on", "off"), "off" if local else "on")
        files = [self._file(key) for key in ("ca", "client_certificate", "client_key")]
        if (files[1] is None) is not (files[2] is None):
            raise ConfigError(f"{self._path}: {self._called}: client_certificate and client_key belong together")
        if kind is SinkKind.HTTP:
            if address.scheme == "http" and said == "on":
                raise self._wrong("url", url, f"write https://, or {_CLEAR}")
            said = "on" if address.scheme == "https" else "off"
        elif any(files) and "tls" not in self._table:
            said = "on"
        if said == "off":
            if any(files):
                raise ConfigError(f'{self._path}: {self._called}: tls = "off" uses no ca or client_certificate')
            return None
        client = None if files[1] is None or files[2] is None else (files[1], files[2])
        tls = SinkTls(files[0], client)
        try:
            tls.context()
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {self._called}: {error}") from error
        return tls

    # --- values ----------------------------------------------------------------------------------------------------
    def _query(self) -> Query:
        given = self._table.get("select", {})
        if not isinstance(given, dict):
            raise self._wrong("select", given, 'write a table as in { key = "veh/**" }')
        texts = {}
        for name, value in given.items():
            if name == "min_quality" and type(value) in (int, float):
                texts[name] = repr(value)
            elif not isinstance(value, str):
                raise self._wrong(f"select.{name}", value, "write text in quotes")
            else:
                texts[name] = value
        try:
            return untrusted_query(texts, UtcNs(0), STREAM_FILTERS)
        except MeshError as error:
            raise ConfigError(f"{self._path}: {self._called}: select: {error}") from error

    def _text(self, key: str, default: str | None) -> str:
        value = self._table.get(key, default)
        if value is None:
            raise ConfigError(f"{self._path}: {self._called} has no {key}: add {key} = …")
        if not isinstance(value, str):
            raise self._wrong(key, value, "write text in quotes")
        return value

    def _choice(self, key: str, choices: tuple[str, ...], default: str | None) -> str:
        value = self._text(key, default)
        if value not in choices:
            raise self._wrong(key, value, "write " + " or ".join(f'"{choice}"' for choice in choices))
        return value

    def _truth(self, key: str) -> bool:
        value = self._table.get(key, True)
        if type(value) is not bool:
            raise self._wrong(key, value, "write true or false")
        return value

    def _number(self, key: str, least: int, most: int, default: int | None = None) -> int:
        value = self._table.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key, value, f"use a whole number from {least} to {most}")
        return value

    def _span_s(self, key: str, default: str) -> float:
        value = self._text(key, default)
        span_s = untrusted_span_s(value, "smh")
        if span_s is None:
            raise self._wrong(key, value, "use a span of time as in 30s, 5m or 1h")
        return float(span_s)

    def _file(self, key: str) -> Path | None:
        if key not in self._table:
            return None
        value = self._text(key, None)
        if not value or "\0" in value:
            raise self._wrong(key, value, "name a file")
        return self._path.parent / value

    def _wrong(self, key: str, value: object, way_out: str) -> ConfigError:
        return ConfigError(f"{self._path}: {self._called}: {key} is {str(value)[:80]!r}: {way_out}")


_CLEAR: Final = 'tls = "off" to send records unencrypted beyond this host'


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
