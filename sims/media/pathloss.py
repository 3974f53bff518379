"""Models of propagation and of a receiver: how likely one transmission of a frame is received, by distance.

A :class:`Delivery` answers for one distance and one shadow. The range is where 1 % of the frames arrive.

Sources:

- ``logistic``: ``PDR = 1 / (1 + exp((d - d50) / s))``, a shape that field trials of 802.11p and LTE-V2X fit. The
  constants of the three environments agree with 90 % awareness up to 200 m in towns and over 500 m on highways.
- ``tr37885``: 3GPP TR 37.885 V15.3.0, table 6.2.1-1 (path loss, shadowing) and 6.2.3 (correlation distances, with those
  of TR 38.901 UMi in towns).
- ``winner-plus``: WINNER+ D5.3 (2010), table 4-1, scenario B1, antennas of both ends 1.5 m high over an environment of
  0.5 m, and never less than in free space; shadowing of WINNER II D1.1.2, table 4-4. The parameters are those of
  Sepulcre et al., *Analytical Models of the Performance of IEEE 802.11p Vehicle to Vehicle Communications*, IEEE TVT
  (2021).
- Receiver: 802.11p at 6 Mb/s (QPSK 1/2) loses 40 % of the frames at Eb/N0 = 10 dB and 1.5 % at 15 dB on a vehicular
  channel (Goubet et al., *Low-Complexity Scalable Iterative Algorithms for IEEE 802.11p Receivers*, IEEE TVT 64(9),
  2015, figure 14). SNR = Eb/N0 + 10 log10(6 Mb/s / 10 MHz); the logistic through both points is used.

Left out: fast fading beside what the receiver's curve holds, vehicles as obstacles (NLOSv), antenna patterns, and the
error floor above 20 dB, which retries hide.
"""

import math
from collections.abc import Callable
from typing import Final, Protocol

from msgspec import Struct

from sims.scenario.file import Radio

CARRIER_GHZ: Final = 5.9
TRANSMIT_DBM: Final = 23.0
NOISE_DBM: Final = -174.0 + 10 * math.log10(10e6) + 9.0
"""Thermal noise in 10 MHz, and a noise figure of 9 dB: -95 dBm."""
PER_MIDDLE_DB: Final = 7.2
PER_SLOPE_DB: Final = 1.3
RANGE_SHARE: Final = 0.01
_LONGEST_M: Final = 100_000.0
_LIGHT_MPS: Final = 299_792_458.0
_EFFECTIVE_HEIGHT_M: Final = 1.0
_ANTENNA_HEIGHT_M: Final = 1.5
_LOGISTIC: Final = {"highway": (450.0, 45.0), "urban": (320.0, 32.0), "urban-blocked": (160.0, 30.0)}

PathLoss = Callable[[float], float]
"""A model of path loss: from metres to decibels."""


class Delivery(Protocol):
    """A model of propagation, together with a receiver."""

    @property
    def sigma_db(self) -> float:
        """The standard deviation of the shadowing; 0 when the model has none."""

    @property
    def decorrelation_m(self) -> float:
        """How far the ends move until their shadow is mostly another one."""

    def share(self, distance_m: float, shadow_db: float = 0.0) -> float:
        """The share of frames that arrives, 0 to 1. ``shadow_db`` is lost on top of the path loss."""


class Logistic(Struct, frozen=True):
    """The logistic model."""

    d50_m: float
    slope_m: float
    sigma_db: float = 0.0
    decorrelation_m: float = math.inf

    def share(self, distance_m: float, shadow_db: float = 0.0) -> float:
        """See :class:`Delivery`."""
        return _falling(distance_m, self.d50_m, self.slope_m)


class Ideal(Struct, frozen=True):
    """All frames within a range arrive, and none beyond it."""

    range_m: float
    sigma_db: float = 0.0
    decorrelation_m: float = math.inf

    def share(self, distance_m: float, shadow_db: float = 0.0) -> float:
        """See :class:`Delivery`."""
        return 1.0 if distance_m <= self.range_m else 0.0


class Budget(Struct, frozen=True):
    """A link budget: the margin of the transmit power over the noise decides."""

    path_loss: PathLoss
    sigma_db: float
    decorrelation_m: float

    def share(self, distance_m: float, shadow_db: float = 0.0) -> float:
        """See :class:`Delivery`."""
        snr_db = TRANSMIT_DBM - self.path_loss(distance_m) - shadow_db - NOISE_DBM
        return _falling(-snr_db, -PER_MIDDLE_DB, PER_SLOPE_DB)


def delivery_of(radio: Radio) -> Delivery:
    """The model that a scenario asks for."""
    environment = radio.environment
    if radio.model == "tr37885":
        return Budget(*_TR37885[environment])
    if radio.model == "winner-plus":
        return Budget(*_WINNER_PLUS[environment])
    d50_m, slope_m = _LOGISTIC[environment]
    logistic = Logistic(radio.d50_m or d50_m, radio.slope_m or slope_m)
    if radio.model == "ideal":
        return Ideal(radio.range_m or range_m(logistic))
    return logistic


def range_m(delivery: Delivery) -> float:
    """The distance at which one in a hundred frames arrives, without a shadow."""
    near_m, far_m = 0.0, _LONGEST_M
    while far_m - near_m > 0.01:
        middle_m = (near_m + far_m) / 2
        if delivery.share(middle_m) >= RANGE_SHARE:
            near_m = middle_m
        else:
            far_m = middle_m
    return near_m


def free_space_db(distance_m: float) -> float:
    """Path loss with nothing in between, for distances of 1 m and more."""
    return 20 * math.log10(distance_m) + 46.4 + 20 * math.log10(CARRIER_GHZ / 5.0)


def tr37885_highway_db(distance_m: float) -> float:
    """Path loss with line of sight on a highway."""
    return 32.4 + 20 * math.log10(max(distance_m, 1.0)) + 20 * math.log10(CARRIER_GHZ)


def tr37885_urban_db(distance_m: float) -> float:
    """Path loss with line of sight in a street."""
    return 38.77 + 16.7 * math.log10(max(distance_m, 1.0)) + 18.2 * math.log10(CARRIER_GHZ)


def tr37885_blocked_db(distance_m: float) -> float:
    """Path loss with a building in between."""
    return 36.85 + 30 * math.log10(max(distance_m, 1.0)) + 18.9 * math.log10(CARRIER_GHZ)


def winner_plus_los_db(distance_m: float) -> float:
    """Path loss with line of sight: one slope up to the break point, and a steeper one beyond."""
    distance_m = max(distance_m, 3.0)
    if distance_m < 4 * _EFFECTIVE_HEIGHT_M**2 * CARRIER_GHZ * 1e9 / _LIGHT_MPS:
        loss_db = 22.7 * math.log10(distance_m) + 27.0 + 20.0 * math.log10(CARRIER_GHZ)
    else:
        heights = 2 * 17.3 * math.log10(_EFFECTIVE_HEIGHT_M)
        loss_db = 40.0 * math.log10(distance_m) + 7.56 - heights + 2.7 * math.log10(CARRIER_GHZ)
    return max(loss_db, free_space_db(distance_m))


def winner_plus_blocked_db(distance_m: float) -> float:
    """Path loss with a building in between."""
    distance_m = max(distance_m, 3.0)
    height = math.log10(_ANTENNA_HEIGHT_M)
    slope = 44.9 - 6.55 * height
    loss_db = slope * math.log10(distance_m) + 5.83 * height + 18.38 + 23.0 * math.log10(CARRIER_GHZ)
    return max(loss_db, free_space_db(distance_m))


def _falling(value: float, middle: float, slope: float) -> float:
    exponent = (value - middle) / slope
    return 1 / (1 + math.exp(exponent)) if exponent < 700 else 0.0  # beyond it exp() overflows


_TR37885: Final[dict[str, tuple[PathLoss, float, float]]] = {
    "highway": (tr37885_highway_db, 3.0, 25.0),
    "urban": (tr37885_urban_db, 3.0, 10.0),
    "urban-blocked": (tr37885_blocked_db, 4.0, 13.0),
}
_WINNER_PLUS: Final[dict[str, tuple[PathLoss, float, float]]] = {
    "highway": (winner_plus_los_db, 3.0, 25.0),
    "urban": (winner_plus_los_db, 3.0, 10.0),
    "urban-blocked": (winner_plus_blocked_db, 4.0, 13.0),
}
