"""What happens in one mesh of the demonstration, what its relay got, and what has to be true in the end."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from demo.curation.search import HOME, PLATE, READ, STORE, VIN, Left, Search, left_at
from demo.curation.stage import SENT, SIGNS, UNIT, Vehicle, write_trace
from demo.processes import RELAY, Processes
from demo.promises import Promise, about_mesh

ACT_S: Final = 180.0
"""How long an act may take. It takes seconds; a machine that needs longer can't show it."""
MOST_SHARE: Final = 0.02
"""Of the bytes that the sensors made, that may leave for the relay."""


class ActFailed(Exception):
    """Something that an act waits for does not come; says what."""


class Mesh:
    """The processes of one mesh, and what they have told; none outlives :meth:`close`."""

    def __init__(self, name: str, folder: Path, cars: list[Vehicle], say: Callable[[str], None]) -> None:
        self.name, self.folder, self.cars = name, folder, cars
        self.heard: dict[tuple[str, str], list[Any]] = {}
        """By node and kind: the alerts and signs that came."""
        self.figures: dict[str, dict[str, Any]] = {}
        self.ready: set[str] = set()
        self.processes = Processes(folder, self._take)
        self._say, self._lock = say, threading.Lock()
        self._is_closed = False

    def play(self) -> None:
        """Drive the way, and end when all is at the relay. :raises ActFailed: it does not get there."""
        names = [UNIT, *(car.name for car in self.cars)]
        self.processes.start_relay()
        self._start(UNIT, [])
        for car in self.cars:
            self._start(car.name, [json.dumps({"vin": car.vin, "home": car.home})])
        self.until("all nodes are ready", lambda: self.ready == set(names))
        self.until("everybody has met", lambda: all(self._of(name, "peers") == len(names) - 1 for name in names))
        self.until("all cameras see", lambda: all(self._of(car.name, "looked") for car in self.cars))
        self._say(f"{self.name}: {len(names)} nodes have met, and the vehicles drive off from their homes")
        for car in self.cars:
            write_trace(self.folder / car.name, car)
        self.until("the alert is heard and the sign is on", lambda: all(
            self.heard.get((car.name, kind)) for car in self.cars for kind in ("alert", "sign")
        ))  # fmt: skip
        self._say(f"{self.name}: three vehicles have braked hard near one another; everybody is warned, the sign is on")
        self.until("the way is driven", lambda: all(self._of(car.name, "fixes") == len(car.way) for car in self.cars))
        self.until("the record of the hotspot is at the relay", lambda: bool(self.hotspots()))
        self.until("nothing waits for the relay", lambda: not any(self._of(name, "pending") for name in names))
        for name in names:
            self.processes.terminate(name)
        for name in names:
            self.processes.wait(name)
        self.processes.terminate(RELAY)
        self.processes.wait(RELAY)
        self._say(f"{self.name}: all is at the relay")

    def _start(self, name: str, more: list[str]) -> None:
        home = self.folder / name
        arguments = ["-m", "demo.curation.player", str(home / "node.toml"), *more]
        self.processes.start(name, arguments, (home / "log.txt").open("a"))

    def _take(self, name: str, line: dict[str, Any]) -> None:
        with self._lock:
            match line["kind"]:
                case "ready":
                    self.ready.add(name)
                case "figures":
                    self.figures[name] = line
                case "alert" | "sign":
                    self.heard.setdefault((name, line["kind"]), []).append(line["value"])

    def _of(self, name: str, figure: str) -> int:
        return int(self.figures.get(name, {}).get(figure, 0))

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until something holds. :raises ActFailed: it does not, a process ended, or it was closed."""
        ends_s = time.monotonic() + ACT_S
        while not holds():
            for name, status in self.processes.ended().items():
                raise ActFailed(f"{self.name}: {name} has ended (status {status}) before {what}")
            if time.monotonic() > ends_s:
                raise ActFailed(f"{self.name}: {what}: not within {ACT_S:g} s; the figures: {self.figures}")
            if self._is_closed:
                raise ActFailed(f"{self.name}: it was closed before {what}")
            time.sleep(0.05)

    def close(self) -> None:
        """End all processes, and :meth:`play` on another thread. It may be called twice."""
        self._is_closed = True
        self.processes.close()

    @property
    def _state(self) -> Path:
        return self.folder / RELAY / "state"

    # --- what came of it -------------------------------------------------------------------------------------------
    def hotspots(self) -> list[dict[str, Any]]:
        """The values of the hotspots at the relay."""
        store = self._state / STORE
        if not store.exists():
            return []
        with closing(sqlite3.connect(store)) as database:
            if not database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'records'").fetchone():
                return []
            rows = database.execute("SELECT value FROM records WHERE rule = 'hotspot'").fetchall()
        return [json.loads(value) for (value,) in rows]

    def left(self) -> Left:
        """Everything that left it."""
        names = [UNIT, *(car.name for car in self.cars)]
        return left_at(self._state, [self.folder / name / SENT for name in names])

    def raw_bytes(self) -> int:
        """What the sensors made."""
        return sum(self._of(car.name, "raw_bytes") for car in self.cars)

    def signs(self) -> int:
        """How often the function has switched the sign on."""
        path = self.folder / UNIT / SIGNS
        return len(path.read_text().splitlines()) if path.exists() else 0


@dataclass(frozen=True)
class Told:
    """What became of one mesh."""

    braked_mps2: list[list[float]]
    """By hotspot at the relay: how hard each of its vehicles braked."""
    raw_bytes: int
    sent_bytes: int
    records: int
    alerts: dict[str, int]
    """By vehicle: how many came."""
    signs: int
    blind: int
    """Pictures in which the detector found no plate."""
    search: Search


def told(mesh: Mesh, left: Left, search: Search) -> Told:
    """What became of a mesh that has been played and searched."""
    braked = [[each["deceleration_mps2"] for each in one["vehicles"]] for one in mesh.hotspots()]
    return Told(
        braked, mesh.raw_bytes(), sum(map(len, left.frames.values())), len(left.readings),
        {car.name: len(mesh.heard.get((car.name, "alert"), ())) for car in mesh.cars}, mesh.signs(),
        sum(int(mesh.figures[car.name]["blind"]) for car in mesh.cars), search,
    )  # fmt: skip


def judged(kept: Told, whole: Told) -> list[Promise]:
    """The promises. ``kept``: of the mesh with a policy; ``whole``: of the one without."""
    braked = kept.braked_mps2
    share = kept.sent_bytes / kept.raw_bytes if kept.raw_bytes else 1.0
    return [
        about_mesh(
            "three vehicles that brake hard near one another are one hotspot at the relay",
            len(braked) == 1 and len(braked[0]) == 3 and min(braked[0]) > 3.0,
            f"{len(braked)}; they braked at {', '.join(f'{each:g}' for one in braked for each in one)} m/s²",
        ),
        about_mesh(
            "every vehicle hears the alert, once",
            set(kept.alerts.values()) == {1},
            ", ".join(f"{name}: {count}" for name, count in kept.alerts.items()),
        ),
        about_mesh("the sign at the roadside is switched on, once", kept.signs == 1, f"{kept.signs} times"),
        about_mesh(
            f"less than {MOST_SHARE:.0%} of the bytes leave",
            share < MOST_SHARE,
            f"{kept.sent_bytes:,} of {kept.raw_bytes:,} bytes in {kept.records} records: {share:.2%}",
        ),
        about_mesh(
            "pictures leave",
            len(kept.search.pictures) == len(whole.search.pictures) == 3,
            f"{len(kept.search.pictures)}, and {len(whole.search.pictures)} without the policy",
        ),
        *(
            about_mesh(
                f"the {kind} is nowhere in what left, and the same search finds it without the policy",
                not kept.search.found[kind] and bool(whole.search.found[kind]),
                f"{shown(kept.search.found[kind])}; without the policy {shown(whole.search.found[kind])}",
            )
            for kind in (PLATE, READ, VIN, HOME)
        ),
    ]


def shown(places: list[str]) -> str:
    """The places where something was found, for people."""
    if not places:
        return "nowhere"
    more = f" and {len(places) - 3} more places" if len(places) > 3 else ""
    return "in " + ", ".join(places[:3]) + more
