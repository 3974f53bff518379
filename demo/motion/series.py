"""What an inertial sensor would say in the vehicles of the trace that comes with the package.

The trace has speed and heading twice a second. Acceleration along and across, and the rate of turning, follow from
them; a sensor gives ten of them a second with noise and an offset of its own, which are made up here.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import meshnode
from meshnode.sensors.fcd_trace import fixes

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE_HZ: Final = 10
COLUMNS: Final = ("along_mps2", "across_mps2", "turning_radps")
LABELS: Final = ("standing", "cruising", "accelerating", "braking", "turning")
LENGTH: Final = 30
"""Rows of a window: three seconds."""
HOP: Final = 10
_NOISE: Final = (0.15, 0.15, 0.01)
_OFFSET: Final = (0.05, 0.05, 0.005)
"""Standard deviations: of each value, and of a sensor, as of a phone or a vehicle."""
_SHORTEST_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Drive:
    """One vehicle. ``sensed float32[rows, channels]`` and ``labels int64[rows]`` at ``RATE_HZ``."""

    vehicle: str
    sensed: "NDArray[Any]"
    labels: "NDArray[Any]"


def drives(seed: int = 1) -> Iterator[Drive]:
    """The vehicles that are there for long enough, in the order of their names."""
    import numpy as np

    random = np.random.default_rng(seed)
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for fix in fixes(Path(meshnode.__file__).parent / "sensors" / "data" / "ingolstadt.fcd.xml.gz"):
        if fix.speed_mps is not None and fix.heading_deg is not None:
            rows[fix.vehicle].append((fix.time_s, fix.speed_mps, fix.heading_deg))
    for vehicle, each in sorted(rows.items()):
        if each[-1][0] - each[0][0] < _SHORTEST_S:
            continue
        time_s, speed_mps, heading_deg = np.array(each).T
        heading_rad = np.unwrap(np.radians(heading_deg))
        along, turning = np.gradient(speed_mps, time_s), np.gradient(heading_rad, time_s)
        at_s = np.arange(time_s[0], time_s[-1], 1 / RATE_HZ)
        speed, along, turning = (np.interp(at_s, time_s, values) for values in (speed_mps, along, turning))
        true = np.stack([along, speed * turning, turning], axis=1)
        noise = random.normal(0, _NOISE, true.shape) + random.normal(0, _OFFSET, 3)
        yield Drive(vehicle, (true + noise).astype(np.float32), _labels(speed, along, turning))


def _labels(speed: "NDArray[Any]", along: "NDArray[Any]", turning: "NDArray[Any]") -> "NDArray[Any]":
    """What the vehicle really did."""
    import numpy as np

    choices = [speed < 0.3, np.abs(turning) > 0.12, along < -0.6, along > 0.6]
    return np.select(choices, [0, 4, 3, 2], 1)


def windows(drive: Drive) -> "tuple[NDArray[Any], NDArray[Any]]":
    """``float32[windows, channels, LENGTH]`` and what the vehicle did for most of each."""
    import numpy as np

    starts = range(0, len(drive.sensed) - LENGTH + 1, HOP)
    values = np.array([drive.sensed[start : start + LENGTH].T for start in starts], np.float32)
    most = [np.bincount(drive.labels[start : start + LENGTH]).argmax() for start in starts]
    return values.reshape(-1, len(COLUMNS), LENGTH), np.array(most, np.int64)
