"""Own requests between deadline, hedge and rescue: what is begun, what is not, and what the caller is told."""

from itertools import pairwise

import pytest

from protocols.base.limits import MS, SECOND
from protocols.inference.events import Compute
from protocols.inference.loads import MAX_ASKED_BURST
from protocols.inference.requests import HEDGE_SHARE, HEDGE_SLACK_NS, MAX_HEDGES_SAVED, Hedges
from protocols.wire.inference import InferAnswer, InferCancel
from tests.tools.inference_fixture import DIGEST, IMAGE, OTHER, A, B, Bench, C, model


def ran_here(bench: Bench, compute_ms: int, name: str = "plate") -> None:
    """A run here took so long."""
    bench.ask(10 * SECOND, name=name)
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    bench.now += compute_ms * MS
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE, 0, compute_ms * 1_000), bench.now)
    assert bench.answered().winner is not None


# --- hedges --------------------------------------------------------------------------------------------------------
def test_hedges_are_one_in_twenty_requests_over_time() -> None:
    """A mesh that is slow as a whole would otherwise compute everything twice, and be slower still."""
    hedges, spent = Hedges(), 0
    for _ in range(1_000):
        hedges.earn()
        if hedges.left:
            hedges.spend()
            spent += 1
    assert spent == 1_000 // HEDGE_SHARE + 1
    for _ in range(10_000):
        hedges.earn()
    assert hedges.left == MAX_HEDGES_SAVED


def test_request_is_hedged_at_the_95th_percentile_of_its_first_run() -> None:
    """Not at a multiple of the mean: a steady neighbour is late early, and an uneven one is not late for long."""
    bench = Bench(A, B)
    bench.prove(A, 10)
    bench.prove(B, 30)
    bench.ask()
    ((first, request),) = bench.requests()
    assert first == A
    due = bench.machine.next_timer_at()
    assert 12.1 * MS + HEDGE_SLACK_NS <= due < 12.2 * MS + HEDGE_SLACK_NS
    bench.at(due)
    ((second, _),) = bench.requests()
    assert second == B
    bench.answer(B, request.request + 1, compute_us=30_000)
    assert [(r.node, r.outcome) for r in bench.answered().attempts] == [(B, "done"), (A, "cancelled")]
    assert [(node, type(frame)) for node, frame in bench.machine.messages()] == [(A, InferCancel)]


def test_requests_beyond_the_budget_of_hedges_wait_for_their_first_run() -> None:
    """And the counters say so."""
    bench = Bench(A, B)
    bench.prove(A, 10)
    bench.prove(B, 30)
    for _ in range(4):
        bench.ask()
    assert [node for node, _ in bench.requests()] == [A, A, A, B]
    while bench.machine.next_timer_at() < 25 * MS:
        bench.at(bench.machine.next_timer_at())
    counters = bench.machine.counters()
    assert (counters["hedged"], counters["hedges_denied"]) == (1, 1)


def test_request_is_not_hedged_when_nobody_else_could_make_the_deadline() -> None:
    """It would be work for nothing."""
    bench = Bench(A, B)
    bench.prove(A, 10)
    bench.prove(B, 90)
    bench.ask(50 * MS)
    bench.requests()
    bench.at(bench.machine.next_timer_at())
    assert bench.requests() == []
    assert bench.machine.counters()["hedged"] == 0


def test_unproven_neighbour_gets_no_more_requests_than_hedges_are_left() -> None:
    """A stranger that never answers held up twenty frames of a camera at once."""
    bench = Bench(A)
    bench.load((model(compute_ns=100 * MS),))
    bench.offer(A, 1_000)
    for _ in range(19):
        bench.ask()
    assert len(bench.requests()) == 1
    assert len(bench.machine.outgoing()) == 18


def test_request_at_a_neighbour_that_stalls_is_given_up_for_the_next_without_a_hedge_left() -> None:
    """Two neighbours, one of them silent: its requests waited for their deadline of ten seconds."""
    bench = Bench(A, B)
    bench.prove(A, 10)
    bench.prove(B, 30)
    bench.machine._asking._hedges._parts = 0
    bench.ask(10 * SECOND)
    ((first, request),) = bench.requests()
    assert first == A
    bench.at(bench.machine.next_timer_at())
    assert bench.requests() == []
    bench.at(bench.machine.next_timer_at())
    assert bench.now < 30 * MS
    ((cancelled, frame), (second, _)) = bench.machine.messages()
    assert (cancelled, frame, second) == (A, InferCancel(request.request), B)


def test_neighbour_that_was_given_up_is_asked_again_when_nobody_else_can_compute_it() -> None:
    """It had only stood for a moment on a busy machine, and the request failed with twenty seconds left."""
    bench = Bench(A, B)
    bench.prove(A, 10)
    bench.prove(B, 30)
    bench.machine._asking._hedges._parts = 0
    bench.ask(20 * SECOND)
    bench.requests()
    for _ in range(2):
        bench.at(bench.machine.next_timer_at())
    ((second, request),) = bench.requests()
    assert second == B
    bench.answer(B, request.request, "failed")
    ((third, request),) = bench.requests()
    assert third == A
    bench.answer(A, request.request, "failed")
    answered = bench.answered()
    assert [(each.node, each.outcome) for each in answered.attempts] == [(A, "late"), (B, "failed"), (A, "failed")]
    assert answered.failure == "failed"


def test_neighbour_that_was_given_up_is_asked_again_when_the_only_other_one_stalls() -> None:
    """The first had stood for 7 ms, the second never answered, and the request waited for its deadline of ten seconds.
    Each round gives twice the time, so that a mesh that is slow as a whole ends what it has begun."""
    bench = Bench(A, B)
    bench.prove(A, 10)
    bench.prove(B, 30)
    bench.machine._asking._hedges._parts = 0
    bench.ask(20 * SECOND)
    asked = bench.requests()
    began = [bench.now]
    while len(asked) < 5:
        bench.at(bench.machine.next_timer_at())
        if more := bench.requests():
            asked += more
            began.append(bench.now)
    assert [node for node, _ in asked] == [A, B, A, B, A]
    patience = [later - sooner for sooner, later in pairwise(began)]
    assert all(patience[step + 2] >= 2 * patience[step] for step in range(len(patience) - 2)), patience
    assert bench.now < SECOND
    bench.answer(A, asked[-1][1].request)
    winner = bench.answered().winner
    assert winner is not None
    assert winner.node == A


@pytest.mark.parametrize("hedges", [0, HEDGE_SHARE])
def test_run_that_seems_to_stall_is_not_given_up_for_somebody_who_would_be_late(hedges: int) -> None:
    """A slow vehicle asked a fast unit, gave up after twice the usual time, and began itself what it could not end in
    time. The unit's answer came a moment later."""
    bench = Bench(A, B)
    bench.prove(A, 10)
    for cost_ms in (60, 300, 300, 300, 300):  # it was quick once
        bench.prove(B, cost_ms)
    bench.machine._asking._hedges._parts = hedges
    bench.ask(100 * MS)
    ((first, request),) = bench.requests()
    assert first == A
    while bench.machine.next_timer_at() < 90 * MS:
        bench.at(bench.machine.next_timer_at())
    assert bench.requests() == []
    bench.now = 90 * MS
    bench.answer(A, request.request)
    winner = bench.answered().winner
    assert winner is not None
    assert winner.node == A


def test_run_beside_a_stalled_one_is_given_up_for_a_third_neighbour() -> None:
    """It was cancelled, and nobody began in its place while the stalled one was still hoped for."""
    bench = Bench(A, B, C)
    for node, cost_ms in ((A, 10), (B, 20), (C, 30)):
        bench.prove(node, cost_ms)
    bench.ask(20 * SECOND)
    bench.requests()
    bench.at(bench.machine.next_timer_at())
    assert [node for node, _ in bench.requests()] == [B]
    while not (third := bench.requests()):
        bench.at(bench.machine.next_timer_at())
    assert [node for node, _ in third] == [C]
    assert bench.now < SECOND
    bench.answer(C, third[0][1].request)
    assert bench.answered().winner is not None


def test_request_at_a_neighbour_that_is_late_is_rescued_here_without_a_hedge_left() -> None:
    """Nothing else could still make the deadline."""
    bench = Bench(A)
    bench.load((model(compute_ns=100 * MS),))
    bench.prove(A, 60)
    bench.machine._asking._hedges._parts = bench.machine._asking._elsewhere = 0
    bench.ask(200 * MS)
    assert len(bench.requests()) == 1
    bench.at(bench.machine.next_timer_at())
    assert bench.machine.outgoing() == []
    bench.at(bench.machine.next_timer_at())
    assert bench.now == 98 * MS
    assert len(bench.machine.outgoing()) == 1
    assert bench.machine.counters()["rescued"] == 1


def test_neighbour_that_was_late_is_tried_again_only_when_a_hedge_is_left() -> None:
    """It stalls for good, and every further try would cost the whole deadline."""
    bench = Bench(A)
    bench.load((model(compute_ns=100 * MS),))
    bench.prove(A)
    bench.ask(SECOND)
    assert len(bench.requests()) == 1
    bench.at(50 * MS)
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    bench.now += 100 * MS
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE, 0, 100_000), bench.now)
    bench.machine.messages()
    bench.now += 10 * SECOND
    bench.ask(SECOND)
    assert bench.requests() == []


# --- deadlines -----------------------------------------------------------------------------------------------------
def test_request_that_nobody_can_answer_in_time_is_refused_at_once_and_says_why() -> None:
    """The caller can use its time otherwise, and the processor too."""
    bench = Bench()
    bench.load((model(compute_ns=50 * MS),))
    ran_here(bench, 60)
    bench.ask(30 * MS)
    answered = bench.answered()
    assert answered.failure == "late"
    assert "'plate' needs at least 60.0 ms at me, and 30.0 ms are left" in answered.detail
    assert bench.machine.outgoing() == []
    bench.now += SECOND
    bench.ask(30 * MS)
    assert len(bench.machine.outgoing()) == 1, "it may be faster now"


def test_request_counts_own_runs_that_go_first_and_no_others() -> None:
    """Five runs with the same budget go before the sixth. Runs of neighbours and those with more time don't."""
    bench = Bench()
    bench.load((model(compute_ns=20 * MS),))
    ran_here(bench, 20)
    for _ in range(5):
        bench.ask(10 * SECOND)
    bench.load((model(compute_ns=20 * MS, queue_ns=SECOND, own_queue_ns=100 * MS),))
    bench.ask(30 * MS)
    assert not bench.machine.events(), "it goes before those with more time"
    for _ in range(4):
        bench.ask(30 * MS)
    (answered, *_) = bench.machine.events()
    assert "needs at least 40.0 ms at me" in answered.detail


def test_request_of_a_neighbour_does_not_count_what_another_has_asked_for() -> None:
    """One neighbour filled the queue, and the requests of all others were refused although they would take turns."""
    bench = Bench(A, B)
    bench.load((model(compute_ns=100 * MS),))
    ran_here(bench, 100)
    bench.load((model(compute_ns=100 * MS, queue_ns=1_600 * MS, own_queue_ns=0),))
    bench.serve(A, 1, budget_us=500_000)
    assert bench.machine.messages() == []
    assert len(bench.machine.outgoing()) == 1


def test_queue_of_this_node_grows_old() -> None:
    """Nothing was told since a run began half a second ago, and it is about to end."""
    bench = Bench(A)
    bench.load((model(compute_ns=100 * MS, queue_ns=500 * MS, own_queue_ns=500 * MS),))
    bench.prove(A, 300)
    bench.now += 450 * MS
    bench.ask()
    assert len(bench.machine.outgoing()) == 1, "here it takes 150 ms"


def test_request_of_a_neighbour_that_cannot_be_done_in_its_budget_is_refused_at_once() -> None:
    """It goes elsewhere while there is time."""
    bench = Bench(A)
    bench.load((model(compute_ns=50 * MS),))
    ran_here(bench, 60)
    bench.machine.messages()
    bench.serve(A, 1, budget_us=30_000)
    ((node, answer),) = bench.machine.messages()
    assert (node, type(answer)) == (A, InferAnswer)
    assert isinstance(answer, InferAnswer)
    assert (answer.status, answer.detail) == ("late", "me needs at least 60.0 ms, and 30.0 are left")
    assert bench.machine.counters()["refused_late"] == 1
    bench.serve(A, 2, budget_us=100_000)
    assert len(bench.machine.outgoing()) == 1


# --- smaller models ------------------------------------------------------------------------------------------------
def test_request_that_would_be_late_falls_back_to_the_smaller_model_that_is_declared() -> None:
    """A rough answer in time is worth more than a good one too late, if the caller says so."""
    bench = Bench()
    bench.load((model(compute_ns=200 * MS), model("plate-small", 20 * MS, digest=OTHER)))
    bench.ask(100 * MS)
    (compute,) = bench.machine.outgoing()
    assert isinstance(compute, Compute)
    assert compute.model == "plate", "nobody declared another"
    bench.machine.configure(fallbacks={"plate": "plate-small"})
    bench.ask(100 * MS)
    (compute,) = bench.machine.outgoing()
    assert isinstance(compute, Compute)
    assert compute.model == "plate-small"
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE, 0, 20_000), bench.now)
    assert bench.answered().model == "plate-small"
    assert bench.machine.counters()["fell_back"] == 1
    bench.ask(SECOND)
    (compute,) = bench.machine.outgoing()
    assert isinstance(compute, Compute)
    assert compute.model == "plate", "there is time for the large one"


def test_fallback_is_taken_although_a_neighbour_that_refuses_everything_claims_to_be_fast() -> None:
    """Its claim of a microsecond counted as a way to make the deadline, and each request was late."""
    bench = Bench(A)
    bench.load((model(compute_ns=200 * MS), model("plate-small", 20 * MS, digest=OTHER)))
    bench.machine.configure(fallbacks={"plate": "plate-small"})
    bench.offer(A, 1)
    ran = []
    for _ in range(3):
        bench.ask(100 * MS)
        for _, request in bench.requests():
            bench.answer(A, request.request, "busy")
        ran += [effect.model for effect in bench.machine.outgoing() if isinstance(effect, Compute)]
    assert ran == ["plate-small"] * 3


def test_fallback_that_fails_gives_way_to_the_model_that_was_asked_for() -> None:
    """A late answer of the large model is better than none of the small one."""
    bench = Bench(A)
    bench.load((model(compute_ns=110 * MS),))
    bench.machine.configure(fallbacks={"plate": "plate-small"})
    bench.offer(A, 1_000, name="plate-small", digest=OTHER)
    bench.ask(100 * MS)
    ((_, request),) = bench.requests()
    assert request.model == "plate-small"
    bench.answer(A, request.request, "failed")
    (compute,) = bench.machine.outgoing()
    assert isinstance(compute, Compute)
    assert compute.model == "plate"


def test_fallbacks_that_name_each_other_end() -> None:
    """A mistake in a configuration must not hold the engine's lock."""
    bench = Bench()
    bench.load((model(compute_ns=200 * MS), model("other", 200 * MS, digest=OTHER)))
    bench.machine.configure(fallbacks={"plate": "other", "other": "plate"})
    bench.ask(100 * MS)
    assert len(bench.machine.outgoing()) == 1


# --- loads ---------------------------------------------------------------------------------------------------------
def test_answers_tell_how_long_the_next_run_would_wait() -> None:
    """A report that came with the last answer is newer than an offer, and costs no frame."""
    bench = Bench(A, B, C)
    bench.prove(A, 10)
    bench.prove(B, 20)
    bench.ask()
    ((first, request),) = bench.requests()
    assert first == A
    bench.now = 11 * MS
    bench.answer(A, request.request, compute_us=10_000, queue_us=200_000)
    bench.answered()
    bench.ask()
    ((second, request),) = bench.requests()
    assert second == B
    bench.answer(B, request.request, compute_us=20_000)
    bench.answered()
    bench.now += 200 * MS
    bench.ask()
    assert bench.requests()[0][0] == A, "what waited there is done"


@pytest.mark.parametrize("silent", [False, True])
def test_neighbour_that_will_probably_leave_first_is_not_asked(silent: bool) -> None:
    """Its link came up a moment ago, or it has been silent for long: the work would be done twice."""
    bench = Bench(A)
    bench.load((model(compute_ns=300 * MS),))
    bench.prove(A, 100)
    bench.lasts_ns[A] = 0 if silent else 50 * MS
    bench.ask()
    assert bench.requests() == []
    bench.lasts_ns[A] = 200 * MS
    bench.machine.outgoing()
    bench.ask()
    assert len(bench.requests()) == 1


def test_requests_to_one_neighbour_are_no_more_than_it_looks_at() -> None:
    """It dropped those beyond a thousand a second, and each of them waited for its whole deadline."""
    bench = Bench(A)
    bench.load((model(compute_ns=100 * MS),))
    bench.prove(A)
    asked = 0
    for _ in range(2 * MAX_ASKED_BURST):
        number = bench.ask()
        asked += len(bench.requests())
        bench.machine.abandon(number, bench.now)
    bench.machine.outgoing()
    assert asked == MAX_ASKED_BURST
    bench.now += SECOND
    bench.ask()
    assert len(bench.requests()) == 1


# --- releases --------------------------------------------------------------------------------------------------------
def test_request_begins_anew_with_the_release_that_took_the_place_of_its_file() -> None:
    """The neighbour that computed it has swapped, and so has this node: nobody has the old file, and the caller asked
    for the name."""
    bench = Bench(A)
    bench.prove(A)
    bench.ask()
    ((_, request),) = bench.requests()
    assert request.digest == DIGEST
    bench.offer(A, digest=OTHER)
    bench.answer(A, request.request, "unknown")
    ((node, again),) = bench.requests()
    assert (node, again.digest) == (A, OTHER)
    bench.answer(A, again.request)
    assert bench.answered().winner is not None


def test_request_runs_here_on_the_file_with_which_it_was_placed_while_that_is_loaded() -> None:
    """A part of a batch must not come from another release than the rest."""
    bench = Bench(A)
    bench.load((model(),))
    bench.ask()
    (first,) = bench.machine.outgoing()
    assert isinstance(first, Compute)
    assert first.digest == DIGEST
    bench.load((model(digest=OTHER, former=(DIGEST,)),))
    bench.ask()
    (second,) = bench.machine.outgoing()
    assert isinstance(second, Compute)
    assert second.digest == OTHER
