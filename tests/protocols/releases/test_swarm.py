"""The swarm by itself: whatever neighbours do, nothing is asked twice, nothing grows, and honest ones are enough."""

import hashlib
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.limits import MS, PIECE_BYTES, SECOND
from protocols.base.time import NEVER
from protocols.releases.catalogue import Content
from protocols.releases.events import AskRelay, ChunkForged, Decisions, KeepChunk
from protocols.releases.settings import ReleaseSettings
from protocols.releases.swarm.asking import MAX_ASSEMBLED_BYTES, Swarm
from protocols.releases.swarm.passing import MAX_PASSED
from protocols.releases.swarm.relaying import Relaying
from protocols.releases.swarm.shelf import Shelf
from protocols.releases.swarm.supplier import MAX_SHUNNED
from protocols.wire.releases import ChunkPiece, ChunkRefused, ChunkWanted, ContentHave

NODES = [NodeId(f"n{number}") for number in range(5)]
CHUNK_BYTES = 3 * PIECE_BYTES
LONE = b"a description of a release"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Fetcher:
    """A node that fetches one file and one lone chunk, driven by hand."""

    def __init__(
        self, chunks: int, seed: int, settings: ReleaseSettings | None = None, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        data = Random(seed).randbytes(chunks * chunk_bytes - 5_000)
        parts = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
        self.chunks = {sha256(part): part for part in parts} | {sha256(LONE): LONE}
        index = b"".join(sha256(part) for part in parts)
        self.index = sha256(index)
        self.decisions, self.now = Decisions(), SECOND
        self.shelf = Shelf(AccessTable())
        self.swarm = Swarm(self.shelf, settings or ReleaseSettings(), self.decisions, Random(seed))
        content = Content(
            sha256=sha256(data).hex(), size_bytes=len(data), chunk_bytes=chunk_bytes, index=self.index.hex()
        )
        self.shelf.describe(content, "models/plate")
        self.shelf.add({self.index: len(index)})
        self.shelf.load(self.index, index, b"")
        self.asked: list[tuple[NodeId, bytes, int]] = []
        self.keeping: list[KeepChunk] = []
        self.swarm.want({sha256(LONE): (len(LONE), 1)}, {self.index: 2}, self.now)
        self.take()

    @property
    def is_done(self) -> bool:
        return all(digest in self.shelf.held for digest in self.chunks)

    def take(self) -> None:
        """Take what was decided."""
        for node, frame in self.decisions.messages:
            if isinstance(frame, ChunkWanted):
                assert node is not None
                assert frame.digest not in self.shelf.held
                self.asked.append((node, frame.digest, frame.offset))
        self.keeping += [effect for effect in self.decisions.effects if isinstance(effect, KeepChunk)]
        self.decisions.messages.clear()
        self.decisions.effects.clear()

    def have(self, node: NodeId, bits: int, lone: bool = True) -> None:
        """A neighbour says what it holds."""
        self.swarm.have(ContentHave(self.index, 0, bits.to_bytes(1 + bits.bit_length() // 8, "little")), node, self.now)
        if lone:
            self.swarm.have(ContentHave(sha256(LONE), 0, b""), node, self.now)
        self.take()

    def answer(self, request: tuple[NodeId, bytes, int], forged: bool = False) -> None:
        """A neighbour sends a piece."""
        node, digest, offset = request
        self.asked.remove(request)
        data = self.chunks[digest][offset : offset + PIECE_BYTES]
        self.swarm.piece(ChunkPiece(digest, offset, bytes(len(data)) if forged else data), node, self.now)
        self.take()

    def keep(self) -> None:
        """The disk keeps what is whole."""
        for effect in self.keeping[:]:
            self.keeping.remove(effect)
            good = sha256(effect.data) == effect.digest
            size_bytes = self.swarm.kept(effect.digest, good, self.now)
            assert size_bytes == len(effect.data)
            if good:
                self.shelf.add({effect.digest: size_bytes})
                self.swarm.arrived(effect.digest, self.now)
            self.swarm.ask(self.now)
            self.take()

    def wait(self, duration_ns: int) -> None:
        """Time passes."""
        until_ns = self.now + duration_ns
        while (due_ns := max(self.swarm.next_timer_at(), self.now)) <= until_ns:
            self.now = due_ns
            self.swarm.handle_timer(self.now)
            self.take()
            if self.swarm.next_timer_at() <= due_ns:
                self.now += MS
        self.now = until_ns


class AnyNeighbours(RuleBasedStateMachine):
    """Neighbours come, go, answer, refuse, forge and are silent, in any order."""

    @initialize(chunks=st.integers(1, 12), seed=st.integers(0, 1_000))
    def begin(self, chunks: int, seed: int) -> None:
        self.fetcher = Fetcher(chunks, seed)
        self.here: set[NodeId] = set()
        self.forgers: set[NodeId] = set()

    @rule(node=st.sampled_from(NODES), bits=st.integers(0, 4_095), lone=st.booleans())
    def meet(self, node: NodeId, bits: int, lone: bool) -> None:
        self.fetcher.swarm.met(node)
        self.here.add(node)
        self.fetcher.have(node, bits, lone)

    @rule(node=st.sampled_from(NODES))
    def lose(self, node: NodeId) -> None:
        self.fetcher.asked = [request for request in self.fetcher.asked if request[0] != node]
        self.here.discard(node)
        self.fetcher.swarm.gone(node, self.fetcher.now)
        self.fetcher.take()

    @precondition(lambda self: self.fetcher.asked)
    @rule(data=st.data(), forged=st.sampled_from([False, False, False, True]))
    def answer(self, data: st.DataObject, forged: bool) -> None:
        request = data.draw(st.sampled_from(self.fetcher.asked))
        if forged:
            self.forgers.add(request[0])
        self.fetcher.answer(request, forged)

    @precondition(lambda self: self.fetcher.asked)
    @rule(data=st.data(), why=st.sampled_from(["unknown", "busy", "forbidden"]))
    def refuse(self, data: st.DataObject, why: str) -> None:
        node, digest, offset = data.draw(st.sampled_from(self.fetcher.asked))
        self.fetcher.asked.remove((node, digest, offset))
        self.fetcher.swarm.refused(ChunkRefused(digest, why), node, self.fetcher.now)  # type: ignore[arg-type]
        self.fetcher.take()

    @rule(node=st.sampled_from(NODES), offset=st.sampled_from([0, PIECE_BYTES]))
    def push(self, node: NodeId, offset: int) -> None:
        """Bytes that nobody asked for change nothing."""
        digest = next(iter(self.fetcher.chunks))
        if (node, digest, offset) not in self.fetcher.asked and not self.fetcher.swarm.expects(
            ChunkPiece(digest, offset, b"x"), node
        ):
            self.fetcher.swarm.piece(ChunkPiece(digest, offset, b"x"), node, self.fetcher.now)
            self.fetcher.take()

    @rule()
    def keep(self) -> None:
        self.fetcher.keep()

    @rule(duration_ns=st.integers(MS, 100 * SECOND))
    def wait(self, duration_ns: int) -> None:
        self.fetcher.wait(duration_ns)

    @invariant()
    def asks_each_neighbour_for_a_piece_once(self) -> None:
        """A piece that is asked of a neighbour and has neither come nor been given up is not asked of it again, and of
        one more neighbour at most."""
        open_pieces: dict[tuple[bytes, int], int] = {}
        for supplier in self.fetcher.swarm.suppliers.values():
            for piece in supplier.asked:
                open_pieces[piece] = open_pieces.get(piece, 0) + 1
        assert all(count <= 2 for count in open_pieces.values())

    @invariant()
    def stays_within_its_bounds(self) -> None:
        swarm = self.fetcher.swarm
        for supplier in swarm.suppliers.values():
            assert len(supplier.asked) <= limits.MAX_BACKGROUND_FRAMES
            assert len(supplier.late) <= 2 * limits.MAX_BACKGROUND_FRAMES
            assert len(supplier.shunned) <= MAX_SHUNNED
        assert swarm._under_way == sum(len(supplier.asked) for supplier in swarm.suppliers.values())
        under_way = sum(each.size_bytes for each in swarm._assemblies.values())
        under_way += sum(size_bytes for size_bytes, _ in swarm._keeping.values())
        assert swarm._assembled_bytes == under_way <= MAX_ASSEMBLED_BYTES

    @invariant()
    def what_is_on_its_way_is_marked(self) -> None:
        """A chunk that is marked without being on its way would never be fetched."""
        swarm, shelf = self.fetcher.swarm, self.fetcher.shelf
        for content in swarm.demand.contents.values():
            for number in range(content.known.chunks):
                chunk = content.known.chunk(number)
                is_under_way = chunk in swarm._assemblies or chunk in swarm._keeping
                assert bool(content.busy >> number & 1) == is_under_way or chunk in shelf.held
                holders = sum(
                    supplier.bits.get(self.fetcher.index, 0) >> number & 1
                    for supplier in swarm.suppliers.values() if not supplier.is_silent
                )  # fmt: skip
                assert bool(content.seen >> number & 1) == bool(holders)

    @invariant()
    def nothing_is_stuck(self) -> None:
        """A chunk that is begun is on its way, or somebody who answers holds it. Otherwise the relay is never asked."""
        swarm = self.fetcher.swarm
        answering = [supplier for supplier in swarm.suppliers.values() if not supplier.is_silent]
        for assembly in swarm._assemblies.values():
            assert any(assembly.asked.values()) or any(
                swarm._holds(supplier, assembly.digest, self.fetcher.now) for supplier in answering
            )

    @invariant()
    def blames_only_forgers(self) -> None:
        blamed = {event.source for event in self.fetcher.decisions.events if isinstance(event, ChunkForged)}
        assert blamed <= self.forgers

    def teardown(self) -> None:
        """One honest neighbour that has everything is enough, whatever happened before."""
        fetcher = self.fetcher
        fetcher.asked.clear()
        fetcher.keep()
        for node in NODES:
            fetcher.swarm.gone(node, fetcher.now)
        honest = NodeId("honest")
        fetcher.swarm.met(honest)
        fetcher.have(honest, (1 << 12) - 1)
        for _ in range(2_000):
            if fetcher.is_done:
                break
            for request in fetcher.asked[:]:
                fetcher.answer(request)
            fetcher.keep()
            fetcher.wait(100 * MS if fetcher.swarm.next_timer_at() < NEVER else MS)
        assert fetcher.is_done


TestAnyNeighbours = AnyNeighbours.TestCase
TestAnyNeighbours.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_piece_that_does_not_come_is_asked_of_another_neighbour() -> None:
    """A neighbour that drives off in the middle must not hold a chunk back."""
    fetcher = Fetcher(1, 1)
    for node in NODES[:2]:
        fetcher.swarm.met(node)
    fetcher.have(NODES[0], 1, lone=False)
    silent = [request for request in fetcher.asked if request[0] == NODES[0]]
    assert silent
    fetcher.have(NODES[1], 1, lone=False)
    fetcher.wait(9 * SECOND)
    assert {node for node, _, _ in fetcher.asked[len(silent) :]} == {NODES[1]}


def test_chunk_of_two_neighbours_blames_nobody_and_is_fetched_whole() -> None:
    """An honest neighbour must not be dropped for what another one sent."""
    fetcher = Fetcher(1, 1)
    for node in NODES[:2]:
        fetcher.swarm.met(node)
    fetcher.have(NODES[0], 1, lone=False)
    fetcher.answer(fetcher.asked[0], forged=True)
    fetcher.swarm.gone(NODES[0], fetcher.now)
    fetcher.asked.clear()
    fetcher.have(NODES[1], 1, lone=False)
    assert fetcher.asked
    while fetcher.asked:
        fetcher.answer(fetcher.asked[0])
    fetcher.keep()
    assert fetcher.decisions.events == []
    assert not fetcher.is_done
    while fetcher.asked:
        fetcher.answer(fetcher.asked[0])
    fetcher.keep()
    assert [digest for digest in fetcher.chunks if digest in fetcher.shelf.held] == [next(iter(fetcher.chunks))]


@pytest.mark.parametrize("how", ["leaves", "falls silent", "refuses the rest"])
def test_chunk_of_which_one_piece_came_is_asked_of_the_relay(how: str) -> None:
    """It counted as on its way for ever, and the release was never complete."""
    fetcher = Fetcher(4, 1)
    relaying = Relaying(fetcher.shelf, fetcher.swarm, ReleaseSettings(), fetcher.decisions, Random(1))
    fetcher.swarm.met(NODES[0])
    fetcher.have(NODES[0], 15, lone=False)
    begun: set[bytes] = set()
    while first := [each for each in fetcher.asked if each[2] == 0 and each[1] not in begun]:
        begun.add(first[0][1])
        fetcher.answer(first[0])
    assert begun
    if how == "leaves":
        fetcher.swarm.gone(NODES[0], fetcher.now)
    elif how == "refuses the rest":
        for digest in fetcher.chunks:
            fetcher.swarm.refused(ChunkRefused(digest, "unknown"), NODES[0], fetcher.now)
    relaying.connected(True, fetcher.now)
    for _ in range(300):
        for effect in [each for each in fetcher.decisions.effects if isinstance(each, AskRelay)]:
            size_bytes = len(fetcher.chunks[effect.digest])
            assert relaying.stored(effect.digest, size_bytes, True, fetcher.now)
            fetcher.shelf.add({effect.digest: size_bytes})
            fetcher.swarm.arrived(effect.digest, fetcher.now)
        fetcher.take()
        fetcher.wait(SECOND)
        relaying.ask(fetcher.now)
    assert fetcher.is_done


def test_node_with_a_budget_asks_for_no_more_than_that() -> None:
    """A metered uplink is paid for by the byte."""
    fetcher = Fetcher(60, 1, ReleaseSettings(fetch_bytes_per_hour=3_600_000))
    fetcher.swarm.met(NODES[0])
    fetcher.have(NODES[0], (1 << 60) - 1)
    received = 0
    for _ in range(600):
        for request in fetcher.asked[:]:
            received += len(fetcher.chunks[request[1]][request[2] : request[2] + PIECE_BYTES])
            fetcher.answer(request)
        fetcher.keep()
        fetcher.wait(SECOND)
    assert 0.8 * 600_000 < received < 1_100_000


def test_full_disk_stops_the_fetching_for_a_while() -> None:
    """Chunks that can't be kept would be fetched again and again."""
    fetcher = Fetcher(4, 1)
    fetcher.swarm.met(NODES[0])
    fetcher.have(NODES[0], 15)
    while not fetcher.keeping:
        fetcher.answer(fetcher.asked[0])
    effect = fetcher.keeping.pop()
    asked = len(fetcher.asked)
    fetcher.swarm.unwritten(effect.digest, fetcher.now)
    fetcher.wait(20 * SECOND)
    assert len(fetcher.asked) == asked
    fetcher.wait(60 * SECOND)
    assert len(fetcher.asked) > asked


# --- neighbours that trickle -----------------------------------------------------------------------------------------
def trickle(fetcher: Fetcher, slow: NodeId, seconds: float, step_ns: int) -> None:
    """Let time pass. The slow neighbour answers just before nobody would wait for it any longer, all others at the end
    of each step, and the disk keeps what is whole."""
    until_ns = fetcher.now + int(seconds * SECOND)
    while fetcher.now < until_ns and not fetcher.is_done:
        fetcher.wait(step_ns)
        for request in fetcher.asked[:]:
            due_ns = fetcher.swarm.suppliers[request[0]].asked.get(request[1:], (0, 0))[1]
            if request[0] != slow or fetcher.now < due_ns <= fetcher.now + 2 * step_ns:
                fetcher.answer(request)
        fetcher.keep()


@pytest.mark.parametrize(("chunks", "is_whole"), [(200, False), (3, True)])
def test_chunk_that_trickles_is_asked_of_another_neighbour(chunks: int, is_whole: bool) -> None:
    """A neighbour that sends a piece now and then kept a chunk for a quarter of an hour, and with it the release: as
    long as there was something else to ask others for, and always when it has to come whole from one neighbour."""
    fetcher = Fetcher(chunks, 1, chunk_bytes=16 * PIECE_BYTES)
    slow, other = NODES[:2]
    fetcher.swarm.met(slow)
    fetcher.have(slow, 1, lone=False)
    first = fetcher.asked[0][1]
    if is_whole:
        fetcher.swarm._whole[first] = None
    fetcher.swarm.met(other)
    fetcher.have(other, (1 << chunks) - 1)
    trickle(fetcher, slow, 60, 250 * MS)
    assert fetcher.is_done is is_whole
    assert first in fetcher.shelf.held
    assert fetcher.swarm.counts["chunks_passed_on"] == 1
    assert slow in fetcher.swarm.suppliers, "it is asked for other chunks as before"
    assert fetcher.decisions.events == []


def test_chunk_that_trickles_is_asked_of_the_relay_when_no_neighbour_holds_it() -> None:
    """A chunk that was on its way was never asked of the relay."""
    fetcher = Fetcher(1, 1, chunk_bytes=16 * PIECE_BYTES)
    relaying = Relaying(fetcher.shelf, fetcher.swarm, ReleaseSettings(), fetcher.decisions, Random(1))
    fetcher.swarm.met(NODES[0])
    fetcher.have(NODES[0], 1, lone=False)
    fetcher.swarm.want({}, {fetcher.index: 2}, fetcher.now)  # nothing else
    (chunk,) = {request[1] for request in fetcher.asked}
    relaying.connected(True, fetcher.now)
    for _ in range(80):
        trickle(fetcher, NODES[0], 1, 250 * MS)
        relaying.ask(fetcher.now)
        if AskRelay(chunk) in fetcher.decisions.effects:
            return
    raise AssertionError("the relay was not asked")


def test_chunk_that_trickles_everywhere_comes_all_the_same() -> None:
    """On a full channel everybody is slow. A chunk that goes from hand to hand would never be complete."""
    fetcher = Fetcher(1, 1, chunk_bytes=16 * PIECE_BYTES)
    fetcher.swarm._whole[next(iter(fetcher.chunks))] = None
    for node in NODES[:2]:
        fetcher.swarm.met(node)
        fetcher.have(node, 1)
    for _ in range(16 * 60):
        fetcher.wait(10 * SECOND)
        asked = fetcher.asked[:]
        for node in NODES[:2]:  # each gives one piece in ten seconds
            for request in [each for each in asked if each[0] == node][:1]:
                fetcher.answer(request)
        fetcher.keep()
        if fetcher.is_done:
            break
    assert fetcher.is_done
    assert fetcher.swarm.counts["chunks_passed_on"] <= MAX_PASSED


def test_neighbour_that_is_asked_seldom_is_not_slow() -> None:
    """A node with a small budget asks for a piece in a while, and nobody is to blame for that."""
    fetcher = Fetcher(2, 1, ReleaseSettings(fetch_bytes_per_hour=1_800_000), chunk_bytes=16 * PIECE_BYTES)
    for node in NODES[:2]:
        fetcher.swarm.met(node)
        fetcher.have(node, 3)
    for _ in range(1_200):
        fetcher.wait(SECOND)
        for request in fetcher.asked[:]:
            fetcher.answer(request)
        fetcher.keep()
        if fetcher.is_done:
            break
    assert fetcher.is_done
    assert fetcher.swarm.counts["chunks_passed_on"] == 0
