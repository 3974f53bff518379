"""A function that acts on what a rule finds is called once for it, over restarts of either node."""

from pathlib import Path

import pytest

import meshnode
from meshnode.config.sections import NodeConfig
from meshnode.functions.section import FunctionSection, FunctionsSection
from meshnode.records.rules.section import RulesSection
from meshnode.records.running import RunningRecords
from tests.tools.mesh_fixture import House, until

pytestmark = pytest.mark.processes
RULES = """
[[rule]]
name = "three"
keys = "veh/*/brake"
window = { count = 3 }
compute = ["count"]
output = { key = "veh/{node}/alert", unit = "1", priority = 6, lifespan_s = 60 }
"""


def acting(config: NodeConfig, folder: Path) -> NodeConfig:
    """With a function that notes each alert in a file."""
    act = FunctionSection(name="act", keys="veh/*/alert", run=("/bin/sh", "-c", f"cat >> {folder}/calls"))
    return config.with_sections(FunctionsSection(functions=(act,)))


def calls(folder: Path) -> int:
    path = folder / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


async def test_function_is_called_once_for_what_a_rule_finds_over_restarts(tmp_path: Path) -> None:
    """Two readings before a restart, one after it, and what came of them is not found again by a third life."""
    (tmp_path / "rules.toml").write_text(RULES)
    config = acting(House(tmp_path).config("veh-1"), tmp_path)
    config = config.with_sections(RulesSection(files=(tmp_path / "rules.toml",)))
    for life, readings in enumerate((2, 1, 2)):
        async with meshnode.open(config) as node:
            for number in range(readings):
                node.publish("veh/veh-1/brake", number)
            derived = node.part(RunningRecords).node_view()["rules"]["three"].get("derived", 0)
            assert derived == (life == 1)
            await until(lambda: calls(tmp_path) == (life > 0), "the call for it, and no other")  # noqa: B023
            assert node.statistics().get("functions_called", 0) <= derived
    assert calls(tmp_path) == 1


async def test_function_is_called_once_for_an_alert_of_a_neighbour_though_either_comes_anew(tmp_path: Path) -> None:
    """The last known value is not new: a sign would be switched on by what was an hour ago."""
    house = House(tmp_path)

    async def alerted(vehicle: meshnode.Node, rsu: meshnode.Node, call: int) -> None:
        await rsu.wait_for_peers(1)
        publisher = vehicle.publisher("veh/veh-1/alert", priority=6)
        await until(lambda: publisher.put(call).queued, "the RSU asks")
        await until(lambda: calls(tmp_path) == call, "one more call")

    for life in (0, 2):
        async with meshnode.open(house.config("veh-1")) as vehicle:
            rsu_config = acting(house.config("rsu-1", vehicle.port, role="rsu"), tmp_path)
            async with meshnode.open(rsu_config) as rsu:
                await alerted(vehicle, rsu, life + 1)
            vehicle.publish("veh/veh-1/alert", "while the RSU was away")
            async with meshnode.open(rsu_config) as rsu:
                await alerted(vehicle, rsu, life + 2)
                await until(lambda: rsu.statistics().get("functions_called") == 1, "one of this life")
    assert calls(tmp_path) == 4
