"""Prepares the demonstration of curation: a mesh with a relay, its vehicles and their way, rules and policies.

The way is that of three vehicles in the trace of Ingolstadt: they come to a crossing, and each brakes hard, within
three seconds and 60 m. Each drives on from its home, which is where its stretch of the trace begins.
"""

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from demo.curation.search import Place, Secrets
from meshnode.identity import create_mesh, issue
from meshnode.models.plate import find_detector, manifest
from meshnode.sensors.fcd import DEFAULT_TRACE
from meshnode.sensors.fcd_trace import Fix, fixes
from protocols.base.ids import Role

FILES: Final = Path(__file__).parent / "files"
TRACE: Final = "trace.fcd.xml"
SENT: Final = "sent.bin"
"""What a node sent to the relay, as it was before it was compressed and encrypted."""
SIGNS: Final = "signs.txt"
UNIT: Final = "rsu-1"
SIDE: Final = 512
"""The side of the square that the detector looks at, in pixels. It finds the plate in every variation of the
picture."""
PLATE_SHOWN: Final = "5AU 5341"
LONG_S: Final = (62.5, 76.0)
SHORT_S: Final = (69.5, 75.5)
"""The stretch of the trace. Everybody brakes between 71.5 and 74.5 s."""
_NUMBERS: Final = {
    "1_right.2": "WVWZZZ1JZ3W386752",
    "3_right.2": "WAUZZZ8K9BA010203",
    "3_vertical.2": "WBA3A5C50CF256651",
}
_AROUND_DEG: Final = 0.0003
"""What must not leave is from around a home: 33 m to the north and south, 22 m to the east and west."""
_UNIT_AT: Final = (48.7751, 11.4250)

_NODE: Final = """\
[node]
id = "{name}"
position = {{ latitude_deg = {latitude_deg}, longitude_deg = {longitude_deg}, accuracy_m = 1.0 }}

[listen]
host = "127.0.0.1"
advertise = ["127.0.0.1"]

[discovery]
interfaces = ["127.0.0.1"]

[relay]
address = "127.0.0.1:{port}"

[rules]
files = ["{rules}"]
"""
_VEHICLE: Final = f"""
[sensors.trace]
driver = "fcd"
file = "{TRACE}"
vehicle = "{{trace_vehicle}}"

[[curation]]
name = "track"
keys = "veh/*/speed"
min_interval_ms = 1_000

[models.plate]
path = "../plate.onnx"
serve = false

[inference]
offload = false
deadline_ms = 20_000
"""
_UNIT: Final = """
[[curation]]
name = "hotspot"
keys = "rsu/*/hotspot"

[[function]]
name = "sign"
keys = "rsu/*/alert"
run = ["./sign.py"]
publishes = "rsu/*/sign"
timeout_s = 30
"""
_RELAY: Final = """\
[relay]
id = "relay-1"
host = "127.0.0.1"
port = {port}
"""


@dataclass(frozen=True)
class Vehicle:
    """One vehicle of the demonstration."""

    name: str
    vin: str
    way: tuple[Fix, ...]
    """Its stretch of the trace."""

    @property
    def home(self) -> Place:
        """Where it begins."""
        return self.way[0].latitude_deg, self.way[0].longitude_deg


def vehicles(stretch_s: tuple[float, float]) -> list[Vehicle]:
    """The vehicles, with their ways in a stretch of the trace."""
    begins_s, ends_s = stretch_s
    made = []
    for number, (vehicle, vin) in enumerate(_NUMBERS.items(), 1):
        way = []
        for fix in fixes(DEFAULT_TRACE, vehicle, begins_s):
            if fix.time_s > ends_s:
                break
            way.append(fix)
        made.append(Vehicle(f"veh-{number}", vin, tuple(way)))
    return made


def secrets_of(cars: list[Vehicle]) -> Secrets:
    """What must not leave."""
    return Secrets(PLATE_SHOWN.replace(" ", ""), tuple(car.vin for car in cars), tuple(car.home for car in cars))


def write_trace(folder: Path, vehicle: Vehicle) -> None:
    """Write the way of a vehicle, whole or not at all. Its sensor waits for the file."""
    steps = "".join(
        f'<timestep time="{fix.time_s:.2f}"><vehicle id="{fix.vehicle}" x="{fix.longitude_deg}" y="{fix.latitude_deg}" '
        f'angle="{fix.heading_deg}" speed="{fix.speed_mps}"/></timestep>\n'
        for fix in vehicle.way
    )
    written = folder / f"{TRACE}.part"
    written.write_text(f"<fcd-export>\n{steps}</fcd-export>\n")
    written.replace(folder / TRACE)


def write_files(folder: Path, cars: list[Vehicle], port: int, has_policy: bool) -> None:
    """Write everything under ``folder``, but for the ways.

    :raises MeshError: when that fails.
    """
    # Each mesh has a name of its own, because the nodes of two on one host would dial one another.
    create_mesh(folder / "authority", f"curation-{secrets.token_hex(4)}")
    issue(folder / "authority", Role.RELAY, "relay-1", folder / "relay-1")
    (folder / "relay-1" / "relay.toml").write_text(_RELAY.format(port=port))
    shutil.copyfile(find_detector(), folder / "plate.onnx")
    (folder / "plate.toml").write_text(manifest(SIDE))
    _write_node(folder, UNIT, Role.RSU, _UNIT_AT, port, "rsu", _UNIT, {} if has_policy else None)
    shutil.copy(FILES / "sign.py", folder / UNIT / "sign.py")
    for car in cars:
        table = _VEHICLE.format(trace_vehicle=car.way[0].vehicle)
        _write_node(
            folder, car.name, Role.VEHICLE, car.home, port, "vehicle", table, around(car.home) if has_policy else None
        )


def _write_node(
    folder: Path, name: str, role: Role, at: Place, port: int, kind: str, tables: str,
    filled_in: Mapping[str, float] | None,
) -> None:  # fmt: skip
    """``filled_in``: the names in the file of the policy; None: there is none."""
    home = folder / name
    issue(folder / "authority", role, name, home)
    text = _NODE.format(name=name, latitude_deg=at[0], longitude_deg=at[1], port=port, rules=f"{kind}-rules.toml")
    if filled_in is not None:
        tables += Template((FILES / f"{kind}-egress.toml").read_text()).substitute(filled_in)
    (home / "node.toml").write_text(text + tables)
    shutil.copyfile(FILES / f"{kind}-rules.toml", home / f"{kind}-rules.toml")


def around(home: Place) -> dict[str, float]:
    latitude_deg, longitude_deg = home
    return {
        "south_deg": round(latitude_deg - _AROUND_DEG, 6), "north_deg": round(latitude_deg + _AROUND_DEG, 6),
        "west_deg": round(longitude_deg - _AROUND_DEG, 6), "east_deg": round(longitude_deg + _AROUND_DEG, 6),
    }  # fmt: skip
