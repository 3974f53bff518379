"""One process of the demonstration of releases: a node whose application has a picture looked at all the time.

    python -m demo.update.player node.toml [--lie]

It prints a line of JSON when it is ready, one for each event of releases, and its figures twice a second. With
``--lie`` it gives its neighbours made-up bytes of whatever they ask for, as somebody does who got hold of a valid
certificate.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import meshnode
from demo.update.stage import MODEL, PATH, picture_bytes
from meshnode.console.process import log_to_stderr
from meshnode.models import plate
from meshnode.releases.performing import ReleasePerformer
from meshnode.releases.running import RunningReleases
from protocols.base.effects import Event
from protocols.base.errors import MeshError
from protocols.base.limits import PIECE_BYTES
from protocols.releases.events import ChunkForged, MetadataRefused, MetadataTaken, ReadPiece, ReleaseState, RolloutState

PERIOD_S: Final = 0.25
_TOLD: Final = (ChunkForged, MetadataRefused, MetadataTaken, ReleaseState, RolloutState)


@dataclass
class Notes:
    """What one player has seen."""

    name: str
    answers: int = 0
    failures: int = 0

    def say(self, kind: str, **fields: Any) -> None:
        """Print a line for the conductor."""
        sys.stdout.write(json.dumps({"at": time.time(), "node": self.name, "kind": kind, **fields}) + "\n")
        sys.stdout.flush()

    def happened(self, event: Event) -> None:
        """The node reported an event."""
        if isinstance(event, _TOLD):
            self.say(type(event).__name__, **{name: getattr(event, name) for name in event.__struct_fields__})


def lie() -> None:
    """Have this process give away nothing but bytes that it made up."""

    def made_up(performer: ReleasePerformer, effect: ReadPiece) -> None:
        held = performer._store.get(effect.digest) or b""  # noqa: SLF001 - liars look inside
        forged = secrets.token_bytes(len(held[effect.offset : effect.offset + PIECE_BYTES]))
        performer._tell(  # noqa: SLF001
            lambda machine, now: machine.piece_read(effect.node, effect.digest, effect.offset, forged, now)
        )

    ReleasePerformer._read_piece = made_up  # type: ignore[method-assign, assignment]  # noqa: SLF001


async def look(node: meshnode.Node, notes: Notes) -> None:
    """Have the picture looked at, again and again."""
    picture = {plate.INPUT: np.frombuffer(picture_bytes(), np.uint8)}
    while True:
        began_s = time.monotonic()
        try:
            await node.infer(MODEL, picture)
        except MeshError as error:
            notes.failures += 1
            notes.say("failed", why=str(error)[:200])
        else:
            notes.answers += 1
        await asyncio.sleep(max(0.02, PERIOD_S - (time.monotonic() - began_s)))


def figures(node: meshnode.Node, notes: Notes) -> dict[str, Any]:
    """The figures that are printed twice a second."""
    view = node.part(RunningReleases).view()
    path = next((each for each in view["paths"] if each["path"] == PATH), None)
    return {
        "serving": 0 if path is None else path["serving"],
        "orders": [] if path is None else path["orders"],
        "metadata": view["metadata"]["timestamp_version"] if view["metadata"] else 0,
        "store_bytes": view["store"]["bytes"],
        "answers": notes.answers,
        "failures": notes.failures,
        "peers": sum(peer.met for peer in node.peers()),
    }


async def main(config: Path) -> None:
    """Run until SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    configured = meshnode.open(config)
    notes = Notes(configured.id)
    configured.on_event(notes.happened)
    async with configured as node:
        notes.say("ready", port=node.port)
        looking = asyncio.create_task(look(node, notes))
        conductor = os.getppid()
        # It ends by itself when its parent is gone.
        while not stop.is_set() and not looking.done() and os.getppid() == conductor:
            notes.say("figures", **figures(node, notes))
            try:
                async with asyncio.timeout(0.5):
                    await stop.wait()
            except TimeoutError:
                pass
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking  # an error that nobody expected ends the process


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m demo.update.player")
    parser.add_argument("config", type=Path)
    parser.add_argument("--lie", action="store_true")
    options = parser.parse_args()
    log_to_stderr("info", as_json=False)
    if options.lie:
        lie()
    try:
        asyncio.run(main(options.config))
    except MeshError as error:
        sys.exit(f"{options.config}: {error}")
