"""What computing costs on the classes of computers that scenarios name.

``car-computer`` is the measure of ``compute_ms`` in scenarios. The other factors are those between recent small-board,
roadside and server processors in single-thread integer work, rounded. Handshakes and frames were measured in the
emulator. Mutual TLS 1.3 with P-256 takes 1.2 ms an end. Where twelve nodes have readings at 10 Hz, each frame sent or
received takes 80 µs of processor, kernel included. That is ten times what a loop of nothing else takes, because caches
are cold and threads sleep in between. One core of that host stands for a ``car-computer``.
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


def _scaled(factor: float) -> Device:
    return Device(factor, int(factor * 80_000), int(factor * 1.25 * limits.MS))


DEVICES: Final = {
    "server": _scaled(0.5),
    "car-computer": _scaled(1.0),
    "rsu": _scaled(1.5),
    "single-board": _scaled(4.0),
}
