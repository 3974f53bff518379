"""The frames of inference: offers, requests and answers. Requests go to neighbours, or to the relay."""

from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

from protocols.base import limits
from protocols.wire.fields import Count, Digest, Id, Text, check_untrusted_id
from protocols.wire.frame import Frame
from protocols.wire.tensors import NamedTensor, check_untrusted_tensor

_MAX_TEXT_BYTES: Final = 4 * limits.MAX_TEXT_CHARS
"""The longest UTF-8 form of a text. 16 MB of text took 250 ms to refuse."""


class InferenceOnWire(Frame, frozen=True, array_like=True, gc=False):
    """The base of the frames of inference. Only the data of tensors make them large."""

    max_elements: ClassVar[int] = limits.MAX_INFERENCE_ELEMENTS
    max_text_bytes: ClassVar[int] = _MAX_TEXT_BYTES


class Offer(Struct, frozen=True, array_like=True, gc=False):
    """A model that the sender computes for others, and what that costs there."""

    model: Text
    digest: Digest
    compute_us: Count
    """The median time of one run on the sender, without waiting."""
    waiting: Count = 0
    """About how many runs are queued or under way."""
    p95_us: Count = 0
    """The 95th percentile of the times of one run on the sender; 0: it is not known. (Since 1.4.)"""


class Offers(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=7):
    """Everything that the sender computes for others. It replaces what the sender said before."""

    replaces: ClassVar[bool] = True

    version: Count
    offers: Annotated[tuple[Offer, ...], Meta(max_length=limits.MAX_OFFERS)]
    queue_us: Count = 0
    """How long the next run would wait before it begins. (Since 1.4.)"""
    workers: Count = 1
    """How many runs go on at the same time. (Since 1.4.)"""
    runs: Count = 1
    """How many runs one request may ask for. (Since 1.9.)"""


class InferRequest(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=8):
    """Asks the receiver to compute something."""

    request: Count
    """A number that is unique in one incarnation of the sender."""
    model: Text
    digest: Digest
    budget_us: Count
    """The time that is left until the deadline. It is a duration, so that no clocks need to agree."""
    inputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)]
    """A name that comes several times asks for as many runs (:mod:`protocols.inference.signature`; since 1.9)."""
    outputs: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    """The names of the outputs that are wanted; none: all are."""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when an input does not fit its shape."""
        for named in self.inputs:
            check_untrusted_tensor(named.tensor)


class InferAnswer(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=9):
    """The result, or why there is none."""

    request: Count
    status: Literal["done", "busy", "unknown", "invalid", "late", "failed"]
    outputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    queued_us: Count = 0
    compute_us: Count = 0
    detail: Text = ""
    queue_us: Count | None = None
    """How long the next run would wait at the sender. (Since 1.4.)"""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when an output does not fit its shape."""
        for named in self.outputs:
            check_untrusted_tensor(named.tensor)


class InferCancel(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=10):
    """The answer is no longer wanted."""

    request: Count


class TensorKind(Struct, frozen=True, array_like=True, gc=False):
    """One input or output of a model."""

    name: Text
    dtype: Literal["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
    shape: Annotated[tuple[Annotated[int, Meta(ge=-1)], ...], Meta(max_length=limits.MAX_TENSOR_DIMENSIONS)]
    """-1 stands for a dimension of any size; no dimensions stand for any number of them."""
    sizes: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_TENSOR_DIMENSIONS)] = ()
    """The name of each dimension of any size; empty for others. Dimensions of one name have one size in one run."""


class Signature(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=16):
    """What a model takes and gives, by the sender's account. (Since 1.4.)"""

    digest: Digest
    inputs: Annotated[tuple[TensorKind, ...], Meta(max_length=limits.MAX_TENSORS)]
    outputs: Annotated[tuple[TensorKind, ...], Meta(max_length=limits.MAX_TENSORS)]


class StageAsked(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=17):
    """Asks the receiver to make a stage ready: a part of a model that the sender has cut. (Since 1.5.)"""

    digest: Digest
    """The SHA-256 of the bytes of the stage. Requests name it."""
    model: Text
    """The name of the whole model, by which the table of access decides."""
    whole: Digest
    """The file of the whole model."""
    size_bytes: Annotated[int, Meta(ge=1)]


class StageWanted(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=18):
    """The answer of a node that lacks a stage: it wants a chunk of its bytes. (Since 1.5.)"""

    digest: Digest
    offset: Count


class StageChunk(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=19):
    """A chunk of a stage that was wanted. (Since 1.5.)"""

    digest: Digest
    offset: Count
    data: Annotated[bytes, Meta(min_length=1, max_length=limits.STAGE_CHUNK_BYTES)]


class StageState(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=20):
    """Says whether a stage that was asked for can be run at the sender. (Since 1.5.)"""

    digest: Digest
    state: Literal["ready", "busy", "refused", "failed", "dropped"]
    detail: Text = ""
    compute_us: Count = 0
    """The median time of one run on the sender."""


class OffersAsked(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=78):
    """From node to relay: what do you compute for me? (Since 1.9.)"""

    signatures: bool
    """Whether to tell what these models take and give, too."""


class OffersTold(InferenceOnWire, frozen=True, array_like=True, gc=False, tag=79):
    """From relay to node: the answer to ``OffersAsked``, and to ``InferCancel``. (Since 1.9.)"""

    relay: Id
    """The id of the relay."""
    offers: Offers
    """Only the models that the relay may compute for whoever asked."""
    signatures: Annotated[tuple[Signature, ...], Meta(max_length=limits.MAX_OFFERS)] = ()

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when ``relay`` is no id."""
        check_untrusted_id(self.relay)


StageFrame = StageAsked | StageWanted | StageChunk | StageState
InferenceFrame = Offers | InferRequest | InferAnswer | InferCancel | Signature | StageFrame
FRAMES: Final[tuple[type[Frame], ...]] = (
    Offers, InferRequest, InferAnswer, InferCancel, Signature, StageAsked, StageWanted, StageChunk, StageState,
)  # fmt: skip
RELAY_FRAMES: Final[tuple[type[Frame], ...]] = (OffersAsked, OffersTold, InferRequest, InferAnswer, InferCancel)
"""Those between node and relay: requests and answers are the same as between nodes."""
