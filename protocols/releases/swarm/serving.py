"""Gives pieces of chunks to neighbours that may have them.

At most ``MAX_BACKGROUND_FRAMES`` pieces wait for one neighbour, and neighbours take turns, one piece each. At most
``READS_AT_ONCE`` pieces are being read from the disk. Byte budgets hold for all neighbours together, and for each.
"""

from collections import OrderedDict, deque
from typing import Final

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.releases.events import Decisions, ReadPiece
from protocols.releases.settings import ReleaseSettings
from protocols.releases.swarm.shelf import Shelf
from protocols.wire.releases import ChunkPiece, ChunkRefused, ChunkWanted

READS_AT_ONCE: Final = 16
"""Pieces that are being read: 256 KiB."""
_LEAST_WAIT_NS: Final = 10 * limits.MS
MAX_PAYERS: Final = 256
"""Neighbours whose budget is remembered, so that one does not get a new budget by connecting again."""


class PieceServing:
    """The pieces that neighbours of one node wait for."""

    def __init__(self, shelf: Shelf, settings: ReleaseSettings, decisions: Decisions) -> None:
        self._shelf, self._settings, self._decisions = shelf, settings, decisions
        self._waiting: OrderedDict[NodeId, deque[tuple[bytes, int]]] = OrderedDict()  # whose turn it is stands first
        self._reading: dict[tuple[NodeId, bytes, int], int] = {}  # when the reading began
        self._held: dict[NodeId, int] = {}  # pieces that wait or are being read
        self._all = _budget(settings.serve_bytes_per_s)
        self._each: dict[NodeId, Allowance] = {}
        self._due_ns = NEVER
        self.counts = {
            "pieces_sent": 0, "bytes_sent": 0, "refused_unknown": 0, "refused_busy": 0, "refused_forbidden": 0,
            "pieces_undeliverable": 0,
        }  # fmt: skip

    def asked(self, frame: ChunkWanted, source: NodeId, role: Role, now: int) -> None:
        """A neighbour asks for a piece."""
        size_bytes = self._shelf.held.get(frame.digest, 0)
        may = self._shelf.permits(frame.digest, role, source)
        piece = frame.digest, frame.offset
        if frame.offset >= size_bytes or frame.offset % limits.PIECE_BYTES or may is None:
            self._refuse(source, frame.digest, "unknown")
        elif not may:
            self._refuse(source, frame.digest, "forbidden")
        elif self._held.get(source, 0) >= limits.MAX_BACKGROUND_FRAMES:
            self._refuse(source, frame.digest, "busy")
        elif piece not in self._waiting.get(source, ()) and (source, *piece) not in self._reading:
            self._held[source] = self._held.get(source, 0) + 1
            self._waiting.setdefault(source, deque()).append(piece)
            self._serve(now)

    def _refuse(self, node: NodeId, digest: bytes, why: str) -> None:
        self.counts[f"refused_{why}"] += 1
        self._decisions.messages.append((node, ChunkRefused(digest, why)))  # type: ignore[arg-type]

    def gone(self, node: NodeId, now: int) -> None:
        """A neighbour is gone, and nothing is read for it any more."""
        self._waiting.pop(node, None)
        self._held.pop(node, None)
        for key in [key for key in self._reading if key[0] == node]:
            del self._reading[key]
        self._serve(now)

    def piece_read(self, node: NodeId, digest: bytes, offset: int, data: bytes, now: int) -> None:
        """A piece was read. ``data``: empty when it is not there any more."""
        if self._reading.pop((node, digest, offset), None) is not None:
            self._less(node)
            if data:
                self.counts["pieces_sent"] += 1
                self.counts["bytes_sent"] += len(data)
                self._decisions.messages.append((node, ChunkPiece(digest, offset, data)))
            else:
                self._refuse(node, digest, "unknown")
        self._serve(now)

    def undeliverable(self, node: NodeId, frame: ChunkPiece) -> None:
        """A piece could not be queued: too many wait for the lane, or the neighbour is gone."""
        self.counts["pieces_undeliverable"] += 1
        self._decisions.messages.append((node, ChunkRefused(frame.digest, "busy")))

    def _less(self, node: NodeId) -> None:
        held = self._held.get(node, 0) - 1
        if held > 0:
            self._held[node] = held
        else:
            self._held.pop(node, None)

    def _serve(self, now: int) -> None:
        """Have pieces read, as far as budgets and the disk let."""
        passed = 0
        while passed < len(self._waiting) and len(self._reading) < READS_AT_ONCE:
            if self._all is not None and self._all.left(now) < 1:
                self._due_ns = min(self._due_ns, now + _LEAST_WAIT_NS)
                return
            node = next(iter(self._waiting))
            self._waiting.move_to_end(node)
            each = self._budget_of(node, now)
            if each is not None and each.left(now) < 1:
                self._due_ns = min(self._due_ns, now + _LEAST_WAIT_NS)
                passed += 1
                continue
            passed = 0
            pieces = self._waiting[node]
            digest, offset = pieces.popleft()
            if not pieces:
                del self._waiting[node]
            size_bytes = min(limits.PIECE_BYTES, self._shelf.held.get(digest, 0) - offset)
            if size_bytes <= 0:
                self._less(node)
                self._refuse(node, digest, "unknown")
                continue
            for budget in (self._all, each):
                if budget is not None:
                    budget.fine(size_bytes)
            self._reading[node, digest, offset] = now
            self._decisions.effects.append(ReadPiece(node, digest, offset))

    def _budget_of(self, node: NodeId, now: int) -> Allowance | None:
        if not self._settings.serve_neighbour_bytes_per_s:
            return None
        each = self._each.pop(node, None) or _budget(self._settings.serve_neighbour_bytes_per_s, now)
        assert each is not None, "there is a limit"
        self._each[node] = each
        while len(self._each) > MAX_PAYERS:
            del self._each[next(iter(self._each))]
        return each

    def handle_timer(self, now: int) -> None:
        """Go on after budgets have filled."""
        if now >= self._due_ns:
            self._due_ns = NEVER
            self._serve(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return self._due_ns


def _budget(bytes_per_s: int, now: int = 0) -> Allowance | None:
    return Allowance(bytes_per_s, max(bytes_per_s // 4, limits.PIECE_BYTES), now) if bytes_per_s else None
