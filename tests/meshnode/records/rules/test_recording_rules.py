"""Rules that record what was read around a moment: in files, in cases, and on a running node with a history."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import meshnode
from meshnode.history.section import HistorySection
from meshnode.records.console.rules import rules
from meshnode.records.rules.section import RulesSection
from meshnode.records.rules.trying import cases_of_file, tried
from meshnode.records.running import RunningRecords
from protocols.base.errors import ConfigError
from tests.meshnode.records.rules.test_windows_survive import recorded
from tests.tools.mesh_fixture import House, until

RULES = """
[[rule]]
name = "brake"
keys = "veh/*/brake"
where = "value > 5.0"
output = { key = "veh/{node}/alert", priority = 6, lifespan_s = 10 }
recording = { keys = ["veh/*/speed"], before_s = 30, after_s = 5, max_records = 100 }
"""
CASES = """
rules = "rules.toml"

[[case]]
name = "around a brake"
reading = [
    { key = "veh/veh-1/speed", value = 1, at_s = 1 },
    { key = "veh/veh-1/speed", value = 2, at_s = 40 },
    { key = "veh/veh-1/brake", value = 9, at_s = 50 },
    { key = "veh/veh-1/speed", value = 3, at_s = 51 },
    { key = "veh/veh-1/speed", value = 4, at_s = 60 },
]
expected = [{ key = "veh/veh-1/alert", value = 9, record = true }]
recorded = [{ key = "veh/veh-1/speed", value = 3, rule = "brake" }, { key = "veh/veh-1/speed", value = 2 }]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    (tmp_path / "cases.toml").write_text(CASES)
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(rules, list(map(str, arguments)))
    return result.exit_code, result.output


def test_commands_check_explain_and_try_recordings(folder: Path) -> None:
    """Its author sees what will be recorded before a vehicle does."""
    assert run("check", folder / "rules.toml") == (0, f"{folder}/rules.toml: 1 rules, at most 0.1 MiB of memory\n")
    assert (
        "then this node's readings of veh/*/speed become records, from 30 s before to 5 s after it has derived "
        "something, 100 at most" in run("explain", folder / "rules.toml")[1]
    )
    assert run("test", folder / "cases.toml")[0] == 0
    (folder / "cases.toml").write_text(CASES.replace('value = 3, rule = "brake"', 'value = 8, rule = "hit"'))
    status, out = run("test", folder / "cases.toml")
    assert status == 1
    assert "recorded[0].value: 8 was expected, 3 was recorded" in out
    assert "recorded[0].rule: 'hit' was expected, 'brake' was recorded" in out
    assert "recorded 2, recordings 1" in out
    (folder / "cases.toml").write_text(CASES.partition("recorded =")[0] + "recorded = []")
    assert "a record of veh/veh-1/speed = 3 was made and not expected" in run("test", folder / "cases.toml")[1]
    (folder / "rules.toml").write_text(RULES.replace(", before_s = 30, after_s = 5", ""))
    assert "rule[0].recording.after_s: is missing, and before_s too" in run("check", folder / "rules.toml")[1]


def test_recording_that_is_full_looks_for_nothing_before_it_where_it_is_tried_either(folder: Path) -> None:
    """The newest none of many are none."""
    (folder / "rules.toml").write_text(RULES.replace("max_records = 100", "max_records = 1"))
    (folder / "cases.toml").write_text(CASES.replace(', { key = "veh/veh-1/speed", value = 2 }]', "]"))
    assert run("test", folder / "cases.toml")[0] == 0
    (case,) = cases_of_file(folder / "cases.toml")[1]
    counters = {what: count for what, count in tried(folder / "rules.toml", case).counters["brake"].items() if count}
    assert counters == {"derived": 1, "recorded": 1, "recordings": 1}


async def test_node_records_what_was_read_before_and_after(folder: Path) -> None:
    """Before: out of its history; after: as it comes. The alert itself is a record of its own."""
    config = House(folder).config("veh-1").with_sections(
        RulesSection(files=(folder / "rules.toml",)), HistorySection(keys=("veh/*/speed",)),
    )  # fmt: skip
    async with meshnode.open(config) as node:
        for number in range(250):
            node.publish("veh/veh-1/speed", float(number), unit="1", sensor="s")
        alerts = node.subscribe("veh/*/alert")
        node.publish("veh/veh-1/brake", 9.0, unit="1", sensor="s")
        alert = await alerts.next(30)
        assert (alert.priority, alert.lifespan_ms) == (6, 10_000)
        for number in range(250, 260):
            node.publish("veh/veh-1/speed", float(number), unit="1", sensor="s")
        view = node.part(RunningRecords).node_view
        await until(lambda: view()["rules"]["brake"].get("recorded") == 100, lambda: str(view()))
        await until(lambda: node.statistics()["outbox_issued"] == 101, "all are in the outbox")
    values = [value for value in recorded(config.node.state_dir) if value != 9.0]
    assert values == [*map(float, range(250, 260)), *map(float, range(160, 250))], "those nearest before"


async def test_node_without_a_history_refuses_to_look_back(folder: Path) -> None:
    config = House(folder).config("veh-1").with_sections(RulesSection(files=(folder / "rules.toml",)))
    with pytest.raises(ConfigError, match=r"rule 'brake' records what was read before .* add \[history\]"):
        async with meshnode.open(config):
            pass
