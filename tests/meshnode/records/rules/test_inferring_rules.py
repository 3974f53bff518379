"""Rules with a model as a step: in files, in cases, and on a running node."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import meshnode
from meshnode.inference.section import ModelSection
from meshnode.records.console.rules import rules
from meshnode.records.rules.section import RulesSection
from meshnode.records.running import RunningRecords
from tests.tools.mesh_fixture import House, until
from tests.tools.released_fixture import adder

RULES = """
[[rule]]
name = "added"
keys = "veh/*/pair"
value = "[[value[0], value[1]]]"
infer = { model = "adder", input = "x", deadline_ms = 20_000 }
output = { key = "veh/{node}/sum", unit = "1", record = false }

[[rule]]
name = "large"
keys = "veh/*/sum"
where = "value.y[0][1] > 5.0"
value = "value.y[0][1]"
output = { key = "veh/{node}/large" }
"""
CASES = """
rules = "rules.toml"

[[case]]
name = "one that is large"
reading = [{ key = "veh/veh-1/pair", value = [1, 2], at_s = 1 }, { key = "veh/veh-1/pair", value = [1, 3], at_s = 2 }]
prediction = [{ model = "adder", value = { y = [[8, 9]] } }]
expected = [
    { key = "veh/veh-1/sum", value = { y = [[8, 9]] }, record = false },
    { key = "veh/veh-1/large", value = 9, record = true },
]
"""


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(rules, list(map(str, arguments)))
    return result.exit_code, result.output


def test_commands_check_explain_and_try_predictions(tmp_path: Path) -> None:
    """No model is needed to try what is made of its outputs."""
    (tmp_path / "rules.toml").write_text(RULES)
    (tmp_path / "cases.toml").write_text(CASES)
    assert run("check", tmp_path / "rules.toml") == (0, f"{tmp_path}/rules.toml: 2 rules, at most 40.0 MiB of memory\n")
    out = run("explain", tmp_path / "rules.toml")[1]
    assert "the model adder is given each as input x, 1 at a time, and all outputs become one reading if" in out
    assert run("test", tmp_path / "cases.toml")[0] == 0
    (tmp_path / "cases.toml").write_text(CASES.replace("[[8, 9]] } }]", "[[8, 1]] } }]"))
    status, out = run("test", tmp_path / "cases.toml")
    assert status == 1
    assert "rule added: derived 1, not_predicted 1, taken 2" in out
    (tmp_path / "rules.toml").write_text(RULES.replace(', unit = "1", record', ", record"))
    assert "rule[0].output.unit: is missing" in run("check", tmp_path / "rules.toml")[1]


@pytest.mark.processes
async def test_prediction_goes_through_rules_again_and_a_failure_is_told(tmp_path: Path) -> None:
    """From a reading to a tensor, a prediction, a rule and a record. One that can't be computed harms no other."""
    (tmp_path / "rules.toml").write_text(RULES)
    (tmp_path / "adder.onnx").write_bytes(adder(4))
    config = House(tmp_path).config("veh-1", models={"adder": ModelSection(path=tmp_path / "adder.onnx")})
    async with meshnode.open(config.with_sections(RulesSection(files=(tmp_path / "rules.toml",)))) as node:
        sums, large = node.subscribe("veh/*/sum"), node.subscribe("veh/*/large")
        node.publish("veh/veh-1/pair", [1.0, 2.0], unit="1", sensor="s", quality=0.5)
        found = await large.next(30.0)
        assert (found.value, found.how.lineage, found.how.quality) == (6.0, ("large", "added"), 0.5)
        assert (await sums.next(30)).value == {"y": [[5.0, 6.0]]}
        await until(lambda: node.statistics()["outbox_issued"] == 1, "what is large is a record")
        view = node.part(RunningRecords).node_view
        node.publish("veh/veh-1/pair", ["a", "b"], unit="1", sensor="s")
        await until(lambda: view()["rules"]["added"].get("not_predicted") == 1, lambda: str(view()))
        (trouble,) = node.troubles.current()
        assert "adder gives no prediction for rule 'added': input 'x' can't be taken as an array" in trouble.why
        node.publish("veh/veh-1/pair", [2.0, 3.0], unit="1", sensor="s")
        assert (await large.next(30.0)).value == 7.0
        await until(lambda: not node.troubles.current(), "all is well again")
