"""Holds what happened against what was promised.

Inputs are what participants wrote themselves, the outboxes and the relay's store; nothing is taken from the conductor's
intentions but the times at which it started and killed.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from demo.conductor import STOPPING, Conductor
from demo.stage import ALL, SLOWDOWN, UNITS, VEHICLES

MEET_WITHIN_S = 2.5
DEAD_WITHIN_S = 1.5
KILLED = "rsu-2"
SETTLE_S = 0.5
"""From having met to having told one another what is wanted; a hazard told earlier may miss."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and what was seen."""

    name: str
    kept: bool
    seen: str


def percentile(values: list[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


class Verdict:
    """Reads the reports once and judges."""

    def __init__(self, conductor: Conductor, met: bool) -> None:
        self._conductor, self._met = conductor, met
        self.reports: dict[str, dict[str, Any]] = {}
        for participant in ALL:
            lives = sorted((conductor.folder / participant.name).glob("report-*.json"))
            if lives:
                self.reports[participant.name] = json.loads(lives[-1].read_text())
        self._started: dict[str, list[float]] = defaultdict(list)
        for line in conductor.timeline:
            verb, name = line["what"].split(" ", 1)
            if verb == "start":
                self._started[name].append(line["at"])
            elif verb == "kill" and name == KILLED:
                self._killed_s = line["at"]

    def promises(self) -> list[Promise]:
        """Every promise, kept or not."""
        promises = [
            self._reports_written(),
            self._all_met(),
            self._met_quickly(),
            self._death_noticed(),
            self._nobody_buried_alive(),
            self._came_back(),
            self._hazards_arrived(),
            self._slow_were_helped(),
            self._no_request_lost(),
            self._plates_found(),
            self._ended_cleanly(),
        ]
        return [*promises, *self._records()]

    # --- who met whom ----------------------------------------------------------------------------------------------
    def _reports_written(self) -> Promise:
        missing = [p.name for p in ALL if p.name not in self.reports]
        return Promise("every participant lived to write its report", not missing, f"missing: {missing or 'none'}")

    def _meetings(self) -> dict[tuple[str, str], float]:
        """(who, whom) -> first time."""
        first: dict[tuple[str, str], float] = {}
        for line in self._conductor.seen:
            if line["kind"] == "met":
                first.setdefault((line["node"], line["about"]), line["at"])
        return first

    def _all_met(self) -> Promise:
        pairs = len(ALL) * (len(ALL) - 1)
        met = len(self._meetings())
        return Promise("everybody met everybody", self._met and met == pairs, f"{met} of {pairs} directed pairs")

    def meeting_s(self) -> float | None:
        """From the last start to the last first meeting."""
        meetings = self._meetings()
        return max(meetings.values()) - max(self._started[p.name][0] for p in ALL) if meetings else None

    def _met_quickly(self) -> Promise:
        took_s = self.meeting_s()
        return Promise(
            f"within {MEET_WITHIN_S} s of the last start", took_s is not None and took_s <= MEET_WITHIN_S,
            "never" if took_s is None else f"{took_s:.2f} s, interpreters' start included",
        )  # fmt: skip

    # --- the killed unit -------------------------------------------------------------------------------------------
    def deaths_s(self) -> dict[str, float]:
        """Who noticed the killed unit's death, how long after."""
        return {
            line["node"]: line["at"] - self._killed_s
            for line in self._conductor.seen
            if line["kind"] == "dead" and line["about"] == KILLED and line["at"] >= self._killed_s
        }

    def _death_noticed(self) -> Promise:
        deaths = self.deaths_s()
        everywhere = len(deaths) == len(ALL) - 1
        slowest = max(deaths.values(), default=0.0)
        return Promise(
            f"the killed unit is dead everywhere within {DEAD_WITHIN_S} s", everywhere and slowest <= DEAD_WITHIN_S,
            f"{len(deaths)} of {len(ALL) - 1} noticed, the last after {slowest:.2f} s",
        )  # fmt: skip

    def _nobody_buried_alive(self) -> Promise:
        false = [
            f"{line['node']} buried {line['about']}"
            for line in self._conductor.seen
            if line["kind"] == "dead" and not (line["about"] == KILLED and line["at"] >= self._killed_s)
        ]
        return Promise("nobody alive was called dead", not false, ", ".join(false) or "no false alarm")

    def _came_back(self) -> Promise:
        restarted_s = self._started[KILLED][-1]
        again = {line["node"] for line in self._conductor.seen
                 if line["kind"] == "met" and line["about"] == KILLED and line["at"] > restarted_s}  # fmt: skip
        return Promise("the killed unit came back and was met again", len(again) == len(ALL) - 1, f"by {len(again)}")

    # --- readings --------------------------------------------------------------------------------------------------
    def latencies_us(self) -> list[float]:
        """Of every reading at every receiver, from sensing to callback."""
        return [value for report in self.reports.values() for value in report["latencies_us"]]

    def _hazards_arrived(self) -> Promise:
        """Whoever lives throughout must have each hazard that an origin told after both had met."""
        meetings = self._meetings()
        told = [(name, line) for name, report in self.reports.items() for line in report["told"]]
        stopping_s = min((line["at"] for line in self._conductor.timeline if line["what"] == STOPPING), default=0.0)
        owed = heard = 0
        missing = []
        for name, report in self.reports.items():
            if name == KILLED:
                continue
            had = {(line["origin"], line["sequence"]) for line in report["hazards"]}
            for origin, line in told:
                met_s = max(meetings.get(pair, stopping_s) for pair in ((name, origin), (origin, name)))
                if origin == name or not met_s + SETTLE_S < line["at"] < stopping_s:
                    continue
                owed += 1
                if (origin, line["sequence"]) in had:
                    heard += 1
                else:
                    missing.append(f"{name} lacks {origin}#{line['sequence']}")
        return Promise(
            "hard-braking hazards reached everybody",
            owed > 0 and not missing,
            f"{len(told)} told, {heard} of {owed} heard; {', '.join(missing[:3]) or 'none missing'}",
        )

    # --- inference -------------------------------------------------------------------------------------------------
    def ran_on(self) -> dict[str, Counter[str]]:
        """For each asking vehicle: where its frames were computed."""
        return {
            name: Counter(line["ran_on"] or "nobody" for line in report["inferences"])
            for name, report in sorted(self.reports.items())
            if report["inferences"]
        }

    def _slow_were_helped(self) -> Promise:
        units = {unit.name for unit in UNITS}
        slow = [p.name for p in VEHICLES if p.slow]
        helped = {
            name: sum(n for where, n in self.ran_on().get(name, Counter()).items() if where in units) for name in slow
        }
        return Promise("slow vehicles had frames computed by a roadside unit", all(helped.values()), f"{helped}")

    def _no_request_lost(self) -> Promise:
        failed = [line for report in self.reports.values() for line in report["inferences"] if line["failure"]]
        total = sum(len(report["inferences"]) for report in self.reports.values())
        return Promise("every inference was answered", total > 0 and not failed, f"{total} asked, {len(failed)} failed")

    def _plates_found(self) -> Promise:
        frames = [plate for report in self.reports.values() for plate in report["plates"]]
        found = sum(bool(frame["boxes"]) for frame in frames)
        return Promise(
            "the number plate was found in the frames",
            bool(frames) and found == len(frames),
            f"{found} of {len(frames)}",
        )

    def _ended_cleanly(self) -> Promise:
        codes = self._conductor.exit_codes
        clean = all(codes.get(participant.name) == 0 for participant in ALL) and not any(codes.values())
        return Promise("everybody stopped by SIGTERM with status 0", clean, f"{codes}")

    # --- records ---------------------------------------------------------------------------------------------------
    def _outboxes(self) -> dict[str, dict[str, int]]:
        return {
            name: {k.removeprefix("outbox_"): v for k, v in report["statistics"].items() if k.startswith("outbox_")}
            for name, report in self.reports.items()
        }

    def records(self) -> list[dict[str, Any]]:
        """For each node: what its ledger issued, what waits, and what the relay has."""
        stored = self._stored()
        return [
            {
                "node": name, "issued": ledger.get("issued", 0), "pending": ledger.get("pending", 0),
                "delivered": ledger.get("delivered", 0),
                "lost": ledger.get("expired", 0) + ledger.get("evicted", 0) + ledger.get("refused", 0),
                "at_relay": len(stored.get(name, ())), "distinct_at_relay": len(set(stored.get(name, ()))),
                "sequences_without_gap": sorted(stored.get(name, ())) == list(range(1, len(stored.get(name, ())) + 1)),
            }
            for name, ledger in sorted(self._outboxes().items())
        ]  # fmt: skip

    def _stored(self) -> dict[str, list[int]]:
        path = self._conductor.folder / "relay-1" / "state" / "relay.sqlite"
        stored: dict[str, list[int]] = defaultdict(list)
        if path.exists():
            with closing(sqlite3.connect(path)) as database:
                for origin, sequence in database.execute("SELECT origin, sequence FROM records"):
                    stored[origin].append(sequence)
        return stored

    def _records(self) -> list[Promise]:
        rows = self.records()
        issued = sum(row["issued"] for row in rows)
        adds_up = [row["node"] for row in rows if row["issued"] != row["pending"] + row["delivered"] + row["lost"]]
        ledger = Promise(
            "every ledger adds up", issued > 0 and not adds_up, f"{issued} records; wrong: {adds_up or 'none'}"
        )
        if self._conductor.relay_port is None:
            kept = all(row["pending"] == row["issued"] for row in rows)
            return [ledger, Promise("without a relay every record waits on disk", kept, f"{issued} wait")]
        once = [
            row["node"]
            for row in rows
            if not row["issued"] == row["at_relay"] == row["distinct_at_relay"] or not row["sequences_without_gap"]
        ]
        there = sum(row["at_relay"] for row in rows)
        return [ledger, Promise(
            "each curated record is at the relay exactly once", issued > 0 and not once,
            f"{there} of {issued} there; wrong: {once or 'none'}",
        )]  # fmt: skip

    # --- summary ---------------------------------------------------------------------------------------------------
    def summary(self) -> dict[str, Any]:
        """All of it, for ``build/demo.json``."""
        latencies = self.latencies_us()
        drops: Counter[str] = Counter()
        for report in self.reports.values():
            for line in report["drops"]:
                drops[line["reason"]] += line["count"]
        times = defaultdict(list)
        for name, report in self.reports.items():
            for line in report["inferences"]:
                times[f"{name} on {line['ran_on']}"].append(line["took_ms"])
        promises = self.promises()
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        return {
            "kept": all(promise.kept for promise in promises),
            "promises": [{"name": p.name, "kept": p.kept, "seen": p.seen} for p in promises],
            "relay": self._conductor.relay_port is not None,
            "met_after_last_start_s": self.meeting_s(),
            "meetings": [
                {"node": line["node"], "met": line["about"], "took_ms": line["took_ms"]}
                for line in self._conductor.seen if line["kind"] == "met"
            ],
            "death_noticed_s": self.deaths_s(),
            "readings_received": len(latencies),
            "latency_us": {name: percentile(latencies, share) for name, share in shares.items()},
            "inference_ran_on": {name: dict(counts) for name, counts in self.ran_on().items()},
            "inference_median_ms": {name: percentile(values, 0.5) for name, values in sorted(times.items())},
            "emulated_slowdown": SLOWDOWN,
            "drops": dict(drops),
            "records": self.records(),
            "timeline": self._conductor.timeline,
        }  # fmt: skip
