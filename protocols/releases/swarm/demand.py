"""What this node fetches, and how rare each chunk of it is among its neighbours.

*Lone* chunks (metadata, descriptions, orders, indices) are asked for first. The chunks of contents follow, content by
content in order of priority, and within a content rarest first: a chunk that few hold is the first to be lost when they
drive off.
"""

from collections.abc import Iterable, Mapping
from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.releases.swarm.shelf import KnownContent, Shelf
from protocols.releases.swarm.supplier import Supplier

_WORD: Final = 64
_LOOKED_AT: Final = 64
"""Chunks of a content among which the rarest is chosen. All of 8,192 would take a millisecond for each piece."""


class LoneWish:
    """A chunk that is fetched by itself."""

    __slots__ = ("busy", "priority", "since_ns", "size_bytes")

    def __init__(self, size_bytes: int, priority: int, now: int) -> None:
        self.size_bytes, self.priority, self.since_ns = size_bytes, priority, now
        self.busy = False
        """Whether it is on its way."""


class ContentWish:
    """A content that is fetched."""

    __slots__ = ("busy", "known", "priority", "progress_ns", "seen")

    def __init__(self, known: KnownContent, priority: int, now: int) -> None:
        self.known, self.priority = known, priority
        self.busy = 0
        """A bit for each chunk: it is on its way."""
        self.seen = 0
        """A bit for each chunk: some neighbour that answers holds it."""
        self.progress_ns = now
        """When a chunk of it came last from a neighbour."""

    @property
    def open(self) -> int:
        """A bit for each chunk that is neither held nor on its way; none before its index was read."""
        known = self.known
        return known.all_chunks & ~(known.have | self.busy) if known.digests else 0


class ChunkDemand:
    """All that one node fetches."""

    def __init__(self, shelf: Shelf, random: Random) -> None:
        self._shelf, self._random = shelf, random
        self.lone: dict[bytes, LoneWish] = {}
        """By priority."""
        self.contents: dict[bytes, ContentWish] = {}
        """By priority."""

    def set(
        self, lone: Mapping[bytes, tuple[int, int]], contents: Mapping[bytes, int], now: int
    ) -> list[bytes]:  # fmt: skip
        """Fetch these from now on: lone chunks with size and priority, and contents with priority. Returns the chunks
        that are not wanted any more, or not in that size, although they may be on their way."""
        shelf, before_lone, before = self._shelf, self.lone, self.contents
        dropped = [digest for digest in before_lone if digest not in lone or digest in shelf.held]
        self.lone = {}
        for digest, (size_bytes, priority) in sorted(lone.items(), key=lambda item: item[1][1]):
            if digest not in shelf.held:
                wish = before_lone.get(digest) or LoneWish(size_bytes, priority, now)
                if wish.size_bytes != size_bytes:  # that of a bundle is hearsay, and another one counts now
                    wish.size_bytes = size_bytes
                    dropped.append(digest)
                wish.priority = priority
                self.lone[digest] = wish
        self.contents = {}
        for digest, priority in sorted(contents.items(), key=lambda item: item[1]):
            known = shelf.known.get(digest)
            if known is not None and not known.is_whole:
                content = before.get(digest)
                if content is None or content.known is not known:
                    content = ContentWish(known, priority, now)
                content.priority = priority
                self.contents[digest] = content
        shelf.pinned = set(self.contents)
        for digest, content in before.items():
            if self.contents.get(digest) is not content and content.known.digests:
                dropped += [content.known.chunk(number) for number in _numbers(content.busy)]
        return dropped

    def names(self) -> tuple[bytes, ...]:
        """What neighbours are told that this node fetches: the most urgent first, as many as fit."""
        return tuple(dict.fromkeys([*self.lone, *self.contents]))[: limits.MAX_CONTENTS]

    def is_wanted(self, chunk: bytes) -> bool:
        """Whether a chunk is fetched."""
        return chunk in self.lone or any(
            known.digest in self.contents and not known.have >> number & 1
            for known, number in self._shelf.places(chunk)
        )

    def mark(self, chunk: bytes, busy: bool) -> None:
        """Note that a chunk is on its way now, or not any more."""
        lone = self.lone.get(chunk)
        if lone is not None:
            lone.busy = busy
        for known, number in self._shelf.places(chunk):
            content = self.contents.get(known.digest)
            if content is not None:
                content.busy = content.busy | 1 << number if busy else content.busy & ~(1 << number)

    def rarest(self, content: ContentWish, bits: int, suppliers: Iterable[Supplier]) -> int:
        """The number of the rarest of some chunks, of which there is at least one. Of equally rare ones, chance
        decides, so that neighbours do not all fetch the same one. Holders are counted for the chunks that are looked at
        only: to keep counts for all, a frame about 8,192 chunks took 20 ms."""
        chunks = content.known.chunks
        numbers = _some_numbers(bits, self._random.randrange(chunks), chunks)
        holders = dict.fromkeys(numbers, 0)
        for supplier in suppliers:
            held = 0 if supplier.is_silent else supplier.bits.get(content.known.digest, 0)
            if held:
                data = held.to_bytes(-(-chunks // 8), "little")
                for number in numbers:
                    holders[number] += data[number >> 3] >> (number & 7) & 1
        return min(numbers, key=holders.__getitem__)

    # --- what neighbours hold --------------------------------------------------------------------------------------
    def heard(self, supplier: Supplier, digest: bytes, bits: int) -> bool:
        """A neighbour says what it holds. Returns whether that is news of something that this node fetches."""
        lone = self.lone.get(digest)
        is_news = lone is not None and digest not in supplier.lone
        if lone is not None:
            supplier.lone[digest] = None
        content = self.contents.get(digest)
        if content is not None:
            before = supplier.bits.get(digest, 0)
            new = bits & content.known.all_chunks & ~before
            if new:
                supplier.bits[digest] = before | new
                if not supplier.is_silent:
                    content.seen |= new
                is_news = True
        return is_news

    def forget(self, supplier: Supplier, suppliers: Iterable[Supplier]) -> None:
        """What a neighbour holds does not count any more: it is gone from ``suppliers``, or does not answer."""
        for digest in supplier.bits:
            self._look_around(digest, suppliers)

    def count_again(self, supplier: Supplier) -> None:
        """Count what a neighbour holds: it answers again."""
        for digest, bits in supplier.bits.items():
            content = self.contents.get(digest)
            if content is not None:
                content.seen |= bits

    def lost(self, supplier: Supplier, digest: bytes, bits: int, suppliers: Iterable[Supplier]) -> None:
        """A neighbour does not give some chunks of a content after all."""
        before = supplier.bits.get(digest, 0)
        if before & bits:
            supplier.bits[digest] = before & ~bits
            self._look_around(digest, suppliers)

    def _look_around(self, digest: bytes, suppliers: Iterable[Supplier]) -> None:
        content = self.contents.get(digest)
        if content is not None:
            content.seen = 0
            for supplier in suppliers:
                if not supplier.is_silent:
                    content.seen |= supplier.bits.get(digest, 0)

    def is_held_near(self, chunk: bytes, suppliers: Mapping[NodeId, Supplier]) -> bool:
        """Whether a neighbour that answers says that it holds a lone chunk."""
        return any(chunk in supplier.lone and not supplier.is_silent for supplier in suppliers.values())


def _some_numbers(bits: int, start: int, end: int) -> list[int]:
    """The numbers of the first bits from ``start`` on, at most ``_LOOKED_AT``; behind ``end`` it goes on at 0."""
    numbers: list[int] = []
    for begin, stop in ((start, end), (0, start)):
        for at in range(begin, stop, _WORD):
            word = bits >> at & (1 << min(_WORD, stop - at)) - 1
            while word:
                lowest = word & -word
                numbers.append(at + lowest.bit_length() - 1)
                if len(numbers) == _LOOKED_AT:
                    return numbers
                word ^= lowest
    return numbers


def _numbers(bits: int) -> list[int]:
    return [number for number in range(bits.bit_length()) if bits >> number & 1]
