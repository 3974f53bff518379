"""The rows that a model learns from: features, the target, and who sensed each when, out of an exported Parquet file.

Invariants:

- Rows are in the order of time, origin and sequence, whatever the order in the file, so the same records give the same
  rows and the same digest.
- Every feature and every target is a finite number. What is missing was dropped and counted, or refused.
- A path that leads nowhere is named, with what there is instead.

A *path* is a column of the file that holds numbers or truth values (``latitude_deg``, ``quality``), ``value`` (a value
that is one number or truth value), a field of the value (``value.speed_mps``, ``value.wheels.0``), ``time.hour`` (of
the day in UTC, 0 to 24), ``time.weekday`` (0: Monday), or ``cell.row`` and ``cell.column`` (of cells of 0.01°).
"""

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
_CONTEXT: Final = ("origin", "sequence", "key", "rule", "event_utc_ns")
_MADE: Final = {"time": ("hour", "weekday"), "cell": ("row", "column")}
_DAY_NS: Final = 86_400 * SECOND
_THURSDAY: Final = 3
"""1970 began on one."""
Reader = Callable[[Mapping[str, Any]], Any]


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
    dropped: int = 0
    """Rows that lacked something."""

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

    names = [*recipe.features, "target"]
    paths = [*recipe.features.values(), recipe.target.path]
    features: list[list[float]] = []
    targets: list[Any] = []
    about: list[tuple[int, str, int]] = []
    lacking: Counter[str] = Counter()
    seen = 0
    for row, values in selected(path, recipe, paths):
        seen += 1
        numbers = [number_of(value, at) for value, at in zip(values[:-1], paths, strict=False)]
        target = target_of(values[-1], recipe)
        missing = [name for name, value in zip(names, [*numbers, target], strict=True) if value is None]
        if missing and recipe.data.missing == "refuse":
            raise LocalProtocolError(
                f"{path.name}: record {row['sequence']} of {row['origin']} has no {missing[0]} "
                f"({paths[names.index(missing[0])]}): select others, or set data.missing = 'drop'"
            )
        lacking.update(missing)
        if missing:
            continue
        features.append(numbers)  # type: ignore[arg-type]
        targets.append(target)
        about.append((row["event_utc_ns"], row["origin"], row["sequence"]))
        if len(targets) > recipe.data.max_rows:
            raise LocalProtocolError(
                f"{path.name} has more than {recipe.data.max_rows:,} rows for {recipe.name}: select fewer by "
                "data.keys, data.rule or a shorter time, or raise data.max_rows"
            )
    _check_missing(path, recipe, seen, len(targets), lacking, dict(zip(names, paths, strict=True)))
    labels, target_array = _encoded(targets, recipe, path)
    order = sorted(range(len(about)), key=about.__getitem__)
    return LearningRows(
        np.asarray(features, np.float32).reshape(-1, len(recipe.features))[order], target_array[order],
        np.asarray([each[0] for each in about], np.int64)[order],
        np.asarray([each[1] for each in about], np.str_)[order],
        np.asarray([each[2] for each in about], np.int64)[order], labels, seen - len(targets),
    )  # fmt: skip


def selected(path: Path, recipe: Recipe, paths: Sequence[str]) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
    """The context of each record that a recipe selects, with what it has at the paths; None: nothing.

    :raises ConfigError: a path leads nowhere in this file. :raises StorageError: it can't be read.
    """
    with opened_table(path) as table:
        yield from _read(table, paths, recipe.data.keys, recipe.data.rule, 0, table.count)


def features_in(
    table: ParquetTable, paths: Sequence[str], keys: str | None, rule: str | None, begin: int, end: int
) -> Iterator[tuple[Mapping[str, Any], list[float | None]]]:
    """The context of each record among some rows of a file whose key and rule are the wanted ones, with its features;
    None where it lacks one.

    :raises ConfigError: a path leads nowhere, or to what is no number. :raises StorageError: the file can't be read.
    """
    for row, values in _read(table, paths, keys, rule, begin, end):
        yield row, [number_of(value, path) for value, path in zip(values, paths, strict=True)]


def _read(
    table: ParquetTable, paths: Sequence[str], keys: str | None, rule: str | None, begin: int, end: int
) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
    for name in _CONTEXT:
        if name not in table.columns:
            raise ConfigError(f"{table.path} has no column {name!r}: name a file of 'cloud-relay export'")
    readers = [_reader(each, table.columns, table.path) for each in paths]
    wanted = {*_CONTEXT, *(column for each in paths for column in _columns(each))}
    has_fields = any(each.startswith("value.") for each in paths)
    for row in table.rows([name for name in table.columns if name in wanted], BATCH_ROWS, begin, end):
        if (rule is not None and row["rule"] != rule) or (keys is not None and not matches(keys, row["key"])):
            continue
        try:
            known = {**row, "value": msgspec.json.decode(row["value"])} if has_fields else row
            values = [read(known) for read in readers]
        except (TypeError, ValueError, ArithmeticError) as error:  # another program may write anything
            raise StorageError(
                f"{table.path}: record {row['sequence']} of {str(row['origin'])[:60]!r} is not as an export has it "
                f"({error}): export it again"
            ) from error
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
    """What a row of an export has at a path. :raises ConfigError: the path leads nowhere."""
    read = _reader(path, tuple(row), Path("a record"))
    return read({**row, "value": msgspec.json.decode(row["value"])} if path.startswith("value.") else row)


def number_of(value: Any, path: str) -> float | None:
    """A value as a finite number that 32 bits hold; None: there is none. :raises ConfigError: it is no number."""
    if value is None or isinstance(value, dict):  # {"$float": "nan"} and what else JSON lacks
        return None
    if not isinstance(value, int | float):
        raise ConfigError(f"{path} is {str(value)[:40]!r} in a record, and a feature has to be a number: leave it out")
    number = float(value) if not isinstance(value, int) or abs(value) < 2**1000 else math.inf
    return number if abs(number) < 3.4e38 else None  # NaN compares false


def target_of(value: Any, recipe: Recipe) -> Any:
    """The target of a record; None: there is none. :raises ConfigError: it is no class."""
    target = recipe.target
    if target.kind == "number" or target.above is not None:
        number = number_of(value, target.path)
        if number is None or target.above is None:
            return number
        return number > target.above
    if value is None or isinstance(value, dict | list):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else _refuse_real(value, recipe)
    return value


def _refuse_real(value: float, recipe: Recipe) -> Any:
    if not math.isfinite(value):
        return None
    raise ConfigError(
        f"the target {recipe.target.path} is {value:g} in a record, which is no class: set target.kind = 'number', or "
        "target.above to a threshold"
    )


# --- what may be learned from ----------------------------------------------------------------------------------------
def _check_missing(
    path: Path, recipe: Recipe, seen: int, kept: int, lacking: Mapping[str, int], paths: Mapping[str, str]
) -> None:  # fmt: skip
    if not seen:
        raise LocalProtocolError(
            f"{path.name} has no record for {recipe.name}: look at data.keys ({recipe.data.keys or 'all'}) and "
            f"data.rule ({recipe.data.rule or 'any'}), or export others"
        )
    if seen - kept > recipe.data.max_missing_share * seen:
        worst = max(lacking, key=lambda name: lacking[name])
        raise LocalProtocolError(
            f"{seen - kept} of {seen} rows lack something, {lacking[worst]} of them {worst} ({paths[worst]}): "
            "correct its path, select others, or raise data.max_missing_share"
        )


def _encoded(targets: list[Any], recipe: Recipe, path: Path) -> "tuple[tuple[str, ...], NDArray[Any]]":
    import numpy as np

    if recipe.target.kind == "number":
        return (), np.asarray(targets, np.float64)
    kinds = {type(each) for each in targets}
    if len(kinds) > 1:
        shown = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise LocalProtocolError(f"the target {recipe.target.path} is sometimes {shown}: select records of one kind")
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
