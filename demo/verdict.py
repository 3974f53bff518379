"""Compares what happened with what was promised.

Its inputs are the reports of the participants, the outboxes and the relay's store. From the conductor it takes only the
times at which processes were started and killed.

A promise about the mesh (who met whom, what arrived, that nothing was lost) is kept or broken. A promise about time
counts from the ready lines of the nodes. When it was missed, it is broken only if the record of the machine shows that
the machine was fast enough for it.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from demo import private, traffic
from demo.conductor import MEET_TIMEOUT_S, STOPPING, Conductor
from demo.machine import Machine
from demo.promises import Outcome, Promise, Span, about_mesh, percentile
from demo.stage import ALL, SLOWDOWN, UNITS, VEHICLES
from demo.together import Together
from meshnode.sensors.fcd import HAZARD_LIFESPAN_MS

MEET_WITHIN_S = 2.5
"""The longest time until two nodes have met. A node asks every 2 s who is there, so one lost question or answer is
within the promise."""
DEAD_WITHIN_S = 1.5
"""The longest time from the kill, when all nodes have long been ready, until the others have noticed it."""
KILLED = "rsu-2"
NAMES = tuple(participant.name for participant in ALL)
LATE = "late"
"""The failure of an inference that ran out of time."""
HAZARD_LIFESPAN_S = HAZARD_LIFESPAN_MS / 1e3
"""A hazard that was published less than this before the stop may still be under way."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """The first time that one node met another in the present lives of both."""

    node: str
    met: str
    ready_s: float
    """When the later of the two was ready."""
    at_s: float

    @property
    def took_s(self) -> float:
        """Time from the ready line of the later one. It is negative when they met before it, while models were
        loaded."""
        return self.at_s - self.ready_s


def _span(inference: dict[str, Any]) -> Span:
    """From the call of an inference to its end."""
    return inference["at"] - inference["took_ms"] / 1e3, inference["at"]


def _frames(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The inferences of a camera: of the model that everybody shares, and not divided."""
    for line in report["inferences"]:
        if not line.get("in_parts") and line.get("model") != private.MODEL:
            yield line


class Verdict:
    """Reads the reports once, and judges every promise by them."""

    def __init__(self, conductor: Conductor, met: bool, machine: Machine) -> None:
        self._conductor, self._met, self._machine = conductor, met, machine
        self.reports: dict[str, dict[str, Any]] = {}
        for participant in ALL:
            lives = sorted((conductor.folder / participant.name).glob("report-*.json"))
            if lives:
                self.reports[participant.name] = json.loads(lives[-1].read_text())
        self._started: dict[str, list[float]] = defaultdict(list)
        self._ready: dict[str, list[float]] = defaultdict(list)
        for line in conductor.seen:
            if line["kind"] == "ready":
                self._ready[line["node"]].append(line["at"])
        for line in conductor.timeline:
            verb, name = line["what"].split(" ", 1)
            if verb == "start":
                self._started[name].append(line["at"])
            elif verb == "kill" and name == KILLED:
                self._killed_s = line["at"]
        self.together = Together(self.reports, self._ready, self._stopping_s(), self._timing)

    def promises(self) -> list[Promise]:
        """Every promise, kept or not."""
        promises = [
            self._reports_written(),
            self._all_met(),
            self._met_quickly(),
            self._death_noticed(),
            self._death_noticed_quickly(),
            self._nobody_buried_alive(),
            self._came_back(),
            self._hazards_arrived(),
            self._slow_were_helped(),
            self._no_request_lost(),
            self._no_request_late(),
            self._plates_found(),
            *self.together.promises(),
            self._ended_cleanly(),
        ]
        return [*promises, *self._records(), self._summarised(), *self._veiled()]

    def outcome(self) -> Outcome:
        """The worst of all promises."""
        outcomes = {promise.outcome for promise in self.promises()}
        return next((worst for worst in (Outcome.BROKEN, Outcome.TOO_SLOW) if worst in outcomes), Outcome.KEPT)

    def _timing(self, name: str, seen: str, missed: list[Span]) -> Promise:
        """A promise about time, which was missed in the spans ``missed``. It is broken unless the machine was too slow
        in all of them."""
        whys = [self._machine.why_slow(*span) for span in missed]
        if not whys:
            return Promise(name, Outcome.KEPT, seen)
        if all(whys):
            return Promise(name, Outcome.TOO_SLOW, f"{seen}; the machine was too slow for this: {whys[0]}")
        return Promise(name, Outcome.BROKEN, f"{seen}; the machine had time for it")

    # --- who met whom ----------------------------------------------------------------------------------------------
    def _reports_written(self) -> Promise:
        missing = [p.name for p in ALL if p.name not in self.reports]
        return about_mesh("every participant lived to write its report", not missing, f"missing: {missing or 'none'}")

    def start_ups_s(self) -> dict[str, list[float]]:
        """By node: the time from the start of its process to its ready line, for each of its lives."""
        return {
            name: [ready_s - started_s for started_s, ready_s in zip(self._started[name], lives, strict=False)]
            for name, lives in sorted(self._ready.items())
        }

    def meetings(self) -> list[Meeting]:
        """The first meeting of each pair, and again for the killed unit after its restart."""
        found: list[Meeting] = []
        seen: set[tuple[str, str, int]] = set()
        for line in self._conductor.seen:
            if line["kind"] != "met":
                continue
            pair = line["node"], line["about"]
            lives = [max(sum(s <= line["at"] for s in self._started[name]), 1) - 1 for name in pair]
            ready_s = [self._ready[name][life : life + 1] for name, life in zip(pair, lives, strict=True)]
            if (*pair, sum(lives)) not in seen and all(ready_s):
                seen.add((*pair, sum(lives)))
                found.append(Meeting(*pair, max(ready_s)[0], line["at"]))
        return found

    def _all_met(self) -> Promise:
        pairs = len(ALL) * (len(ALL) - 1)
        met = len({(meeting.node, meeting.met) for meeting in self.meetings()})
        seen = f"{met} of {pairs} directed pairs"
        if not self._met:
            seen += f", not all within {MEET_TIMEOUT_S:g} s"
        return about_mesh("everybody met everybody", self._met and met == pairs, seen)

    def _met_quickly(self) -> Promise:
        name = f"within {MEET_WITHIN_S} s of the ready lines of both"
        slowest = max(self.meetings(), key=lambda meeting: meeting.took_s, default=None)
        if slowest is None:
            return about_mesh(name, False, "never")
        missed = [(m.ready_s, m.at_s) for m in self.meetings() if m.took_s > MEET_WITHIN_S]
        after = f"{slowest.took_s:.2f} s after" if slowest.took_s > 0 else "before"
        return self._timing(name, f"{slowest.node} met {slowest.met} last, {after} both were ready", missed)

    # --- the killed unit -------------------------------------------------------------------------------------------
    def deaths_s(self) -> dict[str, float]:
        """By node: how long after the kill it noticed the death of the killed unit."""
        return {
            line["node"]: line["at"] - self._killed_s
            for line in self._conductor.seen
            if line["kind"] == "dead" and line["about"] == KILLED and line["at"] >= self._killed_s
        }

    def _death_noticed(self) -> Promise:
        noticed = len(self.deaths_s())
        return about_mesh(
            "everybody noticed that the killed unit died", noticed == len(ALL) - 1, f"{noticed} of {len(ALL) - 1}"
        )

    def _death_noticed_quickly(self) -> Promise:
        deaths = self.deaths_s()
        missed = [(self._killed_s, self._killed_s + s) for s in deaths.values() if s > DEAD_WITHIN_S]
        slowest = max(deaths.values(), default=0.0)
        return self._timing(f"within {DEAD_WITHIN_S} s of the kill", f"the last after {slowest:.2f} s", missed)

    def _nobody_buried_alive(self) -> Promise:
        false = [
            f"{line['node']} buried {line['about']}"
            for line in self._conductor.seen
            if line["kind"] == "dead" and not (line["about"] == KILLED and line["at"] >= self._killed_s)
        ]
        return about_mesh("nobody alive was called dead", not false, ", ".join(false) or "no false alarm")

    def _came_back(self) -> Promise:
        restarted_s = self._started[KILLED][-1]
        again = {line["node"] for line in self._conductor.seen
                 if line["kind"] == "met" and line["about"] == KILLED and line["at"] > restarted_s}  # fmt: skip
        return about_mesh("the killed unit came back and was met again", len(again) == len(ALL) - 1, f"by {len(again)}")

    # --- readings --------------------------------------------------------------------------------------------------
    def latencies_us(self) -> list[float]:
        """The time from sensing to callback of every reading at every receiver."""
        return [value for report in self.reports.values() for value in report["latencies_us"]]

    def _hazards_arrived(self) -> Promise:
        """A node that lived throughout must have each hazard that another published after this node first heard of that
        one: from then on, the other knows that this node asks for hazards."""
        told = [(name, line) for name, report in self.reports.items() for line in report["told"]]
        stopping_s = self._stopping_s()
        owed = heard = 0
        missing = []
        for name, report in self.reports.items():
            if name == KILLED:
                continue
            had = {(line["origin"], line["sequence"]) for line in report["hazards"]}
            for origin, line in told:
                heard_s = report["first_heard"].get(origin)
                if origin != name and heard_s is None:
                    missing.append(f"{name} heard nothing of {origin}")
                if heard_s is None or not heard_s < line["at"] < stopping_s - HAZARD_LIFESPAN_S:
                    continue
                owed += 1
                if (origin, line["sequence"]) in had:
                    heard += 1
                else:
                    missing.append(f"{name} lacks {origin}#{line['sequence']}")
        return about_mesh(
            "hard-braking hazards reached everybody",
            owed > 0 and not missing,
            f"{len(told)} told, {heard} of {owed} heard; {', '.join(missing[:3]) or 'none missing'}",
        )

    # --- inference -------------------------------------------------------------------------------------------------
    def ran_on(self) -> dict[str, Counter[str]]:
        """For each asking vehicle: how many of its frames were computed on which node."""
        counts = {
            name: Counter(line["ran_on"] or "nobody" for line in _frames(report))
            for name, report in sorted(self.reports.items())
        }
        return {name: count for name, count in counts.items() if count}

    def _slow_were_helped(self) -> Promise:
        """Placement compares measured times. Where other programs keep the processors busy, these say little about who
        is faster."""
        name = "slow vehicles had frames computed by a roadside unit"
        units = {unit.name for unit in UNITS}
        helped = {
            p.name: sum(count for where, count in self.ran_on().get(p.name, Counter()).items() if where in units)
            for p in VEHICLES if p.slow
        }  # fmt: skip
        alone = [vehicle for vehicle, count in helped.items() if not count]
        if any(vehicle not in self.ran_on() for vehicle in alone):
            return about_mesh(name, False, f"{helped}")
        return self._timing(name, f"{helped}", [
            _span(line) for vehicle in alone for line in self.reports[vehicle]["inferences"]
        ])  # fmt: skip

    def _no_request_lost(self) -> Promise:
        """A node that is told to stop does not wait for the deadlines of its requests, so nobody is owed the answers to
        those that were under way."""
        stopping_s = self._stopping_s()
        failed = [line for line in self._inferences() if line["failure"] not in ("", LATE)]
        cut = [line for line in failed if line["at"] >= stopping_s]
        lost, total = len(failed) - len(cut), len(self._inferences()) - len(cut)
        seen = f"{lost} of {total}"
        if cut:
            seen += f"; {len(cut)} under way when everybody was told to stop"
        return about_mesh("no inference failed", total > 0 and not lost, seen)

    def _no_request_late(self) -> Promise:
        late = [line for line in self._inferences() if line["failure"] == LATE]
        missed = [_span(line) for line in late]
        return self._timing("every inference was answered within its deadline", f"{len(late)} late", missed)

    def _inferences(self) -> list[dict[str, Any]]:
        return [line for report in self.reports.values() for line in report["inferences"]]

    def _plates_found(self) -> Promise:
        frames = [plate for report in self.reports.values() for plate in report["plates"]]
        found = sum(bool(frame["boxes"]) for frame in frames)
        return about_mesh(
            "the number plate was found in the frames",
            bool(frames) and found == len(frames),
            f"{found} of {len(frames)}",
        )

    def _ended_cleanly(self) -> Promise:
        codes = self._conductor.exit_codes
        clean = all(codes.get(participant.name) == 0 for participant in ALL) and not any(codes.values())
        return about_mesh("everybody stopped by SIGTERM with status 0", clean, f"{codes}")

    # --- records ---------------------------------------------------------------------------------------------------
    def _outboxes(self) -> dict[str, dict[str, int]]:
        return {
            name: {k.removeprefix("outbox_"): v for k, v in report["statistics"].items() if k.startswith("outbox_")}
            for name, report in self.reports.items()
        }

    def records(self) -> list[dict[str, Any]]:
        """For each node: how many records its ledger issued, how many wait, and how many the relay has."""
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
        ledger = about_mesh(
            "every ledger adds up", issued > 0 and not adds_up, f"{issued} records; wrong: {adds_up or 'none'}"
        )
        if self._conductor.relay_port is None:
            kept = all(row["pending"] == row["issued"] for row in rows)
            return [ledger, about_mesh("without a relay every record waits on disk", kept, f"{issued} wait")]
        wrong = [
            row["node"]
            for row in rows
            if not row["issued"] - row["pending"] <= row["at_relay"] == row["distinct_at_relay"] <= row["issued"]
            or not row["sequences_without_gap"]
        ]
        once = about_mesh(
            "no curated record is lost or twice at the relay", issued > 0 and not wrong, f"wrong: {wrong or 'none'}"
        )
        there = sum(row["at_relay"] for row in rows)
        stop = self._stopping_s(), self._conductor.timeline[-1]["at"]
        missed = [stop for row in rows if row["at_relay"] < row["issued"]]
        in_time = self._timing("every curated record reached the relay before its node had stopped",
                               f"{there} of {issued}", missed)  # fmt: skip
        return [ledger, once, in_time]

    def _summarised(self) -> Promise:
        summaries = self.summaries()
        name = "roadside units summarised the speeds of vehicles"
        if self._conductor.relay_port is None:
            derived = sum(report["statistics"].get("rules_derived", 0) for report in self.reports.values())
            return about_mesh(f"{name}, and the summaries wait on disk", derived > 0, f"{derived} summaries")
        readings = sum(summary["count"] for summary in summaries)
        sound = all(0 <= each["min"] <= each["mean"] <= each["max"] for each in summaries)
        seen = f"{readings} readings became {len(summaries)} records"
        return about_mesh(f"{name} for the relay", bool(summaries) and sound and readings > 2 * len(summaries), seen)

    def _veiled(self) -> list[Promise]:
        if self._conductor.relay_port is None:
            return []
        tracks = traffic.tracks(self._conductor.folder / "relay-1" / "state" / "relay.sqlite")
        bare = [
            (key, origin, accuracy_m)
            for key, origin, accuracy_m in tracks
            if accuracy_m < traffic.CELL_M / 2 or any(name in (origin, *key.split("/")) for name in NAMES)
        ]
        seen = f"{len(tracks)} records, and {len(bare)} of them tell more"
        return [
            about_mesh("speeds left vehicles without their names and exact places", bool(tracks) and not bare, seen)
        ]

    def summaries(self) -> list[dict[str, Any]]:
        """What the relay has of the rule of the roadside units."""
        return traffic.summaries(self._conductor.folder / "relay-1" / "state" / "relay.sqlite")

    def _stopping_s(self) -> float:
        """When all nodes were told to stop; 0 if that never happened."""
        return min((line["at"] for line in self._conductor.timeline if line["what"] == STOPPING), default=0.0)

    # --- summary ---------------------------------------------------------------------------------------------------
    def summary(self) -> dict[str, Any]:
        """Everything that goes into ``build/demo.json``."""
        latencies = self.latencies_us()
        drops: Counter[str] = Counter()
        for report in self.reports.values():
            for line in report["drops"]:
                drops[line["reason"]] += line["count"]
        times = defaultdict(list)
        for name, report in self.reports.items():
            for line in _frames(report):
                times[f"{name} on {line['ran_on']}"].append(line["took_ms"])
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        return {
            "outcome": self.outcome(),
            "promises": [{"name": p.name, "outcome": p.outcome, "seen": p.seen} for p in self.promises()],
            "machine": self._machine.summary(),
            "relay": self._conductor.relay_port is not None,
            "start_up_s": self.start_ups_s(),
            "met_after_ready_s": max((meeting.took_s for meeting in self.meetings()), default=None),
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
            **self.together.summary(),
            "drops": dict(drops),
            "records": self.records(),
            "traffic": self.summaries(),
            "timeline": self._conductor.timeline,
        }  # fmt: skip
