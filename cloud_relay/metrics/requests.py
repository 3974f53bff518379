"""What nodes ask of the relay, counted and timed by the kind of frame and by the answer.

The heads of frames are looked at, and nothing is decoded twice. Who asks is no label: there may be ten thousand nodes.
"""

import time
from typing import Final

from cloud_relay.metrics.histograms import LabelledHistogram
from meshnode.links.transport import Handler
from protocols.base.ids import PeerIdentity
from protocols.wire.encoding.messagepack import untrusted_frame_number
from protocols.wire.frame import number_of
from protocols.wire.registry import RELAY_FRAMES

_NAMES: Final = {number_of(frame): frame.__name__ for frame in RELAY_FRAMES}
UNKNOWN: Final = "unknown"


def request_latencies() -> LabelledHistogram:
    """The family."""
    return LabelledHistogram(
        "request_seconds", "Requests of nodes, from when one was read until its answer is ready.", "frame", "answer"
    )


def measured(handler: Handler, latencies: LabelledHistogram) -> Handler:
    """A handler that counts what another one does."""

    def answer(peer: PeerIdentity, data: bytes) -> bytes:
        began_s = time.monotonic()
        answered = handler(peer, data)
        latencies.observe(time.monotonic() - began_s, _name(data), _name(answered))
        return answered

    return answer


def _name(data: bytes) -> str:
    number = untrusted_frame_number(data)
    return UNKNOWN if number is None else _NAMES.get(number, UNKNOWN)
