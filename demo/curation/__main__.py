"""``python -m demo.curation``: from hard braking to a hotspot record, with a policy and without one.

Two meshes of the same vehicles drive the same way side by side; only one of them has an egress policy. What left either
is searched for a plate, a VIN and a home, and its pictures are written into ``build/demo-curation/``.

Exit status: 0 every promise was kept, 1 a promise was broken, 2 it could not be run.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from demo.curation.reader import CLOSE, QUICK, PlateReader
from demo.curation.search import searched
from demo.curation.stage import LONG_S, SHORT_S, secrets_of, vehicles, write_files
from demo.curation.story import ActFailed, Mesh, judged, told
from demo.processes import free_port
from demo.promises import Outcome, Promise, about_mesh
from demo.stage import compile_packages
from protocols.base.errors import MeshError

_MESHES: Final = {"with": True, "without": False}
"""By name, whether it has a policy."""


def main() -> int:
    """Run it. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.curation", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo-curation"), help="default: %(default)s")
    parser.add_argument("--short", action="store_true", help="begin a moment before they brake, and read less closely")
    options = parser.parse_args()
    compile_packages()
    folder = Path(tempfile.mkdtemp(prefix="meshnode-curation-"))
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {text}", flush=True)

    try:
        promises, figures = _run(folder, options.short, options.out, say)
    except MeshError as error:
        print(f"the demonstration could not be run: {error}\nlogs are under {folder}", file=sys.stderr)
        return 2
    is_kept = all(promise.outcome is Outcome.KEPT for promise in promises)
    plain = [{"name": each.name, "outcome": each.outcome, "seen": each.seen} for each in promises]
    summary = {"took_s": round(time.monotonic() - began_s, 1), "promises": plain, "meshes": figures}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
    _show(promises)
    print(f"\nsummary and pictures: {options.out}")
    if is_kept:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"A promise was broken. Logs are under {folder}", file=sys.stderr)
    return 0 if is_kept else 1


def _run(folder: Path, is_short: bool, out: Path, say: Callable[[str], None]) -> tuple[list[Promise], dict[str, Any]]:
    cars = vehicles(SHORT_S if is_short else LONG_S)
    meshes = {name: Mesh(f"{name} a policy", folder / name, cars, say) for name in _MESHES}
    out.mkdir(parents=True, exist_ok=True)
    for name, mesh in meshes.items():
        write_files(mesh.folder, cars, free_port(), _MESHES[name])
    both = ThreadPoolExecutor(len(meshes))
    try:
        for playing in as_completed([both.submit(mesh.play) for mesh in meshes.values()]):
            playing.result()
    except ActFailed as error:
        return [about_mesh("the story is told to its end", False, str(error))], {}
    finally:
        for mesh in meshes.values():
            mesh.close()
        both.shutdown()
        for mesh in meshes.values():
            mesh.close()  # what was being started just then
    say("what left either mesh is searched")
    reader, ended = PlateReader(QUICK if is_short else CLOSE), {}
    for name, mesh in meshes.items():
        left = mesh.left()
        search = searched(left, secrets_of(cars), reader.reads)
        ended[name] = told(mesh, left, search)
        for old in out.glob(f"{name}-*.png"):
            old.unlink()
        for number, picture in enumerate(search.pictures.values(), 1):
            picture.save(out / f"{name}-{number}.png")
    figures = {
        name: {each.name: getattr(one, each.name) for each in fields(one) if each.name != "search"}
        | {"pictures": len(one.search.pictures), "found": one.search.found}
        for name, one in ended.items()
    }
    return judged(ended["with"], ended["without"]), figures


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
