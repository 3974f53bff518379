"""Prepares the demonstration: a mesh, its certificates and a configuration file for every process."""

import compileall
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from demo import private, traffic
from meshnode.identity import create_mesh, issue
from meshnode.models.plate import find_detector, manifest
from protocols.base.ids import Role

_MESH = "ingolstadt"
START_S = 540.0
"""The time in the trace from which four neighbouring vehicles all brake hard within 30 s."""
SLOWDOWN = 12.0
"""Slow vehicles emulate a processor this many times slower, because on one host all are equally fast. On a busy machine
the runs of a unit take several times as long now and then, and a vehicle gives frames away only where that is clearly
faster, with the tail counted."""
PRIVATE_SLOWDOWN = 50.0
"""The vehicle with the private model emulates a processor this many times slower: a run of it takes half a second."""
SIDE = 512
"""The side of the square that the detector looks at, in pixels. From 512 on it finds the plate in every variation of
the picture."""


@dataclass(frozen=True, slots=True)
class Participant:
    """One node of the demonstration."""

    name: str
    role: Role
    trace_vehicle: str = ""
    slow: bool = False
    camera_hz: float = 0.0
    private: bool = False
    """Whether it has a model whose pictures must not leave it."""
    tiles: bool = False
    """Whether it shares the tiles of a large picture with others."""
    accepts: bool = False
    """Whether it runs stages of models for others."""


VEHICLES = (
    Participant("veh-1", Role.VEHICLE, "3_vertical0.5", camera_hz=0.5),
    Participant("veh-2", Role.VEHICLE, "3_right.6", private=True),
    Participant("veh-3", Role.VEHICLE, "3_vertical.7", slow=True, camera_hz=1.0, tiles=True),
    Participant("veh-4", Role.VEHICLE, "3_vertical.8", slow=True, camera_hz=1.0),
)
UNITS = (Participant("rsu-1", Role.RSU, accepts=True), Participant("rsu-2", Role.RSU))
ALL = (*UNITS, *VEHICLES)

_COMMON = """\
[node]
id = "{name}"
{position}
[listen]
host = "127.0.0.1"
advertise = ["127.0.0.1"]
link_engine = "{engine}"

[discovery]
interfaces = ["127.0.0.1"]

[http]
port = 0

[[curation]]
name = "{rule}"
keys = "{rule_keys}"
source = "{rule_source}"
min_interval_ms = {rule_interval_ms}
"""

_MODEL = """
[models.plate]
path = "../plate.onnx"
serve = {serve}

[inference]
emulate_slowdown = {slowdown}
deadline_ms = 3000
accept_stages = {accepts}
"""

_PRIVATE = """
[models.{name}]
path = "../{name}.onnx"
split = "latency"
serve = false
warm_up = {{ image = [1, 3, {side}, {side}] }}

[inference]
emulate_slowdown = {slowdown}
"""

_PRIVATE_MANIFEST = """\
description = "Finds number plates in pictures that stay in the vehicle."
licence = "Apache-2.0"

[split]
first_cut_at_home = true
"""

_POSITION = "position = {{ latitude_deg = {latitude}, longitude_deg = {longitude}, accuracy_m = 0.1 }}\n"

_RELAY = """
[relay]
address = "127.0.0.1:{port}"
"""

_TRACE = """
[sensors.trace]
driver = "fcd"
vehicle = "{vehicle}"
start_s = {start_s}
"""

_CAMERA = """
[sensors.camera]
driver = "images"
vary = 16
seed = {seed}
rate_hz = {rate_hz}
loop = true
model = "plate"
preprocess = "plate"
send = "jpeg"
side = {side}
budget_ms = 3000
"""

_HOST = """
[sensors.host]
driver = "host"
interval_s = 2.0
"""

_RELAY_TOML = """\
[relay]
id = "relay-1"
host = "127.0.0.1"
port = {port}
"""


def compile_packages() -> None:
    """Write the bytecode of our packages, as an installation does. In a fresh source tree each of seven processes would
    otherwise compile every module for itself. Nothing happens where it is up to date or can't be written."""
    for package in ("protocols", "meshnode", "cloud_relay", "demo"):
        compileall.compile_dir(Path(__file__).parent.parent / package, quiet=2)


def write_files(folder: Path, relay_port: int | None, mixed: bool) -> None:
    """Write everything under ``folder``, which must be empty or missing. ``mixed``: every second node runs on libnng.

    :raises MeshError: when that fails.
    """
    # Each run has a mesh name of its own, because two demonstrations on one host would dial one another's nodes.
    create_mesh(folder / "authority", f"{_MESH}-{secrets.token_hex(4)}")
    if relay_port is not None:
        issue(folder / "authority", Role.RELAY, "relay-1", folder / "relay-1")
        (folder / "relay-1" / "relay.toml").write_text(_RELAY_TOML.format(port=relay_port))
    # With its manifest the detector takes pictures, so that cameras send JPEGs and not tensors of sixty times the size.
    shutil.copyfile(find_detector(), folder / "plate.onnx")
    (folder / "plate.toml").write_text(manifest(SIDE))
    shutil.copyfile(find_detector(), folder / f"{private.MODEL}.onnx")
    (folder / f"{private.MODEL}.toml").write_text(_PRIVATE_MANIFEST)
    (folder / "traffic.toml").write_text(traffic.RULES)
    for index, participant in enumerate(ALL):
        home = folder / participant.name
        issue(folder / "authority", participant.role, participant.name, home)
        (home / "node.toml").write_text(_node_toml(participant, index, relay_port, mixed))


def _node_toml(participant: Participant, index: int, relay_port: int | None, mixed: bool) -> str:
    unit = participant.role is Role.RSU
    position = _POSITION.format(latitude=48.7655 + index * 0.0005, longitude=11.4237) if unit else ""
    text = _COMMON.format(
        name=participant.name, engine="nng" if mixed and index % 2 else "express", position=position,
        rule="hazards" if unit else "track", rule_keys="veh/*/hazard" if unit else "veh/*/speed",
        rule_source="any" if unit else "own", rule_interval_ms=0 if unit else 1_000,
    )  # fmt: skip
    if unit or participant.camera_hz:  # loading the model takes longer than everything else at the start of a node
        text += _MODEL.format(
            serve="true" if unit else "false",
            slowdown=SLOWDOWN if participant.slow else 1.0,
            accepts="true" if participant.accepts else "false",
        )  # fmt: skip
    if participant.private:
        text += _PRIVATE.format(name=private.MODEL, side=private.SIDE, slowdown=PRIVATE_SLOWDOWN)
    if relay_port is not None:
        text += _RELAY.format(port=relay_port)
    if participant.trace_vehicle:
        text += _TRACE.format(vehicle=participant.trace_vehicle, start_s=START_S)
    if participant.camera_hz:
        text += _CAMERA.format(rate_hz=participant.camera_hz, side=SIDE, seed=index)
    text += _HOST + traffic.SECTION if unit else traffic.EGRESS
    return text
