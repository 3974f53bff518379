"""Keys and expressions, judged by a regular expression and by sampling instead of the algorithm's own idea."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.errors import InvalidKey
from protocols.base.keys import checked_expression, checked_key, includes, intersects, matches
from protocols.base.limits import MAX_KEY_BYTES, MAX_KEY_CHUNKS
from tests.tools.strategies import EXPRESSIONS, KEYS, THOROUGH


def reference(expression: str) -> re.Pattern[str]:
    """The meaning of an expression over keys that end in '/'."""
    parts = {"*": "[^/]+/", "**": "(?:[^/]+/)*"}
    return re.compile("".join(parts.get(chunk, re.escape(chunk) + "/") for chunk in expression.split("/")))


@st.composite
def keys_of(draw: st.DrawFn, expression: str) -> str | None:
    """A key that the expression matches; None when it matched only the empty key, which there is none of."""
    chunks: list[str] = []
    for part in expression.split("/"):
        if part == "**":
            chunks.extend(draw(st.lists(st.sampled_from(["a", "b", "q"]), max_size=2)))
        else:
            chunks.append(draw(st.sampled_from(["a", "b", "q"])) if part == "*" else part)
    return "/".join(chunks) or None


@THOROUGH
@given(EXPRESSIONS, KEYS)
def test_matches_any_expression_and_key_agrees_with_regex(expression: str, key: str) -> None:
    """A wrong answer sends readings to those who did not ask, or to nobody."""
    assert matches(expression, key) is bool(reference(expression).fullmatch(key + "/"))


@THOROUGH
@given(st.data(), EXPRESSIONS)
def test_matches_key_made_from_expression_is_true(data: st.DataObject, expression: str) -> None:
    """Random pairs rarely match; these always do."""
    key = data.draw(keys_of(expression))
    if key is not None:
        assert matches(expression, key)


@THOROUGH
@given(st.data(), EXPRESSIONS, EXPRESSIONS)
def test_intersects_with_a_common_key_is_true_and_symmetric(data: st.DataObject, left: str, right: str) -> None:
    """``wanted_by`` spares a sensor its work only when nobody can want any of its keys."""
    key = data.draw(keys_of(left))
    if key is not None and matches(right, key):
        assert intersects(left, right)
    assert intersects(left, right) == intersects(right, left)


@THOROUGH
@given(st.data(), EXPRESSIONS)
def test_intersects_false_means_no_sampled_key_is_common(data: st.DataObject, left: str) -> None:
    """The other direction, with a key as the right side, where the answer is known."""
    key = data.draw(KEYS)
    assert intersects(left, key) == matches(left, key)


@THOROUGH
@given(st.data(), EXPRESSIONS, EXPRESSIONS)
def test_includes_true_means_every_sampled_inner_key_matches_outer(data: st.DataObject, outer: str, inner: str) -> None:
    """An access rule that includes too much hands readings to somebody who may not have them."""
    key = data.draw(keys_of(inner))
    if includes(outer, inner):
        assert key is None or matches(outer, key)
    assert includes(outer, outer)
    assert includes("**", inner)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("veh/**", "veh/*/x", True),
        ("veh/*", "veh/**", False),
        ("veh/*/x", "veh/a/x", True),
        ("veh/a/x", "veh/*/x", False),
        ("**", "**", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/**", False),
    ],
)
def test_includes_of_access_rules_is_as_written_out(outer: str, inner: str, expected: bool) -> None:
    """The cases an operator would check by hand."""
    assert includes(outer, inner) is expected


@pytest.mark.parametrize("pattern", ["/".join(["**", "a"] * 8), "/".join(["**"] * 16), "/".join(["**", "*"] * 8)])
def test_matches_hostile_expression_ends(pattern: str) -> None:
    """Backtracking would take 2^16 steps and more on each of these."""
    key = "/".join(["a"] * 15 + ["b"])
    assert matches(pattern, key) is (pattern.rsplit("/", maxsplit=1)[-1] != "a")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("/a", "empty chunk"),
        ("a//b", "empty chunk"),
        ("a/", "empty chunk"),
        ("a*/b", "mixes"),
        ("***", "mixes"),
        ("a/b#", "control character"),
        ("a/\x00", "control character"),
        ("a/\x1b[2J", "control character"),
        ("a\nb", "control character"),
        ("\ud800", "control character"),
        ("x" * (MAX_KEY_BYTES + 1), "longer than"),
        ("é" * (MAX_KEY_BYTES // 2 + 1), "longer than"),
        ("/".join("a" * (MAX_KEY_CHUNKS + 1)), "chunks"),
    ],
)
def test_expression_with_a_fault_names_it(text: str, fault: str) -> None:
    """Keys come from neighbours and end in terminals, tables and SQL."""
    with pytest.raises(InvalidKey, match=fault):
        checked_expression(text)
    with pytest.raises(InvalidKey):
        checked_key(text)


def test_key_with_wildcard_is_refused() -> None:
    """A reading on ``veh/*`` would match nobody's idea of a key."""
    with pytest.raises(InvalidKey, match="wildcard"):
        checked_key("veh/*")
    assert checked_expression("veh/*") == "veh/*"


@given(KEYS)
def test_key_that_is_valid_is_an_expression_matching_itself_only(key: str) -> None:
    """The invariant in the head of the module."""
    assert checked_expression(checked_key(key)) == key
    assert matches(key, key)
    assert not matches(key, key + "/more")
