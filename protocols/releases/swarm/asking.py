"""Fetches chunks from neighbours: who is asked for which piece.

Rules:

1. A piece is asked of one neighbour at a time, and a chunk of one neighbour as long as it answers.
2. A neighbour is asked for as many pieces at a time as its window lets through, and all of them together for as many as
   the window of this node does (:mod:`protocols.releases.swarm.window`).
3. A piece that does not come in time, or is refused, is asked of another neighbour. Whoever does not answer is asked
   less and less, and after half a minute nothing counts that it says it holds.
4. A chunk that a neighbour gives too slowly is asked of another holder, a few times at most
   (:mod:`protocols.releases.swarm.passing`).
5. When nothing else is left to ask for, a piece that takes long is asked of one more neighbour.
6. The size of a bundle is hearsay: when what a neighbour sends does not fit it, nobody but its author is to blame.
   Another chunk whose bytes do not have its digest was forged by the neighbour that all of it came from, which is not
   asked for an hour. When pieces came from several, nobody is blamed: the chunk is fetched again, whole from one.
7. Chunks that wait for pieces, or to be written, take at most ``MAX_ASSEMBLED_BYTES``.
"""

from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.releases.events import ChunkForged, Decisions, KeepChunk
from protocols.releases.settings import ReleaseSettings
from protocols.releases.swarm.assembly import Assembly
from protocols.releases.swarm.budget import HourlyBudget
from protocols.releases.swarm.demand import ChunkDemand
from protocols.releases.swarm.doubts import DOUBT_NS, DoubtedBundles, Forgers, as_bundle
from protocols.releases.swarm.naming import Naming
from protocols.releases.swarm.passing import PassedOn
from protocols.releases.swarm.shelf import Shelf
from protocols.releases.swarm.supplier import SILENT_NS, Supplier
from protocols.releases.swarm.window import ALL_LOOK, ALL_TARGET_NS, DelayWindow
from protocols.wire.releases import ChunkPiece, ChunkRefused, ChunksComing, ChunkWanted, ContentHave

MAX_ASSEMBLED_BYTES: Final = 8 * 1024 * 1024
MAX_UNDER_WAY: Final = 256
"""Pieces asked of all neighbours together: 4 MiB."""
_MAX_WHOLE: Final = 256
BUNDLE_PRIORITY: Final = 0
"""That of chunks whose size is hearsay."""
_COMING_NS: Final = 15 * limits.SECOND
"""How long a neighbour is believed that it gets a chunk from the relay."""
_LOOK_NS: Final = 10 * limits.SECOND
"""While pieces are on their way, it is looked so often whether they come too slowly."""
_SLOW_NS: Final = limits.SECOND // 2
_SLOW: Final = 4
"""At the end, a piece takes long when it takes this many times what pieces took lately."""
_DISK_PAUSE_NS: Final = 30 * limits.SECOND


class Swarm:
    """What one node fetches, from whom. All instants are monotonic nanoseconds."""

    def __init__(self, shelf: Shelf, settings: ReleaseSettings, decisions: Decisions, random: Random) -> None:
        self._shelf, self._decisions, self._random = shelf, decisions, random
        self.demand = ChunkDemand(shelf, random)
        self.suppliers: dict[NodeId, Supplier] = {}
        self.window = DelayWindow(MAX_UNDER_WAY, ALL_TARGET_NS, ALL_LOOK)
        self._assemblies: dict[bytes, Assembly] = {}
        self._keeping: dict[bytes, tuple[int, dict[NodeId, None]]] = {}
        self._assembled_bytes = 0
        self._under_way = 0
        self._whole: dict[bytes, None] = {}  # chunks that are fetched whole from one neighbour
        self.passed_on = PassedOn()
        self._present: set[NodeId] = set()
        self._forgers = Forgers()
        self.doubted = DoubtedBundles()
        self.naming = Naming(decisions)
        self._due_ns = NEVER
        self._paused_until_ns = 0  # the disk does not take chunks
        self.budget = HourlyBudget(settings.fetch_bytes_per_hour)
        self.counts = {
            "pieces_asked": 0, "pieces_asked_twice": 0, "pieces_received": 0, "pieces_unasked": 0, "pieces_late": 0,
            "pieces_refused": 0, "bytes_received": 0, "chunks_kept": 0, "chunks_forged": 0, "chunks_mixed": 0,
            "chunks_unwritten": 0, "chunks_passed_on": 0,
        }  # fmt: skip

    # --- neighbours ------------------------------------------------------------------------------------------------
    def met(self, node: NodeId) -> None:
        """A node became a neighbour."""
        self._present.add(node)
        if node not in self._forgers:
            self.suppliers.setdefault(node, Supplier(node))

    def gone(self, node: NodeId, now: int) -> None:
        """A neighbour is gone, and with it what was asked of it."""
        self._present.discard(node)
        self._leave(node, now)

    def _leave(self, node: NodeId, now: int) -> None:
        supplier = self.suppliers.pop(node, None)
        if supplier is not None:
            self.demand.forget(supplier, self.suppliers.values())
            self._abandon(supplier)
            self._drop_stuck(now)
            self.ask(now)

    # --- what is wanted --------------------------------------------------------------------------------------------
    def want(self, lone: dict[bytes, tuple[int, int]], contents: dict[bytes, int], now: int) -> None:
        """Fetch these from now on; see :meth:`ChunkDemand.set`."""
        for chunk in self.demand.set(lone, contents, now):
            self._drop(chunk)
        for supplier in self.suppliers.values():
            supplier.is_idle = False
            for digest in [digest for digest in supplier.lone if digest not in self.demand.lone]:
                del supplier.lone[digest]
            for digest in [digest for digest in supplier.bits if digest not in self.demand.contents]:
                del supplier.bits[digest]
        for digest in self._keeping:  # it may be wanted again while it is being written
            self.demand.mark(digest, busy=True)
        self.naming.tell(self.demand.names(), now)
        self.ask(now)

    # --- frames ----------------------------------------------------------------------------------------------------
    def have(self, frame: ContentHave, source: NodeId, now: int) -> None:
        """A neighbour says what it holds."""
        supplier = self.suppliers.get(source)
        if supplier is None or supplier.shuns(frame.content, now):
            return
        bits = int.from_bytes(frame.held, "little") << frame.first
        if self.demand.heard(supplier, frame.content, bits):
            supplier.is_idle = False
            self._ask_one(supplier, now)

    def coming(self, frame: ChunksComing, source: NodeId, now: int) -> None:
        """A neighbour says what it gets from the relay. It is believed once for each chunk, for a while."""
        supplier = self.suppliers.get(source)
        if supplier is not None:
            before = supplier.coming
            supplier.coming = {digest: before.get(digest, now + _COMING_NS) for digest in frame.chunks}

    def expects(self, frame: ChunkPiece, source: NodeId) -> bool:
        """Whether a neighbour was asked for a piece, and has not sent it yet."""
        supplier = self.suppliers.get(source)
        piece = frame.digest, frame.offset
        return supplier is not None and (piece in supplier.asked or piece in supplier.late)

    def piece(self, frame: ChunkPiece, source: NodeId, now: int) -> None:
        """A piece comes. What was not asked for is skipped."""
        supplier, piece = self.suppliers.get(source), (frame.digest, frame.offset)
        asked = None if supplier is None else supplier.asked.pop(piece, None)
        late_ns = None if supplier is None else supplier.late.pop(piece, None)
        if supplier is None or (asked is None and late_ns is None):
            self.counts["pieces_unasked"] += 1
            return
        self.counts["pieces_received"] += 1
        self.counts["bytes_received"] += len(frame.data)
        if asked is not None:
            self._under_way -= 1
        self._answered(supplier, now - (asked[0] if asked is not None else late_ns or now), now)
        assembly = self._assemblies.get(frame.digest)
        if assembly is not None:
            askers = assembly.asked.get(frame.offset)
            if askers is not None:
                askers.pop(source, None)
            if asked is not None and assembly.owner == source:
                assembly.came(len(frame.data), asked[0], now)
            if len(frame.data) != assembly.piece_bytes(frame.offset):
                if not self._is_hearsay(frame.digest):
                    self._forged(frame.digest, source, now)
                    return
                self._drop(frame.digest)
                self._doubt(frame.digest, assembly.size_bytes, source, now)
            elif assembly.lacks(frame.offset) and (asked is not None or frame.digest not in self._whole):
                if assembly.add(frame.offset, frame.data, source):
                    self._whole_now(assembly)
        supplier.is_idle = False
        self.ask(now)

    def _answered(self, supplier: Supplier, took_ns: int, now: int) -> None:
        supplier.timeouts = supplier.paused_until_ns = supplier.busy_since_ns = 0
        if supplier.is_silent:
            supplier.is_silent = False
            self.demand.count_again(supplier)
        excess_ns = supplier.window.learn(took_ns, now)
        supplier.window.answered(took_ns, excess_ns, now)
        self.window.answered(took_ns, excess_ns, now)

    def refused(self, frame: ChunkRefused, source: NodeId, now: int) -> None:
        """A neighbour does not give a chunk."""
        supplier = self.suppliers.get(source)
        if supplier is None:
            return
        pieces = [piece for piece in supplier.asked if piece[0] == frame.digest]
        if not pieces:
            return
        self.counts["pieces_refused"] += 1
        if frame.why == "busy":
            pieces = pieces[-1:]
            if supplier.is_always_busy(now) and not supplier.is_silent:
                supplier.is_silent = True
                self.demand.forget(supplier, self.suppliers.values())
            self._due_ns = min(self._due_ns, supplier.paused_until_ns)
        else:
            supplier.lone.pop(frame.digest, None)
            for known, number in self._shelf.places(frame.digest):
                bits = 1 << number if frame.why == "unknown" else known.all_chunks
                self.demand.lost(supplier, known.digest, bits, self.suppliers.values())
                if frame.why == "forbidden":
                    supplier.shun(known.digest, now)
            supplier.shun(frame.digest, now)
        for piece in pieces:
            if supplier.asked.pop(piece, None) is not None:  # the end of another one may have ended it
                self._under_way -= 1
                self._unask(piece, source)
        self._drop_stuck(now)
        self.ask(now)

    # --- whole chunks ----------------------------------------------------------------------------------------------
    def _whole_now(self, assembly: Assembly) -> None:
        del self._assemblies[assembly.digest]
        self._withdraw(assembly)
        self._keeping[assembly.digest] = assembly.size_bytes, assembly.sources
        self._decisions.effects.append(KeepChunk(assembly.digest, assembly.joined()))

    def kept(self, digest: bytes, ok: bool, now: int) -> int | None:
        """A chunk was written, or does not have its digest. Returns its size; None: it was not fetched here."""
        if digest not in self._keeping:
            return None
        size_bytes, sources = self._keeping.pop(digest)
        self._assembled_bytes -= size_bytes
        self.demand.mark(digest, busy=False)
        self._wake_all()
        if ok:
            self.counts["chunks_kept"] += 1
            self._whole.pop(digest, None)
            for known, _ in self._shelf.places(digest):
                if (content := self.demand.contents.get(known.digest)) is not None:
                    content.progress_ns = now
        elif len(sources) == 1 and self._is_hearsay(digest):
            self._doubt(digest, size_bytes, next(iter(sources)), now)
        elif len(sources) == 1:
            self._forged(digest, next(iter(sources)), now)
        else:
            self.counts["chunks_mixed"] += 1
            self._whole[digest] = None
            while len(self._whole) > _MAX_WHOLE:
                del self._whole[next(iter(self._whole))]
        return size_bytes

    def unwritten(self, digest: bytes, now: int) -> None:
        """A chunk could not be written. Nothing is asked for until the disk has had time to become free."""
        self.counts["chunks_unwritten"] += 1
        if digest in self._keeping:
            self._assembled_bytes -= self._keeping.pop(digest)[0]
        self.demand.mark(digest, busy=False)
        self._paused_until_ns = now + _DISK_PAUSE_NS
        self._due_ns = min(self._due_ns, self._paused_until_ns)

    def arrived(self, digest: bytes, now: int) -> None:
        """A chunk is held now, wherever it came from."""
        self._drop(digest)
        self.passed_on.forget(digest)
        self.demand.lone.pop(digest, None)

    def _is_hearsay(self, digest: bytes) -> bool:
        """Whether nothing signed says how large a chunk is."""
        wish = self.demand.lone.get(digest)
        return wish is not None and wish.priority == BUNDLE_PRIORITY

    def _doubt(self, digest: bytes, size_bytes: int, source: NodeId, now: int) -> None:
        """What a neighbour sent is not a bundle of that digest and size: it was forged, or the size is a lie. Others
        are asked for a while."""
        shunned = as_bundle(digest, size_bytes)
        if (supplier := self.suppliers.get(source)) is not None:
            supplier.shun(shunned, now, DOUBT_NS)
        holders = [each for each in self.suppliers.values() if digest in each.lone and not each.is_silent]
        self.doubted.add(digest, size_bytes, is_last=all(each.shuns(shunned, now) for each in holders))

    def _forged(self, digest: bytes, source: NodeId, now: int) -> None:
        """A neighbour sent what was not asked for under the name of what was. It is asked no more."""
        self.counts["chunks_forged"] += 1
        self._due_ns = min(self._due_ns, self._forgers.add(source, now))
        self._decisions.events.append(ChunkForged(source, digest.hex()))
        assembly = self._assemblies.get(digest)
        if assembly is not None and source in (assembly.owner, *assembly.sources):
            self._drop(digest)
        for other in [each for each in self._assemblies.values() if source in each.sources]:
            self._drop(other.digest)
        self._leave(source, now)

    def _drop(self, digest: bytes) -> None:
        """Give up a chunk that was begun."""
        assembly = self._assemblies.pop(digest, None)
        if assembly is not None:
            self._withdraw(assembly)
            self._assembled_bytes -= assembly.size_bytes
            self.demand.mark(digest, busy=False)

    def _withdraw(self, assembly: Assembly) -> None:
        """Stop waiting for pieces of a chunk. They may still come, as late ones."""
        for node in {node: None for askers in assembly.asked.values() for node in askers}:
            self._withdraw_from(assembly, node)
        assembly.asked.clear()

    def _withdraw_from(self, assembly: Assembly, node: NodeId) -> None:
        supplier = self.suppliers.get(node)
        for offset, askers in assembly.asked.items():
            asked = askers.pop(node, None) is not None
            if asked and supplier is not None and (assembly.digest, offset) in supplier.asked:
                supplier.give_up((assembly.digest, offset))
                self._under_way -= 1

    def _unask(self, piece: tuple[bytes, int], node: NodeId) -> None:
        """A neighbour does not send a piece that it was asked for."""
        assembly = self._assemblies.get(piece[0])
        if assembly is None:
            return
        assembly.asked.get(piece[1], {}).pop(node, None)
        if assembly.owner == node:
            if assembly.digest in self._whole or not assembly.sources:
                self._drop(assembly.digest)
            else:
                assembly.owner = None
        self._wake_all()

    def _abandon(self, supplier: Supplier) -> None:
        for piece in list(supplier.asked):
            del supplier.asked[piece]
            self._under_way -= 1
            self._unask(piece, supplier.node)
        for assembly in [each for each in self._assemblies.values() if each.owner == supplier.node]:
            assembly.owner = None  # all that was asked for has come, and not all was asked for
        self._wake_all()

    def _drop_stuck(self, now: int) -> None:
        """Give up chunks of which nothing is on its way and that nobody who answers holds. The relay may have them."""
        answering = [supplier for supplier in self.suppliers.values() if not supplier.is_silent]
        for assembly in list(self._assemblies.values()):
            holders = (supplier for supplier in answering if self._holds(supplier, assembly.digest, now))
            if not any(assembly.asked.values()) and not any(holders):
                self._drop(assembly.digest)

    def _pass_on(self, now: int) -> None:
        """Have chunks that come too slowly asked of others."""
        for assembly, owner, is_near in self.passed_on.slow(self._assemblies, self.suppliers, self._holds, now):
            self.counts["chunks_passed_on"] += 1
            self.suppliers[owner].pass_over(assembly.digest, now)
            self._withdraw_from(assembly, owner)
            assembly.owner = None
            if assembly.digest in self._whole or not is_near:
                self._drop(assembly.digest)

    def _wake_all(self) -> None:
        for supplier in self.suppliers.values():
            supplier.is_idle = False

    # --- asking ----------------------------------------------------------------------------------------------------
    def ask(self, now: int) -> None:
        """Ask every neighbour that has room for what it holds, first those that were asked for least."""
        waiting = [supplier for supplier in self.suppliers.values() if not supplier.is_idle]
        if waiting and (self.demand.lone or self.demand.contents):
            self._random.shuffle(waiting)
            waiting.sort(key=lambda supplier: len(supplier.asked))
            for supplier in waiting:
                self._ask_one(supplier, now)

    def _ask_one(self, supplier: Supplier, now: int) -> None:
        if supplier.is_idle or supplier.node not in self.suppliers:
            return
        if now < self._paused_until_ns:
            self._due_ns = min(self._due_ns, self._paused_until_ns)
            return
        if now < supplier.paused_until_ns:
            self._due_ns = min(self._due_ns, supplier.paused_until_ns)
            return
        while supplier.has_room(now) and self._under_way < int(self.window.size):
            if not self.budget.is_left(now):
                self._due_ns = min(self._due_ns, now + limits.SECOND)
                return
            chosen = self._next_piece(supplier, now)
            if chosen is None:
                supplier.is_idle = True
                return
            self._request(supplier, *chosen, now)

    def _request(self, supplier: Supplier, assembly: Assembly, offset: int, now: int) -> None:
        askers = assembly.asked.setdefault(offset, {})
        self.counts["pieces_asked"] += 1
        self.counts["pieces_asked_twice"] += bool(askers)
        askers[supplier.node] = now
        due_ns = now + supplier.patience_ns()
        supplier.asked[assembly.digest, offset] = now, due_ns
        supplier.late.pop((assembly.digest, offset), None)
        self._under_way += 1
        self._due_ns = min(self._due_ns, due_ns, now + _LOOK_NS)
        self.budget.charge(assembly.piece_bytes(offset))
        self._decisions.messages.append((supplier.node, ChunkWanted(assembly.digest, offset)))

    def _next_piece(self, supplier: Supplier, now: int) -> tuple[Assembly, int] | None:
        for assembly in self._assemblies.values():
            if assembly.owner == supplier.node and (offset := assembly.unasked()) is not None:
                return assembly, offset
        for assembly in self._assemblies.values():
            if assembly.owner is None and self._holds(supplier, assembly.digest, now):
                assembly.go_on_with(supplier.node)
                if (offset := assembly.unasked()) is not None:
                    return assembly, offset
        begun = self._begin(supplier, now)
        if begun is not None:
            return begun, 0
        return self._overtaken(supplier, now)

    def _begin(self, supplier: Supplier, now: int) -> Assembly | None:
        """Begin a chunk that a neighbour holds: lone ones first, then the rarest of the most urgent content."""
        for digest, wish in self.demand.lone.items():
            if wish.busy or digest not in supplier.lone or self._is_passed_over(supplier, digest, now):
                continue
            shunned = as_bundle(digest, wish.size_bytes) if wish.priority == BUNDLE_PRIORITY else digest
            if not supplier.shuns(shunned, now):
                return self._assemble(supplier, digest, wish.size_bytes, wish.priority)
            self._due_ns = min(self._due_ns, supplier.shunned[shunned])
        for content in self.demand.contents.values():
            bits = content.open & supplier.bits.get(content.known.digest, 0)
            for chunk in supplier.passed if bits else ():
                if self._is_passed_over(supplier, chunk, now):
                    bits &= ~sum(1 << number for known, number in self._shelf.places(chunk) if known is content.known)
            if bits:
                number = self.demand.rarest(content, bits, self.suppliers.values())
                digest, size_bytes = content.known.chunk(number), content.known.size_of(number)
                return self._assemble(supplier, digest, size_bytes, content.priority)
        return None

    def _is_passed_over(self, supplier: Supplier, digest: bytes, now: int) -> bool:
        if not supplier.is_passed_over(digest, now):
            return False
        self._due_ns = min(self._due_ns, supplier.passed[digest])
        return True

    def _assemble(self, supplier: Supplier, digest: bytes, size_bytes: int, priority: int) -> Assembly | None:
        if self._assembled_bytes + size_bytes > MAX_ASSEMBLED_BYTES:
            return None
        assembly = self._assemblies[digest] = Assembly(digest, size_bytes, priority, supplier.node)
        self._assembled_bytes += size_bytes
        self.demand.mark(digest, busy=True)
        return assembly

    def _overtaken(self, supplier: Supplier, now: int) -> tuple[Assembly, int] | None:
        """A piece that another neighbour was asked for long ago, when nothing else is left to ask for."""
        if any(content.open & content.seen for content in self.demand.contents.values()):
            return None
        slow_ns = max(_SLOW * self.window.smoothed_ns, _SLOW_NS)
        for assembly in self._assemblies.values():
            if assembly.digest in self._whole or not self._holds(supplier, assembly.digest, now):
                continue
            for offset, askers in assembly.asked.items():
                if len(askers) == 1 and supplier.node not in askers:
                    slow_at_ns = next(iter(askers.values())) + slow_ns
                    if slow_at_ns <= now:
                        return assembly, offset
                    self._due_ns = min(self._due_ns, slow_at_ns)
        return None

    def _holds(self, supplier: Supplier, digest: bytes, now: int) -> bool:
        if supplier.shuns(digest, now) or supplier.is_passed_over(digest, now):
            return False
        return digest in supplier.lone or any(
            supplier.bits.get(known.digest, 0) >> number & 1 for known, number in self._shelf.places(digest)
        )

    # --- time ------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Give up pieces that did not come in time, and ask others for them."""
        self.naming.handle_timer(now)
        if now < self._due_ns:
            return
        for node in self._forgers.forgiven(now):
            if node in self._present:
                self.met(node)
        self._due_ns = min([NEVER, *self._forgers.ends()])
        for supplier in self.suppliers.values():
            for piece in [piece for piece, (_, due_ns) in supplier.asked.items() if due_ns <= now]:
                if piece not in supplier.asked:  # the end of another one has ended it
                    continue
                self.counts["pieces_late"] += 1
                supplier.timed_out(piece, now)
                self._under_way -= 1
                self.window.lost(now)
                self._unask(piece, supplier.node)
            if supplier.timeouts > 1 and not supplier.is_silent and now - supplier.waiting_since_ns >= SILENT_NS:
                supplier.is_silent = True
                self.demand.forget(supplier, self.suppliers.values())
            supplier.is_idle = False
            if supplier.asked:
                self._due_ns = min(self._due_ns, now + _LOOK_NS, *(due_ns for _, due_ns in supplier.asked.values()))
        self._pass_on(now)
        self._drop_stuck(now)
        self.ask(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return min(self._due_ns, self.naming.next_timer_at())

    def may_fetch(self, now: int) -> bool:
        """Whether the disk takes chunks, and the budget of this hour is not used up."""
        return now >= self._paused_until_ns and self.budget.is_left(now)
