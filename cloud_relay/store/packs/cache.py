"""Keeps what was read out of packs from one question to the next.

The blocks of a pack never change: a pack that is written again gets others, and another row in ``packs``. So each part
is kept with the row that it was read for, and is given only to a question that sees the very same row. A pack that
retention deleted has no row any more, so nothing asks for it, and the next question lets go of its parts.

Parts are kept until there is no room, and the pack that was not asked for longest loses its parts first. They are
counted whole: with everything that Python holds for them.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from cloud_relay.store.packs.tables import PackEntry

MAX_KEPT_BYTES: Final = 32 * 1024 * 1024
"""Parts of one store, for all who ask over HTTP, and as much for all nodes that ask. A page needs 1.3 MB of a pack that
it shows records of, and 0.3 MB of one that it only looks at, so there is room for several cursors at once."""
_HELD_BYTES: Final = 1_024
"""What keeping a part takes beside the part, a share of its pack's row among it."""


@dataclass(slots=True)
class _KeptPack:
    entry: PackEntry
    parts: OrderedDict[int, tuple[Any, int]] = field(default_factory=OrderedDict)
    """Each part that is kept, with the bytes that it takes."""


class PackCache:
    """Parts of packs of one store. May be used by any number of threads. Nobody may change what is kept."""

    def __init__(self, most_bytes: int = MAX_KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._packs: OrderedDict[int, _KeptPack] = OrderedDict()
        """By the number of their blocks."""
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """What is kept, all in all."""
        return self._size_bytes

    def find(self, entry: PackEntry, part: int) -> Any:
        """A part of a pack as it was kept; None: it is not kept."""
        with self._lock:
            pack = self._packs.get(entry.content)
            if pack is None or pack.entry != entry or part not in pack.parts:
                return None
            self._packs.move_to_end(entry.content)
            pack.parts.move_to_end(part)
            return pack.parts[part][0]

    def keep(self, entry: PackEntry, part: int, content: object, size_bytes: int) -> None:
        """Keep a part of a pack, which takes so many bytes. One that is larger than all the room is not kept."""
        size_bytes += _HELD_BYTES
        if size_bytes > self._most_bytes:
            return
        with self._lock:
            pack = self._packs.get(entry.content)
            if pack is not None and pack.entry != entry:
                self._forget(entry.content)
            elif pack is not None and part in pack.parts:
                return  # another question was quicker
            while self._size_bytes + size_bytes > self._most_bytes:
                self._forget_oldest()
            self._packs.setdefault(entry.content, _KeptPack(entry)).parts[part] = content, size_bytes
            self._packs.move_to_end(entry.content)
            self._size_bytes += size_bytes

    def keep_only(self, entries: Iterable[PackEntry]) -> None:
        """Let go of all packs but these."""
        there = {entry.content: entry for entry in entries}
        with self._lock:
            for content in [at for at, pack in self._packs.items() if there.get(at) != pack.entry]:
                self._forget(content)

    def _forget(self, content: int) -> None:
        self._size_bytes -= sum(size_bytes for _, size_bytes in self._packs.pop(content).parts.values())

    def _forget_oldest(self) -> None:
        content, pack = next(iter(self._packs.items()))
        _, (_, size_bytes) = pack.parts.popitem(last=False)
        self._size_bytes -= size_bytes
        if not pack.parts:
            del self._packs[content]
