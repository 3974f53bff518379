"""Nodes that lie about releases, each in one way. Otherwise they do as all others do."""

from collections.abc import Sequence
from random import Random
from typing import Final, Literal, get_args

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.machine import EntryWish
from protocols.releases.machine import Releases
from protocols.releases.rollout.rollouts import Rollouts
from protocols.releases.settings import ReleaseSettings
from protocols.wire.codec import encode
from protocols.wire.releases import (
    RELEASES_KIND,
    ChunkPiece,
    ChunksComing,
    ChunkWanted,
    ContentHave,
    ContentWanted,
    ReleaseFrame,
    ReleaseNews,
)

Lie = Literal["forges", "boasts", "announces", "replays", "claims"]
"""``forges``: it says that it holds everything, and sends bytes that it made up. ``boasts``: it says so, and sends
nothing. ``announces``: it tells of metadata that nobody has. ``replays``: it tells of the oldest metadata again and
again. ``claims``: it says that it gets from the relay whatever others fetch, and gets nothing."""
LIES: Final[tuple[Lie, ...]] = get_args(Lie)
_PERIOD_NS: Final = 20 * limits.SECOND


class LyingReleases(Releases):
    """The machine of a liar."""

    def __init__(
        self, node: NodeId, access: AccessTable, settings: ReleaseSettings, random: Random, rollouts: Rollouts,
        lie: Lie,
    ) -> None:  # fmt: skip
        super().__init__(node, access, settings, random, rollouts)
        self.lie, self._chance = lie, random
        self._lie_ns = 0
        self._lies: list[EntryWish] = []

    def receive(self, frame: ReleaseFrame, source: NodeId, role: Role, now: int) -> None:
        """See :class:`protocols.machine.Machine`."""
        match frame:
            case ContentWanted() if self.lie in {"forges", "boasts"}:
                for digest in frame.contents:
                    held = b"\xff" * limits.MAX_HAVE_BYTES
                    self._decided.messages.append((source, ContentHave(digest, 0, held)))
            case ContentWanted() if self.lie == "claims":
                self._decided.messages.append((source, ChunksComing(frame.contents[: limits.MAX_COMING])))
            case ChunkWanted() if self.lie == "forges":
                data = self._chance.randbytes(limits.PIECE_BYTES)
                self._decided.messages.append((source, ChunkPiece(frame.digest, frame.offset, data)))
            case ChunkWanted() if self.lie == "boasts":
                pass
            case _:
                super().receive(frame, source, role, now)

    def handle_timer(self, now: int) -> None:
        """See :class:`protocols.machine.Machine`."""
        super().handle_timer(now)
        if now >= self._lie_ns and self.lie in {"announces", "replays"}:
            self._lie_ns = now + _PERIOD_NS
            made_up = self._chance.randbytes(32)
            news = ReleaseNews(1, 1 if self.lie == "replays" else 1_000_000_000, made_up, made_up, 4_000)
            self._lies.append(EntryWish(RELEASES_KIND, encode(news), 3_600))

    def next_timer_at(self) -> int:
        """See :class:`protocols.machine.Machine`."""
        due_ns = super().next_timer_at()
        return min(due_ns, self._lie_ns) if self.lie in {"announces", "replays"} else due_ns

    def has_news(self) -> bool:
        """See :class:`protocols.machine.Machine`."""
        return bool(self._lies) or super().has_news()

    def wishes(self) -> Sequence[EntryWish]:
        """See :class:`protocols.machine.Machine`."""
        lies, self._lies = self._lies, []
        honest = super().wishes()
        return [*(wish for wish in honest if not lies or wish.kind != RELEASES_KIND), *lies]
