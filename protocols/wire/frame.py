"""The base of all frames: a struct that declares its number and checks what its types can't say.

A frame is a MessagePack array ``[number, field, field, …]``. A newer minor version may append fields with defaults and
add frames; a receiver skips what it does not know. Anything else is a new major version.

Numbers 1 to 63 travel between nodes, 64 to 95 between node and relay, and 96 to 127 between a node and an application
on the same computer. Requests for inference and their answers travel between node and relay, too.
``docs/reference/wire.md`` describes every field for a second implementation.
"""

from typing import Any, ClassVar, Self

from msgspec import Struct

from protocols.base import limits


class Frame(Struct, frozen=True, array_like=True, gc=False):
    """The base of all frames. A subclass passes its number as ``tag``."""

    replaces: ClassVar[bool] = False
    """Whether a newer frame of this class takes the place of one that still waits for the same neighbour."""

    background: ClassVar[bool] = False
    """Whether it waits until nothing else wants its lane. A neighbour gets few of them at a time."""

    max_elements: ClassVar[int] = limits.MAX_ELEMENTS
    """The most elements of a frame of this class that is larger than ``LARGE_FRAME_BYTES``."""
    max_text_bytes: ClassVar[int] = limits.MAX_FRAME_BYTES
    """The longest text in such a frame. A text costs far more to decode than bytes, and to complain about even more."""

    def check_untrusted(self) -> None:
        """Check what decoding did not check. :raises RemoteProtocolError: when the frame breaks a rule of its own."""

    def travelling(self) -> Self:
        """Return the frame as the encoder needs it, with tensors inside values as extensions. :raises ValueUnsupported:
        when a value in it can't travel."""
        return self


class SmallFrame(Frame, frozen=True, array_like=True, gc=False):
    """The base of frames that have few elements and short texts."""

    max_elements: ClassVar[int] = limits.MAX_SMALL_FRAME_ELEMENTS
    max_text_bytes: ClassVar[int] = limits.MAX_SMALL_FRAME_TEXT_BYTES


def number_of(frame: type[Frame]) -> int:
    """The number that a frame declares."""
    tag: Any = frame.__struct_config__.tag
    assert isinstance(tag, int), f"{frame.__name__} declares no number"
    return tag
