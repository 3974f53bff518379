"""Exported records of hard braking, as ``cloud-relay export`` writes them, without a relay."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from cloud_relay.export.columns import EXPORTED, kind_of
from cloud_relay.export.parquet import ParquetExport
from meshnode.readings.value_json import value_form
from protocols.base.limits import SECOND

BEGIN_NS: Final = 1_790_000_000 * SECOND
HOTSPOTS: Final = ((48.7650, 11.4240), (48.7700, 11.4300))

USUAL: Final = {"text": "x", "texts": [], "real": 0.0, "truth": False}
"""By kind of column; other kinds are integers."""


def passage(number: int, origin: str, at_s: float, value: Any, **context: Any) -> dict[str, Any]:
    """A row of an export."""
    usual: dict[str, Any] = {
        column.name: None if column.nullable else USUAL.get(column.kind, 0) for column in EXPORTED
    }  # fmt: skip
    is_number = type(value) in (int, float)
    return usual | {
        "origin": origin, "sequence": number, "key": f"veh/{origin}/passage", "rule": "passage",
        "sensing_origin": origin, "reading_sequence": number, "event_utc_ns": BEGIN_NS + int(at_s * SECOND),
        "event_time": (BEGIN_NS + int(at_s * SECOND)) // 1_000, "uncertainty_ns": 0, "received_utc_ns": BEGIN_NS,
        "latitude_deg": 48.765, "longitude_deg": 11.424, "accuracy_m": 1.0, "quality": 1.0, "lineage": [],
        "priority": 4, "lifespan_ms": 0, "has_receipt": True, "value_kind": kind_of(value),
        "value": msgspec.json.encode(value_form(value)).decode(),
        "value_number": float(value) if is_number else None,
        "value_integer": value if type(value) is int else None,
        "value_text": value if type(value) is str else None,
        "value_bool": value if type(value) is bool else None,
    } | context  # fmt: skip


def write_export(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as an export, in the order given."""
    with path.open("wb") as out:
        writer = ParquetExport(out, 10**20, {})
        for row in rows:
            writer.add(dict(row))
        writer.close()
    return path


def passages(count: int, hotspots: int = 2, seed: int = 1, vehicles: int = 20) -> list[dict[str, Any]]:
    """Vehicles pass, and brake hard near some of the hotspots, in nine cases of ten, and elsewhere in one of twenty."""
    random, rows = np.random.default_rng(seed), []
    for number in range(count):
        near = random.random() < 0.5
        center = HOTSPOTS[int(random.integers(len(HOTSPOTS)))]
        at = center if near else (48.76 + 0.015 * random.random(), 11.42 + 0.015 * random.random())
        latitude_deg, longitude_deg = (float(side + 0.0003 * random.standard_normal()) for side in at)
        speed_mps = float(random.uniform(5, 20))
        is_hot = near and center in HOTSPOTS[:hotspots]
        brakes = random.random() < (0.9 if is_hot and speed_mps > 8 else 0.05)
        deceleration_mps2 = float(random.uniform(3.1, 6) if brakes else random.uniform(0, 2))
        value = {"speed_mps": speed_mps, "deceleration_mps2": deceleration_mps2}
        origin = f"veh-{number % vehicles}"
        rows.append(
            passage(number + 1, origin, number * 30.0, value, latitude_deg=latitude_deg, longitude_deg=longitude_deg)
        )
    return rows


RECIPE: Final = """\
name = "hotspot"
description = "Tells whether a vehicle will brake hard here."
licence = "CC0-1.0"
seed = 7

[data]
keys = "veh/*/passage"

[features]
latitude_deg = "latitude_deg"
longitude_deg = "longitude_deg"
speed_mps = "value.speed_mps"

[target]
path = "value.deceleration_mps2"
above = 3.0

[split]
by = "origin"
test_share = 0.3

[model]
estimator = "random_forest_classifier"
parameters = { n_estimators = 20, max_depth = 8 }
"""


def write_recipe(folder: Path, text: str = RECIPE, name: str = "hotspot.toml") -> Path:
    """Write a recipe into a folder."""
    path = folder / name
    path.write_text(text)
    return path
