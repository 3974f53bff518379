"""One process of the demonstration of learning: a vehicle that tells of passages, or a roadside unit that warns.

    python -m demo.learning.player node.toml

A vehicle publishes what ``stretch-1.json`` and ``stretch-2.json`` beside its configuration have, once they are there.
A roadside unit asks the model about each passage that it hears, and warns of those for which it says yes. For each
release it asks once about all rows of ``held-out.json``, so that its own answers can be compared with what happened.
The process prints a line of JSON when it is ready, for each release that it has measured, and its figures five times a
second.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

import meshnode
from demo.learning.stage import HELD_OUT, MODEL, PATH
from meshnode.console.process import log_to_stderr
from meshnode.releases.running import RunningReleases
from protocols.base.errors import MeshError, ModelUnknown
from protocols.wire.readings import Position

_EVERY_S: Final = 0.2
_ASKED_EVERY_S: Final = 0.02
_AT_ONCE: Final = 40
"""Passages that are published before others have a turn."""
FEATURES: Final = ("latitude_deg", "longitude_deg", "speed_mps", "heading_deg")


class Player:
    """What the process does with its node."""

    def __init__(self, node: meshnode.Node, home: Path) -> None:
        self.node, self.home = node, home
        self.published = self.asked = self.failed = self.warned = 0
        self._heard: deque[meshnode.Reading] = deque(maxlen=50)
        self._measured: set[int] = set()

    def say(self, kind: str, **fields: Any) -> None:
        """Print a line for the conductor."""
        sys.stdout.write(json.dumps({"at": time.time(), "node": self.node.id, "kind": kind, **fields}) + "\n")
        sys.stdout.flush()

    async def drive(self) -> None:
        """Publish the stretches, as they come."""
        publisher = self.node.publisher(f"veh/{self.node.id}/passage", sensor="trace")
        for number in (1, 2):
            path = self.home / f"stretch-{number}.json"
            while not path.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(_EVERY_S)
            for count, each in enumerate(json.loads(path.read_text()), 1):
                value = {name: each[name] for name in ("speed_mps", "heading_deg", "deceleration_mps2")}
                where = Position(each["latitude_deg"], each["longitude_deg"], 1.0)
                publisher.put(value, where=where, time_ns=each["time_ns"])
                self.published += 1
                if count % _AT_ONCE == 0:
                    await asyncio.sleep(0.1)

    async def warn(self) -> None:
        """Ask the model about what vehicles tell."""
        self.node.subscribe("veh/*/passage", callback=self._heard.append)
        while True:
            await asyncio.sleep(_ASKED_EVERY_S)
            counter = self.serving()
            if not counter:
                continue
            if (self.home / HELD_OUT).exists() and counter not in self._measured:
                await self._measure(counter)
            if not self._heard:
                continue
            reading = self._heard.popleft()
            if len(self._heard) < 5:
                self._heard.append(reading)  # vehicles pass all day; these do so in seconds
            value, where = reading.value, reading.where
            told = await self._told(
                [[where.latitude_deg, where.longitude_deg, value["speed_mps"], value["heading_deg"]]]
            )
            if told and told[0]:
                self.warned += 1
                warning = {"kind": "hard braking is likely", "vehicle": reading.origin}
                self.node.publish(f"rsu/{self.node.id}/warning", warning, where=where, priority=6)

    async def _measure(self, counter: int) -> None:
        rows = json.loads((self.home / HELD_OUT).read_text())
        told = await self._told(rows)
        if told is not None and self.serving() == counter:
            self._measured.add(counter)
            self.say("measured", counter=counter, told=told)

    async def _told(self, rows: list[list[float]]) -> list[int] | None:
        try:
            answer = await self.node.infer(MODEL, {"features": np.asarray(rows, np.float32)}, outputs=("label",))
        except ModelUnknown:
            return None
        except MeshError as error:
            self.failed += 1
            self.say("failed", why=str(error)[:300])
            return None
        self.asked += 1
        return [int(label) for label in answer.outputs["label"]]

    def serving(self) -> int:
        """The release that serves here; 0: none."""
        view = self.node.part(RunningReleases).view()
        return next((int(each["serving"]) for each in view["paths"] if each["path"] == PATH), 0)

    def figures(self) -> dict[str, Any]:
        """What is printed again and again."""
        statistics = self.node.statistics()
        view = self.node.part(RunningReleases).view()
        orders: list[Any] = next((each["orders"] for each in view["paths"] if each["path"] == PATH), [])
        return {
            "serving": self.serving(), "orders": orders, "published": self.published, "asked": self.asked,
            "failed": self.failed, "warned": self.warned, "pending": statistics.get("outbox_pending", 0),
            "taken": statistics.get("outbox_issued", 0) + statistics.get("outbox_not_stored", 0),
            "peers": sum(peer.met for peer in self.node.peers()),
        }  # fmt: skip


async def main(config: Path) -> None:
    """Run until SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with meshnode.open(config) as node:
        player = Player(node, config.parent)
        player.say("ready", port=node.port)
        work = asyncio.create_task(player.drive() if node.id.startswith("veh") else player.warn())
        conductor = os.getppid()
        # It ends by itself when its parent is gone.
        while not stop.is_set() and os.getppid() == conductor and not (work.done() and work.exception()):
            player.say("figures", **player.figures())
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await stop.wait()
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work  # an error that nobody expected ends the process


if __name__ == "__main__":
    log_to_stderr("info", as_json=False)
    try:
        asyncio.run(main(Path(sys.argv[1])))
    except MeshError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
