"""Rules on a running node: readings of two nodes become a summary, which is published and recorded."""

from pathlib import Path

import pytest

import meshnode
from protocols.base.errors import ConfigError
from tests.tools.mesh_fixture import House, until

RULES = """
[[rule]]
name = "speeds"
keys = "*/*/*"
source = "any"
unit = "m/s"
by = "origin"
window = { count = 2 }
compute = ["count", "mean"]
output = { key = "rsu/{node}/speed/{partition}", unit = "m/s" }

[[rule]]
name = "fast"
keys = "rsu/*/speed/*"
where = "value.mean > 15.0"
value = "value.mean"
by = "key"
output = { key = "rsu/{node}/alert/{partition}", priority = 6, record = false }
"""


async def test_readings_of_both_nodes_become_records_and_alerts(tmp_path: Path) -> None:
    """The thin line: a neighbour's reading, a window, a record on disk, and a rule that builds on it."""
    house = House(tmp_path)
    (tmp_path / "rules.toml").write_text(RULES)
    rules = f'[discovery]\nmdns = false\n[rules]\nfiles = ["{tmp_path}/rules.toml"]\n'
    async with meshnode.open(house.file("rsu-1", rules, role="rsu")) as rsu:
        seeds = f'[discovery]\nmdns = false\nseeds = ["127.0.0.1:{rsu.port}"]\n'
        async with meshnode.open(house.file("veh-1", seeds)) as vehicle:
            await vehicle.wait_for_peers(1)
            heard, alerts = rsu.subscribe("rsu/*/speed/**"), rsu.subscribe("rsu/*/alert/**")
            speed = vehicle.publisher("veh/veh-1/speed", unit="m/s", sensor="wheel")
            await until(lambda: speed.put(10.0).queued, "the RSU asks for speeds")
            speed.put(30.0)
            summary = await heard.next(30)
            assert (summary.key, summary.value["count"], summary.value["mean"]) == ("rsu/rsu-1/speed/veh-1", 2, 20.0)
            assert summary.how.lineage == ("speeds",)
            span_ns = summary.value["end_ns"] - summary.value["start_ns"]
            assert abs(summary.when.utc_ns - summary.value["start_ns"] - span_ns / 2) <= 1
            assert summary.when.uncertainty_ns >= span_ns // 2
            alert = await alerts.next(30)
            assert (alert.key, alert.value, alert.priority) == ("rsu/rsu-1/alert/rsu/rsu-1/speed/veh-1", 20.0, 6)
            assert alert.how.lineage == ("fast", "speeds")
            own = rsu.publisher("rsu/rsu-1/loop", unit="m/s", sensor="loop")
            for value in (1.0, 2.0):
                own.put(value)
            await until(lambda: rsu.statistics()["outbox_issued"] == 2, "both summaries are records, and no alert is")
            statistics = rsu.statistics()
            assert statistics["rules_derived"] == 3
            assert statistics["outbox_not_stored"] == 0


async def test_node_with_a_broken_rule_does_not_start_and_says_where_it_is_broken(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES.replace("value.mean > 15.0", "value.mean >"))
    config = House(tmp_path).file("rsu-1", f'[discovery]\nmdns = false\n[rules]\nfiles = ["{tmp_path}/rules.toml"]\n')
    with pytest.raises(ConfigError, match=r"rules\.toml: rule\[1\].where = 'value.mean >': line 15, column"):
        async with meshnode.open(config):
            pass
