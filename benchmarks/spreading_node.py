"""A process of ``benchmarks.spreading``: a node that takes releases, and tells its neighbours where it is meanwhile.

It reads one JSON object a line from its standard input, and answers each with one on its standard output. The first is
a :class:`SpreadingSetting`, and its answer comes when the node listens. It publishes from then on. Each
:class:`Reckon` has it tell what it has seen since the one before.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from meshnode.config.sections import NodeConfig
    from meshnode.node import Node
    from protocols.wire.readings import Reading

URGENT: Final = 6
"""The priority from which readings are urgent."""


class SpreadingSetting(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is."""

    folder: str
    """Has certificates by name, and ``1.root.json``."""
    name: str
    host: str
    path: str
    """Of the release."""
    relay: tuple[str, int]
    positions_hz: float
    seeds: tuple[tuple[str, int], ...] = ()


class Reckon(msgspec.Struct, frozen=True):
    """Tell what was seen."""


class Open(msgspec.Struct, frozen=True):
    """The node listens."""

    port: int


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen since the last order."""

    peers: int
    """Neighbours that are met."""
    fetched_ns: int
    """When all chunks of the release were there, by the clock that all processes of a computer share; 0: not yet."""
    sent_ns: tuple[int, ...]
    """When urgent readings were published here …"""
    received_ns: tuple[tuple[int, int], ...]
    """… and when those were that came in, and what each took."""
    processor_s: float
    """What the process has used so far."""


class _Node:
    """The node, and what it has seen."""

    def __init__(self, node: "Node", setting: SpreadingSetting) -> None:
        from protocols.releases.events import ReleaseState

        self._node, self._name = node, setting.name
        self._kind, self._path = ReleaseState, setting.path
        self._fetched_ns = 0
        self._sent_ns: list[int] = []
        self._received_ns: list[tuple[int, int]] = []

    def happened(self, event: object) -> None:
        """The node reported an event."""
        if isinstance(event, self._kind) and event.path == self._path and event.state == "fetched":
            self._fetched_ns = self._fetched_ns or time.monotonic_ns()

    def received(self, reading: "Reading") -> None:
        """A neighbour's reading came in."""
        if reading.priority >= URGENT:
            published_ns = int(reading.value)
            self._received_ns.append((published_ns, time.monotonic_ns() - published_ns))

    async def publish(self, priority: int, topic: str, pause_s: float) -> None:
        """Publish for ever. The pauses differ, so that no two publishers stay in step."""
        random = Random(f"{self._name}/{topic}")
        publisher = self._node.publisher(f"veh/{self._name}/{topic}", priority=priority, lifespan_ms=5_000)
        while True:
            await asyncio.sleep(pause_s * (0.5 + random.random()))
            now = time.monotonic_ns()
            publisher.put(now)
            if priority >= URGENT:
                self._sent_ns.append(now)

    def reckon(self) -> Seen:
        """What was seen since it was last asked."""
        received_ns, self._received_ns = self._received_ns, []
        sent_ns, self._sent_ns = self._sent_ns, []
        return Seen(
            peers=sum(peer.met for peer in self._node.peers()), fetched_ns=self._fetched_ns, sent_ns=tuple(sent_ns),
            received_ns=tuple(received_ns), processor_s=time.process_time(),
        )  # fmt: skip


def _config(setting: SpreadingSetting) -> "NodeConfig":
    from meshnode.config.sections import (
        DiscoverySection,
        IdentitySection,
        ListenSection,
        LogSection,
        NodeConfig,
        NodeSection,
    )
    from meshnode.http.section import HttpSection
    from meshnode.links.transport import Address
    from meshnode.releases.section import ReleasesSection
    from protocols.base.ids import node_id
    from protocols.wire.readings import Position

    folder = Path(setting.folder)
    home = folder / setting.name
    releases = ReleasesSection(
        root=folder / "1.root.json", follow=(setting.path,), store_mib=64, relay=Address(*setting.relay)
    )
    return NodeConfig(
        node=NodeSection(id=node_id(setting.name), state_dir=home / "state", position=Position(48.7657, 11.4237, 1.0)),
        identity=IdentitySection.in_folder(home, setting.name),
        listen=ListenSection(host=setting.host),
        discovery=DiscoverySection(mdns=False, seeds=tuple(Address(*seed) for seed in setting.seeds)),
        log=LogSection(level="error"),
        sections=(HttpSection(enabled=False), releases),
    )


async def _serve(setting: SpreadingSetting) -> None:
    import meshnode

    configured = meshnode.open(_config(setting))
    async with configured as node:
        seen = _Node(node, setting)
        node.on_event(seen.happened)
        node.subscribe("veh/**", seen.received, own=False)
        topics = ((3, "position", 1 / setting.positions_hz), (URGENT, "warning", 1.0), (7, "brake", 1.0))
        publishing = [asyncio.create_task(seen.publish(*each)) for each in topics]
        _tell(Open(node.port))
        while await asyncio.to_thread(sys.stdin.readline):
            _tell(seen.reckon())
        for task in publishing:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _tell(answer: Open | Seen) -> None:
    print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(msgspec.json.decode(sys.stdin.readline(), type=SpreadingSetting)))
