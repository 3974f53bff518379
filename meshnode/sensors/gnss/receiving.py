"""A receiver that is listened to: its lines become samples, and when it is away it is sought again."""

import time
from collections.abc import Generator, Iterable
from typing import Final, Protocol

from meshnode.sensors.contract import CHECK_S, DriverContext, Sample
from meshnode.sensors.gnss.fixes import Heard, NoFix, Pulse, SatelliteFix
from meshnode.sensors.gnss.tracking import Tracker
from protocols.base.errors import SourceUnavailable

MAX_LINE_BYTES: Final = 65_536
"""gpsd's own bound is 10,240; a line that is longer is none."""
POLL_S: Final = 0.2
"""How long one look at a receiver may take: a node that stops waits for it."""
_AGAIN_S: Final = 1.0
"""How often a receiver that is away is sought."""


class Receiver(Protocol):
    """Where lines come from."""

    @property
    def name(self) -> str:
        """What people call it: ``gpsd at localhost:2947``."""

    def open(self) -> None:
        """Begin. :raises SourceUnavailable: it is absent, busy or not permitted; names it and the way out."""

    def heard(self, timeout_s: float) -> Iterable[Heard]:
        """What it says, waiting for ``timeout_s`` at most. :raises SourceUnavailable: it has gone."""

    def close(self) -> None:
        """End. Idempotent, also after a failure."""


def received(receiver: Receiver, context: DriverContext, tracker: Tracker) -> Generator[Sample, None, None]:
    """Samples of a receiver until the node stops. One that worked once is sought again each second.

    :raises SourceUnavailable: it can't be opened at the start.
    """
    silent = f"{receiver.name} gives no fixes"
    receiver.open()
    try:
        while not context.stopping.is_set():
            try:
                for heard in receiver.heard(POLL_S):
                    yield from _taken(heard, context.elapsed_s(), tracker)
            except SourceUnavailable as error:
                yield from _away(receiver, str(error), context, tracker)
            else:
                yield from tracker.waited(context.elapsed_s(), silent)
    finally:
        receiver.close()


def looked_at(receiver: Receiver) -> str:
    """What a receiver has for somebody who looks: ``3d fix, 9 satellites, accuracy 2.1 m``.

    :raises SourceUnavailable: it can't be opened, or says nothing for ``CHECK_S``.
    """
    ends_s = time.monotonic() + CHECK_S
    last: Heard | None = None
    receiver.open()
    try:
        while time.monotonic() < ends_s:
            for heard in receiver.heard(POLL_S):
                if isinstance(heard, SatelliteFix):
                    satellites = "" if heard.satellites is None else f", {heard.satellites} satellites"
                    return f"{receiver.name}: {heard.dimensions}d fix{satellites}, accuracy {heard.accuracy_m:.1f} m"
                last = heard if isinstance(heard, NoFix) else last
    finally:
        receiver.close()
    if isinstance(last, NoFix):
        return f"{receiver.name}: {last.why}"
    raise SourceUnavailable(
        f"{receiver.name} has said nothing for {CHECK_S:g} s: is the receiver connected, and is the speed of its line "
        "right?"
    )


def _taken(heard: Heard, due_s: float, tracker: Tracker) -> Iterable[Sample]:
    match heard:
        case SatelliteFix():
            return tracker.fixed(heard, due_s, time.time_ns())
        case NoFix():
            return tracker.missing(heard.why, due_s)
        case Pulse():
            tracker.pulsed(heard)
            return ()


def _away(receiver: Receiver, why: str, context: DriverContext, tracker: Tracker) -> Generator[Sample, None, None]:
    """Tell of a receiver that has gone, until it is there again or the node stops."""
    while True:
        receiver.close()
        yield from tracker.missing(why, context.elapsed_s())
        if not context.wait(context.elapsed_s() + _AGAIN_S):
            return
        try:
            receiver.open()
        except SourceUnavailable as error:
            why = str(error)
        else:
            return
