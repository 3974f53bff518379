"""What computing costs on the classes of computers that scenarios name.

``car-computer`` is the measure of ``compute_ms`` in scenarios. The other factors are those between recent small-board,
roadside and server processors in single-thread integer work, rounded. Handshakes and frames were measured in the
emulator. Mutual TLS 1.3 with P-256 takes 1.2 ms an end. Where twelve nodes have readings at 10 Hz, each frame sent or
received takes 80 µs of processor, kernel included. That is ten times what a loop of nothing else takes, because caches
are cold and threads sleep in between. One core of that host stands for a ``car-computer``.

A ``rsu-gpu`` is an ``rsu`` that runs models on a graphics processor. How much faster that is depends on the model; a
tenth of the time of a ``car-computer`` is an assumption, not a measurement.
"""

from typing import Final, NamedTuple

from protocols.base import limits


class Device(NamedTuple):
    """A class of computers."""

    factor: float
    """How many times as long models take as on a ``car-computer``."""
    frame_ns: int
    """CPU time to send a frame, or to receive one, decode it and call back."""
    handshake_ns: int
    """CPU time of one end of a mutual TLS handshake."""
    others: float
    """How many times as long all other work takes as on a ``car-computer``."""


def _scaled(factor: float, models: float | None = None) -> Device:
    """A computer that takes ``factor`` times as long for everything; for models ``models`` times, if that differs."""
    return Device(factor if models is None else models, int(factor * 80_000), int(factor * 1.25 * limits.MS), factor)


DEVICES: Final = {
    "server": _scaled(0.5),
    "car-computer": _scaled(1.0),
    "rsu": _scaled(1.5),
    "rsu-gpu": _scaled(1.5, models=0.1),
    "single-board": _scaled(4.0),
}
