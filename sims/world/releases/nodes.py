"""Releases at the nodes of a simulation: what stands for disk, signatures, installer and relay.

The machine of releases is that of real nodes (:class:`protocols.releases.machine.Releases`). A bundle is genuine when
the publisher made it, whatever its bytes; everything below it is checked by its SHA-256, as on a road. Chunks that are
what they should be are kept once for all nodes.
"""

from collections.abc import Callable
from random import Random
from typing import Any, Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.engine import Engine
from protocols.releases import events
from protocols.releases.machine import Releases
from protocols.releases.rollout.rollouts import Rollouts
from protocols.releases.settings import ReleaseSettings
from protocols.settings import NodeSettings
from protocols.wire.releases import FRAMES
from sims.virtual.capability import Capability
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.releases.publisher import Publisher, sha256

DISK_NS: Final = 2 * limits.MS
"""Reading or writing a chunk, and hashing it."""
VERIFY_NS: Final = 30 * limits.MS
STAGE_NS: Final = 500 * limits.MS


class ReleaseDisk:
    """What is on the disk of one node, over all its lives."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.bundle = b""
        """The bundle that was verified last."""
        self.served: dict[str, int] = {}
        """The counter of the release that serves, by path."""
        self.forged = 0
        """How many chunks came whose bytes did not have their digest. None of them is kept."""
        self.room_bytes: int | None = None
        """What all chunks may take. None: there is no limit."""

    def has_room_for(self, data: bytes) -> bool:
        """Whether one more chunk fits."""
        return self.room_bytes is None or sum(map(len, self.chunks.values())) + len(data) <= self.room_bytes


class RelayStore:
    """The relay as a holder of chunks. Its link sends one chunk after the other."""

    def __init__(self, driver: SimDriver, publisher: Publisher, bytes_per_s: int, delay_ns: int) -> None:
        """``bytes_per_s``: 0 means no limit."""
        self._driver, self._publisher = driver, publisher
        self._bytes_per_s, self._delay_ns = bytes_per_s, delay_ns
        self._free_ns = 0
        self.up = True
        self.egress_bytes = 0

    def send(self, node: SimNode, digest: bytes, came: Callable[[SimNode, int], int | None]) -> int | None:
        """Send a chunk to a node. ``came``: when so many bytes that are sent now are there. Returns when it arrives;
        None when the relay does not answer, or does not hold it."""
        data = self._publisher.chunks.get(digest)
        if data is None or not self.up:
            return None
        self.egress_bytes += len(data)
        now = self._driver.now
        if self._bytes_per_s:
            self._free_ns = max(self._free_ns, now) + len(data) * limits.SECOND // self._bytes_per_s
        at_ns = came(node, len(data))
        return None if at_ns is None else max(at_ns, self._free_ns) + self._delay_ns


def rollouts_of(settings: NodeSettings) -> Rollouts:
    """The rollouts of one life of a node that follows all models."""
    access = AccessTable(settings.access)
    return Rollouts(
        settings.node, settings.role, (), ("models/*",), sha256,
        lambda path: access.permits_release(settings.role, settings.node, path),
    )  # fmt: skip


class SimReleases:
    """The releases of all nodes: a capability, and what its performers need."""

    def __init__(
        self, publisher: Publisher, settings: ReleaseSettings | None = None,
        machine: Callable[[NodeSettings, Random], Releases] | None = None,
    ) -> None:  # fmt: skip
        """``machine`` makes the machine of one life; None: one that follows all releases."""
        self.publisher, self._settings = publisher, settings or ReleaseSettings()
        self._machine = machine or self._usual
        self.disks: dict[str, ReleaseDisk] = {}
        self.driver: SimDriver | None = None
        """Has to be set before time passes."""
        self.relay: RelayStore | None = None
        self.relay_ns: Callable[[SimNode, int], int | None] = lambda node, size_bytes: self._now
        """When bytes that the relay sends to a node now are there, as far as the link of the node goes."""
        self.on_kept: Callable[[SimNode, bytes], None] | None = None
        """Is called with each chunk that a node keeps …"""
        self.on_staged: Callable[[SimNode, str, int], None] | None = None
        """… and with each release that it stages."""
        self.capability = Capability(self._new_machine, FRAMES, {
            events.VerifyBundle: self._later(VERIFY_NS, self._verify),
            events.KeepChunk: self._later(DISK_NS, self._keep),
            events.AskRelay: self._ask_relay,
            events.ReadPiece: self._later(DISK_NS, self._read_piece),
            events.ReadDescription: self._later(DISK_NS, self._describe),
            events.ReadOrder: self._later(DISK_NS, self._order),
            events.ReadIndex: self._later(DISK_NS, self._index),
            events.StageRelease: self._later(STAGE_NS, self._stage),
            events.ServeRelease: self._later(DISK_NS, self._serve),
            events.ShadowRelease: lambda node, effect: None,
            events.DropRelease: lambda node, effect: None,
        })  # fmt: skip

    @property
    def _now(self) -> int:
        assert self.driver is not None, "it is set first"
        return self.driver.now

    def _usual(self, settings: NodeSettings, random: Random) -> Releases:
        access = AccessTable(settings.access)
        return Releases(settings.node, access, self._settings, random, rollouts_of(settings))

    def _new_machine(self, settings: NodeSettings) -> Releases:
        return self._machine(settings, Random(f"releases/{settings.node}/{settings.incarnation}"))

    def disk(self, name: str) -> ReleaseDisk:
        """The disk of a node."""
        return self.disks.setdefault(name, ReleaseDisk())

    def of(self, node: SimNode) -> Releases:
        """The machine of the present life of a node."""
        return node.engine.machine(Releases)

    # --- lives and news --------------------------------------------------------------------------------------------
    def begin(self, node: SimNode) -> None:
        """A life begins with what is on the disk."""
        disk = self.disk(node.name)
        sizes = {digest: len(data) for digest, data in disk.chunks.items()}
        self._tell(node, lambda releases, now: releases.holding(sizes, now))
        catalogue = self.publisher.catalogues.get(disk.bundle)
        if catalogue is not None:
            self._tell(node, lambda releases, now: releases.bundle_verified(disk.bundle, catalogue, now))

    def seed(self, node: SimNode) -> None:
        """Put all that was published on the disk of a node, as an import does."""
        news = self.publisher.news
        assert news is not None, "something was published"
        disk = self.disk(node.name)
        disk.chunks.update(self.publisher.chunks)
        disk.bundle = news.bundle
        self.begin(node)

    def connect(self, node: SimNode, is_connected: bool = True) -> None:
        """Say whether a node reaches the relay. If so it is told the news."""
        news = self.publisher.news
        self._tell(node, lambda releases, now: releases.relay_connected(is_connected, now))
        if is_connected and news is not None:
            self._tell(node, lambda releases, now: releases.relay_told(news, now))

    def _tell(self, node: SimNode, action: Callable[[Releases, int], object]) -> None:
        assert self.driver is not None, "it is set first"

        def act(engine: Engine, now: int) -> None:
            action(engine.machine(Releases), now)

        self.driver.act(node, act)

    # --- performers ------------------------------------------------------------------------------------------------
    def _later(self, delay_ns: int, perform: Callable[[SimNode, Any], None]) -> Callable[[SimNode, Any], None]:
        def schedule(node: SimNode, effect: Any) -> None:
            assert self.driver is not None, "it is set first"
            self.driver.when_awake(node, self._now + delay_ns, lambda one: perform(node, one), effect)

        return schedule

    def _verify(self, node: SimNode, effect: events.VerifyBundle) -> None:
        disk, catalogue = self.disk(node.name), self.publisher.catalogues.get(effect.digest)
        trusted = self.publisher.catalogues.get(disk.bundle)
        if catalogue is None:
            self._tell(node, lambda releases, now: releases.bundle_refused(effect.digest, "a signature is wrong", now))
        elif trusted is not None and catalogue.timestamp_version < trusted.timestamp_version:
            self._tell(node, lambda releases, now: releases.bundle_refused(effect.digest, "it is older", now))
        else:
            disk.bundle = effect.digest
            self._tell(node, lambda releases, now: releases.bundle_verified(effect.digest, catalogue, now))

    def _keep(self, node: SimNode, effect: events.KeepChunk) -> None:
        disk, digest = self.disk(node.name), effect.digest
        if not disk.has_room_for(effect.data):
            self._tell(node, lambda releases, now: releases.chunk_unwritten(digest, now))
            return
        good = sha256(effect.data) == digest
        if good:
            disk.chunks[digest] = self.publisher.chunks.get(digest, effect.data)
            if self.on_kept is not None:
                self.on_kept(node, digest)
        else:
            disk.forged += 1
        self._tell(node, lambda releases, now: releases.chunk_stored(digest, good, now))

    def _ask_relay(self, node: SimNode, effect: events.AskRelay) -> None:
        assert self.driver is not None, "it is set first"
        at_ns = None if self.relay is None else self.relay.send(node, effect.digest, self.relay_ns)
        if at_ns is None:
            self.driver.when_awake(node, self._now + limits.SECOND, lambda _: self._from_relay(node, effect, False), 0)
        else:
            self.driver.when_awake(node, at_ns, lambda _: self._from_relay(node, effect, True), 0)

    def _from_relay(self, node: SimNode, effect: events.AskRelay, good: bool) -> None:
        disk, digest = self.disk(node.name), effect.digest
        if good and not disk.has_room_for(self.publisher.chunks[digest]):
            self._tell(node, lambda releases, now: releases.chunk_unwritten(digest, now))
            return
        if good:
            disk.chunks[digest] = self.publisher.chunks[digest]
            if self.on_kept is not None:
                self.on_kept(node, digest)
        self._tell(node, lambda releases, now: releases.chunk_stored(digest, good, now))

    def _read_piece(self, node: SimNode, effect: events.ReadPiece) -> None:
        data = self.disk(node.name).chunks.get(effect.digest, b"")
        piece = data[effect.offset : effect.offset + limits.PIECE_BYTES]
        self._tell(
            node, lambda releases, now: releases.piece_read(effect.node, effect.digest, effect.offset, piece, now)
        )

    def _describe(self, node: SimNode, effect: events.ReadDescription) -> None:
        description = self.publisher.descriptions.get(effect.digest)
        self._tell(node, lambda releases, now: releases.described(effect.digest, description, now))

    def _order(self, node: SimNode, effect: events.ReadOrder) -> None:
        order = self.publisher.orders.get(effect.digest)
        self._tell(node, lambda releases, now: releases.ordered(effect.digest, order, now))

    def _index(self, node: SimNode, effect: events.ReadIndex) -> None:
        disk = self.disk(node.name)
        digests = disk.chunks.get(effect.content, b"")
        bits = 0
        for number in range(len(digests) // 32):
            if digests[32 * number : 32 * number + 32] in disk.chunks:
                bits |= 1 << number
        held = bits.to_bytes((len(digests) // 32 + 7) // 8, "little")
        self._tell(node, lambda releases, now: releases.indexed(effect.content, digests, held, now))

    def _stage(self, node: SimNode, effect: events.StageRelease) -> None:
        if self.on_staged is not None:
            self.on_staged(node, effect.path, effect.counter)
        self._tell(node, lambda releases, now: releases.staged(effect.path, effect.counter, "", now))

    def _serve(self, node: SimNode, effect: events.ServeRelease) -> None:
        self.disk(node.name).served[effect.path] = effect.counter
        self._tell(node, lambda releases, now: releases.serving(effect.path, effect.counter, "", now))
