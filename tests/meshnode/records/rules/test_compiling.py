"""Files of rules: what is wrong in one is named with its place, and what is right does what it says."""

from pathlib import Path

import pytest

from meshnode.records.rules.compiling import rules_in, rules_of_file
from protocols.base.errors import ConfigError
from protocols.base.ids import NodeId

ME = NodeId("me")
GOOD = """
[[rule]]
name = "speeds"
keys = "veh/*/speed"
where = "value > 1.0"
by = "origin"
window = { size_s = 10 }
compute = ["mean"]
output = { key = "road/{node}/{partition}", unit = "m/s" }
"""
WINDOW = 'window = { size_s = 10 }\ncompute = ["mean"]\n'


def test_rules_of_several_files_are_compiled_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "b.toml").write_text(GOOD.replace("speeds", "others").replace("size_s = 10", "gap_s = 5"))
    assert [rule.name for rule in rules_in([tmp_path / "a.toml", tmp_path / "b.toml"], ME)] == ["speeds", "others"]


def test_two_rules_of_one_name_in_two_files_are_refused(tmp_path: Path) -> None:
    """Records carry that name."""
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(ConfigError, match=r"'speeds' is in .*a\.toml and in .*b\.toml"):
        rules_in([tmp_path / "a.toml", tmp_path / "b.toml"], ME)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('where = "value > 1.0"', 'where = "value >"', r"rule\[0\].where = 'value >': line 5, column 17: Syntax error"),
        ('"value > 1.0"', '"""\nvalue > 1.0 &&\n  sped"""', "line 7, column 3: undeclared reference to 'sped'"),
        ('where = "value > 1.0"', 'where = "value + 1.0"', "gives DOUBLE: it has to give BOOL"),
        ('where = "value > 1.0"', 'where = "value.all(x, x.all(y, y))"', "2 loops"),
        ('by = "origin"', 'by = "[1]"', "has to give STRING"),
        ('by = "origin"', "", "nothing divides"),
        ("size_s = 10", "size_s = 10, every_s = 3", "multiple of the step"),
        ("size_s = 10", "size_s = 10, count = 3", "size_s and count window: give one of"),
        ("size_s = 10", "late_s = 10", "no window: give one of"),
        ("size_s = 10", "size_s = 10, gap_s = 3", "size_s and gap_s window"),
        ("size_s = 10", "size_s = 10, every = 3", "goes with count only"),
        ('["mean"]', '["median"]', "'median' is not a function"),
        ('["mean"]', "[]", "say what is computed"),
        ('["mean"]', '["p95", "distinct"]\nmax_partitions = 100_000', "MiB"),
        ('window = { size_s = 10 }\n', "", "needs a window"),
        (', unit = "m/s"', "", "output.unit: is missing"),
        ("road/{node}", "road/{nod}", "{nod} stands for nothing"),
        ('keys = "veh/*/speed"', 'keys = "veh//speed"', "empty chunk"),
        ('name = "speeds"', 'nam = "speeds"', "did you mean 'name'"),
        ('name = "speeds"', f'name = "{"x" * 151}"', "use at most 150|at most 150 characters"),
        ("window = {", "repeated = { times = 2, within_s = 1 }\nwindow = {", "can't be together with window"),
        (WINDOW, "repeated = { times = 1, within_s = 1 }\n", "times = 1"),
        (WINDOW, "repeated = { times = 9, within_s = 1 }\nmax_held = 4\n", "allow max_held to be 8"),
        (WINDOW, 'followed_by = { keys = "a", within_s = 1, where = "value >" }\n', "line 7, column 59: Syntax error"),
        (WINDOW, 'not_followed_by = { keys = "a", within_s = 1, within_m = 5 }\n', "has no distance"),
        (WINDOW, 'joined_with = { keys = "a" }\n', "within_s: is missing"),
        (GOOD, "", "rule: is missing"),
        (GOOD, "[[rule", "is not valid TOML"),
        (GOOD, GOOD + GOOD, r"rule\[1\].name = 'speeds': is used twice"),
    ],
)  # fmt: skip
def test_mistake_in_a_file_is_named_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")) as raised:
        rules_of_file(path, ME)
    assert str(path) in str(raised.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rules\.toml does not exist"):
        rules_of_file(tmp_path / "rules.toml", ME)


JOINED = 'joined_with = { keys = "y", within_s = 1 }'


def at_once(name: str, keys: str, output: str, more: str = "") -> str:
    return f'[[rule]]\nname = "{name}"\nkeys = "{keys}"\noutput = {{ key = "{output}" }}\n{more}\n'


@pytest.mark.parametrize(
    ("text", "circle"),
    [
        ("".join(at_once(f"r{n}", "rsu/**", f"rsu/{{node}}/x{n}") for n in range(8)), "'r0' -> 'r1' -> 'r0'"),
        ("".join(at_once(n, "x/**", f'x/{n}", unit = "1', JOINED) for n in "ab"), "'a' -> 'b' -> 'a'"),
        (at_once("a", "in", "b/1") + at_once("b", "b/*", "c/1") + at_once("c", "*/1", "b/2"), "'b' -> 'c' -> 'b'"),
        (at_once("a", "x/me", "y/{partition}", 'by = "key"') + at_once("b", "y/x/*", "x/{node}"), "'a' -> 'b' -> 'a'"),
        (at_once("a", "x/**", "x-{partition}/y", 'by = "key"') + at_once("b", "x-7/*", "x/1"), "'a' -> 'b' -> 'a'"),
    ],
)
def test_rules_that_derive_from_one_another_in_a_circle_are_refused(tmp_path: Path, text: str, circle: str) -> None:
    """They would be tried in every order: eight give 109,600 readings out of one."""
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"the rules {circle} .* let 'output.key' of one of them"):
        rules_of_file(path, ME)


def test_circle_through_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(at_once("a", "x", "y"))
    (tmp_path / "b.toml").write_text(at_once("b", "y", "x"))
    assert len(rules_in([tmp_path / "a.toml"], ME)) == 1
    with pytest.raises(ConfigError, match="'a' -> 'b' -> 'a'"):
        rules_in([tmp_path / "a.toml", tmp_path / "b.toml"], ME)


@pytest.mark.parametrize(
    "text",
    [
        at_once("a", "rsu/**", "rsu/{node}/x"),
        at_once("a", "in", "b/1") + at_once("b", "b/*", "c/1") + at_once("c", "c/*", "d/1"),
        at_once("a", "x/other", "y") + at_once("b", "y", "x/{node}"),
        at_once("a", "x", "y", 'unit = "m"') + at_once("b", "y", "x").replace('"x" }', '"x", unit = "s" }'),
        GOOD.replace("veh/*/speed", "road/**") + at_once("b", "road/**", "road/x"),
    ],
    ids=["its own output", "a chain", "another node", "another unit", "a window between"],
)
def test_rules_that_are_in_no_circle_are_compiled(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    assert len(rules_of_file(path, ME)) == text.count("[[rule]]")
