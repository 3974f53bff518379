"""The example of the how-to: a model learned from the trace that comes with the package, run by a node on windows."""

from pathlib import Path

import pytest

import meshnode
from demo.motion.learning import learn
from demo.motion.series import LABELS, LENGTH
from meshnode.identity import create_mesh, issue
from protocols.base.ids import Role
from protocols.wire.readings import Reading
from tests.tools.eventually import until

pytestmark = pytest.mark.processes


async def test_model_of_windows_is_learned_and_a_node_says_how_the_vehicle_moves(tmp_path: Path) -> None:
    """Each step of the how-to, with the series twenty times as fast."""
    create_mesh(tmp_path / "authority", "imu")
    issue(tmp_path / "authority", Role.VEHICLE, "imu-1", tmp_path / "node")
    quality = learn(tmp_path / "node", 24)
    assert quality["accuracy"] > 0.8, quality
    path = tmp_path / "node" / "node.toml"
    local = '\n[listen]\nhost = "127.0.0.1"\n[discovery]\nmdns = false\n[http]\nport = 0\n'
    path.write_text(path.read_text() + "rate = 20.0\n" + local)
    heard: list[Reading] = []
    async with meshnode.open(path) as node:
        node.subscribe("veh/imu-1/imu/result", callback=heard.append)
        await until(lambda: len(heard) >= 10, "results come")
    for reading in heard:
        assert reading.value["label"] in LABELS
        assert reading.value["to_s"] - reading.value["from_s"] == pytest.approx((LENGTH - 1) / 10, abs=0.01)
