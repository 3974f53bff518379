"""Decoding of frames in a simulation, where neighbour after neighbour gets the same bytes."""

from msgspec.structs import force_setattr

from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.frame import Frame as NodeFrame
from protocols.wire.readings import Readings
from sims.virtual.node import Frame


class SharedDecoder:
    """Decodes what all engines receive. Decoded frames are frozen, so that one of them serves all receivers."""

    def __init__(self) -> None:
        self.frame = Frame(b"")
        """The frame that is being taken in."""
        self._texts: dict[str, str] = {}

    def __call__(self, data: bytes | bytearray) -> NodeFrame:
        """As :func:`protocols.wire.codec.decode_untrusted_node_frame`."""
        frame = self.frame
        if frame.data is not data:  # an engine is used beside the pipes
            return decode_untrusted_node_frame(data)
        decoded: NodeFrame | None = frame.decoded
        if decoded is None:
            decoded = decode_untrusted_node_frame(data)
            if type(decoded) is Readings:
                frame.decoded = decoded
                for reading in decoded.readings:
                    force_setattr(reading, "key", self.same(reading.key))
                    force_setattr(reading, "origin", self.same(reading.origin))
        return decoded

    def same(self, text: str) -> str:
        """One object for all equal texts: they are compared at each receiver, and found equal without a look."""
        return self._texts.setdefault(text, text)
