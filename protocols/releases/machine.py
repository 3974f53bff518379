"""The releases of one node: news, metadata, chunks, and what is done with a release that is complete.

Its parts are what is heard and verified (``news``), the steps of each release (``fetching``), and the ``swarm``: what
is held (``shelf``), who is asked for what (``asking``, ``relaying``), what neighbours are told (``telling``) and given
(``serving``). Which releases are wanted, and what becomes of those that are complete, is decided by ``rollout``.

The driver performs effects, and tells their results by the methods here that are named in
:mod:`protocols.releases.events`. At the start of a life it tells first what is on the disk (``holding``), and then the
bundle that was verified last (``bundle_verified``).
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, ClassVar, Final, assert_never

from protocols.access import AccessTable
from protocols.base.effects import Effect, Event
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MAX_ENTRY_LIFETIME_S
from protocols.machine import EntryWish, HeardEntry, Machine, Message
from protocols.releases.catalogue import Description, Order, ReleaseCatalogue
from protocols.releases.events import (
    Decisions,
    Measures,
    MetadataRefused,
    MetadataTaken,
    VerifyBundle,
)
from protocols.releases.fetching import Fetching
from protocols.releases.news import RELAY, News
from protocols.releases.rollout.following import ROOM_PAUSE_NS
from protocols.releases.rollout.rollouts import Rollouts
from protocols.releases.settings import ReleaseSettings
from protocols.releases.swarm.asking import BUNDLE_PRIORITY, Swarm
from protocols.releases.swarm.relaying import Relaying
from protocols.releases.swarm.serving import PieceServing
from protocols.releases.swarm.shelf import Shelf
from protocols.releases.swarm.telling import Telling
from protocols.wire.frame import Frame
from protocols.wire.releases import (
    FRAMES,
    HEALTH_KIND,
    RELEASES_KIND,
    ChunkPiece,
    ChunkRefused,
    ChunksComing,
    ChunkWanted,
    ContentHave,
    ContentWanted,
    ReleaseFrame,
    ReleaseNews,
)

HEALTH_LIFETIME_S: Final = MAX_ENTRY_LIFETIME_S
"""How long what a node says of a rollout is remembered: who comes late counts what canaries said that are gone."""


class Releases(Machine):
    """See the module."""

    name: ClassVar[str] = "releases"
    frames: ClassVar[tuple[type[Frame], ...]] = FRAMES
    entry_kinds: ClassVar[frozenset[str]] = frozenset({RELEASES_KIND, HEALTH_KIND})

    def __init__(
        self, node: NodeId, access: AccessTable, settings: ReleaseSettings, random: Random,
        rollouts: Rollouts,
    ) -> None:  # fmt: skip
        self._decided = Decisions()
        self.shelf = Shelf(access)
        self.news = News(node, random)
        self.fetching = Fetching(self.shelf, self._decided, settings.store_bytes)
        self.swarm = Swarm(self.shelf, settings, self._decided, random)
        self.relaying = Relaying(self.shelf, self.swarm, settings, self._decided, random)
        self.telling = Telling(self.shelf, settings.gather_ns, self._decided, self._holds, random)
        self.serving_pieces = PieceServing(self.shelf, settings, self._decided)
        self.rollouts = rollouts
        self._verifying: set[bytes] = set()
        self._wishes: list[EntryWish] = []

    # --- neighbours ------------------------------------------------------------------------------------------------
    def receive(self, frame: ReleaseFrame, source: NodeId, role: Role, now: int) -> None:
        """See :class:`Machine`."""
        match frame:
            case ContentWanted():
                self.telling.asked(frame, source, role, now)
            case ContentHave():
                self.swarm.have(frame, source, now)
            case ChunkWanted():
                self.serving_pieces.asked(frame, source, role, now)
            case ChunkPiece():
                self.swarm.piece(frame, source, now)
                if self.swarm.doubted.misfits:
                    self._go_on(now)
            case ChunkRefused():
                self.swarm.refused(frame, source, now)
            case ChunksComing():
                self.swarm.coming(frame, source, now)
            case _:
                assert_never(frame)

    def expects(self, frame: Any, source: NodeId) -> bool:
        """See :class:`Machine`."""
        return type(frame) is ChunkPiece and self.swarm.expects(frame, source)

    def greetings(self) -> Sequence[Frame]:
        """See :class:`Machine`."""
        greeting = self.swarm.naming.greeting()
        return () if greeting is None else (greeting,)

    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        """See :class:`Machine`."""
        self.swarm.met(node)

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """See :class:`Machine`."""
        self.telling.gone(node)
        self.serving_pieces.gone(node, now)
        self.swarm.gone(node, now)

    def undeliverable(self, node: NodeId, frame: Frame, now: int) -> None:
        """See :class:`Machine`."""
        if isinstance(frame, ChunkPiece):
            self.serving_pieces.undeliverable(node, frame)

    def heard(self, entry: HeardEntry, now: int) -> None:
        """See :class:`Machine`."""
        if entry.kind == RELEASES_KIND:
            self.news.heard(entry, now)
        else:
            self.rollouts.heard(entry, now)
        self._go_on(now)

    # --- the relay -------------------------------------------------------------------------------------------------
    def relay_connected(self, is_connected: bool, now: int) -> None:
        """The relay can be asked for chunks from now on, or not any more."""
        self.relaying.connected(is_connected, now)

    def relay_told(self, news: ReleaseNews | None, now: int) -> None:
        """The relay says which metadata is the newest. None: it publishes no releases."""
        if news is not None:
            self.news.told(RELAY, news, 0, now)
            self._go_on(now)

    # --- the disk --------------------------------------------------------------------------------------------------
    def holding(self, chunks: Mapping[bytes, int], now: int) -> None:
        """These chunks are on the disk, with their sizes: at the start, after an import, after a file was put together
        from a delta, and a bundle before it is told as verified, because its size was hearsay until then."""
        new = [chunk for chunk in chunks if chunk not in self.shelf.held]
        self.shelf.add(chunks)
        self.fetching.kept(*new)
        for chunk in new:
            self.swarm.arrived(chunk, now)
            self.telling.kept(chunk, now)
        self._go_on(now)

    def dropped(self, chunks: Sequence[bytes], now: int) -> None:
        """These chunks are not on the disk any more."""
        self.shelf.remove(chunks)
        self.fetching.lost()
        self._go_on(now)

    def chunk_stored(self, digest: bytes, ok: bool, now: int) -> None:
        """A chunk was written. ``ok``: its bytes have the digest; of a chunk that the relay was asked for: it gave
        it."""
        size_bytes = self.relaying.size_of(digest)
        if size_bytes is None or not self.relaying.stored(digest, size_bytes, ok, now):
            size_bytes = self.swarm.kept(digest, ok, now)
        if ok and size_bytes is not None:
            self.shelf.add({digest: size_bytes})
            self.swarm.arrived(digest, now)
            self.telling.kept(digest, now)
            self.fetching.kept(digest)
        self._go_on(now)

    def chunk_unwritten(self, digest: bytes, now: int) -> None:
        """A chunk could not be written: the disk is full or broken. Nothing is fetched for a while, and what it is part
        of for longer."""
        size_bytes = self.relaying.size_of(digest)
        if size_bytes is not None:
            self.relaying.stored(digest, 0, False, now)
        self.swarm.unwritten(digest, now)
        self.fetching.postpone(digest, now + ROOM_PAUSE_NS)
        self._go_on(now)

    def piece_read(self, node: NodeId, digest: bytes, offset: int, data: bytes, now: int) -> None:
        """A piece was read for a neighbour. ``data``: empty when it is not there any more."""
        self.serving_pieces.piece_read(node, digest, offset, data, now)

    def indexed(self, content: bytes, digests: bytes, held: bytes, now: int) -> None:
        """An index was read. ``digests``: empty when it can't be; ``held``: a bit for each chunk that is on the disk,
        the lowest bit of a byte first."""
        known = self.shelf.load(content, digests, held)
        if known is None:
            self.telling.not_loaded(content)
        else:
            self.telling.loaded(known, now)
        self.fetching.indexed(content, known is not None)
        self._go_on(now)

    # --- metadata --------------------------------------------------------------------------------------------------
    def bundle_verified(self, digest: bytes, catalogue: ReleaseCatalogue, now: int) -> None:
        """The signatures in a bundle hold, and nothing in it is older than what this node has verified before."""
        self._verifying.discard(digest)
        if self.news.taken(digest, self.shelf.held.get(digest, 1), catalogue, now):
            self.fetching.trust(digest, catalogue)
            self._tell_named(now)
            self.rollouts.expired(catalogue.is_expired, now)
            self.rollouts.releases(catalogue.releases, now)
            self._tell_orders(now)
            self._decided.events.append(MetadataTaken(catalogue.timestamp_version, len(catalogue.releases)))
        self._go_on(now)

    def expired(self, is_expired: bool, now: int) -> None:
        """Whether the metadata that was verified last has expired: then nothing new is fetched or installed. A clock
        that was wrong and is set may make it good again."""
        self.fetching.expired(is_expired)
        self.rollouts.expired(is_expired, now)
        self._go_on(now)

    def bundle_unchecked(self, digest: bytes, now: int) -> None:
        """A bundle could not be checked here: it has ended or the clock is wrong, the disk is full, or the bundle is
        not there. It is tried again later."""
        self._verifying.discard(digest)
        self.news.postpone(digest, now)
        self._go_on(now)

    def bundle_refused(self, digest: bytes, why: str, now: int) -> None:
        """A bundle is forged, old or mixed."""
        self._verifying.discard(digest)
        for author in self.news.refuse(digest, now):
            self._decided.events.append(MetadataRefused(author, why))
        self._go_on(now)

    def described(self, digest: bytes, description: Description | None, now: int) -> None:
        """A description was parsed. None: it is malformed."""
        self.fetching.described(digest, description)
        self._tell_named(now)
        self._go_on(now)

    def _tell_named(self, now: int) -> None:
        """Tell of chunks that are held and that signed metadata has begun to name. Before, nobody may have them."""
        for chunk in self.shelf.named():
            self.telling.kept(chunk, now)

    def ordered(self, digest: bytes, order: Order | None, now: int) -> None:
        """An order was parsed. None: it is malformed."""
        self.fetching.ordered(digest, order)
        self._go_on(now)

    # --- installing ------------------------------------------------------------------------------------------------
    def staging(self, path: str, counter: int, now: int) -> None:
        """A release is being put together from now on, after it may have waited for others."""
        self.rollouts.staging(path, counter, now)
        self._go_on(now)

    def staged(self, path: str, counter: int, failure: str, now: int) -> None:
        """A release was put together and tried. ``failure``: why it can't be served; empty: it can."""
        self.rollouts.staged(path, counter, failure, now)
        self._go_on(now)

    def delta_failed(self, path: str, counter: int, now: int) -> None:
        """A delta of a release does not make the file that it should. The files themselves are fetched."""
        self.fetching.take_whole((path, counter))
        self.rollouts.incomplete(path, counter, now)
        self._go_on(now)

    def serving(self, path: str, counter: int, failure: str, now: int) -> None:
        """A release answers requests now. ``failure``: why it does not, or not any more."""
        self.rollouts.serving(path, counter, failure, now)
        self._go_on(now)

    def not_shadowed(self, path: str, counter: int, failure: str, now: int) -> None:
        """A release can't be run beside the one that serves. ``failure``: why."""
        self.rollouts.not_shadowed(path, counter, failure, now)
        self._go_on(now)

    def installed(self, path: str, counters: Sequence[int], now: int) -> None:
        """These releases are on the disk, at the start."""
        self.rollouts.installed(path, counters, now)
        self._go_on(now)

    def measured(self, path: str, counter: int, measures: Measures, now: int) -> None:
        """What was measured of a release that serves, or is shadowed."""
        self.rollouts.measured(path, counter, measures, now)
        self._go_on(now)

    def pin(self, path: str, counter: int | None, now: int) -> None:
        """The operator of the node wants this release served, whatever orders say. None: no more."""
        self.rollouts.pin(path, counter, now)
        self._go_on(now)

    # --- deciding --------------------------------------------------------------------------------------------------
    def _holds(self, node: NodeId, content: bytes) -> int:
        supplier = self.swarm.suppliers.get(node)
        return 0 if supplier is None else supplier.bits.get(content, 0)

    def _go_on(self, now: int) -> None:
        """Carry what one part decided to the others, until nothing is new."""
        fetching = self.fetching
        while True:
            if fetching.has_new_orders:
                fetching.has_new_orders = False
                self._tell_orders(now)
            fetching.want(self.rollouts.wanted())
            fetching.keep(self.rollouts.kept())
            if not (fetching.is_changed or self.news.is_changed or self.swarm.doubted.misfits):
                break
            lone, contents = fetching.needs()
            self._want_bundles(lone, now)
            self.swarm.want(lone, contents, now)
            fetched = fetching.new_fetched[:]
            fetching.new_fetched.clear()
            for path, counter in fetched:
                self.rollouts.complete(path, counter, now)
            unfit, fetching.new_unfit = fetching.new_unfit, []
            for (path, counter), why in unfit:
                self.rollouts.unfit(path, counter, why, now)
        self._take_rollouts()
        self.swarm.ask(now)
        self.relaying.ask(now)

    def _want_bundles(self, lone: dict[bytes, tuple[int, int]], now: int) -> None:
        """Fetch bundles that were announced, and have those verified that are here."""
        for bundle, size_bytes in self.swarm.doubted.take():
            self.news.misfit(bundle, size_bytes, now)
        for bundle, news in self.news.bundles(now).items():
            if bundle not in self.shelf.held and bundle not in lone and not self.shelf.is_named(bundle):
                lone[bundle] = news.bundle_bytes, BUNDLE_PRIORITY
        for bundle in self.news.newer(now):
            is_here = bundle in self.shelf.held and bundle not in self._verifying
            if is_here and self.news.may_check(bundle, now):
                self._verifying.add(bundle)
                self._decided.effects.append(VerifyBundle(bundle))

    def _tell_orders(self, now: int) -> None:
        self.rollouts.orders(list(self.fetching.orders.values()), now, self.fetching.serials)

    def _take_rollouts(self) -> None:
        """Take what the rollouts have decided."""
        self._decided.effects.extend(self.rollouts.outgoing())
        self._decided.events.extend(self.rollouts.events())
        body = self.rollouts.health_body()
        if body is not None:
            self._wishes.append(EntryWish(HEALTH_KIND, body, HEALTH_LIFETIME_S))

    def handle_timer(self, now: int) -> None:
        """See :class:`Machine`."""
        self.news.handle_timer(now)
        self.fetching.handle_timer(now)
        self.swarm.handle_timer(now)
        self.relaying.handle_timer(now)
        self.telling.handle_timer(now)
        self.serving_pieces.handle_timer(now)
        if now >= self.rollouts.next_timer_at():
            self.rollouts.handle_timer(now)
            self._go_on(now)
        elif self.news.is_changed or self.fetching.is_changed:
            self._go_on(now)

    def next_timer_at(self) -> int:
        """See :class:`Machine`."""
        return min(
            self.news.next_timer_at(), self.fetching.next_timer_at(), self.swarm.next_timer_at(),
            self.relaying.next_timer_at(), self.telling.next_timer_at(), self.serving_pieces.next_timer_at(),
            self.rollouts.next_timer_at(),
        )  # fmt: skip

    # --- what was decided ------------------------------------------------------------------------------------------
    def has_news(self) -> bool:
        """See :class:`Machine`."""
        return bool(self._decided.messages or self._decided.events or self._wishes or self.news.has_wishes())

    def messages(self) -> Sequence[Message]:
        """See :class:`Machine`."""
        messages, self._decided.messages = self._decided.messages, []
        return messages

    def wishes(self) -> Sequence[EntryWish]:
        """See :class:`Machine`."""
        wishes, self._wishes = [*self._wishes, *self.news.wishes()], []
        return wishes

    def outgoing(self) -> Sequence[Effect]:
        """See :class:`Machine`."""
        effects, self._decided.effects = self._decided.effects, []
        return effects

    def events(self) -> Sequence[Event]:
        """See :class:`Machine`."""
        events, self._decided.events = self._decided.events, []
        return events

    def counters(self) -> dict[str, int]:
        """See :class:`Machine`."""
        return {
            **self.news.counts, **self.swarm.counts, **self.relaying.counts, **self.telling.counts,
            **self.serving_pieces.counts, **self.rollouts.counters(),
        }  # fmt: skip
