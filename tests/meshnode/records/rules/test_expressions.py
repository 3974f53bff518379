"""Expressions of rules: what they may say, and what they can't cost."""

import contextlib
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.records.rules.expressions import MAX_ELEMENTS, VARIABLES, ExpressionInvalid, compiled
from protocols.records.deriving.sources import ExpressionFailed
from protocols.wire.parcels import decode_alone, encode_alone
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.tensors import Tensor
from tests.tools.strategies import MODEST


def reading(value: Any = 2.0) -> Reading:
    where = Position(48.7, 11.4, 2.0, None, 90.0)
    return Reading("veh/a/speed", "a", 1, value, where, EventTime(7, 3), Provenance("wheel", "m/s", 0.5))


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("value * 3.6", 10.0, 36.0),
        ("value * 3.6", 10, 36.0),
        ("value.a[1] + 0.5", {"a": [1, 2]}, 2.5),
        ("value == 3 || value > 4", 3, True),
        ("value.speed", {"speed": 4.0}, 4.0),
        ("value[1] > value[0]", [1.0, 2.0], True),
        ("has(value.speed) && value.speed > 1.0", {"heading": 1.0}, False),
        ("value.exists(x, x > 3.0)", [1.0, 4.0], True),
        ("key.startsWith('veh/') && origin == 'a'", None, True),
        ("key.matches('^veh/[a-z]+/')", None, True),
        ("unit + ' ' + sensor", 1, "m/s wheel"),
        ("quality < 0.6 && latitude_deg > 48.0 && longitude_deg < 12.0 && accuracy_m <= 2.0", 1, True),
        ("altitude_m == null && heading_deg == 90.0", 1, True),
        ("time_ns - uncertainty_ns", 1, 4),
        ("priority", 1, 3),
        ("value ? 'on' : 'off'", True, "on"),
        ("value.box", {"box": [[1, 2], {"a": [b"x", None]}]}, [[1.0, 2.0], {"a": [b"x", None]}]),
        ("{'speed': value, 'at': [latitude_deg, [key]]}", 1, {"speed": 1.0, "at": [48.7, ["veh/a/speed"]]}),
        ("timestamp('2026-01-01T00:00:00Z')", 1, datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_expression_sees_the_value_and_all_of_its_context(text: str, value: Any, expected: Any) -> None:
    result = compiled(text)(reading(value))
    assert result == expected
    assert decode_alone(encode_alone(reading(result))).value == expected  # it can be published


@pytest.mark.parametrize(
    ("text", "line", "column", "complaint"),
    [
        ("value >", 1, 8, "Syntax error"),
        ("value > 1.0 &&\n  sped > 2.0", 2, 3, "undeclared reference to 'sped'"),
        ("quality > 1", 1, 9, r"write numbers beside decimal ones with a point"),
        ("value * 2", 1, 7, r"write numbers beside decimal ones with a point"),
        ("origin > 5", 1, 8, "no matching overload"),
        ("", 1, 1, "empty"),
        ("1 + " * 400 + "1", 1, 1, "at most 1000"),
        ("(" * 30 + "1" + ")" * 30, 1, 25, "nested more than 24 deep"),
        ("!" * 30 + "true", 1, 1, "nested more than 24 deep"),
        ("true ? 1 : " * 30 + "1", 1, 6, "nested more than 24 deep"),
        ("value.map(x, value.map(y, x * y))", 1, 19, "2 loops: use at most 1"),
        ("value.all(x, x > 0.0) && value.exists(x, x > 9.0)", 1, 31, "2 loops"),
    ],
)
def test_mistake_is_named_with_line_and_column(text: str, line: int, column: int, complaint: str) -> None:
    with pytest.raises(ExpressionInvalid, match=complaint) as raised:
        compiled(text)
    assert (raised.value.line, raised.value.column) == (line, column)


def test_text_in_quotes_counts_neither_as_loops_nor_as_depth() -> None:
    assert compiled("key == '" + "(" * 50 + ".map(.map('")(reading()) is False
    assert compiled(r"""key == "a\".map(" || origin == 'it\'s .map( .map('""")(reading()) is False


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("value.speed", 1.0),
        ("value.speed", {"heading": 1.0}),
        ("value[3]", [1.0]),
        ("1 / int(value)", 0),
        ("value > 1.0", "fast"),
        ("int(value) > 1", 2**70),
        ("value == 1.0", Tensor("<f4", (1,), memoryview(bytes(4)))),
        ("size(value)", [0] * (MAX_ELEMENTS + 1)),
        ("size(value)", [[0] * 40] * 40),
        ("size(value)", "x" * 20_000),
        ("size(value)", {"plate": "x" * 20_000}),
        ("size(value)", ["x" * 9_000, {"a": b"x" * 9_000}]),
        ("size(value)", {"x" * 20_000: 1}),
        ("value.map(x, value)", [1.0] * 100),
        ("value.map(x, value[0])", ["x" * 10_000, "y"]),
        ("{1: value}", 1.0),
        ("[type(value)]", 1.0),
        ("duration('1s')", 1.0),
    ],
)
def test_expression_without_a_value_for_a_reading_says_so_and_raises_nothing_else(text: str, value: Any) -> None:
    """A neighbour chooses the value; a rule that ended by it would be a switch in its hand."""
    with pytest.raises(ExpressionFailed):
        compiled(text)(reading(value))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
TEXTS = ("value > 1.0", "value.a.b", "value.exists(x, x == value)", "value + value", "-value", "value[0]", "!value")
COMPILED = [compiled(text) for text in TEXTS]


@MODEST
@given(VALUES, st.integers(0, len(TEXTS) - 1))
def test_no_value_makes_an_expression_raise_anything_else(value: Any, at: int) -> None:
    with contextlib.suppress(ExpressionFailed):
        COMPILED[at](reading(value))


def test_dearest_expression_on_the_largest_value_is_bounded() -> None:
    """Processor time of this thread: another program does not change it much."""
    text = "value.exists(x, x.matches('(a+)+b') || x.contains('aaaaaaaaaaaaaaaaaaaaab') || x + x == x + 'b')"
    dear, value = compiled(text), ["a" * 16] * (MAX_ELEMENTS - 1)
    dear(reading(value))
    before_ns = time.thread_time_ns()
    dear(reading(value))
    assert time.thread_time_ns() - before_ns < 50_000_000


def test_every_variable_can_be_used() -> None:
    for name in VARIABLES:
        compiled(f"{name} == {name}")(reading())
