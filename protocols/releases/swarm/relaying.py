"""The relay as a holder of chunks: which chunks this node asks it for.

The relay sends each byte once to each node that asks, so nodes in reach of each other share the work. A node asks for a
chunk that no neighbour holds, and that none says it gets from the relay, in random order. It says at once what it asks
for (:class:`~protocols.wire.releases.ChunksComing`), and neighbours fetch the chunk from it later. What neighbours say
delays this node at most: a chunk that has not come for ``relay_patience_ns`` is asked of the relay whoever holds it.
"""

from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.time import NEVER
from protocols.releases.events import AskRelay, Decisions
from protocols.releases.settings import ReleaseSettings
from protocols.releases.swarm.asking import Swarm
from protocols.releases.swarm.demand import ContentWish, LoneWish
from protocols.releases.swarm.shelf import Shelf
from protocols.wire.releases import ChunksComing

AT_ONCE: Final = 2
"""Chunks asked of the relay at the same time: one is on its way while the next is asked for …"""
_QUICK_NS: Final = limits.SECOND // 2
"""… if the last one came so quickly. Otherwise others wait at the relay too, and it is better that each gets one."""
_LOOK_NS: Final = limits.SECOND
_AGAIN_NS: Final = 10 * limits.SECOND
"""What the relay did not give is asked of it again after this time."""
_LOOKED_AT: Final = 64


class Relaying:
    """What one node asks the relay for."""

    def __init__(
        self, shelf: Shelf, swarm: Swarm, settings: ReleaseSettings, decisions: Decisions, random: Random
    ) -> None:  # fmt: skip
        self._shelf, self._swarm, self._settings = shelf, swarm, settings
        self._decisions, self._random = decisions, random
        self._connected = False
        self._at_once = 1
        self._asked: dict[bytes, int] = {}
        self._failed: dict[bytes, int] = {}  # chunks that it did not give, and when they are asked for again
        self._staggers: dict[bytes, int] = {}  # when lone chunks and contents are asked for at the earliest
        self._due_ns = NEVER
        per_hour = settings.relay_bytes_per_hour
        self._budget = Allowance(max(per_hour // 3_600, 1), per_hour // 10, 0) if per_hour else None
        self.counts = {"relay_asked": 0, "relay_gave": 0, "relay_failed": 0, "relay_bytes": 0}

    def connected(self, is_connected: bool, now: int) -> None:
        """The relay can be asked from now on, or not any more. What was asked for does not come then."""
        self._connected = self._swarm.passed_on.has_relay = is_connected
        if not is_connected:
            for chunk in list(self._asked):
                self._swarm.demand.mark(chunk, busy=False)
            self._asked.clear()
            self._due_ns = NEVER
        self.ask(now)

    def stored(self, chunk: bytes, size_bytes: int, ok: bool, now: int) -> bool:
        """A chunk has come from the relay, or not. Returns whether it was asked for."""
        asked_ns = self._asked.pop(chunk, None)
        if asked_ns is None:
            return False
        self._at_once = AT_ONCE if now - asked_ns <= _QUICK_NS else 1
        self._swarm.demand.mark(chunk, busy=False)
        if ok:
            self.counts["relay_gave"] += 1
            self.counts["relay_bytes"] += size_bytes
        else:
            self.counts["relay_failed"] += 1
            self._failed[chunk] = now + _AGAIN_NS
            while len(self._failed) > limits.MAX_CONTENTS:
                del self._failed[next(iter(self._failed))]
        return True

    def size_of(self, chunk: bytes) -> int | None:
        """The size of a chunk that the relay was asked for; None: it was not."""
        if chunk not in self._asked:
            return None
        lone = self._swarm.demand.lone.get(chunk)
        if lone is not None:
            return lone.size_bytes
        return next((known.size_of(number) for known, number in self._shelf.places(chunk)), 0)

    def ask(self, now: int) -> None:
        """Ask for what only the relay has."""
        if not self._connected:
            return
        asked = len(self._asked)
        while len(self._asked) < self._at_once and self._may_ask(now):
            chunk = self._next(now)
            if chunk is None:
                break
            self._asked[chunk] = now
            self._charge(self.size_of(chunk) or 0)
            self.counts["relay_asked"] += 1
            self._swarm.demand.mark(chunk, busy=True)
            self._decisions.effects.append(AskRelay(chunk))
        if len(self._asked) > asked:
            self._tell()
        demand = self._swarm.demand
        if len(self._asked) < self._at_once and (demand.lone or demand.contents):
            self._due_ns = min(self._due_ns if self._due_ns > now else NEVER, now + _LOOK_NS)

    def _may_ask(self, now: int) -> bool:
        return self._swarm.may_fetch(now) and (self._budget is None or self._budget.left(now) > 0)

    def _charge(self, size_bytes: int) -> None:
        """Take a chunk from the budgets when it is asked for: what can't be written, or is junk, costs the same."""
        self._swarm.budget.charge(size_bytes)
        if self._budget is not None:
            self._budget.fine(size_bytes)

    def _tell(self) -> None:
        self._decisions.messages.append((None, ChunksComing(tuple(self._asked))))

    def _next(self, now: int) -> bytes | None:
        demand, suppliers = self._swarm.demand, self._swarm.suppliers
        self._staggers = {
            digest: at for digest, at in self._staggers.items() if digest in demand.lone or digest in demand.contents
        }
        coming = {
            chunk for supplier in suppliers.values() for chunk, until_ns in supplier.coming.items() if until_ns > now
        }
        for digest, wish in demand.lone.items():
            if wish.busy or self._waits(digest, now):
                continue
            is_near = digest in coming or demand.is_held_near(digest, suppliers)
            if not is_near or self._is_overdue(wish, now):
                return digest
        for digest, content in demand.contents.items():
            if not content.open or self._waits(digest, now):
                continue
            chunk = self._chunk_of(content, content.open & ~content.seen, coming, now)
            if chunk is None and now - content.progress_ns > self._settings.relay_patience_ns:
                chunk = self._chunk_of(content, content.open, set(), now)
            if chunk is not None:
                return chunk
        return None

    def _chunk_of(self, content: ContentWish, bits: int, coming: set[bytes], now: int) -> bytes | None:
        """A random one of some chunks that is not coming to a neighbour."""
        start = self._random.randrange(content.known.chunks)
        looked_at = 0
        for part, shift in ((bits >> start, start), (bits & ((1 << start) - 1), 0)):
            left = part
            while left and looked_at < _LOOKED_AT:
                lowest = left & -left
                chunk = content.known.chunk(lowest.bit_length() - 1 + shift)
                if chunk not in coming and self._failed.get(chunk, 0) <= now:
                    return chunk
                left ^= lowest
                looked_at += 1
        return None

    def _waits(self, digest: bytes, now: int) -> bool:
        """Whether it is too early to ask for a lone chunk, or for chunks of a content."""
        at_ns = self._staggers.get(digest)
        if at_ns is None:
            nodes, content = len(self._swarm.suppliers), self._swarm.demand.contents.get(digest)
            chunks = content.known.chunks if content is not None and content.known.digests else 1
            crowded = min(AT_ONCE * nodes / chunks, 1.0)  # how likely two nodes ask for the same one
            at_ns = now + int(self._random.random() * self._settings.relay_stagger_ns * crowded)
            self._staggers[digest] = at_ns
        at_ns = max(at_ns, self._failed.get(digest, 0))
        if at_ns > now:
            self._due_ns = min(self._due_ns if self._due_ns > now else NEVER, at_ns)
        return at_ns > now

    def _is_overdue(self, wish: LoneWish, now: int) -> bool:
        return now - wish.since_ns > self._settings.relay_patience_ns

    def handle_timer(self, now: int) -> None:
        """Look again what only the relay has."""
        if now >= self._due_ns:
            self._due_ns = NEVER
            self.ask(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return self._due_ns
