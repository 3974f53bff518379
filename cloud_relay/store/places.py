"""Where a store is: a file of SQLite, or a database of PostgreSQL by its URL.

A URL is as of libpq: ``postgresql://user@host:port/database?sslmode=verify-full&sslrootcert=ca.crt``, with several
hosts joined by commas, of which the one that takes writes is used. Passwords are not a part of it, because URLs end up
in logs and lists of processes: a file has it, or ``PGPASSWORD``, or libpq's ``~/.pgpass``. Beyond this host the server
has to prove who it is, as everything in the mesh has to.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from cloud_relay.addresses import hosts_in, split_address
from protocols.base.errors import ConfigError

SCHEMES: Final = ("postgresql", "postgres")
_TLS_MODES: Final = ("disable", "verify-ca", "verify-full")
_TLS_NAMES: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey")
_WANTED: Final = "write it as in postgresql://relay@db.example:5432/records"
_NAMES: Final = ("host", "port", "user", "dbname", *_TLS_NAMES)


@dataclass(frozen=True, slots=True)
class PostgresTls:
    """How the connection is protected."""

    checks_name: bool
    """Whether the certificate of the server has to name the host."""
    authority: Path | None
    """None: the authorities that this system trusts."""
    certificate: tuple[Path, Path] | None
    """The files of our own certificate and its key."""


@dataclass(frozen=True, slots=True)
class PostgresPlace:
    """A database of PostgreSQL."""

    dsn: str
    """Without anything secret, and without what says how it is protected."""
    name: str
    """What people are told: hosts and database."""
    tls: PostgresTls | None
    """None: in the clear, to this host only."""
    password_file: Path | None
    """Read again for each connection, so that a password can be changed while the relay runs."""

    def __str__(self) -> str:
        return self.name


StorePlace = Path | PostgresPlace


def is_url(text: str) -> bool:
    """Whether a text names a database and not a file."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def store_place(text: str, folder: Path = Path(), password_file: Path | None = None) -> StorePlace:
    """The place that a text names. Relative paths are relative to ``folder``.

    :raises ConfigError: a URL is wrong; says how, without the password that it may hold.
    """
    return postgres_place(text, folder, password_file) if is_url(text) else folder / text


def postgres_place(text: str, folder: Path, password_file: Path | None) -> PostgresPlace:
    """The database that a URL names. :raises ConfigError: it is wrong."""
    if not is_url(text):
        raise ConfigError(f"the URL of the store is of an unknown kind: {_WANTED}")
    try:
        parts, netloc = split_address(text)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ConfigError(f"the URL of the store is malformed: {_WANTED}") from error
    login, at, hosts = netloc.rpartition("@")
    given = dict(pairs)
    if ":" in login or "password" in given:
        raise ConfigError(
            "the URL of the store has a password in it, which logs and lists of processes would show: name a file by "
            "password_file in [store], or set PGPASSWORD"
        )
    if len(given) < len(pairs) or (unknown := sorted(given.keys() - set(_NAMES))):
        wrong = "a name twice" if len(given) < len(pairs) else f"an unknown name {unknown[0][:40]!r}"
        raise ConfigError(f"the URL of the store has {wrong} after '?': known are {', '.join(_NAMES)}")
    hosts = unquote(hosts) or given.get("host", "")
    database = unquote(parts.path.removeprefix("/")) or given.get("dbname", "")
    if not database or "\0" in unquote(text) or not _are_hosts(hosts, given.get("port", "")):
        raise ConfigError(f"the URL of the store names no database, or a wrong host or port: {_WANTED}")
    kept = {name: value for name, value in given.items() if name not in (*_TLS_NAMES, "dbname")}
    kept |= {"host": hosts} if hosts else {}  # behind '?', for the reason that ``addresses`` gives
    dsn = f"postgresql://{login}{at}/{quote(database)}" + (f"?{urlencode(kept)}" if kept else "")
    return PostgresPlace(
        dsn, f"postgresql://{hosts or 'this host'}/{database}", _tls(given, hosts, folder), password_file
    )


def _are_hosts(hosts: str, ports: str) -> bool:
    """Whether these are hosts, or folders with sockets, that can be asked."""
    try:
        for host in hosts.split(",") if hosts else ():
            if not host.startswith("/"):
                hosts_in(host, 1)
    except ValueError:
        return False
    named = ports.split(",") if ports else []
    if len(named) > 1 and len(named) != len(hosts.split(",")):
        return False
    return all(port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536 for port in named)


def _tls(given: Mapping[str, str], hosts: str, folder: Path) -> PostgresTls | None:
    near = all(_is_near(host) for host in hosts.split(","))
    mode = given.get("sslmode", "disable" if near else "verify-full")
    if mode not in _TLS_MODES or (mode == "disable" and not near):
        raise ConfigError(
            f"the URL of the store has sslmode={mode[:40]!r}: use verify-full, or verify-ca if its certificate does "
            "not name the host; disable only for a server on this host"
        )
    if mode == "disable":
        return None
    if ("sslcert" in given) != ("sslkey" in given):
        raise ConfigError("the URL of the store has one of sslcert and sslkey: give both, or none")
    authority = folder / given["sslrootcert"] if "sslrootcert" in given else None
    certificate = (folder / given["sslcert"], folder / given["sslkey"]) if "sslcert" in given else None
    return PostgresTls(mode == "verify-full", authority, certificate)


def _is_near(host: str) -> bool:
    """Whether a host, maybe with a port, is this one."""
    if not host or host.startswith("/"):
        return True
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
