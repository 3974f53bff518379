"""Nodes whose computers get other addresses while everything runs, in network namespaces of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.emulator_fixture import as_root
from tests.tools.eventually import eventually
from tests.tools.hub_fixture import Hub
from tests.tools.mesh_fixture import House, Member

pytestmark = [pytest.mark.processes, as_root]

ELSEWHERE = "10.78.1.77"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(2) as hub:
        yield hub


def config(house: House, node: str, role: str, engine: str, seed: str, suspicion_max_ms: int) -> Path:
    """A node on port 7000 of all addresses of its computer."""
    path = house.home(node, role) / "node.toml"
    path.write_text(
        f'[node]\nid = "{node}"\nposition = {{ latitude_deg = 48.7661, longitude_deg = 11.4298, accuracy_m = 3.0 }}\n'
        f'[listen]\nport = 7000\nlink_engine = "{engine}"\n[http]\nenabled = false\n'
        f"[discovery]\nmdns = false\nseeds = [{seed}]\n[membership]\nsuspicion_max_ms = {suspicion_max_ms}\n"
    )
    return path


@pytest.mark.parametrize("engine", ["express", "nng"])
@pytest.mark.parametrize(
    ("mover", "patience_ms", "haste_ms"),
    [(0, 2_500, 2_500), (1, 60_000, 2_500), (0, 60_000, 60_000), (1, 60_000, 60_000)],
    ids=["seed moves", "the one that gives up moves", "seed moves and none gives up", "other moves and none gives up"],
)
def test_node_whose_address_changes_is_usable_both_ways_again(
    hub: Hub, tmp_path: Path, engine: str, mover: int, patience_ms: int, haste_ms: int
) -> None:
    """The one that moved gives up and comes again. The other still waits then, and believes in its old lane: they were
    stuck with one half of a link for good. If the other one moved, the seed leads to an address that is gone. Where
    none gives up for a minute, the node whose own address changed acts without a suspicion's end."""
    house = House(tmp_path)
    patient = config(house, "rsu-1", "rsu", engine, "", patience_ms)
    hasty = config(house, "veh-1", "vehicle", engine, f'"{hub.address(0)}:7000"', haste_ms)
    with Member(patient, hub.hosts[0].namespace) as rsu, Member(hasty, hub.hosts[1].namespace) as vehicle:
        both = (rsu, "rsu/rsu-1/x", vehicle), (vehicle, "veh/veh-1/x", rsu)
        eventually(lambda: rsu.alive() == {"veh-1"} and vehicle.alive() == {"rsu-1"}, "they meet")
        for sender, key, receiver in both:
            eventually(lambda sender=sender, key=key: sender.ask("publish", key, "before"), "it is wanted")
            receiver.wait_for("reading", key=key, value="before")
        hub.move(mover, ELSEWHERE)
        for sender, key, _ in both:
            sender.ask("publish", key, "lost" * 1_000)
        for sender, key, receiver in both:

            def arrived(sender: Member = sender, key: str = key, receiver: Member = receiver) -> bool:
                sender.ask("publish", key, "after")
                return bool(receiver.heard("reading", key=key, value="after"))

            eventually(arrived, lambda: f"a reading arrives, {rsu.ask('peers')}, {vehicle.ask('peers')}")
        assert rsu.alive() == {"veh-1"}
        assert vehicle.alive() == {"rsu-1"}
        for node, peer in ((rsu, "veh-1"), (vehicle, "rsu-1")):
            drops = {(who, why): count for who, _, why, count in node.ask("drops")}
            assert drops.get((peer, "unconfirmed"), 0) > 0, drops
