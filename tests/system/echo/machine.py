"""The machine of the capability ``echo``: asks every neighbour it meets, and again each ``interval_ns``.

It is a whole capability, kept small: frames, a timer, an event, an effect and counters of its own. Nothing of the
product knows it.
"""

from typing import ClassVar, assert_never

from protocols.base.effects import Effect, Event
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.machine import Machine, Message
from tests.system.echo.frames import FRAMES, EchoAnswer, EchoAsk, EchoFrame


class Echoed(Event, frozen=True):
    """A neighbour sent our number back."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    took_ns: int


class Chime(Effect, frozen=True):
    """Let somebody hear that an echo came: performed by the part."""

    node: NodeId


class Echo(Machine):
    """Of one node."""

    name = "echo"
    frames = FRAMES

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._asked: dict[NodeId, tuple[int, int]] = {}
        """Number and instant of the last question to each neighbour."""
        self._due_ns = NEVER
        self._messages: list[Message] = []
        self._events: list[Echoed] = []
        self._effects: list[Chime] = []
        self._number = self._answered = self._asked_of_us = 0

    def ask(self, node: NodeId, now: int) -> int:
        """Ask one neighbour now; the number that it is to send back."""
        self._number += 1
        self._asked[node] = self._number, now
        self._messages.append((node, EchoAsk(self._number)))
        return self._number

    def receive(self, frame: EchoFrame, source: NodeId, role: Role, now: int) -> None:
        match frame:
            case EchoAsk():
                self._asked_of_us += 1
                self._messages.append((source, EchoAnswer(frame.number)))
            case EchoAnswer():
                number, asked_ns = self._asked.get(source, (0, 0))
                if frame.number == number:
                    self._answered += 1
                    self._events.append(Echoed(source, now - asked_ns))
                    self._effects.append(Chime(source))
            case _:
                assert_never(frame)

    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        self.ask(node, now)
        self._due_ns = min(self._due_ns, now + self._interval_ns)

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        self._asked.pop(node, None)

    def handle_timer(self, now: int) -> None:
        if now >= self._due_ns:
            self._due_ns = now + self._interval_ns if self._asked else NEVER
            for node in sorted(self._asked):
                self.ask(node, now)

    def next_timer_at(self) -> int:
        return self._due_ns

    def has_news(self) -> bool:
        return bool(self._messages or self._events)

    def messages(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages

    def outgoing(self) -> list[Chime]:
        effects, self._effects = self._effects, []
        return effects

    def events(self) -> list[Echoed]:
        events, self._events = self._events, []
        return events

    def counters(self) -> dict[str, int]:
        return {"asked": self._number, "answered": self._answered, "asked_of_us": self._asked_of_us}
