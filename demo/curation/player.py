"""One process of the demonstration of curation: a node with its application.

    python -m demo.curation.player node.toml [VEHICLE]

``VEHICLE`` (JSON): VIN and home. The process prints a line of JSON when it is ready, one for each alert and sign that
it hears, and its figures five times a second. It copies whatever its node sends to the relay into ``sent.bin``, as it
was before encryption.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import meshnode
from demo.curation.applications import DashCamera, Gathering
from demo.curation.stage import SENT, Vehicle
from meshnode.console.process import log_to_stderr
from meshnode.identity.packing import unpacked_untrusted
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Requester
from meshnode.records import made
from meshnode.sensors.fcd_trace import Fix
from protocols.base.errors import MeshError
from protocols.wire.codec import decode_untrusted_relay_frame
from protocols.wire.parcels import encode_reading
from protocols.wire.records import PackedBatch

SENSED: Final = ("hazard", "speed", "position")
"""What the sensor of the trace publishes."""
_EVERY_S: Final = 0.2


class Notes:
    """What one player has seen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sensed_bytes = 0
        """Readings of the trace, as they are encoded."""
        self.fixes = 0
        """Of its way, that it has driven."""
        self._lock = threading.Lock()

    def say(self, kind: str, **fields: Any) -> None:
        """Print a line for the conductor."""
        with self._lock:
            sys.stdout.write(json.dumps({"at": time.time(), "node": self.name, "kind": kind, **fields}) + "\n")
            sys.stdout.flush()

    def sensed(self, reading: meshnode.Reading) -> None:
        """The node published something."""
        kind = reading.key.rpartition("/")[2]
        if kind in SENSED:
            self.sensed_bytes += len(encode_reading(reading))
            self.fixes += kind == "speed"

    def heard(self, reading: meshnode.Reading) -> None:
        """An alert or a sign came."""
        self.say(reading.key.rpartition("/")[2], value=reading.value, sequence=reading.sequence)


class _Copying(Requester):
    """A connection to the relay that copies what is sent, as it was before it was compressed."""

    def __init__(self, inner: Requester, path: Path) -> None:
        self._inner, self._path = inner, path

    def request(self, frame: bytes, timeout_s: float) -> bytes:
        sent = decode_untrusted_relay_frame(frame)
        with self._path.open("ab") as copied:
            copied.write(unpacked_untrusted(sent.data) if isinstance(sent, PackedBatch) else frame)
        return self._inner.request(frame, timeout_s)

    def close(self) -> None:
        self._inner.close()


def copy_what_is_sent(path: Path) -> None:
    """Have each node of this process copy what it sends to a relay."""

    def connected(*arguments: Any) -> Requester:
        return _Copying(open_requester(*arguments), path)

    made.open_requester = connected  # type: ignore[attr-defined, assignment]


def figures(node: meshnode.Node, notes: Notes, camera: DashCamera | None) -> dict[str, Any]:
    """The figures that are printed again and again."""
    statistics = node.statistics()
    seen = {} if camera is None else {"looked": camera.looked, "blind": camera.blind}
    made_bytes = 0 if camera is None else camera.made_bytes
    return {
        "peers": sum(peer.met for peer in node.peers()), "pending": statistics.get("outbox_pending", 0),
        "delivered": statistics.get("outbox_delivered", 0), "raw_bytes": notes.sensed_bytes + made_bytes,
        "fixes": notes.fixes, "kept_back": statistics.get("egress_kept_back", 0), "relay": node.uplink_state, **seen,
        "drops": {f"{key} {reason}": count for (_, key, reason), count in node.drops()},
    }  # fmt: skip


async def main(config: Path, vehicle: Vehicle | None) -> None:
    """Run until SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    copy_what_is_sent(config.parent / SENT)
    configured = meshnode.open(config)
    notes = Notes(configured.id)
    async with configured as node:
        node.subscribe(f"veh/{node.id}/*", callback=notes.sensed, history=False)
        node.subscribe("rsu/*/alert", callback=notes.heard, history=False)
        node.subscribe("rsu/*/sign", callback=notes.heard, history=False)
        camera, gathering = (None, Gathering(node)) if vehicle is None else (DashCamera(node, vehicle), None)
        notes.say("ready", port=node.port, gathers=gathering is not None)
        watching = [] if camera is None else [asyncio.create_task(camera.run())]
        conductor = os.getppid()
        # It ends by itself when its parent is gone.
        while not stop.is_set() and not any(task.done() for task in watching) and os.getppid() == conductor:
            notes.say("figures", **figures(node, notes, camera))
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await stop.wait()
        for task in watching:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task  # an error that nobody expected ends the process
        notes.say("figures", **figures(node, notes, camera))


def _vehicle(name: str, told: str) -> Vehicle:
    known = json.loads(told)
    latitude_deg, longitude_deg = known["home"]
    return Vehicle(name, known["vin"], (Fix(0.0, name, latitude_deg, longitude_deg, None, None),))


if __name__ == "__main__":
    log_to_stderr("info", as_json=False)
    path = Path(sys.argv[1])
    try:
        asyncio.run(main(path, _vehicle(path.parent.name, sys.argv[2]) if len(sys.argv) > 2 else None))
    except MeshError as error:
        sys.exit(f"{path}: {error}")
