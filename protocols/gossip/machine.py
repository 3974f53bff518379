"""Anti-entropy of small signed entries: every node comes to hold the newest entry of every author.

Entries spread by four frames, which are all control frames of the realtime lane:

    beacon  GossipDigest(root)             with equal roots there is nothing to do, and the receiver need not beacon
            GossipDigest(root, buckets)    the receiver finds the buckets that differ …
            GossipHave(covered, all in it) … and says what it has there; the other finds what each side lacks
    news    GossipHave(0, some)            is sent once to each neighbour that is not known to have the entry, to RSUs
                                           first, because they have the long links
            GossipPull → GossipEntries     a node that lacks the entry asks one neighbour at a time, at its own pace
            GossipEntries                  is sent unasked only by an entry's author: no other node can have it yet

So the body of an entry is sent to each node once, whichever neighbours tell of it. On contact the node with the smaller
id sends its buckets. Beacons follow Trickle (RFC 6206), with the redundancy counted for each link.

Rules:

1. An entry that is not newer than the one held costs no signature check, nor does one that was refused before. Checks
   are bounded for each neighbour, and accepted entries for each author. Few are checked at a time, so that readings can
   pass in between.
2. Entries travel with their age instead of a date, so no clocks need to agree. A neighbour that lies about an age can
   make this node keep an entry too long, or drop it until another neighbour tells of it. Nobody can change what it
   says.
3. A node that receives a newer entry of its own (its state was lost) takes a version above that one.
4. Kinds that this version does not know are kept and passed on. Whatever acts on an entry decides whether its author
   may say this.

Left out: tombstones (entries are replaced, or expire), and dialling addresses that were learnt.
"""

from collections.abc import Iterable
from random import Random
from typing import ClassVar, Final, Literal, assert_never

from protocols.base import limits
from protocols.base.errors import MeshError
from protocols.base.ids import Incarnation, NodeId, Role
from protocols.base.time import NEVER
from protocols.events import DuplicateIdentity
from protocols.gossip.admission import Admission, EntryCandidate, Verdict
from protocols.gossip.authoring import OwnEntries
from protocols.gossip.certificates import certificate_of
from protocols.gossip.entries import EntryView, Held, Seal, Stored, heard_entry, views
from protocols.gossip.events import EntryAccepted, EntryRefused
from protocols.gossip.peer import GossipPeer
from protocols.gossip.pulling import Pulls
from protocols.gossip.settings import GossipSettings
from protocols.gossip.store import EntryStore
from protocols.gossip.trickle import Trickle
from protocols.machine import HeardEntry, Machine, Message
from protocols.wire.entries import decode_fingerprints, decode_untrusted_entry, encode_fingerprints
from protocols.wire.frame import Frame
from protocols.wire.gossip import FRAMES, Carried, GossipDigest, GossipEntries, GossipFrame, GossipHave, GossipPull

_COMPLAINT_PAUSE_NS: Final = 60 * limits.SECOND
"""Pause between two events about entries from one neighbour, so that it can't fill a log."""
_COMPARING_GAPS: Final = 8
"""On a full channel, comparing takes this part of the frames that a neighbour gets."""


class Gossip(Machine):
    """The gossip of one node. ``now`` is always in monotonic nanoseconds."""

    name: ClassVar[str] = "gossip"
    frames: ClassVar[tuple[type[Frame], ...]] = FRAMES

    def __init__(
        self, node: NodeId, incarnation: Incarnation, seal: Seal | None, settings: GossipSettings, random: Random
    ) -> None:
        self._node, self._seal, self._settings = node, seal, settings
        self._store = EntryStore(settings.max_entries)
        self.own = OwnEntries(node, incarnation, self._store)
        self._peers: dict[NodeId, GossipPeer] = {}  # RSUs first
        self.gap_ns = 0
        """How far apart frames to one neighbour are, because this node keeps a pace; 0: it does not."""
        self.crowd_gap_ns = 0  # … and how far they have to be in a crowd that listens to datagrams
        self._trickle = Trickle(settings.trickle_min_ns, settings.trickle_max_ns, random)
        self._admission = Admission(self._store, settings.checks_at_once, settings.check_pause_ns)
        self._pulls = Pulls(self._store, self._admission, settings.gather_ns)
        self._news_ns, self._told_ns = NEVER, -NEVER
        self.heard_kinds: frozenset[str] = frozenset()
        """The kinds that other machines are told of …"""
        self.to_tell: list[HeardEntry] = []
        """… and what they have not been told yet."""
        self._messages: list[Message] = []
        self._events: list[EntryAccepted | EntryRefused | DuplicateIdentity] = []
        self._counters = {
            "beacons_sent": 0, "beacons_suppressed": 0, "comparisons": 0, "offers_over_bound": 0, "equivocations": 0,
            "entries_ended": 0, "entries_evicted": 0, "own_entries_outrun": 0, "frames_over_rate": 0,
            **{str(verdict): 0 for verdict in Verdict if verdict is not Verdict.WAITING},
        }  # fmt: skip

    # --- what the driver reads -------------------------------------------------------------------------------------
    def messages(self) -> list[Message]:
        """Control frames to queue for neighbours, decided since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[EntryAccepted | EntryRefused | DuplicateIdentity]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def has_news(self) -> bool:
        """Whether there is anything to carry away."""
        return bool(self._messages or self._events or self.to_tell)

    def counters(self) -> dict[str, int]:
        """Counters by name. ``entries_held`` is how many entries are held now; the others only grow."""
        return {
            **self._counters, "pulls": self._pulls.sent, "pulls_timed_out": self._pulls.timed_out,
            "entries_held": len(self._store), "own_entries_failed": self.own.failed,
        }  # fmt: skip

    def entries(self, now: int) -> list[EntryView]:
        """All entries that are held, sorted by author and kind."""
        return views(self.stored(now))

    def certificate_of(self, author: NodeId) -> tuple[bytes, int] | None:
        """The certificate (DER) in the address of a node that is held, and the incarnation in which the node signed
        it; None: no address is held."""
        return certificate_of(self._store, author)

    @property
    def root(self) -> int:
        """A number that is equal in two stores that hold the same entries."""
        return self._store.root

    def __len__(self) -> int:
        return len(self._store)

    def stored(self, now: int) -> list[Stored]:
        """All entries, in the form in which they are kept over a restart."""
        return [Stored(held.sealed.data, max(now - held.born_ns, 0), held.source) for held in self._store.all()]

    # --- own entries -----------------------------------------------------------------------------------------------
    def put(self, kind: str, body: bytes, lifetime_s: int, now: int) -> int:
        """Write an entry of this node, or raise its version. It is repeated before its lifetime ends. Returns the
        version.

        :raises LocalProtocolError: when this node can't sign, or ``kind`` or ``lifetime_s`` is out of range.
        :raises ValueUnsupported: when ``body`` is too large. :raises BoundExceeded: with too many kinds.
        """
        version = self._author(kind, body, lifetime_s, 0, now)
        self._advance(now)
        return version

    def _author(self, kind: str, body: bytes, lifetime_s: int, above: int, now: int) -> int:
        held = self.own.author(self._seal, kind, body, lifetime_s, above, now)
        self._keep(held, now)
        pushed = GossipEntries((Carried(0, held.sealed.data),))
        self._messages.extend((peer.node, pushed) for peer in self._peers.values())
        return held.sealed.version

    def restore(self, stored: Iterable[Stored], now: int) -> None:
        """Take the entries that were kept before a restart. They are checked like all others, a few at a time."""
        if self._seal is None:
            return
        for data, age_ns, source in stored:
            verdict, candidate = self._admission.consider(data, self._seal, age_ns, source, None, now)
            if verdict is Verdict.WAITING and candidate is not None:  # no neighbour needs to send what the disk has
                self._pulls.coming(candidate.fingerprint, self._node)
            else:
                self._counters[verdict] += 1
        self._check(self._seal, now)

    def check_again(self, stored: Iterable[Stored], now: int) -> None:
        """Take these few entries of others again once their signatures were checked by a new authority."""
        for entry in stored:
            decoded = decode_untrusted_entry(entry.data)
            if self._seal is not None and decoded.author != self._node:
                self._store.forget(self._seal.fingerprint(decoded))
                self.restore((entry,), now)

    def sign_again(self, now: int) -> None:
        """Sign all own entries again."""
        self.own.sign_again(now)
        self._repeat_due(now)

    # --- neighbours ------------------------------------------------------------------------------------------------
    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        """Note that links to and from a neighbour are open."""
        if self._seal is None:
            return
        peer = self._peer(node, role, now)
        self._trickle.reset(now)
        if self._node < node:
            self._compare(peer, now)

    def _peer(self, node: NodeId, role: Role, now: int) -> GossipPeer:
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = GossipPeer(node, role, now)
            self._peers = dict(sorted(self._peers.items(), key=lambda item: (item[1].role is not Role.RSU, item[0])))
            if len(self._peers) == 1:
                self._trickle.start(now)
        return peer

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """Note that a neighbour is out of reach, or has restarted."""
        peer = self._peers.pop(node, None)
        if peer is None:
            return
        if not self._peers:
            self._trickle.stop()
        for fingerprint in peer.asked:
            self._pulls.ask_another(fingerprint, node, self._peers)
        self._ask_all(now)

    def receive(self, frame: GossipFrame, node: NodeId, role: Role, now: int) -> None:
        """Handle a frame from a neighbour."""
        if self._seal is None:
            return
        peer = self._peer(node, role, now)
        if not peer.frames.take(now):
            self._counters["frames_over_rate"] += 1
            return
        if isinstance(frame, GossipDigest):
            self._receive_digest(frame, peer, now)
        elif isinstance(frame, GossipHave):
            self._receive_have(frame, peer, now)
        elif isinstance(frame, GossipPull):
            self._receive_pull(frame, peer, now)
        elif isinstance(frame, GossipEntries):
            self._receive_entries(frame, self._seal, peer, now)
        else:
            assert_never(frame)
        self._advance(now)

    # --- comparing stores ------------------------------------------------------------------------------------------
    def _receive_digest(self, digest: GossipDigest, peer: GossipPeer, now: int) -> None:
        if not digest.buckets:
            if digest.root == self._store.root:
                peer.agreed = True
                peer.heard_consistent(self._trickle.interval)
                return
            self._disagree(peer, now)
            busy = peer.asked or peer.offers or peer.news
            if not busy and now - peer.compared_ns >= self._pause_ns:
                self._compare(peer, now)
            return
        theirs = decode_fingerprints(digest.buckets)
        differing = [n for n, mine in enumerate(self._store.buckets) if mine != theirs[n]]
        if not differing:
            peer.agreed = True
            return
        self._disagree(peer, now)
        if now - peer.compared_ns < self._pause_ns and self._node < peer.node:
            return  # both sent buckets: the larger id answers
        if now - peer.listed_ns >= self._pause_ns:
            peer.listed_ns = now
            self._list(differing, peer)

    @property
    def _pause_ns(self) -> int:
        """The time between two comparisons with one neighbour, or two beacons to it on a full channel."""
        return max(limits.EXCHANGE_PAUSE_NS, _COMPARING_GAPS * max(self.gap_ns, self.crowd_gap_ns))

    def _disagree(self, peer: GossipPeer, now: int) -> None:
        """Note that a neighbour holds other entries. Only the change from agreement resets the timer: a difference that
        can't be settled (a certificate that has expired by one clock and not by another) must not make beacons frequent
        for ever."""
        if peer.agreed:
            peer.agreed = False
            self._trickle.reset(now)

    def _compare(self, peer: GossipPeer, now: int) -> None:
        peer.compared_ns = now
        self._counters["comparisons"] += 1
        store = self._store
        self._messages.append((peer.node, GossipDigest(store.root, len(store), encode_fingerprints(store.buckets))))

    def _list(self, buckets: list[int], peer: GossipPeer) -> None:
        """Send the fingerprints in some buckets, in several frames if necessary, each with whole buckets."""
        covered = 0
        listed: list[int] = []
        contents = self._store.contents()
        for number in buckets:
            content = contents[number]
            if len(listed) + len(content) > limits.MAX_FINGERPRINTS_PER_FRAME and covered:
                self._messages.append((peer.node, GossipHave(covered, encode_fingerprints(listed))))
                covered, listed = 0, []
            if len(content) > limits.MAX_FINGERPRINTS_PER_FRAME:
                self._tell_of(content, peer)
                continue
            covered |= 1 << number
            listed += content
            for fingerprint in content:
                peer.news.pop(fingerprint, None)
        if covered:
            self._messages.append((peer.node, GossipHave(covered, encode_fingerprints(listed))))

    def _receive_have(self, have: GossipHave, peer: GossipPeer, now: int) -> None:
        fingerprints = decode_fingerprints(have.fingerprints)
        held, offers, is_refused = self._store.fingerprints, peer.offers, self._admission.is_refused
        if peer.news:
            for fingerprint in fingerprints:
                peer.news.pop(fingerprint, None)
        for fingerprint in fingerprints:
            if fingerprint not in held and not is_refused(fingerprint, now):
                if len(offers) >= limits.MAX_ENTRY_OFFERS:
                    self._counters["offers_over_bound"] += 1
                    break
                offers[fingerprint] = None
        if have.covered:
            listed = frozenset(fingerprints)
            covered = peer.newly_covered(have.covered, now)  # 13 bytes ask for the list of the whole store
            contents = self._store.contents() if covered else []
            for number in range(limits.ENTRY_BUCKETS):
                if covered >> number & 1:
                    self._to_tell([lacked for lacked in contents[number] if lacked not in listed], peer, now)
        self._ask(peer, now)

    # --- news ------------------------------------------------------------------------------------------------------
    def _to_tell(self, fingerprints: list[int], peer: GossipPeer, now: int) -> None:
        if fingerprints:
            peer.news.update(dict.fromkeys(fingerprints))
            self._news_due(now)

    def _news_due(self, now: int) -> None:
        if self._news_ns == NEVER:
            pause_ns = max(self._settings.gather_ns, _COMPARING_GAPS // 2 * max(self.gap_ns, self.crowd_gap_ns))
            self._news_ns = max(now, self._told_ns + pause_ns)

    def _advance(self, now: int) -> None:
        if now < self._news_ns:
            return
        self._told_ns, self._news_ns = now, NEVER
        held = self._store.fingerprints
        for peer in self._peers.values():
            if peer.news:
                self._tell_of([fingerprint for fingerprint in peer.news if fingerprint in held], peer)
                peer.news.clear()

    def _tell_of(self, fingerprints: list[int], peer: GossipPeer) -> None:
        most = limits.MAX_FINGERPRINTS_PER_FRAME
        for at in range(0, len(fingerprints), most):
            self._messages.append((peer.node, GossipHave(0, encode_fingerprints(fingerprints[at : at + most]))))

    # --- pulling ---------------------------------------------------------------------------------------------------
    def _ask(self, peer: GossipPeer, now: int) -> None:
        pull = self._pulls.next_of(peer, self.gap_ns, now)
        if pull is not None:
            self._messages.append((peer.node, pull))

    def _ask_all(self, now: int) -> None:
        for peer in self._peers.values():
            self._ask(peer, now)

    def _receive_pull(self, pull: GossipPull, peer: GossipPeer, now: int) -> None:
        batch: list[Carried] = []
        size_bytes = 0
        for fingerprint in decode_fingerprints(pull.fingerprints):
            held = self._store.holding(fingerprint)
            if held is None or not peer.served.take(now):
                continue
            if size_bytes + len(held.sealed.data) > limits.MAX_ENTRIES_FRAME_BYTES:
                self._messages.append((peer.node, GossipEntries(tuple(batch))))
                batch, size_bytes = [], 0
            batch.append(Carried(max(now - held.born_ns, 0) // limits.MS, held.sealed.data))
            size_bytes += len(held.sealed.data)
            peer.news.pop(fingerprint, None)
        if batch:
            self._messages.append((peer.node, GossipEntries(tuple(batch))))

    # --- taking entries --------------------------------------------------------------------------------------------
    def _receive_entries(self, frame: GossipEntries, seal: Seal, peer: GossipPeer, now: int) -> None:
        for carried in frame.entries:
            verdict, candidate = self._admission.consider(
                carried.entry, seal, carried.age_ms * limits.MS, peer.node, peer.checks, now
            )
            if candidate is not None:
                peer.asked.pop(candidate.fingerprint, 0)
            if verdict is not Verdict.WAITING:
                self._turned_away(verdict, candidate, peer, now)
        self._check(seal, now)
        self._ask(peer, now)

    def _check(self, seal: Seal, now: int) -> None:
        for verdict, candidate in self._admission.checked(seal, now):
            if verdict is Verdict.ACCEPTED:
                self._accept(seal, candidate, now)
            else:
                self._turned_away(verdict, candidate, self._peers.get(candidate.source), now)

    def _turned_away(
        self, verdict: Verdict, candidate: EntryCandidate | None, peer: GossipPeer | None, now: int
    ) -> None:
        self._counters[verdict] += 1
        if peer is not None and (candidate is None or verdict is Verdict.FORGED):
            peer.checks.fine(limits.FORGED_ENTRY_COST)
            self._complain(peer, candidate, "malformed" if candidate is None else "forged", now)
        if candidate is None:
            return
        fingerprint = candidate.fingerprint
        if verdict is Verdict.OVER_RATE or verdict is Verdict.FORGED:  # the genuine one may come from somebody else
            self._pulls.ask_another(fingerprint, candidate.source, self._peers)
            self._ask_all(now)
            return
        self._pulls.done(fingerprint)
        if peer is None:
            return
        if verdict is Verdict.DUPLICATE:
            peer.news.pop(fingerprint, None)
        elif verdict is Verdict.STALE:
            held = self._store.get(candidate.key)
            assert held is not None, "the candidate is not newer than that one"
            self._to_tell([held.sealed.fingerprint], peer, now)
        elif verdict is Verdict.AUTHOR_OVER_RATE:
            self._complain(peer, candidate, "over_rate", now)

    def _accept(self, seal: Seal, candidate: EntryCandidate, now: int) -> None:
        (author, kind), fingerprint = candidate.key, candidate.fingerprint
        held = self._store.get(candidate.key)
        if held is not None and held.sealed.version == candidate.version:
            self._counters["equivocations"] += 1
            self._complain(self._peers.get(candidate.source), candidate, "equivocation", now)
        known_to = self._pulls.done(fingerprint)
        if author == self._node and kind in self.own:
            self._admission.remember(fingerprint, now)
            self._counters["own_entries_outrun"] += 1
            if self.own.outrun(kind, candidate.version, now):
                self._events.append(DuplicateIdentity(self._node, True, candidate.source))
            self._repeat_due(now)
            return
        lifetime_s = candidate.entry.lifetime_s
        sealed = seal.sealed(candidate.key, candidate.version, lifetime_s, fingerprint, candidate.data)
        self._keep(Held(sealed, candidate.born_ns, candidate.source), now)
        for peer in self._peers.values():
            if peer.node != candidate.source and peer.node not in known_to and fingerprint not in peer.offers:
                peer.news[fingerprint] = None
        self._news_due(now)

    def _repeat_due(self, now: int) -> None:
        for own, above in self.own.due(now):
            try:
                self._author(own.kind, own.body, own.lifetime_s, above, now)
            except MeshError:  # a renewed certificate is longer, or there is no place now
                self.own.failed += 1

    def _keep(self, held: Held, now: int) -> None:
        sealed = held.sealed
        replaces = self._store.get(sealed.key) is not None
        for fingerprint in self._store.put(held):
            self._admission.remember(fingerprint, now)
            self._counters["entries_evicted"] += not replaces
        self._counters["entries_accepted"] += 1
        author, kind = sealed.key
        self._events.append(EntryAccepted(NodeId(author), kind, sealed.version, held.source, now - held.born_ns))
        if kind in self.heard_kinds:
            self.to_tell.append(heard_entry(held, now))
        self._trickle.reset(now)

    def _complain(
        self, peer: GossipPeer | None, candidate: EntryCandidate | None,
        because: Literal["forged", "malformed", "equivocation", "over_rate"], now: int,
    ) -> None:  # fmt: skip
        if peer is not None and now - peer.told_of_ns >= _COMPLAINT_PAUSE_NS:
            peer.told_of_ns = now
            (author, kind), version = ("", ""), 0
            if candidate is not None:
                (author, kind), version = candidate.key, candidate.version
            self._events.append(EntryRefused(peer.node, author, kind, version, because))

    # --- time ------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Do what is due."""
        if self._seal is None or now < self.next_timer_at():
            return
        self._check(self._seal, now)
        if now >= self.own.due_ns:
            self._repeat_due(now)
        self._counters["entries_ended"] += self._store.expire(now)
        if now >= self._pulls.due_ns:
            self._pulls.time_out(self._peers, now)
            self._ask_all(now)
        if self._trickle.handle_timer(now):
            self._beacon(now)
        self._advance(now)

    def _beacon(self, now: int) -> None:
        beacon = GossipDigest(self._store.root, len(self._store))
        pause_ns = self._pause_ns if self.gap_ns or self.crowd_gap_ns else 0
        for peer in self._peers.values():
            if peer.heard_enough(self._trickle.interval) or now - peer.beacon_ns < pause_ns:
                self._counters["beacons_suppressed"] += 1
            else:
                self._counters["beacons_sent"] += 1
                peer.beacon_ns = now
                self._messages.append((peer.node, beacon))

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has to be called at the latest."""
        if self._seal is None:
            return NEVER
        due_ns = min(self._trickle.due_ns, self._admission.due_ns)
        due_ns = min(due_ns, self._news_ns)
        due_ns = min(due_ns, self._pulls.due_ns)
        due_ns = min(due_ns, self.own.due_ns)
        return min(due_ns, self._store.next_end_ns)
