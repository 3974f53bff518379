"""Publishing rules: what is fit to be released, as an operator types it and as a node is told of it."""

from pathlib import Path

import pytest

from cloud_relay.releases.publishing import description_of
from cloud_relay.releases.repository import ReleaseRepository
from meshnode.releases.trust import Trust
from tests.cloud_relay.releases.test_commands import Operator, given_operator, listed

__all__ = ["given_operator"]

RULES = """
[[rule]]
name = "fast"
keys = "veh/*/speed"
where = "value > 15.0"
output = { key = "veh/{node}/fast" }
"""
CASES = """
rules = "traffic.toml"

[[case]]
name = "a fast one"
reading = [{ key = "veh/veh-1/speed", value = 20, at_s = 1 }]
expected = [{ key = "veh/veh-1/fast", value = 20 }]
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "traffic.toml"
    path.write_text(RULES)
    return path


def test_rules_are_published_by_a_publisher_of_rules_and_a_node_hears_of_them(
    operator: Operator, tmp_path: Path, rules: Path
) -> None:
    """Whoever publishes models does not publish rules: that takes a key of its own."""
    trust = Trust(tmp_path / "trust", operator.folder / "metadata" / "1.root.json")
    out = operator("release", "publish", "--kind", "rules", rules, status=2)
    assert "no publisher may list rules/traffic/1.json: permit one with" in out
    assert "delegate NAME --rules" in out
    operator("release", "delegate", "traffic-team", "--rules", "*")
    out = operator("release", "publish", "--kind", "rules", rules)
    assert "it has no cases" in out
    assert f"rules/traffic 1: {len(RULES)} bytes" in out
    operator("release", "publish", "--kind", "rules", rules, "--name", "town", "--changelog", "the same elsewhere")
    assert listed(operator, trust) == [("rules/town", 1), ("rules/traffic", 1)]
    repository = ReleaseRepository(operator.folder).load()
    made = description_of(repository, "rules/traffic", 1)
    assert (made.model, [repository.shelf.read(file.content) for file in made.files]) == (
        "traffic.toml", [RULES.encode()],
    )  # fmt: skip


def test_rules_are_rolled_out_and_revoked_by_their_path(operator: Operator, rules: Path) -> None:
    """A name alone is that of a model, as it was before there were others."""
    operator("release", "delegate", "traffic-team", "--rules", "traffic")
    operator("release", "publish", "--kind", "rules", rules)
    out = operator("rollout", "start", "rules/traffic", "1", "--min-agreement", "0.9", status=2)
    assert "nothing is compared: leave --min-agreement out" in out
    assert "order 1: rules/traffic 1, running" in operator("rollout", "start", "rules/traffic", "1")
    assert "rules/traffic 1, paused" in operator("rollout", "pause", "rules/traffic")
    assert "order 1 is aborted" in operator("release", "revoke", "rules/traffic", "1")
    assert "used: leave --counter out" in operator(
        "release", "publish", "--kind", "rules", rules, "--counter", "1", status=2
    )


def test_rules_that_do_not_compile_or_fail_a_case_are_not_published(operator: Operator, rules: Path) -> None:
    """No node has to find out."""
    operator("release", "delegate", "traffic-team", "--rules", "*")
    publish = ("release", "publish", "--kind", "rules", rules)
    rules.write_text(RULES.replace("15.0", "15.0 &&"))
    out = operator(*publish, status=2)
    assert "traffic.toml is not published" in out
    assert "line 5, column" in out
    rules.write_text(RULES.replace("15.0", "25.0"))
    beside = rules.with_name("traffic-cases.toml")
    beside.write_text(CASES)
    out = operator(*publish, status=2)
    assert "the case 'a fast one' in" in out
    assert "veh/veh-1/fast = 20 was expected and was not derived" in out
    rules.write_text(RULES)
    assert "no cases" not in operator(*publish)
    other = rules.with_name("other.toml")
    other.write_text(RULES)
    out = operator("release", "publish", "--kind", "rules", other, "--cases", beside, status=2)
    assert f"the cases in {beside} are about {rules}, and {other} is published" in out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("release", "publish", "--kind", "rules", "x.toml", "--runtime", "1.17"), "are about models"),
        (("release", "publish", "x.onnx", "--cases", "c.toml"), "--cases is about rules"),
        (("release", "delegate", "both", "--model", "*", "--rules", "*"), "a publisher releases one kind"),
        (("release", "delegate", "none"), "a publisher releases one kind"),
    ],
)
def test_options_of_the_other_kind_are_refused(operator: Operator, words: tuple[str, ...], why: str) -> None:
    assert why in operator(*words, status=2)
