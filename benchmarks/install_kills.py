"""``python -m benchmarks.install_kills``: kills at random moments of an install, and a fault at each of its steps.

Kills: a process with the models of a node installs one release after the other: chunks, files, golden run, swap,
journal. It is killed (``SIGKILL``) at a random moment. The next process has to serve at once what served last, or
what was about to serve: so says the journal, and the model has the digest of that release. Then it goes on installing.

Faults: an install is made once for each write, sync, rename and link that it consists of, and exactly that one fails,
because the disk is full or broken, or because the power goes, with what was not synced lost in either of two ways
(:mod:`benchmarks.failing_disk`). What served has to go on, and after a restart a release serves whose digest is right;
with room again, the install succeeds.
"""

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, get_args

from benchmarks import command
from benchmarks.children import ChildFailed
from benchmarks.failing_disk import LOSSES_OF_POWER, FailingDisk, Fault, PowerLost
from benchmarks.released import NAME, PATH, Published, Site, adder, release, site
from meshnode.inference.compute import ComputeService
from protocols.base.errors import MeshError

SIZE_BYTES: Final = 2_000_000
"""Of a model: 123 chunks, so that most of an install is not one moment."""
COUNTERS: Final = 5
"""Releases that are installed in turn; an older one is dropped."""
_START_S: Final = 60.0
"""How long a process may take to serve, and to end once it was killed."""
_STEPS: Final = frozenset({"allocate", "write", "write_at", "append", "sync", "sync_folder", "rename", "link"})
"""The kinds of steps of every install. What is written past the disk of the benchmark would never fail in it."""
_ROOT: Final = Path(__file__).parents[1]


@dataclass(slots=True)
class Kills:
    """What the processes found that came after a kill."""

    kills: int = 0
    by_moment: Counter[str] = field(default_factory=Counter)
    """What the process was doing when it was killed."""
    wrong: list[str] = field(default_factory=list)
    back_ms: list[float] = field(default_factory=list)
    """From the start of the process to a model that answers, without the start of the interpreter."""


@dataclass(slots=True)
class Faults:
    """What became of installs with one fault each."""

    steps: list[str] = field(default_factory=list)
    """Of one install without a fault, in order."""
    tried: Counter[str] = field(default_factory=Counter)
    """By step and fault."""
    wrong: list[str] = field(default_factory=list)


# --- the process that is killed --------------------------------------------------------------------------------------
def install_for_ever(folder: Path, factory: Path) -> None:
    """Say what serves, then install. It ends when it is killed, or its standard input is closed."""
    began_s = time.monotonic()
    here = Site(folder, factory)
    fell_back = here.start()
    state = here.installer.journal.of(PATH)
    expected = state.release(state.current)
    model = here.compute.models[NAME]
    _say(
        "serves", amount=here.answer(), journal=state.current, fell_back=fell_back,
        digest_is_right=not state.current or (expected is not None and expected.digest == model.digest),
        took_ms=round((time.monotonic() - began_s) * 1e3, 1),
    )  # fmt: skip
    counter = state.current
    while True:
        counter = counter % COUNTERS + 1
        published = release(counter, padding_bytes=SIZE_BYTES + counter)
        _say("fetching")
        published.put_into(here.store)
        _say("staging")
        here.installer.stage(published.description)
        _say("serving", counter=counter)
        here.installer.serve(PATH, counter)
        assert here.answer() == counter
        _say("dropping", counter=counter)
        current = here.installer.journal.of(PATH)
        for old in [each.counter for each in current.installed if each.counter not in (counter, *current.previous)]:
            here.installer.drop(PATH, old)
            here.store.forget(list(release(old, padding_bytes=SIZE_BYTES + old).chunks))


def _say(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, **more}), flush=True)


class _Victim:
    """One such process. A thread reads what it says, so that no line waits in a buffer when it is killed."""

    def __init__(self, folder: Path, factory: Path, log: Path) -> None:
        command_line = [sys.executable, "-m", "benchmarks.install_kills", "--install", str(folder), str(factory)]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command_line, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # the last one may be cut off
                    self._said.put(json.loads(line))
        self._said.put(None)

    def serves(self) -> dict[str, Any]:
        """What it says first. If that does not come within a minute, or the process has ended instead: what it
        logged."""
        with suppress(queue.Empty):
            said = self._said.get(timeout=_START_S)
            if said is not None:
                return said
            self._said.put(None)
        return {"what": "nothing", "status": self._process.poll(), "log": self._log.read_text()[-500:]}

    def kill_after(self, delay_s: float) -> list[dict[str, Any]]:
        """Kill it, and return what it has said meanwhile. :raises ChildFailed: it had ended by itself."""
        time.sleep(delay_s)
        self._process.kill()
        status = self._process.wait()
        said = []
        with suppress(queue.Empty):
            while (line := self._said.get(timeout=_START_S)) is not None:
                said.append(line)
        if status != -signal.SIGKILL:
            raise ChildFailed(f"it ended by itself (exit status {status}): {self._log.read_text()[-500:]}")
        return said


def kill(folder: Path, kills: int, seed: int, longest_s: float) -> Kills:
    """Kill such a process again and again. ``longest_s``: about as long as two installs take."""
    random, figures = Random(seed), Kills()
    factory = folder / "factory.onnx"
    factory.write_bytes(adder(0.5))
    possible: Collection[int] = {0}
    for number in range(kills + 1):
        victim = _Victim(folder / "releases", factory, folder / "log.txt")
        said = victim.serves()
        if said["what"] == "serves":
            figures.back_ms.append(said["took_ms"])
        if why := not_recovered(said, possible):
            figures.wrong.append(f"after kill {number}: {why}")
        try:
            lines = victim.kill_after(random.uniform(0, longest_s))
        except ChildFailed as error:
            figures.wrong.append(f"after kill {number}: {error}")
            break
        possible = journals_after(said, lines) if said["what"] == "serves" else possible
        if number < kills:
            figures.kills += 1
            figures.by_moment[str(lines[-1]["what"]) if lines else "starting"] += 1
    return figures


def not_recovered(said: Mapping[str, Any], possible: Collection[int]) -> str:
    """What is wrong with what a process said first, if the journal could say one of ``possible``; empty: nothing."""
    if said["what"] != "serves":
        return f"it does not serve: {said}"
    if said["journal"] not in possible:
        return f"the journal says {said['journal']}, and not {' or '.join(map(str, sorted(possible)))}"
    if said["fell_back"]:
        return f"a release could not be served: {said['fell_back']}"
    if not said["digest_is_right"] or said["amount"] != (said["journal"] or 0.5):
        return f"it serves something else than the journal says: {said}"
    return ""


def journals_after(first: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> set[int]:
    """What the journal may say once a process that said all that was killed: the release that served last, and the one
    that was about to serve."""
    possible = {int(first["journal"])}
    for line in lines:
        if line["what"] == "serving":
            possible.add(line["counter"])
        elif line["what"] == "dropping":
            possible = {line["counter"]}
    return possible


# --- one fault at each step ------------------------------------------------------------------------------------------
def fail_everywhere(folder: Path, faults: Sequence[Fault] = get_args(Fault)) -> Faults:
    """Make an install with each single fault."""
    figures = Faults()
    second = release(2, padding_bytes=20_000)
    with site(folder / "first") as here:
        here.install(release(1, padding_bytes=20_000))
        shutil.copytree(folder / "first", folder / "count")
        disk = FailingDisk()
        counting = Site(folder / "count", disk=disk, compute=here.compute)
        counting.start()
        before = len(disk.steps)
        counting.install(second)
        figures.steps = disk.steps[before:]
        for fault in faults:
            for number, step in enumerate(figures.steps, 1):
                place = folder / f"{fault}-{number}"
                shutil.copytree(folder / "first", place)
                figures.tried[f"{step.split()[0]} {fault}"] += 1
                wrong = _fail_once(place, here.compute, number, fault, second)
                if wrong:
                    figures.wrong.append(f"{fault} at {number}, {step}: {wrong}")
                shutil.rmtree(place)
    return figures


def _fail_once(folder: Path, compute: ComputeService, number: int, fault: Fault, second: Published) -> str:
    disk = FailingDisk(0, fault)
    here = _restarted(folder, compute, disk)
    disk.fails_at = len(disk.steps) + number
    failed = False
    with suppress(PowerLost, MeshError):
        failed = True
        here.install(second)
        failed = False
    if here.answer() != (1 if failed else 2):
        return f"the install has {'failed' if failed else 'succeeded'}, and {here.answer()} serves"
    if fault not in LOSSES_OF_POWER:
        if here.answer() != here.installer.journal.of(PATH).current:
            return f"{here.answer()} serves, and the journal says {here.installer.journal.of(PATH).current}"
        if why := _not_installed(here, second):
            return f"it did not succeed once the fault was gone: {why}"
    again = _restarted(folder, compute)
    state = again.installer.journal.of(PATH)
    release_ = state.release(state.current)
    if release_ is None or again.answer() != state.current or compute.models[NAME].digest != release_.digest:
        return f"after a restart {again.answer()} serves, and the journal says {state}"
    if why := _not_installed(again, second):
        return f"it did not succeed after a restart: {why}"
    return ""


def _not_installed(here: Site, second: Published) -> str:
    """Install the second release. Returns why that is not what serves then; empty: it is."""
    try:
        here.install(second)
    except MeshError as error:
        return str(error)
    return "" if here.answer() == 2 else f"{here.answer()} serves"


def _restarted(folder: Path, compute: ComputeService, disk: FailingDisk | None = None) -> Site:
    """The same folder in a new life, in which nothing was loaded so far."""
    compute.stop_version(NAME, 0)
    here = Site(folder, disk=disk, compute=compute)
    here.start()
    return here


# --- the command -----------------------------------------------------------------------------------------------------
def missed_promises(kills: Kills | None, faults: Faults | None) -> list[str]:
    """What was promised and did not hold."""
    missed = []
    if kills is not None:
        missed += kills.wrong[:10]
        if kills.kills >= 20 and len(set(kills.by_moment) & {"fetching", "staging", "serving"}) < 3:
            missed.append(f"the kills did not fall into all parts of an install: {dict(kills.by_moment)}")
    if faults is not None:
        missed += faults.wrong[:10]
        untried = _STEPS - {step.split()[0] for step in faults.steps}
        if untried:
            missed.append(
                f"an install has no step of the kind {', '.join(sorted(untried))}: it is written past the disk"
            )
    return missed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("install_kills", __doc__, "no model served, or one with another digest")
    parser.add_argument("--kills", type=command.between(0, 10_000), default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--longest", type=command.between(0.1, 60.0), default=2.0, help="seconds until a kill, at most")
    parser.add_argument("--without-faults", action="store_true", help="only kill")
    parser.add_argument("--install", nargs=2, type=Path, metavar=("FOLDER", "FACTORY"), help=argparse.SUPPRESS)
    options: argparse.Namespace = parser.parse_args(arguments)
    if not options.kills and options.without_faults:
        parser.error("--kills 0 and --without-faults leave nothing to do")
    if options.install is not None:
        install_for_ever(*options.install)
    with command.measuring("kills of installs") as folder:
        kills = kill(folder, options.kills, options.seed, options.longest) if options.kills else None
        faults = None if options.without_faults else fail_everywhere(folder)
    content: dict[str, Any] = {}
    if kills is not None:
        back = sorted(kills.back_ms)
        print(f"{kills.kills} kills, {len(kills.wrong)} of which left something wrong; {dict(kills.by_moment)}")
        print(f"a model served after {back[len(back) // 2]:.0f} ms in the median, {back[-1]:.0f} ms at most")
        content["kills"] = {
            "kills": kills.kills, "by_moment": dict(kills.by_moment), "wrong": kills.wrong, "back_ms": kills.back_ms
        }  # fmt: skip
    if faults is not None:
        print(f"{sum(faults.tried.values())} faults, {len(faults.wrong)} of which left something wrong")
        content["faults"] = {"tried": dict(faults.tried), "wrong": faults.wrong}
    return command.finish(options, content, missed_promises(kills, faults))


if __name__ == "__main__":
    sys.exit(main())
