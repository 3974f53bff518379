"""Which metadata of releases is the newest, by what others say and by what this node has verified.

Nobody is believed. What is heard says only which bundle to ask for. The signatures in it decide, and when they don't
hold, its author is not listened to for a while. Of each author the newest entry counts, at most ``MAX_AUTHORS`` of
them. When many say different things, at most ``MAX_BUNDLES`` bundles are asked for at the same time: those with the
highest versions, and some that change every few seconds. So liars who announce bundles that don't exist delay the true
one, and can't hide it.

A node that has verified newer metadata says so, unless two others have said the same, and repeats it before that is
forgotten.
"""

from collections.abc import Callable, Mapping
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
"""A node says what it has verified after a random part of this time, in case others do."""
_CHANGE_NS: Final = 10 * limits.SECOND
_DISTRUST_NS: Final = 3_600 * limits.SECOND
_RELAY_DISTRUST_NS: Final = 60 * limits.SECOND
"""A relay that was taken over could otherwise have a bundle fetched, written and checked each second."""
_CHECK_AGAIN_NS: Final = 60 * limits.SECOND
_ENOUGH: Final = 2
"""So many others have to say what this node has verified before it is silent."""

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
        self._misfits: dict[tuple[bytes, int], int] = {}  # bundles that don't have the size that was said, for a while
        self._postponed: dict[bytes, int] = {}  # bundles that could not be checked, and when to try again
        self._chosen: tuple[bytes, ...] = ()
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
        gone = [self._heard.pop(author)] if author in self._heard else []
        while len(self._heard) >= MAX_AUTHORS:
            gone.append(self._heard.pop(next(iter(self._heard))))
        self._heard[author] = news, now - age_ns
        if any(_age(each) > self._verified_age for each in (news, *(former for former, _ in gone))):
            self.is_changed = True
        if _age(news) < self._verified_age:
            self.counts["news_old"] += 1
        if self.verified is not None and self._say_ns > now + _SAY_NS:
            self._plan(now)

    # --- what is asked for -----------------------------------------------------------------------------------------
    def bundles(self, now: int) -> Mapping[bytes, ReleaseNews]:
        """The bundles to ask for, by digest."""
        self.is_changed = False
        able = self.newer(now)
        if len(able) <= MAX_BUNDLES:
            self._chosen, self._change_ns = (), NEVER
            return able
        kept = [bundle for bundle in self._chosen if bundle in able]
        if now >= self._change_ns or self._change_ns == NEVER:
            kept, self._change_ns = [], now + _CHANGE_NS
        if len(kept) < MAX_BUNDLES:  # what is half fetched stays chosen
            others = sorted(able.keys() - set(kept), key=lambda bundle: (_age(able[bundle]), bundle), reverse=True)
            newest = others[: max(MAX_BUNDLES // 2 - len(kept), 0)]
            kept += newest
            kept += self._random.sample(others[len(newest) :], MAX_BUNDLES - len(kept))
        self._chosen = tuple(kept)
        return {bundle: able[bundle] for bundle in kept}

    def newer(self, now: int) -> dict[bytes, ReleaseNews]:
        """All bundles that may be newer than what was verified."""
        able: dict[bytes, ReleaseNews] = {}
        for author, (news, _) in self._heard.items():
            if (
                _age(news) > self._verified_age and news.bundle not in self._known
                and self._misfits.get((news.bundle, news.bundle_bytes), 0) <= now and self._is_trusted(author, now)
            ):  # fmt: skip
                before = able.get(news.bundle)
                if before is None or author == RELAY:
                    able[news.bundle] = news
        return able

    def taken(self, bundle: bytes, size_bytes: int, catalogue: ReleaseCatalogue, now: int) -> bool:
        """A bundle was verified. Returns whether it is newer than what was."""
        boasters = self._authors_of(lambda news: news.bundle == bundle and _age(news) > _age(catalogue))
        if boasters:  # it is less than they said, and would be asked for again and again
            self._distrust(boasters, now)
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
        """A bundle is forged, old or mixed. Returns who announced it: nobody, if it came from a stick."""
        self.counts["bundles_refused"] += 1
        self._note_known(bundle)
        self.is_changed = True
        return self._distrust(self._authors_of(lambda news: news.bundle == bundle), now)

    def misfit(self, bundle: bytes, size_bytes: int, now: int) -> None:
        """What several neighbours sent as a bundle is not of the size that was said. That size is a lie, or they are
        liars, so nobody is blamed, and for a while others have their turn."""
        self._misfits[bundle, size_bytes] = now + _CHECK_AGAIN_NS
        while len(self._misfits) > MAX_KNOWN:
            del self._misfits[next(iter(self._misfits))]
        self.is_changed = True

    def postpone(self, bundle: bytes, now: int) -> None:
        """A bundle could not be checked here, for no fault of anybody: the clock is wrong, or the disk is full."""
        self._postponed[bundle] = now + _CHECK_AGAIN_NS
        while len(self._postponed) > MAX_BUNDLES:
            del self._postponed[next(iter(self._postponed))]

    def may_check(self, bundle: bytes, now: int) -> bool:
        """Whether a bundle that is held may be checked now."""
        return self._postponed.get(bundle, 0) <= now

    def _note_known(self, bundle: bytes) -> None:
        """Ask for a bundle no more."""
        self._known[bundle] = None
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _authors_of(self, is_meant: Callable[[ReleaseNews], bool]) -> list[NodeId]:
        return [author for author, (news, _) in self._heard.items() if is_meant(news)]

    def _is_trusted(self, author: NodeId, now: int) -> bool:
        return self._distrusted.get(author, 0) <= now

    def _distrust(self, authors: list[NodeId], now: int) -> list[NodeId]:
        """Ask for nothing that some authors announce, for a while."""
        for author in authors:
            self._distrusted.pop(author, None)
            self._distrusted[author] = now + (_RELAY_DISTRUST_NS if author == RELAY else _DISTRUST_NS)
        while len(self._distrusted) > MAX_KNOWN:
            del self._distrusted[next(iter(self._distrusted))]
        return authors

    # --- what this node says ---------------------------------------------------------------------------------------
    def _plan(self, now: int) -> None:
        """Decide when to say what was verified. What was said already counts, so that two nodes that disagree do not
        answer each other for ever."""
        said_ns = self._said_ns(now)
        if said_ns is None or said_ns + _REPEAT_NS <= now:
            self._say_ns = now + int(self._random.random() * _SAY_NS)
        else:
            self._say_ns = said_ns + _REPEAT_NS + int(self._random.random() * _REPEAT_NS / 2)

    def _said_ns(self, now: int) -> int | None:
        """When this node, or the second of two others that are believed, said last what this node has verified. One
        other is not enough: nobody may listen to it."""
        said = [each for author, each in self._heard.items() if author != RELAY and self._is_trusted(author, now)]
        others = sorted((said_ns for news, said_ns in said if news == self.verified), reverse=True)[
            _ENOUGH - 1 : _ENOUGH
        ]
        own = [self._said[1]] if self._said is not None and self._said[0] == self.verified else []
        return max((*others, *own), default=None)

    def handle_timer(self, now: int) -> None:
        """Say what was verified, unless enough others did."""
        if now >= self._change_ns:
            self.is_changed = True
        if min([NEVER, *self._postponed.values(), *self._misfits.values()]) <= now:
            self._postponed = {bundle: at_ns for bundle, at_ns in self._postponed.items() if at_ns > now}
            self._misfits = {claim: at_ns for claim, at_ns in self._misfits.items() if at_ns > now}
            self.is_changed = True
        if now >= self._say_ns and self.verified is not None:
            said_ns = self._said_ns(now)
            if said_ns is None or said_ns + _REPEAT_NS <= now:
                self._wishes.append(EntryWish(RELEASES_KIND, encode(self.verified), NEWS_LIFETIME_S))
                self._said = self.verified, now
                self._say_ns = now + _REPEAT_NS
            else:
                self._plan(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return min(self._say_ns, self._change_ns, *self._postponed.values(), *self._misfits.values())

    def has_wishes(self) -> bool:
        """Whether :meth:`wishes` has any."""
        return bool(self._wishes)

    def wishes(self) -> list[EntryWish]:
        """The entries to sign, since the last call."""
        wishes, self._wishes = self._wishes, []
        return wishes
