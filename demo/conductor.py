"""Starts, kills, restarts and stops the processes of the demonstration, and shows what happens."""

import queue
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from demo.machine import Machine, Watch, ended_children_s
from demo.processes import RELAY, Processes
from demo.stage import ALL, UNITS, Participant
from protocols.base.errors import MeshError

STOPPING = "tell everybody to stop"
READY_TIMEOUT_S = 120.0
"""The longest time from the start of a node to its ready line. A slower machine can't show the demonstration."""
MEET_TIMEOUT_S = 20.0
"""How long to wait for meetings: far longer than promised, so that a slow machine does not look like a mesh that never
met."""
SPLIT_TIMEOUT_S = 20.0
"""How long to wait at the end for answers that were computed in parts: a machine that makes the plan in time has long
had them."""
SPLIT_ANSWERS = 3
"""Answers that show how a model runs in parts: one for each picture."""
FAMILY_S = 1.0
"""How often all processes of the demonstration are listed, which takes some milliseconds."""


class Conductor:
    """Starts and ends every process; none outlives :meth:`close`."""

    def __init__(self, folder: Path, relay_port: int | None) -> None:
        self.folder, self.relay_port = folder, relay_port
        self.lines: queue.Queue[dict[str, Any]] = queue.Queue(10_000)
        self.news: deque[str] = deque(maxlen=9)
        self.figures: dict[str, dict[str, Any]] = {}
        self.timeline: list[dict[str, Any]] = []
        self.seen: list[dict[str, Any]] = []
        """Every line of every participant, except the figures."""
        self.exit_codes: dict[str, int] = {}
        self.processes = Processes(folder, self._take)
        self._family: list[psutil.Process] = []
        self._counted_s = 0.0
        """When the family was listed last."""
        self._starts: Counter[str] = Counter()
        self._ready: Counter[str] = Counter()
        self._begin_s = time.time()

    # --- processes -------------------------------------------------------------------------------------------------
    def start(self, participant: Participant) -> None:
        """Start a node."""
        home = self.folder / participant.name
        life = self._starts[participant.name]
        self._starts[participant.name] += 1
        self.figures.pop(participant.name, None)
        self.note(f"start {participant.name}")
        self.processes.start(
            participant.name,
            ["-m", "demo.participant", str(home / "node.toml"), str(home / f"report-{life}.json")],
            (home / f"log-{life}.txt").open("w"),
        )

    def start_relay(self) -> None:
        """Start or restart the relay."""
        self.note(f"start {RELAY}")
        self.processes.start_relay()

    def _take(self, name: str, line: dict[str, Any]) -> None:
        with suppress(queue.Full):
            self.lines.put_nowait({"node": name, **line})

    def kill(self, name: str) -> None:
        """Send SIGKILL, so that the process ends without a goodbye or a flush."""
        self.note(f"kill {name}")
        self.processes.kill(name)

    def stop(self, name: str) -> None:
        """Send SIGTERM. Call :meth:`wait` afterwards."""
        self.processes.terminate(name)

    def wait(self, name: str) -> None:
        """Wait for a stopped process and note its exit status; one that hangs is killed, which breaks a promise."""
        self.exit_codes[name] = self.processes.wait(name)
        self.note(f"stopped {name}")

    def processor_s(self) -> float:
        """The processor time used so far by this process, all that it started, and all that these have started: nodes
        compute and cut models in processes of their own. To be called from one thread."""
        if time.monotonic() - self._counted_s > FAMILY_S:
            self._counted_s = time.monotonic()
            self._family = psutil.Process().children(recursive=True)
        used_s = time.process_time() + ended_children_s()
        for process in self._family:
            with suppress(psutil.NoSuchProcess):  # it has just ended, and is counted with the ended ones next time
                times = process.cpu_times()
                used_s += times.user + times.system + times.children_user + times.children_system
        return used_s

    def ended_early(self) -> list[str]:
        """Processes that ended although nobody told them to."""
        return list(self.processes.ended())

    def check_running(self) -> None:
        """Check that all run. :raises MeshError: names processes that ended by themselves, and the end of what one of
        them logged."""
        early = self.ended_early()
        if early:
            logs = sorted((self.folder / early[0]).glob("log*.txt"))
            last = logs[-1].read_text().strip().splitlines()[-1:] if logs else []
            raise MeshError(f"{', '.join(early)} ended by itself: {' '.join(last) or 'it logged nothing'}")

    def close(self) -> None:
        """Kill all processes that still run."""
        self.processes.close()

    # --- what happens ----------------------------------------------------------------------------------------------
    def note(self, what: str) -> None:
        """Note something that the conductor did."""
        self.timeline.append({"at": time.time(), "what": what})
        self._tell(time.time(), what)

    def _tell(self, at_s: float, text: str) -> None:
        self.news.append(f"{at_s - self._begin_s:5.1f} s  {text}")

    def play(self, seconds: float, view: "View") -> None:
        """Let time pass, reading lines and drawing."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.read_lines(min(left_s, 0.25))
            view.draw(self)

    def read_lines(self, timeout_s: float) -> None:
        """Take in the lines that participants printed."""
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                line = self.lines.get(timeout=left_s)
            except queue.Empty:
                return
            if line["kind"] == "figures":
                self.figures[line["node"]] = line
                continue
            self.seen.append(line)
            self._ready[line["node"]] += line["kind"] == "ready"
            match line["kind"]:
                case "dead" | "suspect" | "left":
                    self._tell(line["at"], f"{line['node']}: {line['about']} is {line['kind']}")
                case "hazard":
                    self._tell(
                        line["at"], f"{line['node']}: {line['origin']} brakes hard, known after {line['age_us']} us"
                    )
                case "plan":
                    chain = " > ".join(f"{node} {share:.0%}" for node, share in line["stages"])
                    self._tell(line["at"], f"{line['node']}: model {line['model']} runs in parts: {chain}")
                case "inference" if line["failure"]:
                    self._tell(line["at"], f"{line['node']}: no answer: {line['failure']} {line['attempts']}")
                case _:
                    pass

    def wait_until_ready(self, view: "View") -> None:
        """Wait until every node that was started has said that it is ready.

        :raises MeshError: when one does not within ``READY_TIMEOUT_S``, or a process ended by itself.
        """
        end_s = time.monotonic() + READY_TIMEOUT_S
        while late := [name for name, starts in self._starts.items() if self._ready[name] < starts]:
            self.check_running()
            if time.monotonic() > end_s:
                raise MeshError(f"{', '.join(late)} did not become ready within {READY_TIMEOUT_S:g} s")
            self.play(0.1, view)

    def wait_until_met(self, names: list[str], view: "View") -> bool:
        """Wait until each of ``names`` sees all the others alive. False: that took longer than ``MEET_TIMEOUT_S``."""
        end_s = time.monotonic() + MEET_TIMEOUT_S
        while time.monotonic() < end_s:
            self.play(0.25, view)
            if all(set(names) - {name} <= set(self.figures.get(name, {}).get("alive", ())) for name in names):
                return True
            if self.ended_early():
                return False
        return False

    def wait_until_split(self, view: "View") -> None:
        """Wait for some answers that were computed in parts, for at most ``SPLIT_TIMEOUT_S``."""
        end_s = time.monotonic() + SPLIT_TIMEOUT_S
        while time.monotonic() < end_s and not self.ended_early():
            if sum(line["kind"] == "split" for line in self.seen) >= SPLIT_ANSWERS:
                return
            self.play(0.25, view)


class View:
    """The live table on a terminal, or a line now and then on anything else."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._live: Any = None
        self._last_s = 0.0
        self._told = 0

    @contextmanager
    def shown(self) -> Iterator["View"]:
        """A context in which the view is drawn."""
        if not sys.stdout.isatty():
            yield self
            return
        from rich.live import Live

        with Live(refresh_per_second=4, transient=True) as self._live:
            yield self
        self._live = None

    def draw(self, conductor: Conductor) -> None:
        """Show the newest figures."""
        if self._live is not None:
            self._live.update(self._table(conductor))
        elif time.monotonic() - self._last_s > 5.0:
            self._last_s = time.monotonic()
            readings = sum(line["readings"] for line in conductor.figures.values())
            alive = {name: len(line["alive"]) for name, line in sorted(conductor.figures.items())}
            news = conductor.news[-1] if conductor.news else ""
            print(f"neighbours {alive}, {readings} readings received; last: {news}", flush=True)

    def _table(self, conductor: Conductor) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._title)
        for column in (
            "node",
            "neighbours",
            "readings in",
            "p50",
            "hazards",
            "inferences",
            "drops",
            "records",
            "relay",
        ):
            table.add_column(column, justify="left" if column in ("node", "neighbours", "relay") else "right")
        for participant in ALL:
            line = conductor.figures.get(participant.name)
            if line is None:
                table.add_row(participant.name, "…")
                continue
            p50 = line["latency_p50_us"]
            table.add_row(
                participant.name + (" (slow)" if participant.slow else ""),
                " ".join(line["alive"]),
                str(line["readings"]),
                "" if p50 is None else f"{p50} us",
                str(line["hazards"]),
                str(line["inferences"]),
                str(line["drops"]),
                f"{line['records']} ({line['pending']} wait)",
                line["relay"][:24],
            )
        return Group(table, Text("\n".join(conductor.news)))


def play_all(folder: Path, relay_port: int | None, view: View) -> tuple[Conductor, bool, Machine]:
    """Play the whole demonstration. Returns the closed conductor, whether all nodes met at the start, and the record of
    the machine.

    :raises MeshError: when a process ended by itself or did not become ready.
    """
    conductor = Conductor(folder, relay_port)
    everybody = [participant.name for participant in ALL]
    watch = Watch(conductor.processor_s)
    try:
        with watch, view.shown():
            if relay_port is not None:
                conductor.start_relay()
            for participant in ALL:
                conductor.start(participant)
            conductor.wait_until_ready(view)
            met = conductor.wait_until_met(everybody, view)
            conductor.check_running()
            conductor.play(9.0, view)
            if relay_port is not None:
                conductor.kill(RELAY)
                conductor.play(5.0, view)
                conductor.start_relay()
            conductor.play(4.0, view)
            conductor.kill("rsu-2")
            conductor.play(7.0, view)
            conductor.start(UNITS[1])
            conductor.wait_until_ready(view)
            conductor.wait_until_met(everybody, view)
            conductor.play(4.0, view)
            conductor.wait_until_split(view)
            conductor.check_running()
            conductor.note(STOPPING)
            for name in everybody:
                conductor.stop(name)
            for name in everybody:
                conductor.wait(name)
            if relay_port is not None:
                conductor.stop(RELAY)
                conductor.wait(RELAY)
            conductor.read_lines(0.2)
    finally:
        conductor.close()
    return conductor, met, watch.machine()
