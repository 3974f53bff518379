"""The relay as one more candidate for requests of a node, without a network."""

import pytest

from protocols.base.errors import InvalidKey, ModelUnknown
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS, SECOND
from protocols.inference.events import Answered, Compute, TellRelay
from protocols.inference.relay import MAX_RELAYED_BYTES, where_ran
from protocols.inference.signature import ModelSignature, TensorSignature
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest, Offer, Offers, OffersTold, Signature
from protocols.wire.inference import TensorKind as Kind
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.inference_fixture import DIGEST, IMAGE, ME, OTHER, A, Bench, model

RELAY = NodeId("relay/relay-1")
ROUND_TRIP_NS = 40 * MS
DONE = (NamedTensor("y", tensor_of(bytes(10))),)


def bench(*present: NodeId, allowed: tuple[str, ...] = ("plate",)) -> Bench:
    made = Bench(*present)
    made.machine.allow_relay(allowed)
    return made


def tell(
    at: Bench, compute_us: int = 1_000, name: str = "plate", digest: str = DIGEST, relay: str = "relay-1",
    signatures: tuple[Signature, ...] = (),
) -> set[str]:  # fmt: skip
    offers = Offers(1, (Offer(name, digest, compute_us),), 0, 8)
    return at.machine.relay_told(OffersTold(relay, offers, signatures), ROUND_TRIP_NS, at.now)


def ask(at: Bench, budget_ns: int = SECOND, image: tuple[NamedTensor, ...] = IMAGE, name: str = "plate") -> int:
    return at.machine.ask(name, image, (), budget_ns, True, at.now)


def sent(at: Bench) -> list[InferRequest | InferCancel]:
    """What goes to the relay."""
    return [effect.frame for effect in at.machine.outgoing() if isinstance(effect, TellRelay)]


def answer(at: Bench, request: InferRequest, took_ns: int = 50 * MS, status: str = "done") -> Answered | None:
    at.now += took_ns
    outputs = DONE if status == "done" else ()
    at.machine.relay_answered(InferAnswer(request.request, status, outputs, 0, 1_000, queue_us=0), at.now)  # type: ignore[arg-type]
    return next(iter(at.machine.events()), None)


def prove(at: Bench, took_ns: int = 50 * MS) -> None:
    """Let the relay answer twice: it is believed then."""
    for _ in range(2):
        ask(at)
        (request,) = sent(at)
        assert isinstance(request, InferRequest)
        assert answer(at, request, took_ns) is not None


def test_model_that_only_the_relay_has_is_computed_there() -> None:
    """The answer names the relay in a way in which no node is named."""
    at = bench()
    assert tell(at) == {DIGEST}, "its signature is missing"
    number = ask(at)
    (request,) = sent(at)
    assert isinstance(request, InferRequest)
    assert (request.model, request.digest, request.budget_us) == ("plate", DIGEST, 1_000_000)
    answered = answer(at, request)
    assert answered is not None
    assert answered.winner is not None
    assert (answered.request, answered.winner.node, answered.outputs) == (number, RELAY, DONE)
    counters = at.machine.counters()
    assert (counters["run_at_relay"], counters["run_there"], counters["run_here"]) == (1, 0, 0)
    assert [where_ran(node, ME) for node in (RELAY, ME, A)] == ["relay", "here", "neighbour"]


def test_whoever_has_no_model_is_told_what_became_of_the_relay() -> None:
    """Its owner let the relay compute it, and would look for a neighbour with the model otherwise."""
    at = bench()
    with pytest.raises(ModelUnknown, match="The relay may compute it, and is away"):
        ask(at)
    tell(at, name="another")
    with pytest.raises(ModelUnknown, match="The relay may compute it, and does not offer it"):
        ask(at)
    with pytest.raises(ModelUnknown, match=r"in reach$"):
        ask(at, name="another")


def test_nothing_goes_to_the_relay_unless_the_configuration_names_the_model() -> None:
    """Inputs are what a vehicle sees: that they leave the neighbourhood is for its owner to say."""
    at = bench(allowed=())
    assert tell(at) == set()
    with pytest.raises(ModelUnknown):
        ask(at)
    at.machine.allow_relay(("road/*",))
    tell(at)
    with pytest.raises(ModelUnknown):
        ask(at)
    at.machine.allow_relay(("*",))
    tell(at)
    ask(at)
    assert len(sent(at)) == 1
    with pytest.raises(InvalidKey):
        at.machine.allow_relay(("a/**/b/**/c/**",))


def test_inputs_that_must_stay_at_home_never_go_to_the_relay() -> None:
    """What a manifest says counts more than what the configuration allows."""
    at = bench()
    at.machine.configure(private=["plate"])
    at.machine.set_models((model(compute_ns=SECOND),), at.now)
    tell(at)
    ask(at, 10 * SECOND)
    assert [type(effect) for effect in at.machine.outgoing()] == [Compute]


def test_smaller_model_does_not_take_inputs_to_the_relay_that_may_not_go_there() -> None:
    """The inputs are those of the model that was asked for, whichever runs."""
    at = bench(allowed=("small",))
    at.machine.configure(fallbacks={"plate": "small"})
    at.machine.set_models((model(compute_ns=2 * SECOND),), at.now)
    tell(at, 1_000, "small", OTHER)
    ask(at, SECOND)
    assert [type(effect) for effect in at.machine.outgoing()] == [Compute]


def test_request_that_is_too_large_for_an_exchange_is_computed_elsewhere() -> None:
    """It would be refused at the relay after the whole way."""
    at = bench()
    at.machine.set_models((model(compute_ns=SECOND),), at.now)
    tell(at)
    ask(at, 9 * SECOND, (NamedTensor("image", tensor_of(bytes(MAX_RELAYED_BYTES + 1))),))
    assert [type(effect) for effect in at.machine.outgoing()] == [Compute]


def test_relay_that_can_not_make_the_deadline_is_not_asked() -> None:
    """It would cost the way and the run, and nobody would take the answer."""
    at = bench()
    tell(at)
    prove(at, 50 * MS)
    at.now += MS
    ask(at, 1 * MS - 1)
    assert sent(at) == []
    answered = next(iter(at.machine.events()))
    assert (answered.failure, answered.attempts) == ("late", ())


def test_home_comes_first_unless_the_relay_is_clearly_faster() -> None:
    """A round trip of 40 ms is part of the prediction."""
    at = bench()
    at.machine.set_models((model(compute_ns=30 * MS),), at.now)
    tell(at)
    ask(at)
    assert [type(effect) for effect in at.machine.outgoing()] == [Compute]
    at = bench()
    at.machine.set_models((model(compute_ns=300 * MS),), at.now)
    tell(at)
    ask(at)
    assert [type(effect) for effect in at.machine.outgoing()] == [TellRelay]


def test_neighbour_with_the_id_of_the_relay_can_not_answer_for_it() -> None:
    """Ids are unique in a mesh, and an authority may err."""
    at = bench(NodeId("relay-1"))
    tell(at)
    ask(at)
    (request,) = sent(at)
    at.machine.receive(InferAnswer(request.request, "done", DONE), NodeId("relay-1"), Role.RSU, at.now)
    assert at.machine.events() == []
    assert isinstance(request, InferRequest)
    assert answer(at, request) is not None


def test_relay_that_goes_away_has_its_runs_repeated_elsewhere() -> None:
    """Each request is answered once, whatever becomes of the way to the relay."""
    at = bench(A)
    tell(at)
    ask(at)
    (request,) = sent(at)
    at.offer(A)
    at.machine.relay_gone(at.now)
    ((node, moved),) = [each for each in at.machine.messages() if isinstance(each[1], InferRequest)]
    assert node == A
    assert isinstance(moved, InferRequest)
    assert isinstance(request, InferRequest)
    assert answer(at, request) is None, "an answer that comes after all is late"
    at.machine.receive(InferAnswer(moved.request, "done", DONE), A, Role.RSU, at.now)
    assert at.answered().winner is not None
    at.machine.relay_gone(at.now)  # again, and nothing happens
    assert at.machine.digest_of("plate") == DIGEST, "the neighbour offers it still"


def test_answer_that_can_not_be_a_result_is_not_believed() -> None:
    """The relay is checked as a neighbour is."""
    at = bench()
    signature = Signature(DIGEST, (Kind("image", "u1", (-1,)),), (Kind("scores", "f4", (2,)),))
    assert tell(at, signatures=(signature,)) == set()
    assert at.machine.signature_of("plate") == ModelSignature(
        (TensorSignature("image", "u1", (None,)),), (TensorSignature("scores", "f4", (2,)),)
    )
    ask(at)
    (request,) = sent(at)
    assert isinstance(request, InferRequest)
    answered = answer(at, request)
    assert answered is not None
    assert answered.winner is None
    assert at.machine.counters()["wrong_answers"] == 1
    ask(at)
    assert sent(at) == [], "it is not asked for a while"


def test_late_run_at_the_relay_is_hedged_and_cancelled() -> None:
    """As at a neighbour: the first answer wins, and the loser is told."""
    at = bench(A)
    tell(at)
    prove(at, 50 * MS)
    at.offer(A, 200_000)
    ask(at, 5 * SECOND)
    (request,) = sent(at)
    at.machine.messages()
    at.now += 400 * MS
    at.machine.handle_timer(at.now)
    ((node, hedge),) = [each for each in at.machine.messages() if isinstance(each[1], InferRequest)]
    assert node == A
    assert isinstance(hedge, InferRequest)
    at.machine.receive(InferAnswer(hedge.request, "done", DONE), A, Role.RSU, at.now)
    assert at.answered().winner is not None
    assert sent(at) == [InferCancel(request.request)]


def test_another_relay_at_the_same_address_begins_anew() -> None:
    """Several relays may share an address. What one of them was asked is asked again."""
    at = bench()
    tell(at)
    ask(at)
    sent(at)
    tell(at, relay="relay-2")
    answered = next(iter(at.machine.events()))
    assert [attempt.outcome for attempt in answered.attempts] == ["dead"]
    ask(at)
    (request,) = sent(at)
    assert isinstance(request, InferRequest)
    answered_now = answer(at, request)
    assert answered_now is not None
    assert answered_now.winner is not None
    assert answered_now.winner.node == "relay/relay-2"


def test_relay_that_restarts_counts_its_offers_anew() -> None:
    """Offers of a neighbour with an old version are ignored; exchanges come in order."""
    at = bench()
    for version in (9, 1):
        offers = Offers(version, (Offer("plate", str(version) * 64, 1_000),))
        at.machine.relay_told(OffersTold("relay-1", offers), ROUND_TRIP_NS, at.now)
    assert at.machine.digest_of("plate") == "1" * 64


def test_stages_of_a_split_model_stay_in_the_neighbourhood() -> None:
    """Only whole requests go to the relay."""
    at = bench(A, allowed=("**",))
    tell(at)
    assert [reach.node for reach in at.machine.split.devices._reachable(at.now)] == [A]
