"""``python -m demo.learning``: hotspots of hard braking, learned at the relay, and served at the roadside.

It writes ``build/demo-learning/report.md`` with the accuracy of the new release against the old one, the card of the
new one, and ``summary.json``.

Exit status: 0 every promise was kept, 1 a promise was broken, 2 it could not be run.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from cloud_relay.learning.scoring import Comparison
from demo.learning.stage import UNITS, write_files
from demo.learning.story import Scene, balanced_accuracy, judged
from demo.processes import RELAY, free_port
from demo.promises import Outcome, Promise, about_mesh
from demo.stage import compile_packages
from demo.update.story import ActFailed
from protocols.base.errors import MeshError


def main() -> int:
    """Run it. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.learning", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo-learning"), help="default: %(default)s")
    parser.add_argument("--short", action="store_true", help="leave out the training that has nothing new to learn")
    options = parser.parse_args()
    compile_packages()
    folder = Path(tempfile.mkdtemp(prefix="meshnode-learning-"))
    began_s, scene = time.monotonic(), Scene(folder, options.short)
    try:
        write_files(folder, free_port())
        scene.play()
        promises = judged(scene)
    except ActFailed as error:
        promises = [about_mesh("the story is told to its end", False, str(error))]
    except MeshError as error:
        print(f"the demonstration could not be run: {error}\nlogs are under {folder}", file=sys.stderr)
        return 2
    finally:
        scene.close()
    is_kept = all(promise.outcome is Outcome.KEPT for promise in promises)
    options.out.mkdir(parents=True, exist_ok=True)
    _write_report(options.out, folder, scene, promises, time.monotonic() - began_s)
    print()
    for promise in promises:
        print(f"  {'kept' if promise.outcome is Outcome.KEPT else 'BROKEN':8} {promise.name}: {promise.seen}")
    print(f"\nreport: {options.out / 'report.md'}")
    if is_kept:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"A promise was broken. Logs are under {folder}", file=sys.stderr)
    return 0 if is_kept else 1


def _write_report(out: Path, folder: Path, scene: Scene, promises: list[Promise], took_s: float) -> None:
    report, lines = scene.report, ["# Hotspots of hard braking", ""]
    if len(report.runs) == 2 and report.held_out is not None:
        old, new = report.runs
        assert new.comparison is not None
        lines += [
            f"{report.records} passages of three vehicles; {len(report.held_out)} of them were held out.", "",
            "| | release 1 | release 2 | without a model |", "|---|---|---|---|",
            *(f"| {name}, at the relay | {new.serving_metrics[name]:g} | {value:g} | {new.without_model[name]:g} |"
              for name, value in new.metrics.items() if name != "rows"),
            *(f"| balanced_accuracy, answered by {name} | {_told(scene, name, 1)} | {_told(scene, name, 2)} | |"
              for name in UNITS), "",
            _told_gain(new.comparison), "",
        ]  # fmt: skip
        shutil.copy(folder / RELAY / "state" / "training" / new.name / new.id / "card.md", out / "card.md")
        runs = [msgspec.to_builtins(run) for run in (old, new)]
    else:
        runs = []
    lines += [f"- {promise.outcome}: {promise.name}: {promise.seen}" for promise in promises]
    (out / "report.md").write_text("\n".join(lines) + "\n")
    plain = [{"name": each.name, "outcome": each.outcome, "seen": each.seen} for each in promises]
    (out / "summary.json").write_text(
        json.dumps({"took_s": round(took_s, 1), "promises": plain, "runs": runs}, indent=1)
    )


def _told_gain(comparison: Comparison) -> str:
    return (
        f"Gain of release 2: {comparison.gain:+g}, at {comparison.confidence:.0%} at least {comparison.low:+g}, from "
        f"{comparison.blocks} situations."
    )


def _told(scene: Scene, name: str, release: int) -> str:
    told, rows = scene.report.measured.get((name, release)), scene.report.held_out
    return "" if told is None or rows is None else f"{balanced_accuracy(told, rows):g}"


if __name__ == "__main__":
    sys.exit(main())
