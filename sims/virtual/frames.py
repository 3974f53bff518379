"""Frames on simulated pipes: decoded once, for all receivers to which the same bytes are sent.

A *calm* frame needs no answer and is passed on to nobody, so its receiver need not wake up for it. Heartbeats say in a
field whether they ask for an answer, and a publisher knows how far its readings go. All other frames, those of an added
capability among them, wake their receivers.
"""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec.structs import replace

from protocols.base.errors import RemoteProtocolError
from protocols.wire.frame import Frame
from protocols.wire.gossip import GossipEntries
from protocols.wire.inference import InferRequest
from protocols.wire.membership import Heartbeat
from protocols.wire.parcels import readings_in_own_frame
from protocols.wire.readings import Provenance, Readings, SignedReadings
from sims.virtual.arrivals import Issue

Decode = Callable[[bytes | bytearray], Frame]
"""Parses the bytes of one frame, and raises :class:`RemoteProtocolError` for anything that is no frame."""
_ENTRIES: Final = GossipEntries  # compiled code finds these at once
_HEARTBEAT: Final = Heartbeat
_REQUEST: Final = InferRequest
_READINGS: Final = Readings
_ENTRIES_COST: Final = 6
"""How much more a frame with signed gossip entries costs than other frames. In the emulator 0.45 ms passed between
putting an entry in and the first frame, and 0.5 ms between a frame's arrival and telling others of its entry."""
_SIGNED_COST: Final = 2
"""How much more a frame with signed readings costs: 85 µs to sign and to check it, where other frames cost 80 µs."""
_SIGNED: Final = SignedReadings


class SimFrame:
    """One frame, and what decoding found it to be."""

    __slots__ = ("accuses", "calm", "data", "decoded", "issue", "others", "readings", "sealed")

    def __init__(self, data: bytes | None, decoded: Frame | None) -> None:
        """``data``: None for the end of a pipe. ``decoded``: None for that, and for bytes that are no frame."""
        self.data, self.decoded = data, decoded
        self.calm = False
        """Whether its receiver has nothing to do at once because of it."""
        self.accuses = False
        """Whether it names suspects, which shortens the time-outs of receivers that suspect the same node."""
        self.sealed = 0
        """How much more than other frames it costs, because of signatures; 0: it carries none."""
        self.readings = 0
        """How many readings it carries."""
        self.issue: Issue | None = None
        """The issue of the reading that was delivered first …"""
        self.others: list[Issue] | None = None
        """… and those of the others."""
        if type(decoded) is _READINGS:
            self.readings = len(decoded.readings)
        elif type(decoded) is _HEARTBEAT:
            self.calm, self.accuses = not decoded.answer, bool(decoded.suspects)
        elif type(decoded) is _ENTRIES:
            self.sealed = _ENTRIES_COST
        elif type(decoded) is _SIGNED:
            self.sealed = _SIGNED_COST
            self.readings = readings_in_own_frame(data) if data is not None else 0


END: Final = SimFrame(None, None)
"""Stands for the end of a pipe, and for a frame that will never arrive."""


def readings_in(frames: Iterable[SimFrame]) -> int:
    """How many readings some frames carry."""
    return sum([frame.readings for frame in frames])


class SharedDecoder:
    """Decodes what engines receive. Decoded frames are immutable, so one of them serves all receivers."""

    def __init__(self, decode: Decode) -> None:
        """``decode`` has to know all frames of the simulation."""
        self.arriving = END
        """The frame that is being taken in."""
        self.on_request: Callable[[str, InferRequest], None] | None = None
        """Is called with each request to run a model that is sent, and the name of its sender."""
        self._decode = decode
        self._texts: dict[str, str] = {}
        self._hows: dict[Provenance, Provenance] = {}

    def frame_of(self, data: bytes, sender: str = "") -> SimFrame:
        """The frame that is in these bytes, which ``sender`` sends."""
        try:
            decoded = self._decode(data)
        except RemoteProtocolError:  # its receiver will find that out
            return SimFrame(data, None)
        if type(decoded) is _READINGS:
            decoded = _READINGS(tuple([
                replace(
                    reading, key=self.same(reading.key), origin=self.same(reading.origin),
                    how=self._hows.setdefault(reading.how, reading.how),
                )
                for reading in decoded.readings
            ]))  # fmt: skip
        elif type(decoded) is _REQUEST and self.on_request is not None:
            self.on_request(sender, decoded)
        return SimFrame(data, decoded)

    def __call__(self, data: bytes | bytearray) -> Frame:
        """Decode for an engine. It raises the errors of ``decode``."""
        frame = self.arriving
        if frame.data is data and frame.decoded is not None:
            return frame.decoded
        return self._decode(data)

    def same(self, text: str) -> str:
        """One object for all equal texts. Each receiver compares them, and comparing an object with itself is fast."""
        return self._texts.setdefault(text, text)
