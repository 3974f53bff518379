"""Tells neighbours what this node holds of what they fetch, at once and whenever it gets more.

An answer costs up to a kilobyte for 32 bytes of a question, so each neighbour has an allowance of them. What a
neighbour is known to hold itself is not told.

What is new is gathered for each neighbour, for a random time that is different for each: frames for all of them at once
would delay readings that come just behind. Lone chunks, without which nothing can be fetched, are told of soon.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from protocols.base.allowance import Allowance
from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.releases.events import Decisions, ReadIndex
from protocols.releases.swarm.shelf import KnownContent, Shelf
from protocols.wire.releases import ContentHave, ContentWanted

ANSWERS_PER_S: Final = 32
MAX_ANSWER_BURST: Final = 256
"""Answers to the questions of one neighbour, which may name 64 contents at a time."""

_AGAIN_NS: Final = 20 * SECOND
"""A neighbour that names the same again is told again after this time: it may have forgotten what it was told."""

Holds = Callable[[NodeId, bytes], int]
"""The chunks of a content that a neighbour is known to hold."""


class _Listener:
    """A neighbour that fetches something."""

    __slots__ = ("allowance", "due_ns", "news", "role", "told_ns", "wants")

    def __init__(self, now: int) -> None:
        self.role = Role.VEHICLE
        self.wants: dict[bytes, int] = {}
        """What it fetches, and when it was told of that first."""
        self.news: dict[bytes, int] = {}
        """The chunks that it has not been told of, by content."""
        self.due_ns = NEVER
        self.told_ns = -NEVER
        self.allowance = Allowance(ANSWERS_PER_S, MAX_ANSWER_BURST, now)


class Telling:
    """What one node tells its neighbours."""

    def __init__(self, shelf: Shelf, gather_ns: int, decisions: Decisions, holds: Holds, random: Random) -> None:
        self._shelf, self._gather_ns, self._decisions, self._holds = shelf, gather_ns, decisions, holds
        self._random = random
        self._listeners: dict[NodeId, _Listener] = {}
        self._reading: dict[bytes, None] = {}  # contents whose index is being read
        self._due_ns = NEVER
        self.counts = {"haves_sent": 0, "questions_over_rate": 0}

    def gone(self, node: NodeId) -> None:
        """A neighbour is gone."""
        self._listeners.pop(node, None)

    def asked(self, frame: ContentWanted, source: NodeId, role: Role, now: int) -> None:
        """A neighbour says what it fetches."""
        listener = self._listeners.get(source)
        if listener is None:
            listener = self._listeners[source] = _Listener(now)
        listener.role = role
        before = listener.wants
        listener.wants = {digest: before.get(digest, -NEVER) for digest in frame.contents}
        listener.news = {digest: bits for digest, bits in listener.news.items() if digest in listener.wants}
        for digest in listener.wants:
            if digest in self._shelf.held and now - listener.wants[digest] >= _AGAIN_NS:
                if not listener.allowance.take(now):
                    self.counts["questions_over_rate"] += 1
                    break
                listener.wants[digest] = now
                self._answer(source, listener, digest)

    def _answer(self, node: NodeId, listener: _Listener, digest: bytes) -> None:
        """Tell a neighbour of a chunk that is held, and of the chunks of the content whose index it is."""
        if not self._shelf.permits(digest, listener.role, node):
            return
        known = self._shelf.known.get(digest)
        if known is not None and known.chunks and not known.digests:
            self._read(known)  # and then all who want it are told
            return
        if known is not None:
            self._shelf.touch(known)
        self._send(node, digest, known.have if known is not None else 0)

    def _read(self, known: KnownContent) -> None:
        if known.digest not in self._reading:
            self._reading[known.digest] = None
            self._decisions.effects.append(ReadIndex(known.digest, known.size_bytes, known.chunk_bytes))

    def _send(self, node: NodeId, digest: bytes, bits: int) -> None:
        first = ((bits & -bits).bit_length() - 1) // 8 * 8 if bits else 0
        held = bits >> first
        self.counts["haves_sent"] += 1
        frame = ContentHave(digest, first, held.to_bytes((held.bit_length() + 7) // 8, "little"))
        self._decisions.messages.append((node, frame))

    def loaded(self, known: KnownContent, now: int) -> None:
        """The index of a content was read."""
        self._reading.pop(known.digest, None)
        self._note(known.digest, known.have, now)

    def not_loaded(self, digest: bytes) -> None:
        """The index of a content could not be read."""
        self._reading.pop(digest, None)

    def kept(self, chunk: bytes, now: int) -> None:
        """A chunk is held now."""
        known = self._shelf.known.get(chunk)
        self._note(chunk, known.have if known is not None else 0, now)
        for content, number in self._shelf.places(chunk):
            self._note(content.digest, 1 << number, now)

    def _note(self, digest: bytes, bits: int, now: int) -> None:
        for listener in self._listeners.values():
            if digest in listener.wants:
                listener.news[digest] = listener.news.get(digest, 0) | bits
                soon_ns = now + int(self._random.random() * self._gather_ns / (2 if bits else 5))
                due_ns = max(soon_ns, listener.told_ns + self._gather_ns) if bits else soon_ns
                listener.due_ns = min(listener.due_ns, due_ns)
                self._due_ns = min(self._due_ns, listener.due_ns)

    def handle_timer(self, now: int) -> None:
        """Tell neighbours what is new."""
        if now < self._due_ns:
            return
        self._due_ns = NEVER
        for node, listener in self._listeners.items():
            if now < listener.due_ns:
                self._due_ns = min(self._due_ns, listener.due_ns)
                continue
            news, listener.news, listener.due_ns, listener.told_ns = listener.news, {}, NEVER, now
            for digest, bits in news.items():
                untold = bits & ~self._holds(node, digest)
                if (untold or not bits) and self._shelf.permits(digest, listener.role, node):
                    self._send(node, digest, untold)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return self._due_ns
