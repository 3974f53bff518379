"""Releases spread from node to node in virtual time: what is published reaches everybody, and nothing else does."""

from protocols.access import AccessRule, AccessTable
from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.releases.catalogue import Order
from protocols.releases.events import ChunkForged, MetadataRefused, MetadataTaken, ReleaseState
from protocols.releases.machine import Releases
from protocols.releases.rollout.following import ROOM_PAUSE_NS
from protocols.releases.rollout.health import reason_of
from protocols.releases.rollout.tally import FAILED
from protocols.releases.settings import ReleaseSettings
from protocols.wire.releases import ReleaseNews
from sims.world.releases.nodes import RelayStore, rollouts_of
from tests.protocols.releases.mesh import PATH, Mesh


def test_release_that_one_node_has_is_served_by_all() -> None:
    """Releases are for this: one seed is enough, without a relay."""
    mesh = Mesh("a", "b", "c")
    mesh.publisher.release(PATH, 1, 300_000)
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(10)
    assert mesh.serving() == {"a": 1, "b": 1, "c": 1}
    assert mesh.events("b", MetadataTaken) == [MetadataTaken(1, 1)]
    mesh.publisher.release(PATH, 2, 200_000)
    mesh.publisher.sign()
    mesh.seed("c")
    mesh.run_for(10)
    assert mesh.serving() == {"a": 2, "b": 2, "c": 2}


def test_nodes_of_one_neighbourhood_ask_the_relay_for_each_chunk_about_once() -> None:
    """The uplink is what costs money: neighbours share what one of them got."""
    mesh = Mesh(*(f"n{number}" for number in range(8)))
    mesh.releases.relay = RelayStore(mesh.driver, mesh.publisher, 1_000_000, 20_000_000)
    mesh.publisher.release(PATH, 1, 2_000_000)
    mesh.publisher.sign()
    for node in mesh.driver.numbered:
        mesh.releases.connect(node)
    mesh.run_for(20)
    assert set(mesh.serving().values()) == {1}
    assert mesh.releases.relay.egress_bytes < 1.3 * 2_000_000


def test_node_that_may_have_no_release_gets_nothing() -> None:
    """The table of access decides, not the good will of who asks."""
    rules = (
        AccessRule(Role.RSU, "publish", "**"), AccessRule(Role.VEHICLE, "publish", "**"),
        AccessRule(Role.RSU, "release", "**"),
    )  # fmt: skip
    mesh = Mesh("rsu-1", "rsu-2", "car", rules=rules)
    mesh.publisher.release(PATH, 1, 100_000)
    mesh.publisher.sign()
    mesh.seed("rsu-1")
    mesh.run_for(60)
    assert mesh.serving() == {"rsu-1": 1, "rsu-2": 1, "car": 0}
    assert mesh.releases.disk("car").chunks == {}


def test_node_that_restarts_goes_on_where_it_was() -> None:
    """A car is switched off in the middle of a download every day."""
    mesh = Mesh("a", "b", bytes_per_s=50_000)
    mesh.publisher.release(PATH, 1, 400_000, 16 * 1024)
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(5)
    before = len(mesh.releases.disk("b").chunks)
    assert 3 < before < 25
    mesh.driver.kill("b")
    mesh.run_for(5)
    mesh.driver.restart("b")
    mesh.releases.begin(mesh.driver.nodes[NodeId("b")])
    mesh.driver.meet()
    mesh.run_for(30)
    assert mesh.serving() == {"a": 1, "b": 1}
    assert mesh.counter("b", "chunks_kept") <= len(mesh.publisher.chunks) - before


def test_forged_and_refused_are_not_seen_among_honest_nodes() -> None:
    """An honest neighbour is never called a forger, whatever is lost or late."""
    mesh = Mesh("a", "b", "c", "d", bytes_per_s=120_000)
    mesh.publisher.release(PATH, 1, 600_000)
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(3)
    mesh.driver.kill("c")
    mesh.run_for(30)
    assert mesh.serving()["b"] == mesh.serving()["d"] == 1
    for name in "abd":
        assert mesh.events(name, ChunkForged) == [] == mesh.events(name, MetadataRefused)


def test_true_metadata_is_found_among_many_that_do_not_exist() -> None:
    """Insiders that announce whatever they like must not hide what is true."""
    mesh = Mesh("a", "b")
    node = mesh.driver.nodes[NodeId("b")]
    machine = mesh.releases.of(node)
    for number in range(60):
        made_up = number.to_bytes(32)
        news = ReleaseNews(1, 1_000 + number, made_up, made_up, 4_000)
        mesh.driver.act(node, lambda engine, now, n=number, s=news: machine.news.told(NodeId(f"liar-{n}"), s, 0, now))
    mesh.publisher.release(PATH, 1, 40_000)
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(300)
    assert mesh.serving() == {"a": 1, "b": 1}


def test_bundle_that_is_held_and_was_not_verified_is_verified_when_it_is_announced() -> None:
    """A node may end between keeping a bundle and verifying it."""
    mesh = Mesh("a", "b")
    mesh.publisher.release(PATH, 1, 40_000)
    news = mesh.publisher.sign()
    mesh.releases.disk("b").chunks[news.bundle] = mesh.publisher.chunks[news.bundle]
    mesh.releases.begin(mesh.driver.nodes[NodeId("b")])
    mesh.seed("a")
    mesh.run_for(10)
    assert mesh.serving() == {"a": 1, "b": 1}


def test_node_that_has_the_base_of_a_delta_fetches_only_the_delta() -> None:
    """A small change of a model should cost a small part of its bytes, also after a restart."""
    mesh = Mesh("a", "b")
    first = mesh.publisher.release(PATH, 1, 600_000)
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(10)
    assert mesh.serving() == {"a": 1, "b": 1}
    mesh.driver.kill("b")
    mesh.run_for(5)
    mesh.driver.restart("b")
    mesh.releases.begin(mesh.driver.nodes[NodeId("b")])
    mesh.driver.meet()
    mesh.run_for(5)
    delta = mesh.publisher.content(bytes(range(256)) * 80, 16 * 1024)
    mesh.publisher.release(PATH, 2, 600_000, deltas=((first.files[0].content.sha256, delta),))
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(20)
    assert mesh.counter("b", "bytes_received") < 40_000
    assert mesh.releases.disk("b").chunks.keys() >= {*mesh.publisher.parts_of(delta)}


def test_release_that_the_disk_does_not_take_holds_up_no_other() -> None:
    """A large model was begun again every half minute, for ever, and a small one never had its turn."""
    mesh = Mesh("a", "b", bytes_per_s=200_000)
    mesh.publisher.release("models/large", 1, 4_000_000, 256 * 1024)
    mesh.publisher.sign()
    mesh.seed("a")
    disk = mesh.releases.disk("b")
    disk.room_bytes = 300_000  # one chunk of the large one, and all of the small one
    mesh.run_for(20)
    assert mesh.counter("b", "chunks_unwritten") == 1
    mesh.publisher.release("models/small", 1, 20_000)
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(120)
    assert disk.served == {"models/small": 1}
    assert mesh.counter("b", "chunks_unwritten") == 1
    disk.room_bytes = None
    mesh.run_for(ROOM_PAUSE_NS / SECOND)
    assert disk.served == {"models/large": 1, "models/small": 1}


def mesh_with_small_disks(canaries: tuple[NodeId, ...]) -> Mesh:
    """Two nodes that are to take a model that fits, and one that does not."""
    mesh = Mesh(
        "a", "b",
        machine=lambda settings, random: Releases(
            settings.node, AccessTable(settings.access), ReleaseSettings(store_bytes=100_000), random,
            rollouts_of(settings),
        ),
    )  # fmt: skip
    mesh.publisher.release("models/large", 1, 100_001, order=False)
    mesh.publisher.release("models/small", 1, 20_000)
    mesh.publisher.order(Order(serial=9, path="models/large", counter=1, canaries=canaries))
    mesh.publisher.sign()
    mesh.seed("a")
    return mesh


def failed(mesh: Mesh, name: str) -> list[tuple[str, str]]:
    """The releases that failed at a node, and why."""
    events = [event for event in mesh.events(name, ReleaseState) if isinstance(event, ReleaseState)]
    return [(event.path, reason_of(event.detail)) for event in events if event.state == "failed"]


def test_release_that_is_larger_than_all_may_be_is_not_fetched_and_fails() -> None:
    """A canary without room said nothing, so its order waited until silence counted."""
    mesh = mesh_with_small_disks(canaries=(NodeId("b"),))
    mesh.run_for(20)
    assert mesh.releases.disk("b").served == {"models/small": 1}
    assert mesh.counter("b", "bytes_received") < 60_000
    assert failed(mesh, "b") == [("models/large", "no_room")]
    reports = mesh.releases.of(mesh.driver.nodes[NodeId("a")]).rollouts.reports(9)
    assert reports[NodeId("b")].verdicts == FAILED


def test_release_that_is_too_large_fails_once_in_a_while() -> None:
    """The operator may have given more room meanwhile, and hears of it again otherwise."""
    mesh = mesh_with_small_disks(canaries=())
    mesh.run_for(ROOM_PAUSE_NS / SECOND - 10)
    assert len(failed(mesh, "b")) == 1
    mesh.run_for(20)
    assert len(failed(mesh, "b")) == 2


def test_release_without_room_beside_the_one_that_serves_holds_up_no_other_model() -> None:
    """Its chunks came until the disk took no more, and then nothing was fetched for a while, again and again."""
    mesh = mesh_with_small_disks(canaries=())
    mesh.run_for(20)
    before = mesh.counter("b", "bytes_received")
    mesh.publisher.release("models/small", 2, 90_000)
    mesh.publisher.sign()
    mesh.publisher.release("models/other", 1, 10_000)
    mesh.publisher.sign()
    mesh.seed("a")
    mesh.run_for(20)
    assert mesh.releases.disk("b").served == {"models/small": 1, "models/other": 1}
    assert ("models/small", "no_room") in failed(mesh, "b")
    assert mesh.counter("b", "bytes_received") - before < 50_000
