"""One process of the demonstration: an application on top of the public API that notes what it sees.

    python -m demo.participant node.toml report.json

It prints a line of JSON when it is ready, one for each event, and its figures twice a second; it writes its report when
it is told to stop (SIGTERM).
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import meshnode
from demo import batch, private
from demo.stage import ALL, UNITS
from meshnode.console.process import log_to_stderr
from protocols.base.effects import Event
from protocols.base.errors import MeshError
from protocols.inference.events import Answered
from protocols.membership.events import NeighbourDead, NeighbourLeft, NeighbourMet, NeighbourSuspected

_log = logging.getLogger(__name__)


class Notebook:
    """The notes of one participant."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self._printing = threading.Lock()
        self.latencies_us: list[float] = []
        self.readings: Counter[str] = Counter()
        self.first_heard: dict[str, float] = {}
        """When the first reading of each neighbour came. From then on, it knows what this node asks for."""
        self.first_advert: dict[str, float] = {}
        """When an advert named each node for the first time."""
        self.hazards: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        """Hazards that this vehicle published and that every neighbour must have received."""
        self.plates: list[dict[str, Any]] = []
        self.inferences: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.private, self.batch = private.empty_notes(), batch.empty_notes()
        """What became of the private model and of the tiles, at the vehicles that have them."""

    def say(self, kind: str, **fields: Any) -> None:
        """Print a line for the conductor."""
        line = json.dumps({"at": time.time(), "node": self.name, "kind": kind, **fields}) + "\n"
        with self._printing:  # several threads print, and print() writes a line in two pieces
            sys.stdout.write(line)
            sys.stdout.flush()

    def advert(self, node: str) -> None:
        """An advert named a node."""
        with self.lock:
            self.first_advert.setdefault(node, time.time())

    def received(self, reading: meshnode.Reading) -> None:
        """A reading came from a neighbour. All processes of this host share one clock, so its age is the latency."""
        age_us = (time.time_ns() - reading.when.utc_ns) / 1e3
        with self.lock:
            self.latencies_us.append(age_us)
            self.readings[reading.key] += 1
            self.first_heard.setdefault(reading.origin, time.time())
        if reading.key.endswith("/hazard"):
            hazard = {"origin": reading.origin, "sequence": reading.sequence, "age_us": round(age_us)}
            with self.lock:
                self.hazards.append(hazard)
            self.say("hazard", **hazard, value=reading.value)

    def hazard_told(self, reading: meshnode.Reading) -> None:
        """Note a hazard that this vehicle published."""
        with self.lock:
            self.told.append({"at": time.time(), "sequence": reading.sequence})

    def plates_seen(self, reading: meshnode.Reading) -> None:
        """The detector found plates in a frame of this vehicle's own camera, or none."""
        with self.lock:
            self.plates.append({"boxes": reading.value})

    def happened(self, event: Event) -> None:
        """The node reported an event about neighbours or inference."""
        match event:
            case NeighbourMet():
                self._event("met", event.node, took_ms=round(event.took_ns / 1e6, 1))
            case NeighbourSuspected():
                self._event("suspect", event.node, because=event.because)
            case NeighbourDead():
                self._event("dead", event.node, silent_ms=round(event.silent_ns / 1e6, 1))
            case NeighbourLeft():
                self._event("left", event.node)
            case Answered():
                winner = event.winner
                line = {
                    "at": time.time(),
                    "ran_on": winner.node if winner is not None else None,
                    "took_ms": round(event.took_ns / 1e6, 1),
                    "compute_ms": round(winner.compute_us / 1e3, 1) if winner is not None else None,
                    "attempts": [f"{run.node}: {run.outcome}" for run in event.attempts],
                    "failure": event.failure,
                    "in_parts": bool(event.parts),
                    "model": event.model,
                }
                with self.lock:
                    self.inferences.append(line)
                self.say("inference", **line)
            case _:
                pass

    def _event(self, kind: str, about: str, **fields: Any) -> None:
        with self.lock:
            self.events.append({"at": time.time(), "kind": kind, "about": about, **fields})
        self.say(kind, about=about, **fields)

    def figures(self, node: meshnode.Node) -> dict[str, Any]:
        """The figures that are printed twice a second."""
        with self.lock:
            recent = sorted(self.latencies_us[-500:])
            count = len(self.latencies_us)
        alive = [peer.node for peer in node.peers() if peer.met and peer.state.value == "alive"]
        speed = node.statistics()
        return {
            "alive": alive,
            "readings": count,
            "latency_p50_us": round(recent[len(recent) // 2]) if recent else None,
            "hazards": len(self.hazards),
            "inferences": len(self.inferences),
            "drops": speed["drops"],
            "records": speed.get("outbox_issued", 0),
            "pending": speed.get("outbox_pending", 0),
            "relay": node.uplink_state,
        }

    def report(self, node: meshnode.Node) -> dict[str, Any]:
        """The report, with everything that the summary needs."""
        with self.lock:
            return {
                "node": self.name,
                "role": node.role.value,
                "incarnation": node.incarnation,
                "events": self.events,
                "latencies_us": [round(value, 1) for value in self.latencies_us],
                "readings": dict(self.readings),
                "first_advert": self.first_advert,
                "first_heard": self.first_heard,
                "hazards": self.hazards,
                "told": self.told,
                "plates": self.plates,
                "inferences": self.inferences,
                "private": self.private,
                "batch": self.batch,
                "drops": [{"peer": p, "key": k, "reason": r, "count": c} for (p, k, r), c in node.drops()],
                "statistics": node.statistics(),
            }


def _works(node: meshnode.Node, notes: Notebook) -> Iterator[Coroutine[Any, Any, None]]:
    """What this participant does beside its sensors."""
    mine = next(participant for participant in ALL if participant.name == node.id)
    if mine.private:
        yield private.detect_in_private(node, notes.private, notes.say)
    if mine.tiles:
        yield batch.look_at_tiles(node, {unit.name for unit in UNITS}, notes.batch)


async def end_all(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they have ended. The log says which had failed before."""
    for task in tasks:
        task.cancel()
    for task, outcome in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(outcome, Exception):
            _log.error("%s failed", task.get_name(), exc_info=outcome)


async def main(config: Path) -> dict[str, Any]:
    """Run until SIGTERM. Returns the report."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    configured = meshnode.open(config)
    notes = Notebook(configured.id)
    configured.on_event(notes.happened)
    configured.on_advert(notes.advert)
    async with configured as node:
        node.subscribe("veh/*/*", callback=notes.received, own=False, history=False)
        node.subscribe("rsu/**", callback=notes.received, own=False, history=False)
        node.subscribe(f"veh/{node.id}/hazard", callback=notes.hazard_told, history=False)
        node.subscribe(f"veh/{node.id}/plates", callback=notes.plates_seen, history=False)
        notes.say("ready", port=node.port, http=node.http_port)
        tasks = [asyncio.create_task(work) for work in _works(node, notes)]
        conductor = os.getppid()
        while not stop.is_set() and os.getppid() == conductor:  # it ends by itself when its parent is gone
            notes.say("figures", **notes.figures(node))
            try:
                async with asyncio.timeout(0.5):
                    await stop.wait()
            except TimeoutError:
                pass
        await end_all(tasks)  # before the node closes, which they ask until then
    return notes.report(node)


if __name__ == "__main__":
    log_to_stderr("info", as_json=False)
    try:
        Path(sys.argv[2]).write_text(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
    except MeshError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
