"""What a machine of inference has decided and its driver has not taken yet."""

from protocols.inference.events import Answered, CancelCompute, Compute
from protocols.machine import Message


class Decided:
    """Effects, frames and events, in the order in which they were decided."""

    __slots__ = ("effects", "events", "messages")

    def __init__(self) -> None:
        self.effects: list[Compute | CancelCompute] = []
        self.messages: list[Message] = []
        self.events: list[Answered] = []
