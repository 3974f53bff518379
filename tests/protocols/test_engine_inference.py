"""One node as its driver sees it: offers of models, and requests to compute them."""

from protocols.base import limits
from protocols.base.ids import Role
from protocols.inference.events import Answered, Compute
from protocols.inference.machine import OFFER_INTERVAL_NS
from protocols.inference.placement import LocalModel
from protocols.membership.events import Dial
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest, Offer, Offers
from protocols.wire.membership import Heartbeat, Hello
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.driven_engine import Driven
from tests.tools.strategies import identity

MS, SECOND = limits.MS, limits.SECOND
DIGEST = "1" * 64
IMAGE = (NamedTensor("image", tensor_of(bytes(100))),)
LARGE = (NamedTensor("image", tensor_of(bytes(100_000))),)
PLATE = LocalModel("plate", DIGEST, 500 * MS, 0, True)


def test_offers_are_told_at_once_and_then_at_intervals() -> None:
    """Load changes with every run; neighbours need it ten times a second at most."""
    driven = Driven()
    driven.sent()
    driven.engine.inference.set_models((PLATE,), driven.now)
    driven.engine.carry(driven.now)
    assert driven.engine.next_timer_at() <= driven.now
    told = 0
    for waiting in range(1, 21):
        driven.engine.inference.set_models(
            (LocalModel("plate", DIGEST, 500 * MS, waiting * 30 * MS, True),), driven.now
        )
        driven.engine.carry(driven.now)
        driven.engine.handle_timer(driven.now)
        told += sum(type(frame) is Offers for frame in driven.sent())
        driven.now += OFFER_INTERVAL_NS // 10
    assert told == 2
    driven.receive(Offers(1, ()))
    assert driven.engine.peers(driven.now)[0].offers == ()


def test_offers_that_change_before_the_neighbour_says_hello_reach_it() -> None:
    """A model that is loaded just then was never offered to that neighbour."""
    driven = Driven(says_hello=False)
    assert [frame.offers for frame in driven.sent() if type(frame) is Offers] == [()]
    driven.engine.inference.set_models((PLATE,), driven.now)
    driven.engine.handle_timer(driven.now)
    driven.receive(Hello(1, 0, "x", 5, 7000, "realtime"))
    *_, told = [frame for frame in driven.sent() if type(frame) is Offers]
    assert [offer.model for offer in told.offers] == ["plate"]


def test_inference_goes_to_a_neighbour_and_back() -> None:
    """Its answer is one event; a large input takes the bulk lane."""
    driven = Driven()
    driven.receive(decode_offers())
    driven.sent()
    number = driven.engine.inference.ask("plate", LARGE, (), SECOND, False, driven.now)
    driven.engine.carry(driven.now)
    (dial,) = [effect for effect in driven.engine.outgoing() if type(effect) is Dial]
    driven.engine.lane_opened(dial.dial, identity("x", Role.RSU), driven.now)
    (request,) = driven.sent(dial.dial)
    assert type(request) is InferRequest
    driven.receive(InferAnswer(request.request, "done", IMAGE))
    (answered,) = [event for event in driven.engine.events() if type(event) is Answered]
    assert (answered.request, answered.outputs) == (number, IMAGE)
    number = driven.engine.inference.ask("plate", IMAGE, (), SECOND, False, driven.now)
    driven.engine.carry(driven.now)
    driven.engine.inference.abandon(number, driven.now)
    driven.engine.carry(driven.now)
    assert [type(frame) for frame in driven.sent() if type(frame) is not Heartbeat] == [InferRequest, InferCancel]


def a_second_later(driven: Driven) -> None:
    """The neighbour has been there for a second, so that it will probably be there for half of one, and offers."""
    driven.now += SECOND
    driven.receive(decode_offers())


def decode_offers() -> Offers:
    """What "x" offers."""
    frame = decode_untrusted_node_frame(encode_frame(Offers(1, (offer(),))))
    assert type(frame) is Offers
    return frame


def offer() -> Offer:
    """A quick plate detector."""
    return Offer("plate", DIGEST, 1_000)


def test_inference_for_a_neighbour_is_computed_and_answered() -> None:
    """The driver gets a Compute and gives back its result."""
    driven = Driven()
    driven.engine.inference.set_models((PLATE,), driven.now)
    driven.engine.carry(driven.now)
    driven.sent()
    driven.receive(InferRequest(3, "plate", DIGEST, 1_000_000, IMAGE))
    (compute,) = [effect for effect in driven.engine.outgoing() if type(effect) is Compute]
    driven.engine.inference.computed(compute.run, InferAnswer(0, "done", IMAGE, 1, 2), driven.now)
    driven.engine.carry(driven.now)
    assert driven.sent() == [InferAnswer(3, "done", IMAGE, 1, 2, queue_us=0)]


def test_inference_that_no_frame_can_carry_runs_here() -> None:
    """An input of more than 16 MiB can't travel; that is no reason to fail."""
    driven = Driven()
    driven.engine.inference.set_models((PLATE,), driven.now)
    driven.engine.carry(driven.now)
    a_second_later(driven)
    huge = (NamedTensor("image", tensor_of(bytes(limits.MAX_FRAME_BYTES))),)
    driven.engine.inference.ask("plate", huge, (), SECOND, False, driven.now)
    driven.engine.carry(driven.now)
    assert [type(effect) for effect in driven.engine.outgoing()] == [Compute]
    assert driven.engine.statistics()["frames_undeliverable"] == 1


def test_inference_asked_of_a_neighbour_that_takes_nothing_runs_here() -> None:
    """Its control queue is full: as good as dead, for this request."""
    driven = Driven()
    driven.engine.inference.set_models((PLATE,), driven.now)
    driven.engine.carry(driven.now)
    a_second_later(driven)
    for _ in range(limits.MAX_CONTROL_FRAMES):
        driven.receive(InferRequest(1, "nothing", DIGEST, 1_000_000, IMAGE))
    driven.engine.inference.ask("plate", IMAGE, (), SECOND, False, driven.now)
    driven.engine.carry(driven.now)
    assert Compute in {type(effect) for effect in driven.engine.outgoing()}
    driven.receive(InferRequest(2, "nothing", DIGEST, 1_000_000, IMAGE))
    assert driven.engine.statistics()["frames_undeliverable"] == 2


def test_answers_that_were_asked_for_are_never_over_the_rate() -> None:
    """A neighbour with a model of 0.1 ms answered more than a thousand a second, and some answers were dropped."""
    driven = Driven()
    driven.receive(decode_offers())
    for _ in range(limits.MAX_CONTROL_FRAME_BURST + 1):
        driven.receive(InferCancel(1))
    number = driven.engine.inference.ask("plate", IMAGE, (), SECOND, False, driven.now)
    driven.engine.carry(driven.now)
    (request,) = [frame for frame in driven.sent() if type(frame) is InferRequest]
    driven.receive(InferAnswer(request.request, "done", IMAGE))
    (answered,) = [event for event in driven.engine.events() if type(event) is Answered]
    assert (answered.request, answered.outputs) == (number, IMAGE)
