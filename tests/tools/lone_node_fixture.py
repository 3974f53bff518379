"""One engine without a simulation: the test plays its driver and all other nodes."""

from protocols.base import limits
from protocols.base.ids import Role
from protocols.engine import Engine
from protocols.membership.events import Dial
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.membership import Hello
from tests.tools.strategies import NOW_UTC_NS, engine, identity

MS, SECOND = limits.MS, limits.SECOND


class Alone:
    """One engine. The test plays all other nodes."""

    def __init__(self, **more: object) -> None:
        self.engine: Engine = engine("me", **more)
        self.now = SECOND
        self.pipes = 0

    def pipe(self, node: str, role: Role = Role.VEHICLE, host: str = "192.0.2.1") -> int:
        assert self.engine.membership.admit(identity(node, role), self.now) is None
        self.pipes += 1
        self.engine.membership.inbound_opened(self.pipes, identity(node, role), host, self.now)
        return self.pipes

    def receive(self, pipe: int, frame: Frame | bytes) -> None:
        data = frame if isinstance(frame, bytes) else encode_frame(frame)
        self.engine.receive(data, pipe, self.now, NOW_UTC_NS)

    def hello(self, node: str, incarnation: int = 5, host: str = "192.0.2.1", **more: int) -> int:
        pipe = self.pipe(node, host=host)
        self.receive(pipe, Hello(more.get("major", 1), 0, node, incarnation, more.get("port", 7000), "realtime"))
        return pipe

    def lane(self, node: str, incarnation: int = 5) -> int:
        """Open both directions of a link to a node. Returns the dial id of our lane."""
        self.hello(node, incarnation)
        dial = self.dials()[-1]
        self.engine.lane_opened(dial.dial, identity(node), self.now)
        return dial.dial

    def timers(self, duration_ns: int) -> None:
        end = self.now + duration_ns
        while (due := self.engine.next_timer_at()) <= end:
            assert due > self.now or self.engine.next_timer_at() <= self.now
            self.now = max(due, self.now)
            self.engine.handle_timer(self.now)
            assert self.engine.next_timer_at() > self.now, "a timer that never rests would burn a core"
        self.now = end

    def dials(self) -> list[Dial]:
        self.engine.handle_timer(self.now)
        return [effect for effect in self.engine.outgoing() if type(effect) is Dial]

    def sent(self, dial: int) -> list[Frame]:
        frames = []
        while (data := self.engine.next_frame(dial, self.now)) is not None:
            frames.append(decode_untrusted_node_frame(data))
        return frames
