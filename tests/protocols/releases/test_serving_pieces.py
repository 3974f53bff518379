"""Pieces for neighbours: who may have them gets them, in turns, within budgets and bounds."""

from protocols.access import AccessRule, AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS, PIECE_BYTES, SECOND
from protocols.base.time import NEVER
from protocols.releases.events import Decisions, ReadPiece
from protocols.releases.settings import ReleaseSettings
from protocols.releases.swarm.serving import READS_AT_ONCE, PieceServing
from protocols.releases.swarm.shelf import ANY_RELEASE, Shelf
from protocols.wire.releases import ChunkPiece, ChunkRefused, ChunkWanted

CHUNK, SECRET, STRAY = b"c" * 32, b"s" * 32, b"?" * 32
CHUNK_BYTES = 16 * PIECE_BYTES
A, B = NodeId("a"), NodeId("b")
RULES = (AccessRule(Role.VEHICLE, "release", "models/plate"), AccessRule(Role.RSU, "release", "**"))


class Server:
    """A node that holds three chunks: of a release, of one that vehicles may not have, and of nobody knows what."""

    def __init__(self, settings: ReleaseSettings | None = None) -> None:
        self.decisions, self.now = Decisions(), SECOND
        self.shelf = Shelf(AccessTable(RULES))
        self.shelf.add(dict.fromkeys((CHUNK, SECRET, STRAY), CHUNK_BYTES))
        self.shelf.name(CHUNK, "models/plate")
        self.shelf.name(SECRET, "models/secret")
        self.serving = PieceServing(self.shelf, settings or ReleaseSettings(), self.decisions)

    def ask(self, node: NodeId, number: int, chunk: bytes = CHUNK, role: Role = Role.VEHICLE) -> None:
        self.serving.asked(ChunkWanted(chunk, number * PIECE_BYTES), node, role, self.now)

    def reads(self) -> list[NodeId]:
        """For whom pieces are to be read, since the last call."""
        effects, self.decisions.effects = self.decisions.effects, []
        return [effect.node for effect in effects if isinstance(effect, ReadPiece)]

    def read(self, effect: ReadPiece) -> None:
        self.serving.piece_read(effect.node, effect.digest, effect.offset, bytes(PIECE_BYTES), self.now)

    def refused(self) -> list[str]:
        return [frame.why for _, frame in self.decisions.messages if isinstance(frame, ChunkRefused)]


def test_piece_goes_to_whom_the_table_of_access_permits_it() -> None:
    """A chunk of several releases goes to whoever may have one of them; what is of no release goes to nobody."""
    server = Server()
    server.ask(A, 0)
    server.ask(A, 0, SECRET)
    server.ask(A, 0, STRAY)
    server.ask(A, 99)
    server.ask(A, 0, b"0" * 32)
    assert server.refused() == ["forbidden", "unknown", "unknown", "unknown"]
    server.ask(B, 0, SECRET, Role.RSU)
    assert server.reads() == [A, B]
    server.shelf.name(SECRET, ANY_RELEASE)
    server.ask(A, 0, SECRET)
    assert server.reads() == [A]


def test_neighbour_that_asks_for_too_much_at_once_is_told_so_and_holds_up_nobody() -> None:
    """Eight pieces wait for one neighbour; the turns of others come between."""
    server = Server()
    for number in range(12):
        server.ask(A, number)
    assert server.refused() == ["busy"] * 4
    for number in range(8):
        server.ask(B, number)
    order = server.reads()
    assert len(order) == READS_AT_ONCE
    assert order.count(B) == limits.MAX_BACKGROUND_FRAMES
    server.ask(A, 3)
    assert server.refused() == ["busy"] * 5


def test_neighbours_take_turns_when_the_disk_is_slow() -> None:
    """Who came first must not have all of its pieces first."""
    server = Server()
    others = [NodeId(f"n{number}") for number in range(4)]
    for node in others:
        for number in range(8):
            server.ask(node, number)
    effects = [effect for effect in server.decisions.effects if isinstance(effect, ReadPiece)]
    server.decisions.effects.clear()
    for effect in effects:
        server.read(effect)
    later = server.reads()
    assert len(later) == READS_AT_ONCE
    assert later == others[2:] * 8


def test_budgets_hold_for_each_neighbour_and_for_all() -> None:
    """A node may serve from a link that is paid for by the byte."""
    for settings, expected in (
        (ReleaseSettings(serve_bytes_per_s=10 * PIECE_BYTES), 10),
        (ReleaseSettings(serve_neighbour_bytes_per_s=10 * PIECE_BYTES), 20),
    ):
        server = Server(settings)
        served = 0
        until_ns = server.now + 10 * SECOND
        while server.now < until_ns:
            for node in (A, B):
                for number in range(8):
                    server.ask(node, number)
            effects = [effect for effect in server.decisions.effects if isinstance(effect, ReadPiece)]
            server.decisions.effects.clear()
            server.decisions.messages.clear()
            for effect in effects:
                server.read(effect)
                served += 1
            due_ns = server.serving.next_timer_at()
            server.now = max(server.now + MS, min(due_ns, until_ns))
            server.serving.handle_timer(server.now)
        assert 9 * expected < served < 12 * expected


def test_piece_for_a_neighbour_that_is_gone_is_not_sent() -> None:
    """What is under way for a former life would come to the next one unasked."""
    server = Server()
    server.ask(A, 0)
    (effect,) = (effect for effect in server.decisions.effects if isinstance(effect, ReadPiece))
    server.serving.gone(A, server.now)
    server.read(effect)
    assert not [frame for _, frame in server.decisions.messages if isinstance(frame, ChunkPiece)]
    server.ask(A, 0)
    server.serving.undeliverable(A, ChunkPiece(CHUNK, 0, b"x"))
    assert server.refused() == ["busy"]
    assert server.serving.next_timer_at() == NEVER
