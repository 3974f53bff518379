"""Addresses with several hosts, ``scheme://user@host:port,[::1]:port/path?query``, as PostgreSQL and Kafka have them.

``urllib.parse`` knows one host. Some of its versions refuse several of which one is an IPv6 address.
"""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

_HOSTS: Final = re.compile(r"[^/?#]*")


def split_address(text: str) -> tuple[SplitResult, str]:
    """An address without its hosts, and its hosts as they are written, with the login before them.

    :raises ValueError: what stands around the hosts is malformed.
    """
    scheme, mark, rest = text.partition("://")
    hosts = _HOSTS.match(rest)
    netloc = hosts[0] if hosts else ""
    return urlsplit(scheme + mark + rest[len(netloc) :]), netloc


def hosts_in(netloc: str, default_port: int) -> list[tuple[str, int]]:
    """The hosts of ``user@host:port,host:port``. :raises ValueError: one is missing, or a port is wrong."""
    hosts = []
    for part in netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{part}")
        if not one.hostname:
            raise ValueError("a host is missing")
        if one.port == 0:
            raise ValueError("a port is 0")
        hosts.append((one.hostname, one.port or default_port))
    return hosts
