"""A neighbour as somebody who has chunks: what it says it holds, what it was asked for, and how well it answers."""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.releases.swarm.window import NEIGHBOUR_TARGET_NS, DelayWindow

FIRST_PATIENCE_NS: Final = 8 * limits.SECOND
LEAST_PATIENCE_NS: Final = 2 * limits.SECOND
"""A TLS stream stalls for up to 0.4 s at 5 % loss, and the bulk lane is dialled first."""
MOST_PATIENCE_NS: Final = 60 * limits.SECOND
"""Whoever gives way to readings on a full channel sends a piece in eight seconds."""
SILENT_NS: Final = 30 * limits.SECOND
"""What a neighbour says it holds counts for nothing when it let pieces be late for so long and answered nothing."""
_BUSY_NS: Final = limits.SECOND // 2
_PATIENCE: Final = 4
"""A piece is late after this many times what pieces took lately."""
_LONGEST_PAUSE_NS: Final = 60 * limits.SECOND
_FORBIDDEN_NS: Final = 600 * limits.SECOND
PASSED_NS: Final = 60 * limits.SECOND
"""A neighbour that gave a chunk too slowly is not asked for that one for so long."""
MAX_SHUNNED: Final = 256
"""Digests for which a neighbour is not asked, because it refused them."""

Piece = tuple[bytes, int]
"""The digest of a chunk, and where the piece begins."""


class Supplier:
    """One neighbour."""

    __slots__ = ("asked", "bits", "busy_since_ns", "coming", "is_idle", "is_silent", "late", "lone", "node",
                 "passed", "paused_until_ns", "shunned", "timeouts", "waiting_since_ns", "window")  # fmt: skip

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.bits: dict[bytes, int] = {}
        """The chunks that it says it holds, by content that this node names."""
        self.lone: dict[bytes, None] = {}
        """The chunks that this node names and that it says it holds."""
        self.coming: dict[bytes, int] = {}
        """The chunks that it says it gets from the relay, and until when that is believed."""
        self.asked: dict[Piece, tuple[int, int]] = {}
        """When it was asked for which piece, and until when it may take."""
        self.late: dict[Piece, int] = {}
        """Pieces that did not come in time, and when they were asked for. They are welcome if they come all the same,
        and nobody else's answer has."""
        self.shunned: dict[bytes, int] = {}
        """What it refused, and until when it is not asked for that."""
        self.passed: dict[bytes, int] = {}
        """Chunks that it gave too slowly, and until when others are asked for them."""
        self.window = DelayWindow(limits.MAX_BACKGROUND_FRAMES, NEIGHBOUR_TARGET_NS)
        self.paused_until_ns = 0
        self.timeouts = 0
        """How often in a row pieces did not come in time …"""
        self.waiting_since_ns = 0
        """… and when the first of them was asked for."""
        self.busy_since_ns = 0
        """Since when it says that it is busy and gives nothing; 0: it does not."""
        self.is_silent = False
        """Whether what it holds counts for nothing, because it does not answer."""
        self.is_idle = False
        """Whether it had nothing to be asked for when that was looked at last."""

    def has_room(self, now: int) -> bool:
        """Whether it may be asked for another piece."""
        return now >= self.paused_until_ns and len(self.asked) < int(self.window.size)

    def is_always_busy(self, now: int) -> bool:
        """Note that it says that it is busy: it is asked less, and not at once. Returns whether it has said nothing
        else for ``SILENT_NS``."""
        self.window.lost(now)
        self.paused_until_ns = max(self.paused_until_ns, now + _BUSY_NS)
        self.busy_since_ns = self.busy_since_ns or now
        return now - self.busy_since_ns >= SILENT_NS

    def patience_ns(self) -> int:
        """How long a piece may take."""
        if not self.window.smoothed_ns:
            return FIRST_PATIENCE_NS
        return min(max(_PATIENCE * self.window.smoothed_ns, LEAST_PATIENCE_NS), MOST_PATIENCE_NS)

    def give_up(self, piece: Piece) -> None:
        """Wait for a piece no more. It may still come."""
        self.late[piece] = self.asked.pop(piece)[0]
        while len(self.late) > 2 * limits.MAX_BACKGROUND_FRAMES:
            del self.late[next(iter(self.late))]

    def timed_out(self, piece: Piece, now: int) -> None:
        """Note that a piece did not come in time. It is asked less and less often as long as nothing comes."""
        if not self.timeouts:
            self.waiting_since_ns = self.asked[piece][0]
        self.give_up(piece)
        self.window.lost(now)
        if now >= self.paused_until_ns:  # otherwise it was on its way together with another one
            self.timeouts += 1
            self.paused_until_ns = now + min(limits.SECOND << min(self.timeouts, 6), _LONGEST_PAUSE_NS)

    def shun(self, digest: bytes, now: int, duration_ns: int = _FORBIDDEN_NS) -> None:
        """Ask it no more for a chunk, or for the chunks of a content, for a while."""
        self.shunned.pop(digest, None)
        self.shunned[digest] = now + duration_ns
        while len(self.shunned) > MAX_SHUNNED:
            del self.shunned[next(iter(self.shunned))]

    def pass_over(self, digest: bytes, now: int) -> None:
        """Ask others for a chunk for a while."""
        self.passed = {each: until_ns for each, until_ns in self.passed.items() if until_ns > now}
        self.passed[digest] = now + PASSED_NS
        self.window.lost(now)
        while len(self.passed) > MAX_SHUNNED:
            del self.passed[next(iter(self.passed))]

    def is_passed_over(self, digest: bytes, now: int) -> bool:
        """Whether others are asked for a chunk, because it gave that too slowly."""
        return bool(self.passed) and self.passed.get(digest, 0) > now

    def shuns(self, digest: bytes, now: int) -> bool:
        """Whether it is not asked for that."""
        return bool(self.shunned) and self.shunned.get(digest, 0) > now
