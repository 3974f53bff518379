"""One engine with one neighbour, played by a test."""

from collections.abc import Sequence

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.machine import Machine
from protocols.membership.events import Dial
from protocols.readings.publication import checked_publication
from protocols.wire.codec import encode_frame, node_frames
from protocols.wire.frame import Frame
from protocols.wire.membership import Hello
from tests.tools.strategies import HERE, HOW, NOW_UTC_NS, WHEN, engine, identity

SECOND = limits.SECOND


class Driven:
    """One engine with one neighbour "x" at both ends of a link, played by the test."""

    def __init__(self, says_hello: bool = True, machines: Sequence[Machine] = ()) -> None:
        """``machines``: those of further capabilities."""
        self.engine = engine("me", machines=machines)
        self._decode = node_frames(frame for machine in machines for frame in machine.frames).decode_untrusted
        self.now = SECOND
        self.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 7000),), self.now)
        self.engine.handle_timer(self.now)
        (dial,) = [effect for effect in self.engine.outgoing() if type(effect) is Dial]
        self.dial = dial.dial
        self.hello = self.engine.membership.greeting(self.dial)
        self.engine.lane_opened(self.dial, identity("x", Role.RSU), self.now)
        self.engine.membership.inbound_opened(1, identity("x", Role.RSU), "192.0.2.7", self.now)
        if says_hello:
            self.receive(Hello(1, 0, "x", 5, 7000, "realtime"))

    def receive(self, frame: Frame | bytes, pipe: int = 1) -> list[object]:
        data = frame if isinstance(frame, bytes) else encode_frame(frame)
        return list(self.engine.receive(data, pipe, self.now, NOW_UTC_NS))

    def sent(self, dial: int | None = None) -> list[Frame]:
        frames = []
        while (data := self.engine.next_frame(dial or self.dial, self.now)) is not None:
            frames.append(self._decode(data))
        return frames

    def lanes(self) -> list[int]:
        return [lane.dial for lane in self.engine.lanes.taken()]

    def publish(self, value: object = 1, key: str = "veh/me/x") -> None:
        self.engine.readings.publish(checked_publication(key, HOW), value, HERE, WHEN, self.now, NOW_UTC_NS)
        self.engine.carry(self.now)
