"""``meshnode rules``: what its author sees before a rule is on a vehicle."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshnode.cli.reference import rules_page
from meshnode.records.console.rules import rules
from meshnode.records.rules.trying import Case, GivenReading, tried

RULES = """
[[rule]]
name = "by ten seconds"
keys = "veh/*/speed"
source = "any"
unit = "m/s"
where = "value >= 0.0 && quality > 0.5"
value = "value * 3.6"
by = "origin"
window = { size_s = 10 }
compute = ["count", "mean"]
output = { key = "road/{node}/speed/{partition}", unit = "km/h" }

[[rule]]
name = "too fast"
keys = "road/*/speed/*"
where = "value.mean > 40.0"
value = "value.mean"
by = "key"
output = { key = "fast/{partition}", priority = 6, record = false }
"""
CASES = """
rules = "rules.toml"

[[case]]
name = "one vehicle"
reading = [
    { key = "veh/a/speed", value = 10.0, unit = "m/s", at_s = 1, origin = "a" },
    { key = "veh/a/speed", value = 20, unit = "m/s", at_s = 8, sensed_s = 2, origin = "a" },
    { key = "veh/a/speed", value = 99, unit = "m/s", at_s = 12, sensed_s = 2, origin = "a" },
    { key = "veh/a/speed", value = 99, unit = "km/h", at_s = 12, origin = "a" },
]
expected = [
    { key = "road/veh-1/speed/a", value = { start_s = 0, end_s = 10, count = 2, mean = 54 }, at_s = 11, record = true },
    { key = "fast/road/veh-1/speed/a", value = 54, record = false },
]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With rules and cases."""
    (tmp_path / "rules.toml").write_text(RULES)
    (tmp_path / "cases.toml").write_text(CASES)
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(rules, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_check_says_how_many_rules_there_are_and_what_they_need(folder: Path) -> None:
    status, output = run("check", folder / "rules.toml")
    assert status == 0
    assert "2 rules, at most" in output
    assert run("check", folder / "none.toml")[0] == 1


def test_cases_that_are_as_expected_end_with_zero(folder: Path) -> None:
    """A late reading, one in another unit, and a rule that builds on another one."""
    assert run("test", folder / "cases.toml") == (
        0,
        f"ok     {folder}/cases.toml: one vehicle\n1 of 1 cases are as expected\n",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mean = 54 }", "mean = 55 }", "expected[0].value: {'start_s': 0, 'end_s': 10, 'count': 2, 'mean': 55} was"),
        ("at_s = 11", "at_s = 10", "expected[0].at_s: 10.0 was expected, 11.0 was derived"),
        ("record = true", "record = false", "expected[0].record: False was expected, True was derived"),
        ("count = 2", "number = 2", "was expected"),
        ("value = 54, record", "value = '54', record", "expected[1].value: '54' was expected, 54.0 was derived"),
        ("fast/road", "slow/road", "expected[1].key: 'slow/road/veh-1/speed/a' was expected"),
    ],
)  # fmt: skip
def test_case_that_is_not_as_expected_says_what_differs_and_ends_with_one(
    folder: Path, old: str, new: str, message: str
) -> None:
    """A change of a rule that breaks it fails the build of its author, and not the fleet."""
    at = CASES.index("]\n") if old == "]\n" else CASES.index(old)
    rest = "\n" if old == "]\n" else CASES[at + len(old) :]
    (folder / "cases.toml").write_text(CASES[:at] + new + rest)
    status, output = run("test", folder / "cases.toml")
    assert status == 1
    assert message in output
    assert "rule by ten seconds: derived 1, late 1, taken 2, unit_mismatch 1" in output


def test_expected_reading_that_never_comes_is_named(folder: Path) -> None:
    (folder / "rules.toml").write_text(RULES.replace("value >= 0.0", "value > 1000.0"))
    status, output = run("test", folder / "cases.toml")
    assert status == 1
    assert "fast/road/veh-1/speed/a = 54 was expected and was not derived" in output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("at_s = 8,", "at_s = 0,", "comes before the one above it"),
        ("value = 20,", "", "value: is missing"),
        ("expected = [", "expect = [", "did you mean 'expected'"),
        ('rules = "rules.toml"', 'rules = "other.toml"', "other.toml does not exist"),
        ("[[case]]", "[[cases]]", "did you mean 'case'"),
    ],
)
def test_mistake_in_a_file_of_cases_is_named(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "cases.toml").write_text(CASES.replace(old, new))
    status, output = run("test", folder / "cases.toml")
    assert status == 1
    assert message in output


def test_more_windows_than_are_derived_at_once_are_all_derived_when_they_end(folder: Path) -> None:
    """200 origins, one window each: a rule derives some of them, and asks for its next turn at a time long past."""
    given = tuple(GivenReading(key="veh/a/speed", value=1.0, unit="m/s", at_s=1, origin=f"v{n}") for n in range(200))
    result = tried(folder / "rules.toml", Case(name="many", reading=given))
    assert [derived.at_s for derived in result.derived] == [11.0] * 200


def test_explain_says_what_a_rule_takes_keeps_and_sends(folder: Path) -> None:
    status, output = run("explain", folder / "rules.toml")
    assert status == 0
    for part in (
        "by ten seconds", "takes readings of this node and of neighbours of veh/*/speed in m/s",
        ", only where value >= 0.0 && quality > 0.5; of each it takes value * 3.6",
        "windows of 10 s follow one another, open for 1 s longer",
        "each window becomes one reading with count, mean", "MiB of memory",
        "published as road/{node}/speed/{partition} in km/h, priority 3",
        "a record for the relay, for 86,400 s at most",
        "too fast", "takes this node's readings of road/*/speed/*", "each becomes one reading, and nothing is kept",
        "published as fast/{partition} in the same unit, priority 6", "no record: it does not go to the relay",
    ):  # fmt: skip
        assert part in output
    kinds = {
        "size_s = 10, every_s = 5": "a window of 10 s begins every 5 s, open for 1 s longer",
        "gap_s = 5": "a window ends after 5 s without a reading, and after 300 s",
        "count = 5": "every 5 readings make a window",
        "count = 6, every = 2": "every 2 readings make a window of the last 6",
    }
    for kind, text in kinds.items():
        (folder / "other.toml").write_text(RULES.replace("size_s = 10", kind))
        assert text in run("explain", folder / "other.toml")[1]


PATTERNS = """
[[rule]]
name = "hotspot"
keys = "veh/*/hazard"
source = "any"
repeated = { times = 2, within_s = 3, within_m = 150, distinct_origins = true }
output = { key = "hotspot", unit = "1", priority = 6 }

[[rule]]
name = "answered"
keys = "call"
followed_by = { keys = "answer", within_s = 5 }
output = { key = "answered", unit = "1" }

[[rule]]
name = "unanswered"
keys = "call"
not_followed_by = { keys = "answer", within_s = 5, late_s = 0.5 }
output = { key = "unanswered", unit = "1" }

[[rule]]
name = "both"
keys = "rain"
joined_with = { keys = "grip", within_s = 1 }
output = { key = "both", unit = "1" }
"""
PATTERN_CASES = """
rules = "rules.toml"

[[case]]
name = "patterns"
reading = [
    { key = "veh/a/hazard", value = 1, at_s = 1, origin = "a" },
    { key = "veh/a/hazard", value = 2, at_s = 2, origin = "a" },
    { key = "veh/c/hazard", value = 3, at_s = 2.5, origin = "c", latitude_deg = 48.8 },
    { key = "veh/b/hazard", value = 4, at_s = 3, origin = "b" },
    { key = "call", value = "one", at_s = 10 },
    { key = "answer", value = "yes", at_s = 12 },
    { key = "call", value = "two", at_s = 20 },
    { key = "rain", value = 0.3, at_s = 30 },
    { key = "grip", value = 0.8, at_s = 30 },
]
expected = [
    { key = "hotspot", value = { readings = [{ origin = "a", value = 1 }, { origin = "b", value = 4 }] }, at_s = 3 },
    { key = "answered", value = { first = { value = "one" }, then = { value = "yes" } }, at_s = 12 },
    { key = "unanswered", value = { after = { value = "two" } }, at_s = 25.5 },
    { key = "both", value = { left = { value = 0.3 }, right = { value = 0.8 } }, at_s = 30 },
]
"""


def test_patterns_find_what_their_tables_say(folder: Path) -> None:
    """Two vehicles near one another, an answer, a missing one, and two streams side by side."""
    (folder / "rules.toml").write_text(PATTERNS)
    (folder / "cases.toml").write_text(PATTERN_CASES)
    status, output = run("test", folder / "cases.toml")
    assert status == 0, output
    explained = run("explain", folder / "rules.toml")[1]
    for part in (
        "derives a reading from 2 of them of different nodes within 3 s and 150 m",
        "derives a reading when within 5 s after one there is one of\n    this node's readings of answer",
        "derives a reading when within 5 s after one there is none of",
        "derives a reading from each and the nearest within 1 s of\n    this node's readings of grip",
    ):
        assert part in explained


def test_json_of_test_and_explain_is_for_programs(folder: Path) -> None:
    (case,) = json.loads(run("test", "--json", folder / "cases.toml")[1])
    assert (case["ok"], case["counters"]["by ten seconds"]["late"]) == (True, 1)
    assert [derived["rule"] for derived in case["derived"]] == ["by ten seconds", "too fast"]
    explained = json.loads(run("explain", "--json", folder / "rules.toml")[1])
    assert [rule["name"] for rule in explained] == ["by ten seconds", "too fast"]


def test_reference_page_is_what_the_declarations_make() -> None:
    page = Path(__file__).parents[4] / "docs" / "reference" / "rules.md"
    assert page.read_text("utf-8") == rules_page(), (
        "run: python -m meshnode.cli.reference rules > docs/reference/rules.md"
    )


def test_files_of_the_how_to_work_as_it_says(tmp_path: Path) -> None:
    """People copy them."""
    folder = Path(__file__).parents[4] / "docs" / "howto"
    page = (folder / "summarise-readings.md").read_text("utf-8")
    first, *others = (text.partition("```")[0] for text in page.split("```text\n")[1:])
    cases = next(text for text in others if "[[case]]" in text)
    (tmp_path / "traffic.toml").write_text(first)
    (tmp_path / "cases.toml").write_text(cases)
    status, output = run("check", tmp_path / "traffic.toml")
    assert status == 0
    assert output.partition(": ")[2] in page
    assert run("test", tmp_path / "cases.toml")[0] == 0
    for number, text in enumerate(other for other in others if other != cases):
        (tmp_path / f"{number}.toml").write_text(text)
        assert run("check", tmp_path / f"{number}.toml")[0] == 0


def test_files_of_the_how_to_about_acting_work_as_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "howto" / "act-on-what-rules-find.md").read_text("utf-8")
    alert, recording, cases = (text.partition("```")[0] for text in page.split("```text\n")[1:])
    (tmp_path / "alert.toml").write_text(alert)
    (tmp_path / "recording.toml").write_text(recording)
    (tmp_path / "cases.toml").write_text(f'rules = "recording.toml"\n{cases}')
    assert run("check", tmp_path / "alert.toml", tmp_path / "recording.toml")[0] == 1, "both have one name"
    for name in ("alert", "recording"):
        assert run("check", tmp_path / f"{name}.toml")[0] == 0
    assert run("test", tmp_path / "cases.toml") == (
        0, f"ok     {tmp_path}/cases.toml: around a brake\n1 of 1 cases are as expected\n",
    )  # fmt: skip
