"""``python -m benchmarks.shards``: what it is worth to divide a batch among nodes.

- ``pinned``: two nodes on loopback with mutual TLS, each with its worker process on one core of its own, divide a batch
  of frames for the plate detector, in turn with two processes of ONNX Runtime alone that are pinned alike and have half
  of the frames each. Frames are JPEG, which the model's process decodes, or tensors that were prepared beforehand, of
  1.2 MB each. Bar, for JPEG: at least 0.92 of the frames a second that ONNX Runtime computes alone, and the same bits.
- ``wired``: four computers (:mod:`benchmarks.lan`), each at a wire of 100 Mb/s, divide a batch of JPEG frames; in turn,
  one of them computes it alone. The models are *timed*: a run takes a given time without using the processor, so that
  two cores can stand for four computers. Bar: at least 3.5 times as many frames a second. It needs Linux, root and the
  program ``tc``, and is left out without them.

It prints the figures and writes ``build/shards.json``.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import command
from benchmarks.children import ChildFailed
from benchmarks.command import between, finish, measuring
from benchmarks.lan import Lan, why_not
from benchmarks.lines import LineProcess
from benchmarks.shard_node import Done, Order, Ready, Setting
from meshnode.identity import create_mesh, issue
from meshnode.models import plate

ROOT: Final = Path(__file__).resolve().parents[1]
SIDE: Final = 320
DISTINCT_FRAMES: Final = 16
PINNED_BAR, WIRED_BAR = 0.92, 3.5
WIRED_NODES: Final = 4
WIRE_MBIT_PER_S: Final = 100
_SETTLE_S: Final = 1.0


class Units:
    """Starts units, and ends all of them with the block."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, setting: Setting, starter: Any = subprocess.Popen) -> LineProcess:
        """One more. ``starter``: ``Popen``, or the ``start`` of a computer of a :class:`~benchmarks.lan.Lan`."""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        if starter is not subprocess.Popen:
            del pipes["text"]
        unit = LineProcess(starter([sys.executable, "-m", "benchmarks.shard_node"], **pipes), setting)
        self._stack.callback(unit.end)
        return unit


def make_frames(folder: Path) -> None:
    """Pictures of about 30 kB, as a camera with this resolution sends them."""
    from PIL import Image

    (folder / "frames").mkdir()
    random = np.random.default_rng(7)
    for number in range(DISTINCT_FRAMES):
        coarse = Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)).resize((SIDE, SIDE))
        noise = random.normal(0, 9, (SIDE, SIDE, 3))
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        (folder / "frames" / f"{number:03}.jpg").write_bytes(file.getvalue())


def prepare(folder: Path, names: Sequence[str]) -> None:
    """Certificates, the model with its manifest, and frames."""
    create_mesh(folder / "authority", "bench-shards")
    for name in names:
        issue(folder / "authority", "rsu", name, folder / name)
    shutil.copyfile(plate.find_detector(), folder / "plate.onnx")
    (folder / "plate.toml").write_text(plate.manifest(SIDE))
    make_frames(folder)


# --- two nodes on a core each ----------------------------------------------------------------------------------------
def pinned(folder: Path, frames: int, rounds: int, encoded: bool) -> dict[str, Any]:
    """Frames a second of two nodes and of two bare processes, in turn."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise ChildFailed("two cores are needed, and this process may use one")
    with ExitStack() as stack:
        units = Units(stack)
        bare = [units.start(Setting(kind="bare", folder=str(folder), core=core, encoded=encoded)) for core in cores]
        for unit in bare:
            unit.answer(Ready)
        other = units.start(Setting(kind="node", folder=str(folder), name="n1", core=cores[1], encoded=encoded))
        seeds = (("127.0.0.1", other.answer(Ready).port),)
        node = units.start(Setting(
            kind="node", folder=str(folder), name="n0", core=cores[0], encoded=encoded, seeds=seeds, neighbours=1
        ))  # fmt: skip
        node.answer(Ready)
        right = _one(bare[0], DISTINCT_FRAMES).digest
        wrong = int(_one(node, DISTINCT_FRAMES).digest != right)  # it warms up, too
        figures: dict[str, Any] = {"frames": frames, "bare": [], "mesh": [], "ran": [], "stolen": 0}
        for number in range(rounds):
            for what in ("bare", "mesh") if number % 2 else ("mesh", "bare"):
                if what == "bare":
                    for unit in bare:
                        unit.tell(Order(frames // 2))
                    figures["bare"].append(sum(frames // 2 / unit.answer(Done).seconds for unit in bare))
                else:
                    done = _one(node, frames)
                    figures["mesh"].append(frames / done.seconds)
                    figures["ran"].append(done.ran)
                    figures["stolen"] += done.stolen
        return {**figures, "wrong": wrong, "ratio": _ratio(figures["mesh"], figures["bare"])}


def _one(unit: LineProcess, frames: int, alone: bool = False) -> Done:
    unit.tell(Order(frames, alone))
    return unit.answer(Done)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of neighbouring runs."""
    return round(statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)), 3)


# --- four computers at a wire each -----------------------------------------------------------------------------------
@contextlib.contextmanager
def _wires(count: int) -> Iterator[list[Any]]:
    with Lan() as lan:
        computers = []
        for number in range(count):
            computer = lan.computer(f"n{number}")
            computer.plug("eth0", f"10.60.0.{number + 1}/24")
            computer.slow("eth0", WIRE_MBIT_PER_S)
            computers.append(computer)
        yield computers


def wired(folder: Path, frames: int, rounds: int, timed_ms: float) -> dict[str, Any]:
    """Frames a second of four nodes, and of one alone, in turn."""
    with ExitStack() as stack:
        computers, units = stack.enter_context(_wires(WIRED_NODES)), Units(stack)
        seeds: list[tuple[str, int]] = []
        node: LineProcess | None = None
        for number in reversed(range(WIRED_NODES)):
            host = f"10.60.0.{number + 1}"
            setting = Setting(
                kind="node", folder=str(folder), name=f"n{number}", host=host, timed_ms=timed_ms,
                seeds=tuple(seeds) if number == 0 else (), neighbours=len(seeds) if number == 0 else 0,
            )  # fmt: skip
            node = units.start(setting, computers[number].start)
            seeds.append((host, node.answer(Ready).port))
        assert node is not None
        _one(node, frames)
        figures: dict[str, Any] = {"frames": frames, "timed_ms": timed_ms, "one": [], "four": [], "ran": []}
        digests = set()
        for number in range(rounds):
            for what in ("one", "four") if number % 2 else ("four", "one"):
                done = _one(node, frames, alone=what == "one")
                figures[what].append(frames / done.seconds)
                digests.add(done.digest)
                if what == "four":
                    figures["ran"].append(done.ran)
        return {**figures, "wrong": len(digests) - 1, "ratio": _ratio(figures["four"], figures["one"])}


def missed_bars(figures: dict[str, Any]) -> list[str]:
    """The promises that were not kept, one sentence each."""
    bars = {"pinned, JPEG": PINNED_BAR, "wired": WIRED_BAR}
    missed = [
        f"{name}: {figures[name]['ratio']} times, less than {bar}"
        for name, bar in bars.items() if name in figures and figures[name]["ratio"] < bar
    ]  # fmt: skip
    return missed + [f"{name}: {each['wrong']} results differ" for name, each in figures.items() if each["wrong"]]


def main() -> int:
    """Run the command line."""
    parser = command.parser(
        "shards", __doc__, f"two pinned nodes have less than {PINNED_BAR} of the throughput of bare ONNX Runtime, four "
        f"wired ones less than {WIRED_BAR} times that of one, or a result is wrong"
    )  # fmt: skip
    parser.add_argument("--frames", type=between(8, 1_024), default=200, help="of a batch; default: %(default)s")
    parser.add_argument("--rounds", type=between(1, 1_000), default=5, help="default: %(default)s")
    parser.add_argument("--timed-ms", type=between(1.0, 10_000.0), default=60.0, help="default: %(default)s")
    parser.add_argument("--only", choices=("pinned", "wired"), help="measure only this")
    options: argparse.Namespace = parser.parse_args()
    figures: dict[str, Any] = {}
    with measuring("shards") as folder:
        prepare(folder, [f"n{number}" for number in range(WIRED_NODES)])
        if options.only != "wired":
            for encoded, name in ((True, "pinned, JPEG"), (False, "pinned, tensors")):
                figures[name] = pinned(folder, options.frames, options.rounds, encoded)
        if options.only != "pinned":
            if (why := why_not()) is not None or (why := _lacks_tc()) is not None:
                print(f"wired is left out: {why}", file=sys.stderr)
            else:
                figures["wired"] = wired(folder, options.frames, options.rounds, options.timed_ms)
    for name, each in figures.items():
        ours, theirs = ("four", "one") if name == "wired" else ("mesh", "bare")
        rates = "  ".join(f"{what} {statistics.median(each[what]):.1f}" for what in (ours, theirs))
        print(f"{name:16} {rates} frames/s, ratio {each['ratio']:.3f}, last: {each['ran'][-1]}")
    return finish(options, figures, missed_bars(figures))


def _lacks_tc() -> str | None:
    return None if shutil.which("tc") else "slow wires need the program tc"


if __name__ == "__main__":
    sys.exit(main())
