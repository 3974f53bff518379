"""Expressions of rules, in the Common Expression Language (CEL).

The evaluator is the official one in C++ (``cel-expr-python``), which checks types when an expression is compiled. It
has no limit of cost of its own, so what an expression may cost is bounded here, when it is compiled: its length, how
deep it is nested, and one loop (``all``, ``exists``, ``exists_one``, ``map``, ``filter``) in it, because a loop inside
another one would square what it costs. It has no value for a reading of more than ``MAX_ELEMENTS`` elements or more
than ``MAX_TEXT`` characters in all its texts together, nor when what it gives is larger than that or can't travel.
Regular expressions are those of RE2, which take linear time.

An expression sees one reading. :data:`VARIABLES` names what it may use. All numbers in ``value`` are decimal ones
(``double``), so that ``value * 2.0`` is right, and ``value * 2`` is refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from protocols.base.errors import ConfigError
from protocols.records.deriving.sources import ExpressionFailed
from protocols.wire.encoding.values import COMPOSITE, MAX_VALUE_DEPTH, element_count
from protocols.wire.readings import Reading

if TYPE_CHECKING:
    from cel_expr_python import cel

MAX_CHARS: Final = 1_000
MAX_DEPTH: Final = 24
MAX_LOOPS: Final = 1
MAX_ELEMENTS: Final = 1_024
MAX_TEXT: Final = 16_384


def _value(reading: Reading) -> Any:
    value = reading.value
    kind = type(value)
    if kind is float:
        return value
    if kind in COMPOSITE and element_count(value) > MAX_ELEMENTS:
        raise ExpressionFailed(f"the value of {reading.key} has more than {MAX_ELEMENTS} elements")
    return _Decimal(f"the value of {reading.key}").of(value)


class _Texts:
    """Counts the characters of all texts and bytes of one value."""

    def __init__(self, what: str) -> None:
        self._what, self._left = what, MAX_TEXT

    def count(self, text: str | bytes | bytearray) -> None:
        """:raises ExpressionFailed: when they are too many."""
        self._left -= len(text)
        if self._left < 0:
            raise ExpressionFailed(f"the texts in {self._what} are longer than {MAX_TEXT} together")


class _Decimal(_Texts):
    """A value whose whole numbers are decimal ones: CEL adds, subtracts and multiplies only numbers of one kind, and a
    sensor that gives 0.5 now and 1 then would break every other evaluation."""

    def of(self, value: Any) -> Any:
        """That of a value. :raises ExpressionFailed: when there is too much text in it, at any depth."""
        kind = type(value)
        if kind is int:
            return float(value)
        if kind is str or kind is bytes:
            self.count(value)
        elif kind is list:
            return [self.of(element) for element in value]
        elif kind is dict:
            for key in value:
                self.count(key)
            return {key: self.of(element) for key, element in value.items()}
        return value


class _Result(_Texts):
    """A result of CEL as a value that can travel. CEL converts one level of it at a time, so what an expression has
    made large (``value.map(x, value)``) is never converted whole."""

    def __init__(self, text: str) -> None:
        super().__init__(f"what {text!r} gives")
        self._elements = MAX_ELEMENTS

    def of(self, value: Any, depth: int = MAX_VALUE_DEPTH) -> Any:
        """That of one value. :raises ExpressionFailed: when it can't travel or is too large."""
        if hasattr(value, "plain_value"):  # what CEL holds, inside a list or map
            value = value.value()
        kind = type(value)
        if kind in _TRAVELLING:
            return value
        if kind is str:
            self.count(value)
            return value
        if kind is bytearray or kind is bytes:
            self.count(value)
            return bytes(value)
        if kind is not list and kind is not dict:
            raise ExpressionFailed(f"{self._what} is of {kind.__name__}, which can't be published")
        self._elements -= len(value)
        if self._elements < 0 or depth == 0:
            raise ExpressionFailed(f"{self._what} has more than {MAX_ELEMENTS} elements or {MAX_VALUE_DEPTH} levels")
        if kind is list:
            return [self.of(element, depth - 1) for element in value]
        for key in value:
            if type(key) is not str:
                raise ExpressionFailed(f"{self._what} has the key {key!r}: keys of maps have to be texts")
            self.count(key)
        return {key: self.of(element, depth - 1) for key, element in value.items()}


_TRAVELLING: Final = frozenset((type(None), bool, int, float, datetime))


_READ: Final[Mapping[str, tuple[str, Callable[[Reading], Any]]]] = {
    "value": ("DYN", _value),
    "key": ("STRING", lambda reading: reading.key),
    "origin": ("STRING", lambda reading: reading.origin),
    "unit": ("STRING", lambda reading: reading.how.unit),
    "sensor": ("STRING", lambda reading: reading.how.sensor),
    "quality": ("DOUBLE", lambda reading: float(reading.how.quality)),
    "priority": ("INT", lambda reading: reading.priority),
    "latitude_deg": ("DOUBLE", lambda reading: float(reading.where.latitude_deg)),
    "longitude_deg": ("DOUBLE", lambda reading: float(reading.where.longitude_deg)),
    "accuracy_m": ("DOUBLE", lambda reading: float(reading.where.accuracy_m)),
    "altitude_m": ("DYN", lambda reading: reading.where.altitude_m),
    "heading_deg": ("DYN", lambda reading: reading.where.heading_deg),
    "time_ns": ("INT", lambda reading: reading.when.utc_ns),
    "uncertainty_ns": ("INT", lambda reading: reading.when.uncertainty_ns),
}
VARIABLES: Final = tuple(_READ)
"""The names that an expression may use."""

_TEXT: Final = re.compile(
    r"""[rRbB]{0,2}(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""", re.DOTALL
)
_LOOP: Final = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(")
_CHAIN: Final = re.compile(rf"(?:[!-]\s*){{{MAX_DEPTH},}}|(?:\?[^?]*){{{MAX_DEPTH},}}")
"""Signs before an operand and conditions in one another are as deep as brackets."""
_NAME: Final = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_MIXED: Final = re.compile(r"no matching overload for '_[-+*/%]_' applied to '\((?:double, int|int, double)\)'")
_COMPLAINT: Final = re.compile(r"ERROR: [^:]*:(\d+):(\d+): ([^\n]*)")


class ExpressionInvalid(ConfigError):
    """An expression can't be compiled."""

    def __init__(self, text: str, complaint: str, line: int = 1, column: int = 1) -> None:
        super().__init__(complaint)
        self.text, self.complaint = text, complaint
        self.line, self.column = line, column
        """Where in the text the mistake is, from 1."""


@dataclass(frozen=True, slots=True)
class CompiledExpression:
    """Gives the value of an expression for a reading."""

    text: str
    type_name: str
    """The type that CEL found: ``BOOL``, ``DOUBLE``, ``DYN`` …"""
    _evaluate: "Callable[..., cel.Value]"
    _names: tuple[tuple[str, Callable[[Reading], Any]], ...]
    _error: "cel.Type"

    def __call__(self, reading: Reading) -> Any:
        """:raises ExpressionFailed: it has no value for this reading."""
        data = {name: read(reading) for name, read in self._names}
        try:
            result = self._evaluate(data=data)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # a value that CEL has no type for
            raise ExpressionFailed(f"{self.text!r} has no value: {error}") from error
        value = result.value()
        if type(value) is bool or type(value) is float:
            return value
        if result.type() == self._error:
            raise ExpressionFailed(f"{self.text!r} has no value: {value}")
        return _Result(self.text).of(value)


def compiled(text: str) -> CompiledExpression:
    """Compile an expression.

    :raises ExpressionInvalid: when it is not one, or could cost too much; it says where.
    :raises ConfigError: when the evaluator is not installed.
    """
    _check_cost(text)
    environment, of_numbers, error = _environments()
    try:
        expression = environment.compile(text)
    except RuntimeError as raised:
        raise _invalid(text, str(raised)) from raised
    try:
        of_numbers.compile(text)
    except RuntimeError as raised:
        if _MIXED.search(str(raised)):  # it would fail with every number, and with whatever else a value may be
            raise _invalid(text, str(raised)) from raised
    used = set(_NAME.findall(_TEXT.sub("''", text)))
    names = tuple((name, read) for name, (_, read) in _READ.items() if name in used)
    return CompiledExpression(text, expression.return_type().name(), expression.eval, names, error)


def check_evaluator() -> None:
    """:raises ConfigError: the evaluator is not installed."""
    _environments()


@lru_cache(maxsize=1)
def _environments() -> "tuple[cel.Env, cel.Env, cel.Type]":
    """One in which values may be anything, one in which they are numbers, and the type of errors."""
    try:
        from cel_expr_python import cel
    except ImportError as error:
        raise ConfigError("rules need the package cel-expr-python: install meshnode[rules]") from error
    types = {name: getattr(cel.Type, type_name) for name, (type_name, _) in _READ.items()}
    return cel.NewEnv(variables=types), cel.NewEnv(variables=types | {"value": cel.Type.DOUBLE}), cel.Type.ERROR


def _invalid(text: str, raised: str) -> ExpressionInvalid:
    found = _COMPLAINT.search(raised)
    if found is None:
        return ExpressionInvalid(text, raised.partition("\n")[0])
    return ExpressionInvalid(text, _helped(found.group(3)), int(found.group(1)), int(found.group(2)))


def _check_cost(text: str) -> None:
    if not text.strip():
        raise ExpressionInvalid(text, "the expression is empty: remove it, or say what it is")
    if len(text) > MAX_CHARS:
        raise ExpressionInvalid(text, f"{len(text)} characters: use at most {MAX_CHARS}")
    bare = _TEXT.sub(lambda found: " " * len(found.group()), text)
    depth = 0
    for at, letter in enumerate(bare):
        depth += (letter in "([{") - (letter in ")]}")
        if depth > MAX_DEPTH:
            raise _at(text, at, f"it is nested more than {MAX_DEPTH} deep: split it into several rules")
    for chain in _CHAIN.finditer(bare):
        raise _at(text, chain.start(), f"it is nested more than {MAX_DEPTH} deep: split it into several rules")
    loops = list(_LOOP.finditer(bare))
    if len(loops) > MAX_LOOPS:
        raise _at(text, loops[MAX_LOOPS].start(), f"it has {len(loops)} loops: use at most {MAX_LOOPS}")


def _at(text: str, at: int, complaint: str) -> ExpressionInvalid:
    line = text.count("\n", 0, at) + 1
    return ExpressionInvalid(text, complaint, line, at - text.rfind("\n", 0, at))


def _helped(complaint: str) -> str:
    """What CEL says, with the way out where it is known."""
    if complaint.startswith("Syntax error: mismatched input '<EOF>'"):
        return "Syntax error: the expression ends too early"
    if "undeclared reference" in complaint:
        return f"{complaint}; an expression may use {', '.join(VARIABLES)}"
    if "no matching overload" in complaint and ("(double, int)" in complaint or "(int, double)" in complaint):
        return f"{complaint}; write numbers beside decimal ones with a point, as in 5.0"
    return complaint
