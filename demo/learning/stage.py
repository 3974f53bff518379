"""Prepares the demonstration of learning: a mesh with a relay and its repository, roadside units that serve what is
learned there, and vehicles with what they will sense.

The passages are those of the trace of Ingolstadt: fifteen minutes of 374 vehicles at a crossing. Three nodes drive
them, a third each.
"""

import json
import secrets
import shutil
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from demo.update.stage import relay
from meshnode.identity import create_mesh, issue
from meshnode.sensors.fcd import DEFAULT_TRACE
from meshnode.sensors.fcd_trace import Fix, fixes
from protocols.base.ids import Role

FILES: Final = Path(__file__).parent / "files"
MODEL: Final = "hotspot"
PATH: Final = f"models/{MODEL}"
UNITS: Final = ("rsu-1", "rsu-2", "rsu-3")
"""All of them are canaries."""
VEHICLES: Final = ("veh-1", "veh-2", "veh-3")
EARLY_S: Final = 100.0
"""So much of the trace there is when the first model is trained."""
AHEAD_S: Final = 2.5
EVERY_S: Final = 2.0
SLOWEST_MPS: Final = 3.0
"""Who is slower does not brake hard."""
HELD_OUT: Final = "held-out.json"
_NODE: Final = """\
[node]
id = "{name}"
position = {{ latitude_deg = 48.7751, longitude_deg = 11.4250, accuracy_m = 1.0 }}

[listen]
host = "127.0.0.1"
advertise = ["127.0.0.1"]

[discovery]
interfaces = ["127.0.0.1"]

[relay]
address = "127.0.0.1:{port}"

[releases]
root = "../1.root.json"
follow = {follow}

[inference]
deadline_ms = 20_000
offload = false

[[curation]]
name = "passage"
keys = "veh/*/passage"
"""
_RELAY: Final = """\
[relay]
id = "relay-1"
host = "127.0.0.1"
port = {port}

[releases]
folder = "../repository"
"""


def write_files(folder: Path, port: int) -> None:
    """Write everything under ``folder``. :raises MeshError: when that fails."""
    create_mesh(folder / "authority", f"learning-{secrets.token_hex(4)}")
    issue(folder / "authority", Role.RELAY, "relay-1", folder / "relay-1")
    (folder / "relay-1" / "relay.toml").write_text(_RELAY.format(port=port))
    shutil.copy(FILES / "hotspot.toml", folder / "relay-1" / "hotspot.toml")
    for number in (1, 2):
        relay(folder, "release", "key", "make", str(folder / "vault" / f"root-{number}.pem"))
    keys = [f"--root-key={folder / 'vault' / f'root-{number}.pem'}" for number in (1, 2)]
    relay(folder, "release", "init", "--folder", str(folder / "repository"), *keys)
    shutil.copy(folder / "repository" / "metadata" / "1.root.json", folder / "1.root.json")
    for name in (*UNITS, *VEHICLES):
        home = folder / name
        issue(folder / "authority", Role.RSU if name in UNITS else Role.VEHICLE, name, home)
        follow = json.dumps([PATH] if name in UNITS else [])
        (home / "node.toml").write_text(_NODE.format(name=name, port=port, follow=follow))


def passages() -> dict[str, list[dict[str, Any]]]:
    """What each vehicle node senses, in the order of time: where somebody passes, and how hard he brakes after that."""
    ways: dict[str, list[Fix]] = defaultdict(list)
    for fix in fixes(DEFAULT_TRACE):
        ways[fix.vehicle].append(fix)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VEHICLES}
    for number, way in enumerate(ways.values()):
        found[VEHICLES[number % len(VEHICLES)]] += _passages_of(way)
    return {name: sorted(each, key=lambda one: float(one["at_s"])) for name, each in found.items()}


def _passages_of(way: list[Fix]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for place, fix in enumerate(way):
        if fix.speed_mps is None or fix.speed_mps < SLOWEST_MPS or fix.heading_deg is None:
            continue
        if found and fix.time_s - found[-1]["at_s"] < EVERY_S:
            continue
        after = [each for each in way[place : place + 10] if each.time_s <= fix.time_s + AHEAD_S]
        if after[-1].time_s < fix.time_s + AHEAD_S - 1:
            continue  # it leaves the trace
        slower = [
            ((one.speed_mps or 0.0) - (other.speed_mps or 0.0)) / (other.time_s - one.time_s)
            for one, other in pairwise(after)
        ]
        found.append({
            "at_s": fix.time_s, "latitude_deg": fix.latitude_deg, "longitude_deg": fix.longitude_deg,
            "speed_mps": round(fix.speed_mps, 2), "heading_deg": round(fix.heading_deg, 1),
            "deceleration_mps2": round(max(0.0, *slower), 2),
        })  # fmt: skip
    return found


def write_whole(path: Path, told: Any) -> None:
    """Write a file of JSON, whole or not at all. A player waits for it."""
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(told))
    fresh.replace(path)
