"""A run that can be repeated: one file with everything that decides it, and with its outcome.

A saved run holds its scenario with the *tape* in place of the random faults, so that the faults can be read, edited and
kept as a scenario of its own. It also holds the seed, planted bugs if there are any, and the digest of the history.
Versions are for people: they say why a digest may differ.

A trace that does not ship is copied beside the file. So are all files of rules, into a folder of the same name with the
ending ``.rules``: those that ship too, because a gate is to see what changes in them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from sims.errors import ReplayError, ScenarioError, SimulationError, TraceError
from sims.results.result import Result
from sims.runs.versions import versions
from sims.scenario.file import SHIPPED, Scenario, Trace, check, dumps, loads, rules_path, trace_path
from sims.world.faults import plan

SAVED_VERSION = 1
SAVED_FILE = "run.json"
MAX_SAVED_BYTES = 16 * 1024 * 1024
"""A scenario is at most 4 MiB. A wrong file is not read into memory."""


class SavedRun(Struct, frozen=True):
    """A run, and its outcome once it was made."""

    version: int
    scenario: Scenario
    seed: int
    bugs: tuple[str, ...] = ()
    """The planted bugs, see :mod:`sims.world.bugs`."""
    digest: str = ""
    broken: tuple[str, ...] = ()
    """The names of the checks that failed."""
    versions: dict[str, str] = {}


def taped(scenario: Scenario, seed: int, bugs: frozenset[str] = frozenset()) -> SavedRun:
    """A run that was not made yet, with its faults drawn. :raises ScenarioError: as :func:`sims.world.faults.plan`."""
    plain = replace(scenario, faults=plan(scenario, seed), random_faults=None, seed=seed)
    return SavedRun(SAVED_VERSION, plain, seed, tuple(sorted(bugs)))


def with_result(run: SavedRun, result: Result) -> SavedRun:
    """The same run with its outcome here and now."""
    return replace(run, digest=result.digest, broken=tuple(result.broken), versions=versions())


def play(run: SavedRun) -> Result:
    """Make the run."""
    from sims.runs.run import simulate  # imports the whole harness, which a look at a saved run does not need

    return simulate(run.scenario, run.seed, bugs=frozenset(run.bugs))


# --- on disk -------------------------------------------------------------------------------------------------------
def save(path: Path, run: SavedRun) -> None:
    """Write a run to ``path``, or as ``run.json`` into ``path`` when that is a folder; whole or not at all.

    :raises ReplayError: when it can't be written.
    """
    file = path / SAVED_FILE if path.is_dir() else path
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for group in run.scenario.groups:
            if isinstance(group.mobility, Trace):
                trace = trace_path(run.scenario, group.mobility)
                if trace.parent not in (SHIPPED, file.parent.resolve()):
                    shutil.copyfile(trace, file.parent / trace.name)
        scenario = _with_rules_in(run.scenario, file.with_suffix(".rules"))
        data = {"scenario": msgspec.json.decode(dumps(replace(scenario, folder="")))}
        data |= {
            name: getattr(run, name) for name in ("version", "seed", "bugs", "digest", "broken", "versions")
        }  # fmt: skip
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")
        beside.replace(file)
    except (OSError, ScenarioError, TraceError) as error:
        raise ReplayError(f"can't save the run as {file}: {error}") from error


def _with_rules_in(scenario: Scenario, folder: Path) -> Scenario:
    """The scenario with copies of its files of rules, which are made in ``folder``. :raises ScenarioError: when one is
    missing. :raises OSError: when they can't be copied."""
    names = dict.fromkeys(name for group in scenario.groups for name in scenario.rule_files(group))
    copies: dict[str, tuple[str, bytes]] = {}
    for name in names:
        path, taken = rules_path(scenario, name), [copy for copy, _ in copies.values()]
        copy = path.name if path.name not in taken else f"{len(taken) + 1}-{path.name}"
        copies[name] = copy, path.read_bytes()
    if copies:
        folder.mkdir(exist_ok=True)
    for copy, data in copies.values():
        (folder / copy).write_bytes(data)

    def moved(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{folder.name}/{copies[name][0]}" for name in names if name in copies)

    groups = tuple(
        group if group.rules is None else replace(group, rules=moved(group.rules)) for group in scenario.groups
    )
    return replace(scenario, groups=groups, curation=replace(scenario.curation, rules=moved(scenario.curation.rules)))


class _Envelope(Struct):
    version: int
    scenario: msgspec.Raw
    seed: int
    bugs: tuple[str, ...] = ()
    digest: str = ""
    broken: tuple[str, ...] = ()
    versions: dict[str, str] = {}


def load(path: Path) -> SavedRun:
    """Read a run back. :raises ReplayError: names the file and what is wrong with it."""
    file = path / SAVED_FILE if path.is_dir() else path
    try:
        if file.stat().st_size > MAX_SAVED_BYTES:
            raise ReplayError(f"{file} is larger than {MAX_SAVED_BYTES // 1024**2} MiB, so it is not a saved run")
        data = file.read_bytes()
    except OSError as error:
        raise ReplayError(f"can't read {file}: {error.strerror or error}") from error
    try:
        saved = msgspec.json.decode(data, type=_Envelope)
        if saved.version != SAVED_VERSION:
            raise ReplayError(f"{file} has version {saved.version}, this program reads {SAVED_VERSION}")
        scenario = loads(bytes(saved.scenario).decode(), str(file.resolve().parent))
    except (msgspec.DecodeError, UnicodeDecodeError, ScenarioError, TraceError) as error:
        raise ReplayError(f"{file} is not a saved run, or cut off: {error}") from error
    return SavedRun(
        saved.version, scenario, saved.seed, saved.bugs, saved.digest, saved.broken, saved.versions
    )  # fmt: skip


# --- again ---------------------------------------------------------------------------------------------------------
def replay(run: SavedRun) -> Result:
    """Make a run again, to the same digest. :raises ReplayError: when the digest is another; says what else is
    different."""
    result = play(run)
    if result.digest != run.digest:
        raise ReplayError(
            f"the run came to another history: digest {result.digest[:16]}…, saved {run.digest[:16] or 'none'}…; "
            + _why(run)
        )
    return result


def _why(run: SavedRun) -> str:
    here = versions()
    changed = [
        f"{name} was {run.versions.get(name, 'not noted')}, is {here[name]}"
        for name in here
        if run.versions.get(name) != here[name]
    ]
    if changed:
        return f"{', '.join(changed)}: use the versions that it was saved with, or save it anew"
    return "all versions are the same, so something here does not depend on the seed alone: that is a bug of meshsim"


def digests_under_hash_seeds(run: SavedRun, hash_seeds: tuple[int, ...] = (1, 4_242)) -> list[str]:
    """Make the run in one process for each ``PYTHONHASHSEED``, side by side. Returns their digests.

    :raises ReplayError: when a process fails; with what it said.
    """
    check(run.scenario)
    with tempfile.TemporaryDirectory(prefix="meshsim-") as folder:
        file = Path(folder) / SAVED_FILE
        save(file, run)
        command = [sys.executable, "-c", "from sims.runs.bundle import print_digest; print_digest()", str(file)]
        processes = [
            subprocess.Popen(  # noqa: S603  # our own interpreter and module
                command,
                env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for seed in hash_seeds
        ]
        digests = []
        for process in processes:
            out, error = process.communicate()
            if process.returncode:
                raise ReplayError(f"the run failed in a process of its own: {error.strip()[-500:]}")
            digests.append(out.strip())
    return digests


def print_digest() -> None:
    """The program of those processes: it prints the digest of the saved run that the argument names."""
    try:
        sys.stdout.write(play(load(Path(sys.argv[1]))).digest + "\n")
    except SimulationError as error:
        raise SystemExit(str(error)) from error
