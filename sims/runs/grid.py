"""The cells of a sweep: every combination of the values that settings may have, times the seeds.

A setting is a path into the scenario: ``radio.environment``, ``traffic.0.rate_hz`` (by position), ``groups.car.count``
(by name). Each combination is checked before anything runs, as if it had been written into the file.
"""

import hashlib
import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sims.errors import ScenarioError, SweepError
from sims.scenario.file import Scenario, dumps, loads
from sims.scenario.schema import nearest, shown

MAX_CELLS = 100_000
"""At some seconds each, this many runs take more than a day on two cores. A larger number is most likely a typing error
in a range."""
_MAX_FOLDER_CHARS = 120
_SPLIT = re.compile(r",(?![^\[{\"']*[\]}\"'])")
"""Matches commas outside of brackets and quotes. No setting is nested more deeply."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A path and the values it may have."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One run of a sweep. It is equal only to itself, because comparing scenarios of thousands of points costs too
    much."""

    scenario: Scenario
    seed: int
    values: tuple[tuple[str, str], ...]
    """What was set to what, in words."""

    @property
    def folder(self) -> str:
        """The folder of its result, named after its values, so that a larger sweep finds the results of a smaller
        one."""
        name = ",".join(f"{path}={value}" for path, value in self.values) or "as-written"
        plain = re.sub(r"[^\w.=,+-]", "_", name)
        if plain != name or len(plain) > _MAX_FOLDER_CHARS:
            plain = f"{plain[:_MAX_FOLDER_CHARS]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return f"{plain}/seed-{self.seed}"


def parse_setting(text: str) -> Setting:
    """Parse ``path=value,value,…``. Values are as in TOML, and quotes may be left out. :raises SweepError: names the
    text."""
    path, sign, values = text.partition("=")
    if not sign or not path.strip() or not values.strip():
        raise SweepError(f"--set {text}: give a path and its values, like traffic.0.rate_hz=1,5,10")
    found = tuple(_value(piece.strip()) for piece in _SPLIT.split(values))
    if "" in found:
        raise SweepError(f"--set {text}: a value between two commas is missing")
    return Setting(path.strip(), tuple(value for index, value in enumerate(found) if value not in found[:index]))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def with_settings(scenario: Scenario, texts: Sequence[str]) -> Scenario:
    """The scenario with the value of each ``path=value`` in place of its own.

    :raises SweepError: when a path leads nowhere or is given twice, or has several values.
    :raises ScenarioError: when what comes of it can't be used; names it.
    """
    settings = [parse_setting(text) for text in texts]
    for setting, text in zip(settings, texts, strict=True):
        if len(setting.values) > 1:
            raise SweepError(f"--set {text}: a run has one value; 'meshsim sweep' makes a run for each")
    (cell,) = cells_of(scenario, settings, (scenario.seed,))
    return cell.scenario


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse ``20`` (1 to 20), ``5..8``, ``1,4,9`` or several of them. :raises SweepError: names the text."""
    if re.fullmatch(r"\d+", text):
        text = f"1..{text}"
    seeds: dict[int, None] = {}
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", piece)
        if match is None:
            raise SweepError(f"--seeds {text}: {piece!r} is not a seed: give 20, 5..8 or 1,4,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MAX_CELLS:
            raise SweepError(f"--seeds {text}: {piece.strip()} means no seed or more than {MAX_CELLS}")
        seeds |= dict.fromkeys(range(first, last + 1))
    return tuple(seeds)


def cells_of(scenario: Scenario, settings: Sequence[Setting], seeds: Sequence[int]) -> list[Cell]:
    """All runs, seed by seed within a combination.

    :raises SweepError: when a path leads nowhere or is given twice, or there are too many combinations.

    :raises ScenarioError: when a combination can't be used; names it.
    """
    paths = [setting.path for setting in settings]
    if len(set(paths)) < len(paths):
        raise SweepError(f"a path is set twice: {', '.join(paths)}")
    number = len(seeds)
    for setting in settings:
        number *= len(setting.values)
    if number > MAX_CELLS:
        raise SweepError(f"{number} runs are too many, at most {MAX_CELLS}: leave out values or seeds")
    cells = []
    for values in itertools.product(*(setting.values for setting in settings)):
        chosen = _with(scenario, dict(zip(paths, values, strict=True)))
        words = tuple((path, _word(value)) for path, value in zip(paths, values, strict=True))
        cells += [Cell(chosen, seed, words) for seed in seeds]
    return cells


def _word(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _with(scenario: Scenario, values: dict[str, object]) -> Scenario:
    if not values:
        return scenario
    data = msgspec.json.decode(dumps(scenario))
    for path, value in values.items():
        _put(data, path, value)
    try:
        return loads(msgspec.json.encode(data).decode(), scenario.folder)
    except ScenarioError as error:
        combination = ", ".join(f"{path}={_word(value)}" for path, value in values.items())
        raise ScenarioError(f"with {combination}: {error}") from error


def _put(data: Any, path: str, value: object) -> None:
    steps = path.split(".")
    here = data
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if isinstance(here, list):
            index = _index(here, step, path)
            if last:
                here[index] = value
            here = here[index]
        elif isinstance(here, dict):
            if last:
                here[step] = value
            here = here.setdefault(step, {})  # a part that has its defaults is not written
        else:
            raise SweepError(f"--set {path}: {'.'.join(steps[:number])} is {shown(here)}, nothing is inside")


def _index(items: list[Any], step: str, path: str) -> int:
    names = [str(item.get("name", item.get("group", ""))) if isinstance(item, dict) else "" for item in items]
    if re.fullmatch(r"\d+", step):
        if int(step) < len(items):
            return int(step)
        raise SweepError(f"--set {path}: there are {len(items)}, the first is 0; there is no {step}")
    if names.count(step) == 1:
        return names.index(step)
    if names.count(step) > 1:
        raise SweepError(f"--set {path}: {step} stands there {names.count(step)} times: give its number, from 0")
    raise SweepError(f"--set {path}: there is no {step!r}{nearest(step, filter(None, names))}")
