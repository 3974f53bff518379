"""Requests for inference: each answered exactly once, whatever dies, lies or is late."""

from collections import Counter
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.access import AccessRule
from protocols.base import limits
from protocols.base.errors import BoundExceeded, ModelUnknown
from protocols.base.ids import NodeId, Role
from protocols.inference.events import Answered, CancelCompute, Compute
from protocols.inference.offers import MAX_OFFERS_BURST
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest, Offer, Offers
from sims.virtual.driver import SimDriver
from tests.tools.inference_fixture import DIGEST, IMAGE, ME, OTHER, A, B, Bench, C, model
from tests.tools.strategies import EXPLORE

MS, SECOND = limits.MS, limits.SECOND
STATUSES = ("done", "busy", "unknown", "invalid", "late", "failed")


# --- own requests --------------------------------------------------------------------------------------------------
def test_ask_for_a_model_nobody_has_names_those_known() -> None:
    """A typing error is found at a glance."""
    bench = Bench(A)
    with pytest.raises(ModelUnknown, match="known: none"):
        bench.ask()
    bench.offer(A)
    with pytest.raises(ModelUnknown, match="known: plate"):
        bench.ask(name="plait")


def test_ask_of_a_model_whose_only_owner_is_out_of_reach_fails_at_once() -> None:
    """It offered, then its link went."""
    bench = Bench()
    bench.offer(A)
    number = bench.ask()
    answered = bench.answered()
    assert (answered.request, answered.winner, answered.failure) == (number, None, "unknown")


def test_ask_beyond_the_bound_is_refused() -> None:
    """An application that never waits must not take all memory."""
    bench = Bench()
    bench.load((model(),))
    for _ in range(limits.MAX_PENDING_REQUESTS):
        bench.ask()
    with pytest.raises(BoundExceeded, match="wait for answers"):
        bench.ask()


def test_ask_measures_this_node_at_first_and_every_sixteenth_time_unless_it_is_surely_slower() -> None:
    """A cost measured while all was starting was never corrected: a fast vehicle gave its frames away for ever."""
    bench = Bench(A)
    bench.load((model(compute_ns=10 * MS),))
    bench.offer(A, 6_000)
    here = []
    for _ in range(18):
        bench.ask(hedge=False)
        here.append(bool(bench.machine.outgoing()))
        for node, request in bench.requests():
            bench.now += 7 * MS
            bench.answer(node, request.request, compute_us=6_000)
        bench.machine.events()
    assert [number for number, ran_here in enumerate(here) if ran_here] == [0, 16]
    slow = Bench(A)
    slow.load((model(compute_ns=100 * MS),))
    slow.offer(A, 6_000)
    slow.ask()
    assert slow.requests(), "what is surely slower needs no measuring"


def test_ask_runs_here_when_that_is_fastest() -> None:
    """A neighbour never makes the caller slower."""
    bench = Bench(A)
    bench.load((model(compute_ns=2 * MS),))
    bench.offer(A, 1_500)
    bench.ask()
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    assert (compute.model, compute.inputs, compute.budget_ns) == ("plate", IMAGE, SECOND)
    bench.now = 3 * MS
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE, 1, 2), bench.now)
    answered = bench.answered()
    assert answered.winner is not None
    assert (answered.winner.node, answered.winner.took_ns, answered.outputs) == (ME, 3 * MS, IMAGE)
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE), bench.now)
    assert bench.machine.events() == []


def test_ask_takes_the_same_file_only() -> None:
    """A model of the same name with other weights gives other answers."""
    bench = Bench(A, B)
    bench.load((model(local=False),))
    bench.offer(A, digest=OTHER)
    bench.offer(B)
    bench.ask()
    assert [node for node, _ in bench.requests()] == [B]


def test_ask_of_a_file_that_came_later_does_not_take_the_place_of_the_first() -> None:
    """The smallest of two digests won, and anybody can claim zeros."""
    bench = Bench(A, B)
    bench.offer(B, digest=OTHER)
    bench.offer(A, 1, digest=DIGEST)
    bench.ask()
    assert [(node, request.digest) for node, request in bench.requests()] == [(B, OTHER)]
    bench.machine.configure(pinned={"plate": DIGEST})
    bench.ask()
    assert [(node, request.digest) for node, request in bench.requests()] == [(A, DIGEST)]


def test_ask_of_a_pinned_file_that_nobody_offers_fails_at_once() -> None:
    """Another file of that name is not what the operator meant."""
    bench = Bench(A)
    bench.machine.configure(pinned={"plate": OTHER})
    bench.offer(A)
    bench.ask()
    assert bench.answered().failure == "unknown"


def test_ask_of_an_unknown_model_names_a_bounded_number_of_others() -> None:
    """64 neighbours with 64 names of 200 characters each made a message of a megabyte."""
    bench = Bench(A)
    offers = tuple(Offer(f"{number:03}" * 60, DIGEST, 1) for number in range(limits.MAX_OFFERS))
    bench.machine.receive(Offers(1, offers), A, Role.RSU, 0)
    with pytest.raises(ModelUnknown) as raised:
        bench.ask()
    assert len(str(raised.value)) < 5_000


def test_ask_without_the_model_takes_the_file_most_offer() -> None:
    """One neighbour with another version must not decide for all."""
    bench = Bench(A, B, C)
    bench.offer(A, digest=OTHER)
    bench.offer(B)
    bench.offer(C)
    bench.ask()
    assert bench.requests()[0][1].digest == DIGEST


def test_late_neighbour_is_hedged_here_and_the_loser_cancelled() -> None:
    """The first answer wins; nobody computes for nothing."""
    bench = Bench(A)
    bench.load((model(compute_ns=100 * MS),))
    bench.offer(A, 10_000)
    bench.ask()
    ((_, request),) = bench.requests()
    assert bench.machine.outgoing() == []
    bench.at(bench.machine.next_timer_at())
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    assert bench.machine.counters()["hedged"] == 1
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE), bench.now)
    assert bench.machine.messages() == [(A, InferCancel(request.request))]
    answered = bench.answered()
    assert [(report.node, report.outcome) for report in answered.attempts] == [(ME, "done"), (A, "cancelled")]
    bench.answer(A, request.request)
    assert bench.machine.events() == []
    assert bench.machine.counters()["late_answers"] == 1


def test_late_neighbour_without_hedge_is_waited_for() -> None:
    """The caller said so."""
    bench = Bench(A)
    bench.load((model(compute_ns=100 * MS),))
    bench.offer(A, 10_000)
    bench.ask(hedge=False)
    bench.requests()
    assert bench.machine.next_timer_at() == SECOND
    bench.at(SECOND)
    answered = bench.answered()
    assert (answered.failure, answered.winner) == ("late", None)
    assert [type(frame) for _, frame in bench.machine.messages()] == [InferCancel]


@pytest.mark.parametrize("status", ["busy", "unknown", "late", "failed"])
def test_answer_without_result_goes_to_the_next_at_once(status: str) -> None:
    """And to this node at last."""
    bench = Bench(A, B)
    bench.load((model(compute_ns=500 * MS),))
    bench.offer(A, 1_000)
    bench.offer(B, 2_000)
    bench.ask()
    for neighbour in (A, B):
        ((asked, request),) = bench.requests()
        assert asked == neighbour
        bench.answer(asked, request.request, status)
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    bench.machine.computed(compute.run, InferAnswer(0, "failed", detail="no memory"), bench.now)
    answered = bench.answered()
    assert (answered.failure, answered.detail, len(answered.attempts)) == ("failed", "no memory", 3)
    assert bench.machine.counters()["replayed"] == 3


def test_input_that_this_node_calls_invalid_ends_the_request() -> None:
    """It has the model, so it knows."""
    bench = Bench(A)
    bench.load((model(compute_ns=500 * MS),))
    bench.offer(A)
    bench.ask()
    ((_, request),) = bench.requests()
    bench.at(bench.machine.next_timer_at())
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    bench.machine.computed(compute.run, InferAnswer(0, "invalid", detail="image has 3 dimensions"), bench.now)
    answered = bench.answered()
    assert (answered.failure, answered.detail) == ("invalid", "image has 3 dimensions")
    assert bench.machine.messages() == [(A, InferCancel(request.request))]


def test_input_that_one_neighbour_calls_invalid_is_tried_elsewhere_and_its_lie_is_punished() -> None:
    """One liar ended every request with an error that blamed the caller."""
    bench = Bench(A, B)
    bench.offer(A, 1_000)
    bench.offer(B, 2_000)
    for asked in ([A, B], [B]):
        bench.ask()
        for node in asked:
            ((first, request),) = bench.requests()
            assert first == node
            bench.answer(node, request.request, "invalid" if node == A else "done")
        answered = bench.answered()
        assert answered.winner is not None
        assert answered.winner.node == B
    assert list(bench.drops.items()) == [((A, "plate", "wrong_answer"), 1)]


def test_input_that_two_neighbours_call_invalid_ends_the_request() -> None:
    """They agree, so the mistake is the caller's, and the third need not be asked."""
    bench = Bench(A, B, C)
    for node, compute_us in ((A, 1_000), (B, 2_000), (C, 3_000)):
        bench.offer(node, compute_us)
    bench.ask()
    for node in (A, B):
        ((_, request),) = bench.requests()
        bench.answer(node, request.request, "invalid", detail=f"{node} dislikes it")
    answered = bench.answered()
    assert (answered.failure, answered.detail) == ("invalid", "b dislikes it")
    assert bench.requests() == []


def test_answer_after_the_deadline_is_late_whatever_it_says() -> None:
    """A loser that comes when time is up finds nobody to replay to."""
    bench = Bench(A, B)
    bench.offer(A, 1_000)
    bench.offer(B, 2_000)
    bench.ask(budget_ns=10 * MS)
    ((first, request),) = bench.requests()
    bench.now = 11 * MS
    bench.answer(first, request.request, "busy")
    assert bench.answered().failure == "late"


@pytest.mark.parametrize("here", [False, True])
def test_result_that_comes_at_the_deadline_or_later_is_late(here: bool) -> None:
    """On a busy node a result may be taken before the timer: outputs came after 104 ms where 1 ms was given."""
    bench = Bench(A)
    bench.offer(A, 1_000)
    if here:
        bench.load((model(compute_ns=MS),))
    bench.ask(budget_ns=10 * MS)
    requests, computes = bench.requests(), bench.machine.outgoing()
    bench.now = 10 * MS
    if here:
        ((compute,), nobody) = computes, requests
        assert type(compute) is Compute
        bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE), bench.now)
    else:
        (((asked, request),), nobody) = requests, computes
        bench.answer(asked, request.request)
    assert not nobody
    answered = bench.answered()
    assert (answered.failure, answered.winner, answered.outputs) == ("late", None, ())
    assert answered.detail == "'plate' was not answered within its deadline"
    assert [(report.outcome, report.took_ns) for report in answered.attempts] == [("late", 10 * MS)]
    assert (bench.machine.counters()["failed"], bench.machine.counters()["answered"]) == (1, 0)


def test_answer_of_another_node_or_to_nothing_is_not_used() -> None:
    """A neighbour can't answer for another, whatever number it guesses."""
    bench = Bench(A, B)
    bench.offer(A)
    bench.ask()
    ((_, request),) = bench.requests()
    for node, number in ((B, request.request), (A, request.request + 1), (A, 0), (A, 2**64 - 1), (ME, request.request)):
        for status in STATUSES:
            bench.answer(node, number, status)
    assert bench.machine.events() == []
    bench.answer(A, request.request, queued_us=2**64 - 1, compute_us=2**64 - 1)
    assert bench.answered().winner is not None
    bench.offer(A, 2**64 - 1, waiting=2**64 - 1)
    bench.ask()
    assert bench.machine.next_timer_at() > 0


def test_abandoned_request_is_cancelled_and_never_answered() -> None:
    """The caller went away."""
    bench = Bench(A)
    bench.load((model(compute_ns=500 * MS),))
    bench.offer(A)
    number = bench.ask()
    ((_, request),) = bench.requests()
    bench.machine.abandon(number, bench.now)
    bench.machine.abandon(number, bench.now)
    assert bench.machine.messages() == [(A, InferCancel(request.request))]
    bench.answer(A, request.request)
    bench.at(2 * SECOND)
    assert bench.machine.events() == []


def test_neighbour_gone_replays_its_runs_and_drops_its_requests() -> None:
    """Dead: neither waits for the other."""
    bench = Bench(A, B)
    bench.load((model(compute_ns=500 * MS),))
    bench.prove(A)
    bench.ask()
    bench.ask()
    bench.machine.receive(InferRequest(7, "plate", DIGEST, 1_000_000, IMAGE), A, Role.RSU, 0)
    bench.machine.receive(InferRequest(8, "plate", DIGEST, 1_000_000, IMAGE), B, Role.RSU, 0)
    served = bench.machine.outgoing()
    bench.present.remove(A)
    bench.machine.neighbour_gone(A, bench.now)
    kinds = Counter(type(effect) for effect in bench.machine.outgoing())
    assert kinds == {CancelCompute: 1, Compute: 2}
    assert bench.machine.offers_of(A) == ()
    bench.machine.messages()
    for compute in served:
        assert type(compute) is Compute
        bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE), bench.now)
    assert [(node, frame.request) for node, frame in bench.machine.messages() if type(frame) is InferAnswer] == [(B, 8)]


def test_request_that_could_not_be_queued_goes_elsewhere() -> None:
    """A stalled neighbour is as good as dead for this request."""
    bench = Bench(A)
    bench.load((model(compute_ns=500 * MS),))
    bench.offer(A)
    bench.ask()
    ((_, request),) = bench.requests()
    bench.machine.undeliverable(A, InferCancel(request.request), bench.now)
    assert bench.machine.outgoing() == []
    bench.machine.undeliverable(A, request, bench.now)
    assert [type(effect) for effect in bench.machine.outgoing()] == [Compute]


def test_offers_that_were_overtaken_are_ignored_until_a_new_life() -> None:
    """Versions order them; a restarted neighbour counts anew."""
    bench = Bench(A)
    bench.machine.receive(Offers(5, (Offer("new", DIGEST, 1),)), A, Role.RSU, 0)
    bench.machine.receive(Offers(4, (Offer("old", DIGEST, 1),)), A, Role.RSU, 0)
    assert [offer.model for offer in bench.machine.offers_of(A)] == ["new"]
    bench.machine.neighbour_gone(A, 0)
    bench.machine.receive(Offers(1, (Offer("again", DIGEST, 1),)), A, Role.RSU, 0)
    assert [offer.model for offer in bench.machine.offers_of(A)] == ["again"]


def test_offers_of_one_neighbour_have_an_allowance_and_need_permission() -> None:
    """A neighbour may not keep this node busy with lists, nor have itself asked for what it may not compute."""
    bench = Bench(A, B, rules=(AccessRule(Role.RSU, "offer", "plate"),))
    for _ in range(2 * MAX_OFFERS_BURST):
        bench.offer(A)
    bench.offer(B, name="face")
    assert bench.machine.offers_of(B) == ()
    bench.version += 1
    bench.machine.receive(Offers(bench.version, (Offer("plate", DIGEST, 1),)), C, Role.VEHICLE, 0)
    assert bench.machine.offers_of(C) == ()
    assert [offer.model for offer in bench.machine.offers_of(A)] == ["plate"]
    assert list(bench.drops.items()) == [
        ((A, "", "too_many_offers"), MAX_OFFERS_BURST), ((B, "", "offer_not_permitted"), 1),
        ((C, "", "offer_not_permitted"), 1),
    ]  # fmt: skip


def test_models_changed_are_offered_when_served() -> None:
    """A change of load is told, one that nobody could see is not."""
    bench = Bench()
    assert bench.load((model(), model("secret", served=False)))
    assert not bench.load((model(compute_ns=50 * MS + 10), model("secret", served=False)))
    bench.now += SECOND
    assert not bench.load((model(queue_ns=10 * MS), model("secret", served=False)))
    (told,) = bench.load((model(queue_ns=100 * MS, p95_ns=60 * MS), model("secret", served=False)))
    assert type(told) is Offers
    assert told.offers == (Offer("plate", DIGEST, 50_000, 2, 60_000),)
    assert told.queue_us == 100_000


# --- any history ---------------------------------------------------------------------------------------------------
class AnyHistory(RuleBasedStateMachine):
    """Asks, answers, lies, deaths and time in any order: each request ends exactly once, none without an end."""

    @initialize()
    def begin(self) -> None:
        self.bench = Bench(A, B, C)
        self.bench.load((model(compute_ns=80 * MS), model("remote", local=False)))
        self.open: set[int] = set()
        self.budgets_ns: dict[int, int] = {}
        self.ended: Counter[int] = Counter()
        self.asked_of: dict[NodeId, set[int]] = {A: set(), B: set(), C: set()}
        self.computes: set[int] = set()

    def gather(self) -> None:
        for node, frame in self.bench.machine.messages():
            if type(frame) is InferRequest:
                self.asked_of[node].add(frame.request)
        for effect in self.bench.machine.outgoing():
            if type(effect) is Compute:
                self.computes.add(effect.run)
        for event in self.bench.machine.events():
            self.ended[event.request] += 1
            assert (event.winner is None) == bool(event.failure)
            assert [report.outcome for report in event.attempts].count("done") == (event.winner is not None)
            assert event.winner is None or event.took_ns < self.budgets_ns[event.request]
            assert len({report.node for report in event.attempts}) == len(event.attempts)

    @rule(node=st.sampled_from([A, B, C]), compute_us=st.integers(0, 10**6), name=st.sampled_from(["plate", "remote"]))
    def offer(self, node: NodeId, compute_us: int, name: str) -> None:
        self.bench.offer(node, compute_us, name)

    @rule(budget_ms=st.integers(0, 500), hedge=st.booleans(), name=st.sampled_from(["plate", "remote"]))
    def ask(self, budget_ms: int, hedge: bool, name: str) -> None:
        number = self.bench.ask(budget_ms * MS, hedge, name)
        self.open.add(number)
        self.budgets_ns[number] = budget_ms * MS
        self.gather()

    @rule(node=st.sampled_from([A, B, C]), status=st.sampled_from(STATUSES), data=st.data())
    def answer(self, node: NodeId, status: str, data: st.DataObject) -> None:
        everything = sorted(self.asked_of[A] | self.asked_of[B] | self.asked_of[C] | self.computes) or [0]
        self.bench.answer(node, data.draw(st.sampled_from(everything)), status)
        self.gather()

    @precondition(lambda self: self.computes)
    @rule(status=st.sampled_from(STATUSES), data=st.data())
    def computed(self, status: str, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(self.computes)))
        self.bench.machine.computed(run, InferAnswer(0, status, IMAGE), self.bench.now)  # type: ignore[arg-type]
        self.gather()

    @rule(passed_ms=st.integers(1, 200))
    def wait(self, passed_ms: int) -> None:
        self.bench.at(self.bench.now + passed_ms * MS)
        self.gather()

    @rule(node=st.sampled_from([A, B, C]))
    def die(self, node: NodeId) -> None:
        if node in self.bench.present:
            self.bench.present.remove(node)
        self.bench.machine.neighbour_gone(node, self.bench.now)
        self.gather()

    @rule(node=st.sampled_from([A, B, C]))
    def come_back(self, node: NodeId) -> None:
        if node not in self.bench.present:
            self.bench.present.append(node)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        if not self.ended[number]:
            self.open.discard(number)
        self.bench.machine.abandon(number, self.bench.now)
        self.gather()

    @rule(node=st.sampled_from([A, B, C]), data=st.data())
    def undeliverable(self, node: NodeId, data: st.DataObject) -> None:
        if self.asked_of[node]:
            number = data.draw(st.sampled_from(sorted(self.asked_of[node])))
            self.bench.machine.undeliverable(node, InferRequest(number, "plate", DIGEST, 1, IMAGE), self.bench.now)
            self.gather()

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        assert all(count == 1 for count in self.ended.values())
        assert set(self.ended) <= self.open

    def teardown(self) -> None:
        self.bench.at(self.bench.now + 10 * SECOND)
        self.gather()
        assert set(self.ended) == self.open
        assert not self.bench.machine._asking.requests
        assert not self.bench.machine._asking._runs


AnyHistory.TestCase.settings = settings(max_examples=80, stateful_step_count=25, derandomize=not EXPLORE)
TestInferenceHistories = AnyHistory.TestCase


@pytest.mark.parametrize("seed", range(15))
def test_requests_of_whole_nodes_under_kills_and_stalls_end_exactly_once(seed: int) -> None:
    """The same promise through engines, queues and links."""
    random = Random(seed)
    sim = SimDriver(seed)
    names = ["n0", "n1", "n2", "n3"]
    for name in names:
        node = sim.add(name)
        node.compute_ns = random.choice([5, 50, 300]) * MS
        node.engine.inference.set_models((model(compute_ns=node.compute_ns),), 0)
    sim.meet()
    sim.run_for(SECOND)
    asker = sim.nodes[NodeId("n0")]
    numbers = []
    for _ in range(30):
        numbers.append(
            asker.engine.inference.ask("plate", IMAGE, (), random.choice([20, 200, 2_000]) * MS, True, sim.now)
        )
        sim.act(asker, lambda engine, now: None)
        victim = random.choice(names[1:])
        match random.choice(["kill", "restart", "stall", "cut", "heal", "calm"]):
            case "kill":
                sim.kill(victim)
            case "restart" if not sim.nodes[NodeId(victim)].running:
                sim.restart(victim)
                node = sim.nodes[NodeId(victim)]
                node.engine.inference.set_models((model(compute_ns=node.compute_ns),), sim.now)
                sim.meet()
            case "stall":
                sim.stall(victim, random.randint(10, 2_000) * MS)
            case "cut":
                sim.cut("n0", victim)
            case "heal":
                sim.heal()
            case _:
                pass
        sim.run_for(random.randint(0, 400) * MS)
    sim.run_for(5 * SECOND)
    answered = Counter(event.request for _, event in asker.events if type(event) is Answered)
    assert answered == Counter(numbers)


# --- releases --------------------------------------------------------------------------------------------------------
def test_neighbour_that_asks_for_the_former_file_gets_it_while_it_is_loaded() -> None:
    """It placed its request before it heard of the release. Offers tell of the new file only."""
    bench = Bench(A)
    (offers, *_) = bench.load((model(digest=OTHER, former=(DIGEST,)),))
    assert isinstance(offers, Offers)
    assert [offer.digest for offer in offers.offers] == [OTHER]
    bench.serve(A, 1, 10 * SECOND)
    (compute,) = bench.machine.outgoing()
    assert isinstance(compute, Compute)
    assert compute.digest == DIGEST
    bench.load((model(digest=OTHER),))
    bench.serve(A, 2, 10 * SECOND)
    assert bench.machine.outgoing() == []
    answers = [frame for _, frame in bench.machine.messages() if isinstance(frame, InferAnswer)]
    assert [answer.status for answer in answers] == ["unknown"]


def test_release_moves_the_pin_of_the_configuration_and_what_is_private() -> None:
    """A file that is pinned by its digest would otherwise be asked of neighbours again after the release."""
    bench = Bench(A)
    bench.machine.configure(pinned={"plate": DIGEST})
    assert bench.machine.digest_of("plate") == DIGEST
    bench.machine.follow("plate", OTHER, private=True)
    assert bench.machine.digest_of("plate") == OTHER
    bench.offer(A, digest=OTHER)
    bench.ask()
    assert bench.requests() == [], "its inputs stay here"
    bench.answered()
    bench.machine.follow("plate", OTHER, private=False)
    bench.ask()
    assert [node for node, _ in bench.requests()] == [A]


def test_neighbour_that_asks_for_what_was_offered_before_hears_of_the_release_first() -> None:
    """Its request then goes on with the release; refused without a word it would fail."""
    bench = Bench(A)
    bench.load((model(),))
    bench.now += SECOND
    bench.machine.set_models((model(digest=OTHER),), bench.now)
    bench.serve(A, 1, 10 * SECOND)
    offers, answer = (frame for _, frame in bench.machine.messages())
    assert isinstance(offers, Offers)
    assert [offer.digest for offer in offers.offers] == [OTHER]
    assert isinstance(answer, InferAnswer)
    assert answer.status == "unknown"
    bench.serve(A, 2, 10 * SECOND)
    assert [type(frame) for _, frame in bench.machine.messages()] == [InferAnswer], "nobody gets offers by asking"
