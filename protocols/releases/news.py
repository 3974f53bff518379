"""Which metadata of releases is the newest, by what others say and by what this node has verified.

Nobody is believed. What is heard says only which bundle to ask for. The signatures in it decide, and when they don't
hold, its author is not listened to for a while. Of each author the newest entry counts, at most ``MAX_AUTHORS`` of
them. When many say different things, at most ``MAX_BUNDLES`` bundles are asked for at the same time: those with the
highest versions, and some that change every few seconds. So liars who announce bundles that don't exist delay the true
one, and can't hide it.

A node that has verified newer metadata says so, unless somebody else has said the same, and repeats it before that is
forgotten.
"""

from collections.abc import Mapping
from random import Random
from typing import Final

import msgspec

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.machine import EntryWish, HeardEntry
from protocols.releases.catalogue import ReleaseCatalogue
from protocols.wire.codec import decode_untrusted, encode
from protocols.wire.releases import RELEASES_KIND, ReleaseNews

RELAY: Final = NodeId("relay")
"""Stands for the relay as the source of news."""
MAX_AUTHORS: Final = 1_024
MAX_KNOWN: Final = 256
"""Bundles that are known to be bad, and authors who announced one."""
MAX_BUNDLES: Final = 16
"""Bundles asked for at the same time, a quarter of what a node may ask for."""
NEWS_LIFETIME_S: Final = 7 * 86_400
_REPEAT_NS: Final = NEWS_LIFETIME_S * limits.SECOND // 2
_SAY_NS: Final = 2 * limits.SECOND
"""A node says what it has verified after a random part of this time, in case somebody else does."""
_CHANGE_NS: Final = 10 * limits.SECOND
_DISTRUST_NS: Final = 3_600 * limits.SECOND

_decoder = msgspec.msgpack.Decoder(ReleaseNews)


def _age(what: ReleaseNews | ReleaseCatalogue) -> tuple[int, int]:
    """What is newer is larger. Root comes first: once its keys are changed, a timestamp may begin again below the
    versions that a thief has signed."""
    return what.root_version, what.timestamp_version


class News:
    """What one node has heard and verified of metadata."""

    def __init__(self, node: NodeId, random: Random) -> None:
        self._node, self._random = node, random
        self.verified: ReleaseNews | None = None
        self._heard: dict[NodeId, tuple[ReleaseNews, int]] = {}  # by author, with the instant of its signature
        self._known: dict[bytes, None] = {}  # bundles that are not asked for, because they were looked at
        self._distrusted: dict[NodeId, int] = {}
        self._said: tuple[ReleaseNews, int] | None = None  # by this node itself
        self._say_ns = NEVER
        self._change_ns = NEVER
        self.is_changed = False
        """Whether :meth:`bundles` may have changed."""
        self._wishes: list[EntryWish] = []
        self.counts = {"news_heard": 0, "news_malformed": 0, "news_old": 0, "bundles_taken": 0, "bundles_refused": 0}

    @property
    def timestamp_version(self) -> int:
        """The version that this node has verified; 0: none."""
        return 0 if self.verified is None else self.verified.timestamp_version

    @property
    def _verified_age(self) -> tuple[int, int]:
        return (0, 0) if self.verified is None else _age(self.verified)

    # --- what others say -------------------------------------------------------------------------------------------
    def heard(self, entry: HeardEntry, now: int) -> None:
        """An author says what it has verified."""
        if entry.author == self._node:
            return
        try:
            news = decode_untrusted(_decoder, entry.body)
        except RemoteProtocolError:
            self.counts["news_malformed"] += 1
            return
        self.told(entry.author, news, entry.age_ns, now)

    def told(self, author: NodeId, news: ReleaseNews, age_ns: int, now: int) -> None:
        """An author, or the relay, says what the newest metadata is."""
        self.counts["news_heard"] += 1
        self._heard.pop(author, None)
        self._heard[author] = news, now - age_ns
        while len(self._heard) > MAX_AUTHORS:
            del self._heard[next(iter(self._heard))]
        self.is_changed = True
        if _age(news) < self._verified_age:
            self.counts["news_old"] += 1
        if self.verified is not None and self._say_ns > now + _SAY_NS:
            self._plan(now)

    # --- what is asked for -----------------------------------------------------------------------------------------
    def bundles(self, now: int) -> Mapping[bytes, ReleaseNews]:
        """The bundles to ask for, by digest."""
        self.is_changed = False
        self._change_ns = NEVER
        able = self.newer(now)
        if len(able) > MAX_BUNDLES:
            newest = sorted(able, key=lambda bundle: _age(able[bundle]), reverse=True)
            half = MAX_BUNDLES // 2
            chosen = newest[:half] + self._random.sample(newest[half:], half)
            able = {bundle: able[bundle] for bundle in chosen}
            self._change_ns = now + _CHANGE_NS
        return able

    def newer(self, now: int) -> dict[bytes, ReleaseNews]:
        """All bundles that may be newer than what was verified."""
        able: dict[bytes, ReleaseNews] = {}
        for author, (news, _) in self._heard.items():
            if (
                _age(news) > self._verified_age and news.bundle not in self._known
                and self._distrusted.get(author, 0) <= now
            ):  # fmt: skip
                before = able.get(news.bundle)
                if before is None or author == RELAY:
                    able[news.bundle] = news
        return able

    def taken(self, bundle: bytes, size_bytes: int, catalogue: ReleaseCatalogue, now: int) -> bool:
        """A bundle was verified. Returns whether it is newer than what was."""
        said = [news for news, _ in self._heard.values() if news.bundle == bundle and _age(news) > _age(catalogue)]
        if said:  # it is less than its authors said, and would be asked for again and again
            self._distrust(bundle, now)
            self._note_known(bundle)
        if _age(catalogue) < self._verified_age:
            return False
        self.counts["bundles_taken"] += 1
        self.verified = ReleaseNews(
            catalogue.root_version, catalogue.timestamp_version, catalogue.timestamp, bundle, size_bytes
        )
        self.is_changed = True
        self._plan(now)
        return True

    def refuse(self, bundle: bytes, now: int) -> list[NodeId]:
        """A bundle is not good. Returns who announced it."""
        self.counts["bundles_refused"] += 1
        self._note_known(bundle)
        self.is_changed = True
        return self._distrust(bundle, now)

    def _note_known(self, bundle: bytes) -> None:
        """Ask for a bundle no more."""
        self._known[bundle] = None
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _distrust(self, bundle: bytes, now: int) -> list[NodeId]:
        """Ask for nothing that the authors of some news announce, for a while."""
        authors = [author for author, (news, _) in self._heard.items() if news.bundle == bundle and author != RELAY]
        for author in authors:
            self._distrusted.pop(author, None)
            self._distrusted[author] = now + _DISTRUST_NS
        while len(self._distrusted) > MAX_KNOWN:
            del self._distrusted[next(iter(self._distrusted))]
        return authors or [RELAY]

    # --- what this node says ---------------------------------------------------------------------------------------
    def _plan(self, now: int) -> None:
        """Decide when to say what was verified. What was said already counts, so that two nodes that disagree do not
        answer each other for ever."""
        said_ns = self._said_ns()
        if said_ns is None or said_ns + _REPEAT_NS <= now:
            self._say_ns = now + int(self._random.random() * _SAY_NS)
        else:
            self._say_ns = said_ns + _REPEAT_NS + int(self._random.random() * _REPEAT_NS / 2)

    def _said_ns(self) -> int | None:
        """When somebody, this node included, said last what this node has verified."""
        said = [each for author, each in self._heard.items() if author != RELAY]
        if self._said is not None:
            said.append(self._said)
        return max((said_ns for news, said_ns in said if news == self.verified), default=None)

    def handle_timer(self, now: int) -> None:
        """Say what was verified, if nobody else did."""
        if now >= self._change_ns:
            self._change_ns, self.is_changed = NEVER, True
        if now >= self._say_ns and self.verified is not None:
            said_ns = self._said_ns()
            if said_ns is None or said_ns + _REPEAT_NS <= now:
                self._wishes.append(EntryWish(RELEASES_KIND, encode(self.verified), NEWS_LIFETIME_S))
                self._said = self.verified, now
                self._say_ns = now + _REPEAT_NS
            else:
                self._plan(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return min(self._say_ns, self._change_ns)

    def has_wishes(self) -> bool:
        """Whether :meth:`wishes` has any."""
        return bool(self._wishes)

    def wishes(self) -> list[EntryWish]:
        """The entries to sign, since the last call."""
        wishes, self._wishes = self._wishes, []
        return wishes
