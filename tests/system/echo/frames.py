"""The frames of the capability ``echo``: a question, and the same number back."""

from typing import Final

from protocols.wire.fields import Count
from protocols.wire.frame import Frame


class EchoAsk(Frame, frozen=True, array_like=True, gc=False, tag=60):
    """Send this number back."""

    number: Count


class EchoAnswer(Frame, frozen=True, array_like=True, gc=False, tag=61):
    """The number of an :class:`EchoAsk`."""

    number: Count


EchoFrame = EchoAsk | EchoAnswer
FRAMES: Final = (EchoAsk, EchoAnswer)
