"""A made-up run of the demonstration, in which nothing went wrong: tests damage it."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from demo import batch, private, traffic
from demo.conductor import STOPPING, Conductor
from demo.machine import Machine, Moment
from demo.stage import ALL, UNITS, VEHICLES
from demo.together import PRIVATE, WITH_TILES
from demo.verdict import Verdict

NAMES = [participant.name for participant in ALL]
SLOW = [participant.name for participant in VEHICLES if participant.slow]


class Piece:
    """Everything a verdict reads, of a run in which nothing went wrong; tests damage it."""

    def __init__(self, folder: Path, relay: bool) -> None:
        self.folder, self.relay, self.met = folder, relay, True
        self.timeline = [{"at": 100.0 + n / 10, "what": f"start {name}"} for n, name in enumerate(NAMES)]
        self.timeline += [{"at": 120.0, "what": "kill rsu-2"}, {"at": 127.0, "what": "start rsu-2"}]
        self.timeline += [{"at": 135.0, "what": STOPPING}]
        self.seen = [{"kind": "ready", "node": name, "at": 101.0 + n / 10} for n, name in enumerate(NAMES)]
        self.seen += [{"kind": "ready", "node": "rsu-2", "at": 128.0}]
        self.seen += [
            {"kind": "met", "node": a, "about": b, "at": 102.0, "took_ms": 9.0} for a in NAMES for b in NAMES if a != b
        ]
        living = [name for name in NAMES if name != "rsu-2"]
        self.seen += [{"kind": "dead", "node": name, "about": "rsu-2", "at": 121.0} for name in living]
        self.seen += [{"kind": "met", "node": name, "about": "rsu-2", "at": 128.5, "took_ms": 9.0} for name in living]
        self.seen += [{"kind": "met", "node": "rsu-2", "about": name, "at": 128.5, "took_ms": 9.0} for name in living]
        self.machine = idle_machine()
        self.exit_codes: dict[str, int] = dict.fromkeys(NAMES, 0)
        waiting = 0 if relay else 5
        ledger = {"issued": 5, "pending": waiting, "delivered": 5 - waiting, "expired": 0, "evicted": 0, "refused": 0}
        self.reports: dict[str, dict[str, Any]] = {
            name: {
                "latencies_us": [200.0, 300.0],
                "first_heard": {origin: 102.5 for origin in ("veh-1", "veh-2") if origin != name},
                "hazards": [
                    {"origin": origin, "sequence": sequence}
                    for origin in ("veh-1", "veh-2") for sequence in (7, 8, 9) if origin != name
                ],
                "told": [
                    {"at": 110.0 + sequence, "sequence": sequence}
                    for sequence in (7, 8, 9) if name in ("veh-1", "veh-2")
                ],
                "plates": [], "inferences": [], "drops": [], "private": private.empty_notes(),
                "batch": batch.empty_notes(),
                "statistics": {f"outbox_{key}": value for key, value in ledger.items()},
            }
            for name in NAMES
        }  # fmt: skip
        parts = [{"node": PRIVATE, "took_ms": 30.0}, {"node": UNITS[0].name, "took_ms": 20.0}]
        self.reports[PRIVATE]["private"] = {
            "alone": [{"frame": frame, "took_ms": 500.0, "answer": f"answer {frame}"} for frame in (0, 1)],
            "deadline_ms": 250,
            "plan": {"at": 110.0, "stages": [[PRIVATE, 0.1], [UNITS[0].name, 0.9]]},
            "split": [
                {"frame": frame, "took_ms": 50.0, "answer": f"answer {frame}", "parts": parts} for frame in (0, 1, 0)
            ],
        }
        shards = [(UNITS[0].name, 3, 60.0), (UNITS[1].name, 2, 40.0), (WITH_TILES, 1, 120.0)]
        self.reports[WITH_TILES]["batch"] = {
            "tiles": 6, "batches": [{"at": 112.0, "took_ms": 150.0, "parts": shards}], "compared": 3, "equal": 3,
            "failed": "",
        }  # fmt: skip
        for name in SLOW:
            self.reports[name]["inferences"] = [
                {"at": 110.0, "ran_on": where, "took_ms": 50.0, "failure": ""} for where in (UNITS[0].name, name)
            ]
            self.reports[name]["plates"] = [{"boxes": [[1, 2, 3, 4]]}]
        self.stored = [(name, sequence) for name in NAMES for sequence in range(1, 6)] if relay else []
        self.summary: dict[str, float] = {"count": 30, "min": 0.0, "mean": 20.0, "max": 50.0, "p95": 45.0}
        self.summary_rule, self.track = traffic.NAME, ("veh/p3x/speed", "p3x", 80.0)
        if not relay:
            self.reports[UNITS[0].name]["statistics"]["rules_derived"] = 3

    def verdict(self) -> Verdict:
        """Write it down where a verdict looks for it."""
        for name, report in self.reports.items():
            (self.folder / name).mkdir(parents=True)
            (self.folder / name / "report-0.json").write_text(json.dumps(report))
        conductor = Conductor(self.folder, 4_000 if self.relay else None)
        conductor.timeline, conductor.seen, conductor.exit_codes = self.timeline, self.seen, self.exit_codes
        if self.relay:
            state = self.folder / "relay-1" / "state"
            state.mkdir(parents=True)
            with closing(sqlite3.connect(state / "relay.sqlite")) as database:
                database.execute(
                    "CREATE TABLE records (origin TEXT, sequence INTEGER, rule TEXT, key TEXT, sensing_origin TEXT, "
                    "value TEXT, latitude_deg REAL, longitude_deg REAL, accuracy_m REAL, event_utc_ns INTEGER)"
                )
                database.executemany(
                    "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, 48.7, 11.4, ?, 0)",
                    [(*one, *self._content(one[0])) for one in self.stored],
                )
                database.commit()
        return Verdict(conductor, self.met, self.machine)

    def _content(self, name: str) -> tuple[str, str, str, str, float]:
        """Rule, key, origin, value and accuracy of a record of that node."""
        if name.startswith("rsu"):
            return self.summary_rule, f"rsu/{name}/traffic", name, json.dumps(self.summary), 30.0
        key, origin, accuracy_m = self.track
        return "track", key, origin, "13.9", accuracy_m


def idle_machine(**changes: float) -> Machine:
    """One second after the other in which nobody else wanted anything; ``changes`` are made to every moment."""
    moments = [
        Moment(float(at), changes.get("late_s", 0.0), at * changes.get("used", 0.5), at * 0.5) for at in range(90, 150)
    ]
    return Machine(changes.get("bare_start_s", 0.01), moments, 2)
