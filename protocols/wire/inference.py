"""Frames of inference: what is offered, asked and answered."""

from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

from protocols.base import limits
from protocols.wire.fields import Count, Digest, Text
from protocols.wire.frame import Frame
from protocols.wire.tensors import NamedTensor, check_untrusted_tensor


class Offer(Struct, frozen=True, array_like=True, gc=False):
    """A model that the sender computes for others, and what that costs there."""

    model: Text
    digest: Digest
    compute_us: Count
    """Median time of one run on the sender, without waiting."""
    waiting: Count = 0
    """Runs queued or under way."""


class Offers(Frame, frozen=True, array_like=True, gc=False, tag=7):
    """Everything the sender computes for others; replaces what it said before."""

    replaces: ClassVar[bool] = True

    version: Count
    offers: Annotated[tuple[Offer, ...], Meta(max_length=limits.MAX_OFFERS)]


class InferRequest(Frame, frozen=True, array_like=True, gc=False, tag=8):
    """Compute this for me."""

    request: Count
    """Unique in one incarnation of the sender."""
    model: Text
    digest: Digest
    budget_us: Count
    """What is left of the deadline; a duration, so that no clocks need to agree."""
    inputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)]
    outputs: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    """Names wanted; none: all."""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when an input does not fit its shape."""
        for named in self.inputs:
            check_untrusted_tensor(named.tensor)


class InferAnswer(Frame, frozen=True, array_like=True, gc=False, tag=9):
    """The result, or why there is none."""

    request: Count
    status: Literal["done", "busy", "unknown", "invalid", "late", "failed"]
    outputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    queued_us: Count = 0
    compute_us: Count = 0
    detail: Text = ""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when an output does not fit its shape."""
        for named in self.outputs:
            check_untrusted_tensor(named.tensor)


class InferCancel(Frame, frozen=True, array_like=True, gc=False, tag=10):
    """The answer is no longer wanted."""

    request: Count


InferenceFrame = Offers | InferRequest | InferAnswer | InferCancel
FRAMES: Final[tuple[type[Frame], ...]] = (Offers, InferRequest, InferAnswer, InferCancel)
