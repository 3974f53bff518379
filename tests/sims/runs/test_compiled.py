"""The hot modules as machine code (``make compiled``): the same histories as the sources that they are made of."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sims.runs.test_sim_run import GOLDEN, GOLDEN_RUNS

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[3]
COMPILED = ROOT / "build" / "compiled"
RUN = """
import json, sys
import protocols.engine, sims.virtual.pipes
from msgspec.structs import replace
from sims.runs.run import simulate
from sims.scenario.file import load

digests = {}
for name, seed, duration_s in json.loads(sys.argv[1]):
    result = simulate(replace(load(name), duration_s=duration_s or load(name).duration_s), seed)
    digests[f"{name} {seed}"] = result.digest if not result.broken else result.broken
print(json.dumps([protocols.engine.__file__, sims.virtual.pipes.__file__, result.versions["build"], digests]))
"""


def run_apart(path: Path, runs: list[tuple[str, int, float | None]]) -> Any:
    """Where the modules were found, and the digests of ``runs``, in a process that finds modules in ``path`` first."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-P", "-c", RUN, json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not COMPILED.exists(), reason="'make compiled' was not possible: it says what is missing")
def test_compiled_modules_give_the_same_digests() -> None:
    """A check of types or a whole number that behaves otherwise would make another history of the same seed."""
    golden: list[tuple[str, int, float | None]] = [(name, seed, None) for name, seed in GOLDEN_RUNS]
    for source in (*(ROOT / "protocols").rglob("*.py"), *(ROOT / "sims").rglob("*.py")):
        copy = COMPILED / source.relative_to(ROOT)
        assert copy.read_bytes() == source.read_bytes(), f"{source.name} has changed since: run 'make compiled'"
    engine, pipes, build, digests = run_apart(COMPILED, golden)
    assert engine.endswith(".so")
    assert pipes.endswith(".so")
    assert build == "compiled"
    assert digests == json.loads(GOLDEN.read_text())
    others: list[tuple[str, int, float | None]] = [("grid-100", 3, 3.0), ("rsu-backbone", 3, 5.0), ("tunnel", 3, 4.0)]
    engine, _, build, interpreted = run_apart(ROOT, others)
    assert engine.endswith(".py")
    assert build == "interpreted"
    assert run_apart(COMPILED, others)[-1] == interpreted
