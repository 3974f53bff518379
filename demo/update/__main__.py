"""``python -m demo.update``: publishes, spreads, halts and takes back releases, and writes ``build/demo-update.json``.

Exit status: 0 every promise was kept, 1 a promise was broken, 2 it could not be run.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from demo.processes import free_port
from demo.promises import Outcome, Promise, about_mesh
from demo.stage import compile_packages
from demo.update.stage import PLAYERS, write_files
from demo.update.story import ActFailed, Stage, judged, outcome_of, play, stage
from protocols.base.errors import MeshError

_STATUS: Final = {Outcome.KEPT: 0, Outcome.BROKEN: 1}


def main() -> int:
    """Run it. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.update", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo-update.json"), help="default: %(default)s")
    options = parser.parse_args()
    compile_packages()
    folder = Path(tempfile.mkdtemp(prefix="meshnode-update-"))
    began_s = time.monotonic()
    took: dict[str, float] = {}
    promises: list[Promise] = []
    try:
        write_files(folder, free_port())
        with stage(folder) as played:
            try:
                took = play(played)
            except ActFailed as error:
                promises.append(about_mesh("the story is told to its end", False, str(error)))
            verified = _verified(played)
            promises += judged(played, took, verified)
    except MeshError as error:
        print(f"the demonstration could not be run: {error}\nlogs are under {folder}", file=sys.stderr)
        return 2
    outcome = outcome_of(promises)
    told = {
        "outcome": outcome, "took_s": {**took, "all_s": round(time.monotonic() - began_s, 1)},
        "promises": [{"name": each.name, "outcome": each.outcome, "seen": each.seen} for each in promises],
        "answers": played.counted,
        "timeline": played.events,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1))
    _show(promises)
    print(f"\nsummary: {options.out}")
    if outcome is Outcome.KEPT:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"A promise was broken. Logs are under {folder}", file=sys.stderr)
    return _STATUS[outcome]


def _verified(played: Stage) -> dict[str, bool]:
    """Stop all nodes, and check all that they hold by ``meshnode models verify``."""
    verified = {}
    for player in PLAYERS:
        if player.name not in played.figures:
            continue
        played.stop(player.name)
        config = played.folder / player.name / "node.toml"
        command = [sys.executable, "-m", "meshnode.cli", "models", "verify", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        verified[player.name] = done.returncode == 0
        if done.returncode:
            print(done.stdout[-2_000:], done.stderr[-2_000:], file=sys.stderr)
    return verified


def _show(promises: list[Promise]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print()
    for promise in promises:
        colour = "green" if promise.outcome is Outcome.KEPT else "red"
        word = "kept" if promise.outcome is Outcome.KEPT else "BROKEN"
        console.print(f"  [{colour}]{word:8}[/] {promise.name}: {promise.seen}")


if __name__ == "__main__":
    sys.exit(main())
