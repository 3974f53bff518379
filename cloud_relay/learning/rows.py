"""The rows that a model learns from: features, the target, and who sensed each when, out of an exported Parquet file.

Invariants:

- Rows are in the order of time, origin and sequence, whatever the order in the file, so the same records give the same
  rows and the same digest.
- Every feature and every target is a finite number. Rows without were left out, and counted by reason and by node.
- A path that leads nowhere is named, with what there is instead.
- One node alone keeps nobody from learning, whatever it sends: how much may be left out is a mean over nodes, the type
  of a target is the one that most nodes send, and classes that one node alone has give way to those of others.

A *path* is a column of the file that holds numbers or truth values (``latitude_deg``, ``quality``), ``value`` (a value
that is one number or truth value), a field of the value (``value.speed_mps``, ``value.wheels.0``), ``time.hour`` (of
the day in UTC, 0 to 24), ``time.weekday`` (0: Monday), or ``cell.row`` and ``cell.column`` (of cells of 0.01°).
"""

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cloud_relay.learning.recipe import Recipe
from cloud_relay.learning.tables import ParquetTable, opened_table
from protocols.base.errors import ConfigError, LocalProtocolError, StorageError
from protocols.base.keys import matches
from protocols.base.limits import SECOND

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELL_DEG: Final = 0.01
BATCH_ROWS: Final = 4_096
"""Rows that are in Python's form at one time."""
MAX_CLASSES: Final = 1_000
"""Labels of a manifest."""
MAX_NODES_TOLD: Final = 20
"""Of the nodes whose rows were left out, those with most of them."""
MAX_REASONS_TOLD: Final = 50
MANY_CLASSES: Final = "a class that one node alone has, of more than can be told apart"
_CONTEXT: Final = ("origin", "sequence", "key", "rule", "event_utc_ns")
_MADE: Final = {"time": ("hour", "weekday"), "cell": ("row", "column")}
_DAY_NS: Final = 86_400 * SECOND
_THURSDAY: Final = 3
"""1970 began on one."""
Reader = Callable[[Mapping[str, Any]], Any]


class LeftOut:
    """Rows that are not used, by reason and by the node that sent them."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.origins: Counter[str] = Counter()

    def add(self, reason: str, origin: str) -> None:
        """Count a row."""
        self.reasons[reason] += 1
        self.origins[origin] += 1

    def join(self, reasons: Mapping[str, int], origins: Mapping[str, int]) -> None:
        """Count what another one has, too."""
        self.reasons.update(reasons)
        self.origins.update(origins)

    @property
    def total(self) -> int:
        """All of them."""
        return self.reasons.total()

    def told(self) -> str:
        """What to say of them; empty: there are none."""
        if not self.total:
            return ""
        reasons = ", ".join(f"{count} because of {reason}" for reason, count in self.reasons.most_common(5))
        nodes = ", ".join(f"{count} of {node}" for node, count in self.origins.most_common(3))
        more = " and others" if len(self.origins) > 3 else ""
        return f"{self.total} left out: {reasons}; {nodes}{more}"


@dataclass(frozen=True)
class LearningRows:
    """A table of rows."""

    features: "NDArray[Any]"
    """f4[rows, features]."""
    target: "NDArray[Any]"
    """i8[rows] of classes, f8[rows] of a number."""
    time_ns: "NDArray[Any]"
    origin: "NDArray[Any]"
    """The nodes that sent them, as texts."""
    sequence: "NDArray[Any]"
    labels: tuple[str, ...] = ()
    """The names of the classes; empty: the target is a number."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """Rows that the recipe selects, too."""

    def __len__(self) -> int:
        return len(self.target)

    def take(self, chosen: "NDArray[Any]") -> "LearningRows":
        """Some of the rows, in the order given. ``chosen``: their places, or a truth value for each."""
        return LearningRows(
            self.features[chosen], self.target[chosen], self.time_ns[chosen], self.origin[chosen],
            self.sequence[chosen], self.labels,
        )  # fmt: skip

    def digest(self) -> str:
        """SHA-256 of all that a model can learn from them."""
        told = hashlib.sha256(msgspec.json.encode([list(self.features.shape), self.labels]))
        for array in (self.features, self.target, self.time_ns, self.sequence):
            told.update(array.tobytes())
        told.update("\0".join(self.origin.tolist()).encode())
        return told.hexdigest()


def read_rows(path: Path, recipe: Recipe) -> LearningRows:
    """The rows that a recipe selects from a file.

    :raises ConfigError: a path leads nowhere, or to what is no number. :raises LocalProtocolError: there are none, too
        many, too much is missing, or the target has one class. :raises StorageError: the file can't be read.
    """
    import numpy as np

    paths = [*recipe.features.values(), recipe.target.path]
    named = [f"{name} ({path})" for name, path in zip([*recipe.features, "target"], paths, strict=True)]
    features: list[list[float]] = []
    targets: list[Any] = []
    about: list[tuple[int, str, int]] = []
    left_out, unfit = LeftOut(), dict[str, Any]()
    for row, values in selected(path, recipe, paths, left_out):
        numbers: list[float | None] = [number_of(value) for value in values[:-1]]
        target = target_of(values[-1], recipe)
        if target is None or None in numbers:
            place = numbers.index(None) if None in numbers else len(numbers)
            is_class = place == len(numbers) and recipe.target.kind == "classes" and recipe.target.above is None
            reason = f"{named[place]} that is {_lack_of(values[place], is_class=is_class)}"
            if recipe.data.missing == "refuse":
                raise LocalProtocolError(
                    f"{path.name}: record {row['sequence']} of {row['origin']} has a {reason}: select others, or set "
                    "data.missing = 'drop'"
                )
            left_out.add(reason, row["origin"])
            unfit.setdefault(reason, values[place])
            continue
        features.append(numbers)  # type: ignore[arg-type]
        targets.append(target)
        about.append((row["event_utc_ns"], row["origin"], row["sequence"]))
        if len(targets) > recipe.data.max_rows:
            raise LocalProtocolError(
                f"{path.name} has more than {recipe.data.max_rows:,} rows for {recipe.name}: select fewer by "
                "data.keys, data.rule or a shorter time, or raise data.max_rows"
            )
    seen = Counter(each[1] for each in about) + left_out.origins
    used = _usable(targets, [each[1] for each in about], recipe, left_out)
    _check_left_out(path, recipe, seen, left_out, unfit)
    targets, about = [targets[each] for each in used], [about[each] for each in used]
    labels, target_array = _encoded(targets, recipe, path)
    order = sorted(range(len(about)), key=about.__getitem__)
    return LearningRows(
        np.asarray(features, np.float32).reshape(-1, len(recipe.features))[used][order], target_array[order],
        np.asarray([each[0] for each in about], np.int64)[order],
        np.asarray([each[1] for each in about], np.str_)[order],
        np.asarray([each[2] for each in about], np.int64)[order], labels, left_out,
    )  # fmt: skip


def selected(
    path: Path, recipe: Recipe, paths: Sequence[str], left_out: LeftOut
) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
    """The context of each record that a recipe selects, with what it has at the paths; None: nothing. Those that can't
    be read are added to ``left_out``.

    :raises ConfigError: a path leads nowhere in this file. :raises StorageError: it can't be read.
    """
    with opened_table(path) as table:
        yield from _read(table, paths, recipe.data.keys, recipe.data.rule, 0, table.count, left_out)


def features_in(
    table: ParquetTable, paths: Sequence[str], keys: str | None, rule: str | None, begin: int, end: int,
    left_out: LeftOut,
) -> Iterator[tuple[Mapping[str, Any], list[float]]]:  # fmt: skip
    """The context of each record among some rows of a file whose key and rule are the wanted ones, with its features.
    One that lacks one, or has there what is no number, is added to ``left_out``.

    :raises ConfigError: a path leads nowhere. :raises StorageError: the file can't be read.
    """
    for row, values in _read(table, paths, keys, rule, begin, end, left_out):
        numbers = [number_of(value) for value in values]
        if None in numbers:
            place = numbers.index(None)
            left_out.add(f"{paths[place]} that is {_lack_of(values[place])}", row["origin"])
        else:
            yield row, numbers  # type: ignore[misc]


def _read(
    table: ParquetTable, paths: Sequence[str], keys: str | None, rule: str | None, begin: int, end: int,
    left_out: LeftOut,
) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:  # fmt: skip
    for name in _CONTEXT:
        if name not in table.columns:
            raise ConfigError(f"{table.path} has no column {name!r}: name a file of 'cloud-relay export'")
    readers = [_reader(each, table.columns, table.path) for each in paths]
    wanted = {*_CONTEXT, *(column for each in paths for column in _columns(each))}
    has_fields = any(each.startswith("value.") for each in paths)
    for row in table.rows([name for name in table.columns if name in wanted], BATCH_ROWS, begin, end):
        if (rule is not None and row["rule"] != rule) or (keys is not None and not matches(keys, row["key"])):
            continue
        if row["origin"] is None or row["event_utc_ns"] is None or row["sequence"] is None:
            raise StorageError(f"{table.path} is not as an export has it: export it again")
        try:
            known = {**row, "value": msgspec.json.decode(row["value"])} if has_fields else row
            values = [read(known) for read in readers]
        except (TypeError, ValueError, ArithmeticError, RecursionError):  # another program may write anything
            left_out.add("a form that no export has", row["origin"])
            continue
        yield row, values


# --- paths -----------------------------------------------------------------------------------------------------------
def _columns(path: str) -> tuple[str, ...]:
    first, _, field = path.partition(".")
    if first == "value":
        return ("value",) if field else ("value_number", "value_bool", "value_text")
    return {"time": ("event_utc_ns",), "cell": ("latitude_deg", "longitude_deg")}.get(first, (path,))


def _reader(path: str, columns: Sequence[str], file: Path) -> Reader:
    """What reads a path of a row, whose value was decoded if any path leads into it."""
    first, _, field = path.partition(".")
    lacking = [name for name in _columns(path) if name not in columns]
    if lacking or (first in _MADE and field not in _MADE[first]):
        known = [*columns, "value.FIELD", *(f"{made}.{each}" for made, fields in _MADE.items() for each in fields)]
        near = difflib.get_close_matches(path, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
        raise ConfigError(f"{file.name} has no {path!r}: {hint}")
    if path == "value":
        return _whole_value
    if first == "value":
        steps = field.split(".")
        return lambda row: _within(row["value"], steps)
    made: dict[str, Reader] = {
        "time.hour": lambda row: row["event_utc_ns"] % _DAY_NS / (3_600 * SECOND),
        "time.weekday": lambda row: (row["event_utc_ns"] // _DAY_NS + _THURSDAY) % 7,
        "cell.row": lambda row: math.floor(row["latitude_deg"] / CELL_DEG),
        "cell.column": lambda row: math.floor(row["longitude_deg"] / CELL_DEG),
    }
    return made.get(path, lambda row: row[path])


def _whole_value(row: Mapping[str, Any]) -> Any:
    for column in ("value_number", "value_bool", "value_text"):
        if row[column] is not None:
            return row[column]
    return None


def _within(value: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        if isinstance(value, dict):
            value = value.get(f"${step}" if step.startswith("$") else step)
        elif isinstance(value, list) and step.isdecimal() and len(step) < 10 and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """What a row of an export has at a path; None: nothing. :raises ConfigError: the path leads nowhere."""
    read = _reader(path, tuple(row), Path("a record"))
    try:
        return read({**row, "value": msgspec.json.decode(row["value"])} if path.startswith("value.") else row)
    except (TypeError, ValueError, ArithmeticError, RecursionError):
        return None


def number_of(value: Any) -> float | None:
    """A value as a finite number that 32 bits hold; None: it is none."""
    if not isinstance(value, int | float):
        return None
    number = float(value) if not isinstance(value, int) or abs(value) < 2**1000 else math.inf
    return number if abs(number) < 3.4e38 else None  # NaN compares false


def target_of(value: Any, recipe: Recipe) -> Any:
    """The target of a record; None: it has none of the kind that the recipe wants."""
    target = recipe.target
    if target.kind == "number" or target.above is not None:
        number = number_of(value)
        if number is None or target.above is None:
            return number
        return number > target.above
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if value is None or isinstance(value, dict | list):
        return None
    return value if target.classes is None or label_of(value) in target.classes else None


def _lack_of(value: Any, *, is_class: bool = False) -> str:
    """Why a value is no feature, or no target."""
    if value is None or isinstance(value, dict) or (isinstance(value, int | float) and number_of(value) is None):
        return "missing or not finite"  # {"$float": "nan"} and what else JSON lacks are such objects
    return "no class" if is_class else "no number"


# --- what may be learned from ----------------------------------------------------------------------------------------
def _check_left_out(
    path: Path, recipe: Recipe, seen: Mapping[str, int], left_out: LeftOut, unfit: Mapping[str, Any]
) -> None:  # fmt: skip
    if not seen:
        raise LocalProtocolError(
            f"{path.name} has no record for {recipe.name}: look at data.keys ({recipe.data.keys or 'all'}) and "
            f"data.rule ({recipe.data.rule or 'any'}), or export others"
        )
    share = sum(left_out.origins[origin] / count for origin, count in seen.items()) / len(seen)
    if share > recipe.data.max_missing_share or left_out.total == sum(seen.values()):
        worst, _ = left_out.reasons.most_common(1)[0]
        example = f", {str(unfit[worst])[:40]!r} for instance" if unfit.get(worst) is not None else ""
        raise LocalProtocolError(
            f"of the {sum(seen.values())} rows of {len(seen)} nodes {left_out.told()}{example}. That is {share:.0%} of "
            "the rows of each node on the average: correct the path, select others, set target.kind = 'number' or "
            "target.above if it is no class, or raise data.max_missing_share"
        )


def _usable(targets: list[Any], origins: list[str], recipe: Recipe, left_out: LeftOut) -> list[int]:
    """The places of targets that can be classes beside one another: of the type that most nodes send, and if there are
    too many classes, without those that one node alone has. The others are added to ``left_out``."""
    used = list(range(len(targets)))
    if recipe.target.kind == "number" or not targets:
        return used
    nodes_by_type: dict[type, set[str]] = {}
    for target, origin in zip(targets, origins, strict=True):
        nodes_by_type.setdefault(type(target), set()).add(origin)
    if len(nodes_by_type) > 1:
        rows = Counter(map(type, targets))
        usual = max(nodes_by_type, key=lambda kind: (len(nodes_by_type[kind]), rows[kind], kind.__name__))
        for place in used:
            if type(targets[place]) is not usual:
                kind = type(targets[place]).__name__
                left_out.add(f"a target of type {kind}, which is {usual.__name__} for most", origins[place])
        used = [place for place in used if type(targets[place]) is usual]
    if len(classes := {targets[place] for place in used}) > MAX_CLASSES and len(set(origins)) > 1:
        nodes: dict[Any, str | None] = {}
        for place in used:
            if nodes.setdefault(targets[place], origins[place]) != origins[place]:
                nodes[targets[place]] = None
        alone = {each for each in classes if nodes[each] is not None}
        for place in used:
            if targets[place] in alone:
                left_out.add(MANY_CLASSES, origins[place])
        used = [place for place in used if targets[place] not in alone]
    return used


def _encoded(targets: list[Any], recipe: Recipe, path: Path) -> "tuple[tuple[str, ...], NDArray[Any]]":
    import numpy as np

    if recipe.target.kind == "number":
        return (), np.asarray(targets, np.float64)
    classes = sorted(set(targets))
    if len(classes) > MAX_CLASSES:
        raise LocalProtocolError(
            f"the target {recipe.target.path} has {len(classes)} classes, and {MAX_CLASSES} can be told apart: set "
            "target.kind = 'number'"
        )
    if len(classes) < 2:
        shown = ", ".join(map(label_of, classes)) or "none"
        raise LocalProtocolError(
            f"all {len(targets)} rows of {path.name} have one class, {shown}: export records of others too"
        )
    places = {each: place for place, each in enumerate(classes)}
    return tuple(map(label_of, classes)), np.asarray([places[each] for each in targets], np.int64)


def label_of(value: Any) -> str:
    """The name of a class."""
    return str(value).lower() if isinstance(value, bool) else str(value)[:100] or "(empty)"
