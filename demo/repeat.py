"""Runs the demonstration several times in a row, some of them on a busy machine, and counts the outcomes."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_BUSY = """
import os
while os.getppid() == int({parent}):
    for _ in range(200_000):
        pass
"""
COULD_NOT_RUN = "could not be run"


def repeat(times: int, beside_load: int, run: Callable[[int], dict[str, Any]]) -> int:
    """Run the demonstration ``times`` times in a row, the last ``beside_load`` of them beside a busy process for each
    processor, and print what became of each. ``run`` takes a number from 1 and returns the summary, empty when it could
    not be run.

    Returns the exit status: 0 when every promise about the mesh was kept, 1 when one was broken, 2 when the
    demonstration could not be run. A machine that was too slow for a timing does not change it.
    """
    outcomes: Counter[tuple[bool, str]] = Counter()
    for number in range(1, times + 1):
        loaded = number > times - beside_load
        with busy_processes((os.cpu_count() or 1) if loaded else 0):
            summary = run(number)
        outcome = summary.get("outcome", COULD_NOT_RUN)
        outcomes[loaded, outcome] += 1
        print(f"{number:3} {'beside load' if loaded else 'alone':11} {outcome}", flush=True)
        for promise in summary.get("promises", ()):
            if promise["outcome"] != "kept":
                print(f"      {promise['outcome']}: {promise['name']}: {promise['seen']}", flush=True)
    for (loaded, outcome), count in sorted(outcomes.items()):
        of, where = (beside_load, "beside load") if loaded else (times - beside_load, "alone")
        print(f"{count} of {of} {where}: {outcome}")
    ended = {outcome for _, outcome in outcomes}
    return 2 if COULD_NOT_RUN in ended else 1 if "broken" in ended else 0


def run_as_process(flags: list[str], out: Path, number: int) -> dict[str, Any]:
    """Run ``python -m demo`` with ``flags`` and return its summary, which is written beside ``out`` with the number."""
    path = out.with_stem(f"{out.stem}-{number}")
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "demo", *flags, "--out", str(path)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        print(f"run {number} ended with status {done.returncode}: {done.stderr.strip()}", file=sys.stderr, flush=True)
    return json.loads(path.read_text()) if path.exists() else {}


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` processors busy; each process ends with this one, however that ends."""
    code = _BUSY.format(parent=os.getpid())
    processes = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
