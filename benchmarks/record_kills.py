"""``python -m benchmarks.record_kills``: kills of a node and of its relay at random moments, and an account at the end.

A node counts readings in windows by a rule, and sends the summaries to a relay, in real processes with mutual TLS. One
of both is killed with ``SIGKILL`` at a random moment, and started again. At the end both are left alone until the
outbox is empty. Then the account must hold:

- of readings: those that the node published are in a summary at the relay, or the node counts them as lost;
- of records: issued = stored + expired + evicted + refused at the relay, nothing missing, none twice.

A summary that was stored in the very moment of a kill may be counted as lost, too: the readings accounted for are then
more than those published, by at most a window for each kill of the node.
"""

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

from cloud_relay.query.audit import audit
from demo.processes import free_port
from meshnode.identity import create_mesh, issue
from protocols.base.errors import MeshError
from protocols.base.ids import Role

WINDOW_S: Final = 0.5
PAUSE_S: Final = 0.002
"""Between two readings."""
_SETTLE_S: Final = 60.0
_ROOT: Final = Path(__file__).parents[1]
_RULES: Final = f"""
[[rule]]
name = "counts"
keys = "veh/*/n"
window = {{ size_s = {WINDOW_S}, late_s = 0.1 }}
compute = ["count"]
output = {{ key = "veh/{{node}}/counts", unit = "1" }}
"""
_NODE: Final = """
[node]
id = "veh-1"
position = {{ latitude_deg = 48.7, longitude_deg = 11.4, accuracy_m = 1.0 }}
[listen]
host = "127.0.0.1"
[discovery]
mdns = false
[http]
port = 0
[rules]
files = ["rules.toml"]
[relay]
address = "127.0.0.1:{port}"
"""
_RELAY: Final = '[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = {port}\n'


# --- the node that is killed -----------------------------------------------------------------------------------------
async def live(config: Path, settle: bool) -> None:
    """Publish until killed; with ``settle`` publish nothing, and end when all records are at the relay."""
    import meshnode

    async with meshnode.open(config) as node:
        _say(lost=node.statistics().get("rules_lost", 0))
        if settle:
            await asyncio.sleep(3 * WINDOW_S)  # until the last window is over
            for _ in range(int(_SETTLE_S / 0.1)):
                if not node.statistics().get("outbox_pending", 0):
                    return
                await asyncio.sleep(0.1)
        publisher = node.publisher("veh/veh-1/n", unit="1", sensor="s")
        count = 0
        while True:
            publisher.put(float(count))
            count += 1
            _say(put=count)
            await asyncio.sleep(PAUSE_S)


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


# --- the campaign ----------------------------------------------------------------------------------------------------
class Campaign:
    """A node and a relay, and what was published and lost so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self._random = folder, Random(seed)
        self.put = self.lost = 0
        self.kills = {"node": 0, "relay": 0}
        self._relay: subprocess.Popen[bytes] | None = None
        create_mesh(folder / "authority", "kills")
        issue(folder / "authority", Role.RELAY, "relay-1", folder / "relay")
        issue(folder / "authority", Role.VEHICLE, "veh-1", folder / "node")
        port = free_port()
        (folder / "relay" / "relay.toml").write_text(_RELAY.format(port=port))
        (folder / "node" / "node.toml").write_text(_NODE.format(port=port))
        (folder / "node" / "rules.toml").write_text(_RULES)

    def run(self, kills: int) -> None:
        """Kill one of both, ``kills`` times."""
        self._start_relay()
        try:
            while sum(self.kills.values()) < kills:
                self._life(kills)
            self._life(kills, settle=True)
        finally:
            self._kill_relay(signal.SIGTERM)

    def _life(self, kills: int, settle: bool = False) -> None:
        """One life of the node, in which the relay may be killed several times."""
        arguments = [sys.executable, "-m", "benchmarks.record_kills", "--live", str(self.folder / "node" / "node.toml")]
        with subprocess.Popen(
            [*arguments, *["--settle"] * settle], stdout=subprocess.PIPE, text=True, cwd=_ROOT
        ) as node:  # fmt: skip
            assert node.stdout is not None
            self.lost += json.loads(node.stdout.readline())["lost"]
            if settle:
                if node.wait(timeout=2 * _SETTLE_S):
                    raise MeshError(f"the last node ended with status {node.returncode}")
                return
            last, die_s = 0, time.monotonic() + self._random.uniform(0.2, 3.0)
            relay_dies_s = time.monotonic() + self._random.uniform(0.1, 3.0)
            for line in node.stdout:
                last = json.loads(line)["put"]
                if time.monotonic() > relay_dies_s and sum(self.kills.values()) + 1 < kills:
                    self._kill_relay(signal.SIGKILL)
                    self.kills["relay"] += 1
                    self._start_relay()
                    relay_dies_s = float("inf")
                if time.monotonic() > die_s:
                    os.kill(node.pid, signal.SIGKILL)
                    self.kills["node"] += 1
                    for text in node.stdout.read().splitlines():
                        with suppress(ValueError):  # the last line may be cut
                            last = json.loads(text)["put"]
                    break
            self.put += last

    def _start_relay(self) -> None:
        self._relay = subprocess.Popen(
            [sys.executable, "-m", "cloud_relay", "run", "--config", str(self.folder / "relay" / "relay.toml")],
            cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _kill_relay(self, number: signal.Signals) -> None:
        assert self._relay is not None, "it was started"
        self._relay.send_signal(number)
        self._relay.wait(timeout=30)

    def account(self) -> dict[str, Any]:
        """What is at the relay, and whether it adds up."""
        with closing(sqlite3.connect(self.folder / "relay" / "state" / "relay.sqlite", isolation_level=None)) as store:
            (origin,) = audit(store)
            values = [json.loads(value) for (value,) in store.execute("SELECT value FROM records")]
        windows = [value["end_ns"] for value in values]
        counted = sum(value["count"] for value in values)
        spare = self.kills["node"] * (round(2 * WINDOW_S / PAUSE_S) + 1)
        wrong = []
        if not origin.adds_up or origin.outstanding:
            wrong.append(f"records: {origin}")
        if len(set(windows)) < len(windows):
            wrong.append(f"{len(windows) - len(set(windows))} windows came twice")
        if not self.put <= counted + self.lost <= self.put + spare:
            wrong.append(f"readings: {self.put} published, {counted} counted, {self.lost} lost")
        return {
            "kills": self.kills, "published": self.put, "counted": counted, "lost": self.lost,
            "records": origin.stored, "issued": origin.issued, "wrong": wrong,
        }  # fmt: skip


def main() -> int:
    """Run the campaign. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record_kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="how many, of both (default: 100)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the moments (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--live", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settle", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.live is not None:
        asyncio.run(live(options.live, options.settle))
        return 0
    with tempfile.TemporaryDirectory(prefix="mesh-kills-") as name:
        campaign = Campaign(Path(name), options.seed)
        campaign.run(options.kills)
        account = campaign.account()
    if options.json:
        print(json.dumps(account))
    else:
        print(f"{account['kills']['node']} kills of the node, {account['kills']['relay']} of the relay")
        print(f"{account['published']:,} readings published: {account['counted']:,} in {account['records']:,} records "
              f"at the relay, {account['lost']:,} counted as lost")  # fmt: skip
        for line in account["wrong"]:
            print(f"WRONG: {line}")
    return 1 if account["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
