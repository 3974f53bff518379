"""What a node says about itself by gossip, and how it keeps what others said across a restart.

The entries held are written to ``gossip.msgpack`` in the state folder when they have changed and when the node closes,
so that a restarted node knows the mesh before it meets anybody. They are checked again when they are read, so the file
need not be trusted; without a readable file the node starts with no entries of others.
"""

import asyncio
import ipaddress
import logging
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from meshnode.identity.private_files import narrow, write_private
from meshnode.links.interfaces import HostAddress, announced_addresses, host_addresses
from meshnode.running import Host
from protocols.base import limits
from protocols.base.errors import MeshError, ValueUnsupported
from protocols.gossip.certificates import ADDRESS
from protocols.gossip.entries import Stored
from protocols.wire.entries import encode_address
from protocols.wire.gossip import InboxAddress

_log = logging.getLogger(__name__)

ADDRESS_LIFETIME_S: Final = 24 * 3_600
"""A vehicle that nobody has heard of for a day may be anywhere."""
_MIN_LIFETIME_S: Final = 60
LOOK_S: Final = 30.0
"""The time between two checks whether the addresses of this host or its capabilities have changed."""
SAVE_S: Final = 300.0
"""The time between two writes of changed entries: a memory card endures some thousand writes of each block."""
_File = tuple[Literal[1], int, list[tuple[int, str, bytes]]]
"""Format version, UTC nanoseconds of writing, and for each entry its age in nanoseconds, its source and its bytes."""
_MAX_FILE_BYTES: Final = limits.MAX_ENTRIES * (limits.MAX_ENTRY_BYTES + 128)


class GossipService:
    """Authors the address entry of one node and keeps its store on disk."""

    def __init__(self, host: Host) -> None:
        self._host, self._ends = host, host.certificate_ends
        self._file = host.config.node.state_dir / "gossip.msgpack"
        self._said, self._lifetime_s = b"", 0
        self._kept: frozenset[bytes] = frozenset()
        self._saying = threading.Lock()

    def open(self) -> None:
        """Restore the entries that were kept, and author the address entry."""
        stored = load(self._file)
        self._host.driver.act(lambda engine, now: engine.gossip.restore(stored, now))
        self.say()

    def renewed(self, certificate_ends: datetime) -> None:
        """Sign the address entry again, with a new certificate."""
        with self._saying:
            self._ends, self._said = certificate_ends, b""
            self._say(None)

    def say(self, held: Sequence[HostAddress] | None = None) -> None:
        """Author the address entry, unless it would say the same as before for as long. ``held``: the addresses of
        this host, if they are known. While the inbox does not listen there is nothing to say. Any thread may call."""
        with self._saying:
            self._say(held)

    def _say(self, held: Sequence[HostAddress] | None) -> None:
        if not self._host.port:
            return
        held = host_addresses() if held is None else held
        host, listen, discovery = self._host, self._host.config.listen, self._host.config.discovery
        hosts = own_hosts(listen.host, listen.advertise, discovery.interfaces, held)[: limits.MAX_ADVERT_ADDRESSES]
        known = {name for part in host.parts for name in part.capabilities()}
        capabilities = sorted(known)[: limits.MAX_OFFERS]
        body = encode_address(InboxAddress(host.role.value, host.port, tuple(hosts), tuple(capabilities)))
        certified_s = int(self._ends.timestamp() - time.time())  # nobody would accept it for longer
        lifetime_s = max(_MIN_LIFETIME_S, min(ADDRESS_LIFETIME_S, certified_s))
        if body == self._said and lifetime_s < 2 * self._lifetime_s:  # else the clock was ahead and has been set back
            return
        said = body
        while True:
            try:
                self._put(body, lifetime_s)
            except ValueUnsupported as error:  # it doesn't fit beside the certificate
                if not capabilities and not hosts:
                    self._said, self._lifetime_s = said, lifetime_s
                    _log.warning("this node's addresses are not spread: %s", error)
                    return
                (capabilities or hosts).pop()
                body = encode_address(InboxAddress(host.role.value, host.port, tuple(hosts), tuple(capabilities)))
            except MeshError as error:
                _log.warning("this node's addresses are not spread: %s", error)
                return
            else:
                self._said, self._lifetime_s = said, lifetime_s
                return

    def _put(self, body: bytes, lifetime_s: int) -> None:
        self._host.driver.act(lambda engine, now: engine.gossip.put(ADDRESS, body, lifetime_s, now))

    async def run(self) -> None:
        """Look for changes until cancelled."""
        saved_s = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.say)
            if time.monotonic() - saved_s >= SAVE_S:
                saved_s = time.monotonic()
                await asyncio.to_thread(self.save)

    def save(self) -> None:
        """Write the entries held, if they changed since the last time."""
        stored = self._host.driver.look(lambda engine, now: engine.gossip.stored(now))
        kept = frozenset(entry.data for entry in stored)
        if kept == self._kept:
            return
        content = (1, time.time_ns(), [(entry.age_ns, entry.source, entry.data) for entry in stored])
        try:
            write_private(self._file, msgspec.msgpack.encode(content))
        except OSError as error:
            _log.warning("gossip entries can't be kept in %s (%s): free some disk", self._file, error.strerror)
        else:
            self._kept = kept


def load(file: Path) -> list[Stored]:
    """The entries that an earlier run kept, older by the time since; none when the file is missing or unreadable."""
    narrow(file)  # an older version let everybody read it
    try:
        with file.open("rb") as kept:
            content = kept.read(_MAX_FILE_BYTES)  # a larger file is cut here and fails to decode, as a torn one does
        _, saved_ns, entries = msgspec.msgpack.decode(content, type=_File)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("%s can't be read (%s): this node gets the entries again from neighbours", file, error)
        return []
    passed_ns = max(time.time_ns() - saved_ns, 0)
    return [Stored(data, age_ns + passed_ns, source) for age_ns, source, data in entries]


def own_hosts(
    listen: str, advertise: Sequence[str], interfaces: Sequence[str], held: Sequence[HostAddress]
) -> list[str]:
    """The addresses of the inbox: those that are advertised, or the one that it listens on, or those of the host."""
    if advertise:
        return list(advertise)
    try:
        if not ipaddress.ip_address(listen).is_unspecified:
            return [listen]
    except ValueError:  # a host name
        return [listen]
    return announced_addresses(None, interfaces, held)
