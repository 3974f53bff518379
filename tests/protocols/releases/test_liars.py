"""Liars among the neighbours: a release comes all the same, nothing forged is kept, and who forges is named."""

import pytest
from msgspec.structs import replace

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.machine import EntryWish, HeardEntry
from protocols.releases.catalogue import ReleaseCatalogue
from protocols.releases.events import AskRelay, ChunkForged, MetadataRefused
from protocols.releases.machine import Releases
from protocols.releases.settings import ReleaseSettings
from protocols.wire.codec import encode
from protocols.wire.releases import RELEASES_KIND, ReleaseNews
from sims.world.releases.liars import LIES, Lie, LyingReleases
from sims.world.releases.nodes import RelayStore, rollouts_of
from tests.protocols.releases.mesh import PATH, Mesh


def mesh_with(lie: Lie, liars: int = 2) -> Mesh:
    """Three honest nodes, one of which has the release soon, and liars."""
    names = [f"liar-{number}" for number in range(liars)]
    mesh = Mesh(
        "seed", "b", "c", *names,
        machine=lambda settings, random: (
            LyingReleases(
                settings.node, AccessTable(settings.access), ReleaseSettings(), random, rollouts_of(settings), lie
            )
            if settings.node.startswith("liar")
            else Releases(
                settings.node, AccessTable(settings.access), ReleaseSettings(), random, rollouts_of(settings)
            )
        ),
    )  # fmt: skip
    mesh.publisher.release(PATH, 1, 300_000)
    mesh.publisher.sign()
    return mesh


@pytest.mark.parametrize("lie", LIES)
def test_release_comes_whatever_some_neighbours_lie(lie: Lie) -> None:
    """A liar with a good certificate may cost time. It must not decide who gets a release."""
    mesh = mesh_with(lie)
    mesh.run_for(5)
    mesh.seed("seed")
    mesh.run_for(120)
    assert mesh.serving()["b"] == mesh.serving()["c"] == 1
    for name in ("b", "c"):
        disk = mesh.releases.disk(name)
        assert all(digest in mesh.publisher.chunks for digest in disk.chunks)


def test_neighbour_that_forges_is_named_and_asked_no_more() -> None:
    """Each forged chunk costs the bytes of one; the second time would be our own fault."""
    mesh = mesh_with("forges")
    mesh.seed("seed")
    mesh.run_for(60)
    forgers = {event.source for event in mesh.events("b", ChunkForged)}  # type: ignore[attr-defined]
    assert forgers <= {"liar-0", "liar-1"}
    assert forgers
    assert mesh.counter("b", "chunks_forged") <= 2
    assert not set(mesh.releases.of(mesh.driver.nodes[NodeId("b")]).swarm.suppliers) & forgers


def test_release_comes_from_the_relay_although_a_neighbour_says_that_it_gets_all_of_it() -> None:
    """Otherwise one node could keep a whole fleet from its relay."""
    mesh = mesh_with("claims", 1)
    mesh.releases.relay = RelayStore(mesh.driver, mesh.publisher, 1_000_000, 20_000_000)
    for name in "bc":
        mesh.releases.connect(mesh.driver.nodes[NodeId(name)])
    mesh.run_for(120)
    assert mesh.serving()["b"] == mesh.serving()["c"] == 1


def test_old_metadata_is_never_taken_again() -> None:
    """A neighbour that replays an old bundle would bring back a release that was withdrawn."""
    mesh = Mesh("a", "b")
    mesh.publisher.release(PATH, 1, 20_000)
    old = mesh.publisher.sign()
    mesh.publisher.release(PATH, 2, 20_000)
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(10)
    assert mesh.serving() == {"a": 2, "b": 2}
    node = mesh.driver.nodes[NodeId("b")]
    machine = mesh.releases.of(node)
    mesh.driver.act(node, lambda engine, now: machine.relay_told(old, now))
    assert old.bundle not in machine.swarm.demand.lone
    as_new = replace(old, timestamp_version=99)
    mesh.driver.act(node, lambda engine, now: machine.relay_told(as_new, now))
    mesh.run_for(5)
    assert machine.news.timestamp_version == 2
    assert mesh.serving() == {"a": 2, "b": 2}


def test_author_of_news_whose_metadata_is_forged_is_named_and_not_listened_to() -> None:
    """The carrier could not know; the author signed it."""
    mesh = Mesh("a", "b")
    node = mesh.driver.nodes[NodeId("b")]
    machine = mesh.releases.of(node)
    forged = mesh.publisher.content(b"forged" * 100, limits.PIECE_BYTES)
    digest = bytes.fromhex(forged.sha256)
    news = ReleaseNews(1, 7, digest, digest, forged.size_bytes)

    def tell(author: str) -> None:
        mesh.driver.act(node, lambda engine, now: machine.news.told(NodeId(author), news, 0, now))

    tell("mallory")
    mesh.driver.act(node, lambda engine, now: machine.bundle_refused(digest, "a signature is wrong", now))
    assert mesh.events("b", MetadataRefused) == [MetadataRefused(NodeId("mallory"), "a signature is wrong")]
    tell("mallory")
    assert not machine.news.bundles(node.local(mesh.driver.now))


class _Missizing(Releases):
    """Announces a part of a release, which others hold, as metadata of another size."""

    size_bytes = 100
    target: list[bytes] = []  # noqa: RUF012 - set by the test
    _has_said = False

    def has_news(self) -> bool:
        return bool(self.target and not self._has_said) or super().has_news()

    def wishes(self) -> list[EntryWish]:
        wishes = [wish for wish in super().wishes() if wish.kind != RELEASES_KIND]
        if self.target and not self._has_said:
            self._has_said = True
            news = ReleaseNews(1, 10**9, self.target[0], self.target[0], self.size_bytes)
            wishes.append(EntryWish(RELEASES_KIND, encode(news), 3_600))
        return wishes


@pytest.mark.parametrize("size_bytes", [100, limits.PIECE_BYTES])
def test_size_that_a_liar_announces_makes_nobody_blame_an_honest_neighbour(size_bytes: int) -> None:
    """One signed entry made every node ban the neighbours that had the release, for good."""
    _Missizing.size_bytes, _Missizing.target = size_bytes, []
    mesh = Mesh(
        "seed", "b", "c", "liar", bytes_per_s=200_000,
        machine=lambda settings, random: (_Missizing if settings.node == "liar" else Releases)(
            settings.node, AccessTable(settings.access), ReleaseSettings(), random, rollouts_of(settings)
        ),
    )  # fmt: skip
    mesh.publisher.release(PATH, 1, 1_500_000)
    mesh.publisher.sign()
    mesh.seed("seed")
    mesh.run_for(3)
    here = mesh.releases.disk("b").chunks.keys() | mesh.releases.disk("c").chunks.keys()
    coming = [
        digest for digest, data in mesh.publisher.chunks.items()
        if digest not in here and len(data) > limits.PIECE_BYTES
    ]  # fmt: skip
    assert coming, "the release is still on its way"
    _Missizing.target.append(coming[-1])
    mesh.run_for(120)
    assert mesh.serving()["b"] == mesh.serving()["c"] == 1
    assert not [*mesh.events("b", ChunkForged), *mesh.events("c", ChunkForged)]


class _FirstToTell(Releases):
    """Announces the newest metadata before the node that has it does, in a size that it does not have."""

    target: ReleaseNews | None = None
    _said: ReleaseNews | None = None

    def has_news(self) -> bool:
        return self._said != self.target or super().has_news()

    def wishes(self) -> list[EntryWish]:
        wishes = [wish for wish in super().wishes() if wish.kind != RELEASES_KIND]
        if self.target is not None and self._said != self.target:
            self._said = self.target
            wishes.append(EntryWish(RELEASES_KIND, encode(self.target), 3_600))
        return wishes


@pytest.mark.parametrize("lie", ["a byte more", "half of it", "one piece of it"])
def test_size_that_a_liar_announces_first_gives_way_to_the_true_one(lie: str) -> None:
    """One signed entry kept newer metadata from every node without a relay, for as long as it was repeated."""
    mesh = Mesh(
        "seed", "b", "c", "liar",
        machine=lambda settings, random: (_FirstToTell if settings.node == "liar" else Releases)(
            settings.node, AccessTable(settings.access), ReleaseSettings(), random, rollouts_of(settings)
        ),
    )  # fmt: skip
    for number in range(100):  # so that the metadata takes more than a piece
        mesh.publisher.release(f"models/m{number}", 1, 1_000)
    mesh.publisher.release(PATH, 1, 20_000)
    true = mesh.publisher.sign()
    assert true.bundle_bytes > limits.PIECE_BYTES
    liar = mesh.driver.nodes[NodeId("liar")]
    machine = mesh.releases.of(liar)
    assert isinstance(machine, _FirstToTell)
    sizes = {
        "a byte more": true.bundle_bytes + 1, "half of it": true.bundle_bytes // 2,
        "one piece of it": limits.PIECE_BYTES,
    }  # fmt: skip
    machine.target = replace(true, bundle_bytes=sizes[lie])
    mesh.driver.act(liar, lambda engine, now: None)
    mesh.run_for(1)
    mesh.seed("seed")
    for _ in range(18):
        mesh.run_for(10)
        if mesh.serving()["b"] == mesh.serving()["c"] == 1:
            break
    assert mesh.serving()["b"] == mesh.serving()["c"] == 1
    assert not [*mesh.events("b", ChunkForged), *mesh.events("c", ChunkForged)]
    assert not [*mesh.events("b", MetadataRefused), *mesh.events("c", MetadataRefused)]


def test_node_that_has_a_bundle_from_the_relay_does_not_repeat_the_size_that_a_liar_announced() -> None:
    """It spread the lie in its own name, and gave neighbours no more of the bundle than that."""
    mesh = Mesh("a")
    node = mesh.driver.nodes[NodeId("a")]
    machine = mesh.releases.of(node)
    bundle, size_bytes = bytes([7]) * 32, 30_000
    now = node.local(mesh.driver.now)
    lie = encode(ReleaseNews(1, 5, bytes(32), bundle, 100))
    machine.heard(HeardEntry(NodeId("liar"), RELEASES_KIND, 1, 0, lie, NodeId("liar")), now)
    machine.relay_connected(True, now)
    now += limits.SECOND
    machine.handle_timer(now)
    assert AskRelay(bundle) in machine.outgoing()
    machine.chunk_stored(bundle, True, now)
    machine.holding({bundle: size_bytes}, now)
    machine.bundle_verified(bundle, ReleaseCatalogue(1, 5, bytes(32), False, (), ()), now)
    assert machine.shelf.held[bundle] == size_bytes
    assert machine.news.verified is not None
    assert machine.news.verified.bundle_bytes == size_bytes
