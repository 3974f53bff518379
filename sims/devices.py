"""What computing costs on the classes of computers that scenarios name.

``car-computer`` is the measure of ``compute_ms`` in scenarios; the other factors are those between recent small-board,
roadside and server processors in single-thread integer work, rounded. Frames and handshakes were measured on a server
core (8 to 16 µs for a whole reading between callbacks; mutual TLS 1.3 with P-256 from Python, about 1 ms an end) and
scaled by the same factors. They are estimates: what matters is their order, and that queues form where they do.
"""

from typing import Final, NamedTuple

from protocols import limits


class Device(NamedTuple):
    """A class of computers."""

    factor: float
    """Of the time that models take."""
    frame_ns: int
    """To receive a frame, decode it and call back."""
    handshake_ns: int
    """One end of a mutual TLS handshake."""


def _scaled(factor: float) -> Device:
    return Device(factor, int(factor * 20_000), int(factor * 2 * limits.MS))


DEVICES: Final = {
    "server": _scaled(0.5),
    "car-computer": _scaled(1.0),
    "rsu": _scaled(1.5),
    "single-board": _scaled(4.0),
}
