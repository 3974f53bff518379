"""Reads and writes scenario files. A scenario is one TOML file, and is checked whole before anything starts.

The structs are those of :mod:`sims.scenario.parts`. A name that they don't know is an error, which names the nearest
known one: a misspelt fault that never happens would be a false proof.
"""

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from sims.errors import ScenarioError, TraceError
from sims.scenario.parts import (
    FAULT_KINDS,
    Backbone,
    Cellular,
    Checks,
    Curation,
    Cut,
    ExpectedRecords,
    Fault,
    FaultKind,
    Fixed,
    Group,
    Highway,
    Hole,
    Inference,
    Lattice,
    Mobility,
    Part,
    Platoon,
    Point,
    PublishedRelease,
    Radio,
    RandomFaults,
    Scenario,
    Spread,
    Streets,
    Trace,
    Traffic,
    Waypoints,
)
from sims.scenario.rules import check
from sims.scenario.schema import nearest, shown, struct_from

__all__ = [
    "FAULT_KINDS",
    "SHIPPED",
    "Backbone",
    "Cellular",
    "Checks",
    "Curation",
    "Cut",
    "ExpectedRecords",
    "Fault",
    "FaultKind",
    "Fixed",
    "Group",
    "Highway",
    "Hole",
    "Inference",
    "Lattice",
    "Mobility",
    "Part",
    "Platoon",
    "Point",
    "PublishedRelease",
    "Radio",
    "RandomFaults",
    "Scenario",
    "Spread",
    "Streets",
    "Trace",
    "Traffic",
    "Waypoints",
    "check",
    "dumps",
    "load",
    "loads",
    "rules_path",
    "shipped",
    "trace_path",
]

SHIPPED: Final = Path(__file__).parent / "shipped"
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""20,000 fixed points take a tenth of it. A trace that was given by mistake would take all memory."""


def shipped() -> list[str]:
    """Names of the scenarios that come with the package, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load(what: str | Path) -> Scenario:
    """Load a scenario by the name of one that ships, or from a file (TOML, or JSON as :func:`dumps` writes it).

    :raises ScenarioError: when it can't be read or used; names the file, the place in it and the value.

    :raises TraceError: when a trace that it names is not there.
    """
    names = shipped()
    if str(what) in names:
        return _read(SHIPPED / f"{what}.toml", "")
    path = Path(what)
    if not path.exists() and path.suffix not in {".toml", ".json"}:
        raise ScenarioError(
            f"scenario {shown(str(what))} is neither a file nor one that ships{nearest(str(what), names)}"
        )
    return _read(path, str(path.resolve().parent))


def _read(path: Path, folder: str) -> Scenario:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ScenarioError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ScenarioError(f"{path} has more than {MAX_FILE_BYTES} bytes: give a scenario, not a trace")
    try:
        return loads(data.decode(), folder)
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path} is not text in UTF-8 (byte {error.start}): give a TOML or JSON file") from error
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def loads(text: str, folder: str = "") -> Scenario:
    """Make a scenario of TOML, or of JSON (which begins with a brace). A ``folder`` named in the text wins.

    :raises ScenarioError: names the place and the value, or a file of rules that is not there.

    :raises TraceError: when a trace that it names is not there.
    """
    try:
        data = msgspec.json.decode(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"it is not TOML: {error}") from error
    except msgspec.DecodeError as error:
        raise ScenarioError(f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise ScenarioError("it is nested too deeply: no scenario is") from error
    scenario = struct_from({"folder": folder, **data}, Scenario)
    check(scenario)
    for group in scenario.groups:
        if isinstance(group.mobility, Trace):
            trace_path(scenario, group.mobility)
        for name in scenario.rule_files(group):
            rules_path(scenario, name)
    return scenario


def dumps(scenario: Scenario) -> str:
    """The canonical text (JSON) of a scenario. It is the same for equal scenarios, and :func:`loads` makes an equal one
    of it."""
    return msgspec.json.format(msgspec.json.encode(scenario), indent=2).decode() + "\n"


def trace_path(scenario: Scenario, trace: Trace) -> Path:
    """The file of a trace: beside the scenario, or one of those that ship. :raises TraceError: when there is none."""
    for folder in (scenario.folder, SHIPPED):
        path = Path(folder) / trace.file
        if path.is_file():
            return path
    ships = sorted(path.name for path in SHIPPED.glob("*.fcd.xml.gz"))
    beside = f"{scenario.folder}, nor" if scenario.folder else "the current folder, nor"
    raise TraceError(f"there is no trace {shown(trace.file)} in {beside} among those that ship ({', '.join(ships)})")


def rules_path(scenario: Scenario, name: str) -> Path:
    """A file of rules: beside the scenario, or one of those that ship. :raises ScenarioError: when there is none."""
    for folder in (scenario.folder, SHIPPED):
        path = Path(folder) / name
        if path.is_file():
            return path
    beside = scenario.folder or "the current folder"
    ships = ", ".join(sorted(f"rules/{path.name}" for path in SHIPPED.glob("rules/*.toml")))
    raise ScenarioError(f"there is no file of rules {shown(name)} in {beside}, nor among those that ship ({ships})")
