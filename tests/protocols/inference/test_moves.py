"""Requests that have to move to another node: in slices, each once, and none that was answered meanwhile."""

import pytest

from protocols.inference import moves
from protocols.inference.events import Compute
from protocols.inference.moves import MOVE_PAUSE_NS, MOVES_AT_ONCE
from protocols.inference.signature import ModelSignature, TensorSignature, misfit
from protocols.wire.inference import InferAnswer, InferRequest
from tests.protocols.inference.test_standing import SIGNATURE, f4
from tests.tools.inference_fixture import IMAGE, ME, MS, SECOND, A, B, Bench, model


def asked(bench: Bench, count: int) -> list[InferRequest]:
    """The requests that went to A, which leaves then."""
    for _ in range(count):
        bench.ask(10 * SECOND)
    requests = bench.requests()
    assert {node for node, _ in requests} == {A}
    bench.present.remove(A)
    bench.offer(B)
    return [request for _, request in requests]


@pytest.mark.parametrize("bound", ["MOVES_AT_ONCE", "MOVED_BYTES_AT_ONCE"])
def test_requests_of_a_neighbour_that_left_move_in_slices_and_all_of_them(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """All at once held the engine's lock for 180 ms, and heartbeats waited."""
    monkeypatch.setattr(moves, bound, 4 if bound == "MOVES_AT_ONCE" else 4 * 1_000)
    bench = Bench(A, B)
    bench.offer(A)
    asked(bench, 11)
    bench.machine.neighbour_gone(A, bench.now)
    moved = [len(bench.requests())]
    while bench.machine.next_timer_at() <= bench.now + 10 * MOVE_PAUSE_NS:
        bench.now = bench.machine.next_timer_at()
        bench.machine.handle_timer(bench.now)
        moved.append(len(bench.requests()))
    assert [count for count in moved if count] == [4, 4, 3]
    assert bench.machine.counters()["replayed"] == 11


def test_request_that_was_answered_before_its_slice_does_not_move() -> None:
    """The caller has its answer, and another node would compute for nobody."""
    bench = Bench(A, B)
    bench.load((model(compute_ns=500 * MS),))
    bench.prove(A)
    numbers = [bench.ask(10 * SECOND) for _ in range(MOVES_AT_ONCE + 3)]
    bench.requests()
    bench.present.remove(A)
    bench.offer(B)
    bench.machine.neighbour_gone(A, bench.now)
    first = len(bench.requests()) + len(bench.machine.outgoing())
    bench.machine.abandon(numbers[-1], bench.now)
    bench.now += MOVE_PAUSE_NS
    bench.machine.handle_timer(bench.now)
    assert first == MOVES_AT_ONCE
    assert len(bench.requests()) + len(bench.machine.outgoing()) == 2
    assert bench.machine.next_timer_at() > bench.now + MOVE_PAUSE_NS


def test_answer_that_can_not_be_queued_is_followed_by_word_of_it() -> None:
    """The neighbour would wait until its deadline, although another node could compute it."""
    bench = Bench(A)
    bench.machine.undeliverable(A, InferAnswer(7, "done", IMAGE), bench.now)
    ((node, said),) = bench.machine.messages()
    assert isinstance(said, InferAnswer)
    assert (node, said.request, said.status, said.outputs) == (A, 7, "failed", ())
    bench.machine.undeliverable(A, said, bench.now)
    assert bench.machine.messages() == [], "a word that can't be queued either is not repeated for ever"


def test_misfit_of_one_output_whose_own_sizes_differ_is_found() -> None:
    """A matrix that the model calls square."""
    square = ModelSignature((), (TensorSignature("m", "f4", (None, None), ("n", "n")),))
    assert misfit(square, (), (), (f4("m", 3, 3),)) == ""
    assert "'n' has two sizes" in misfit(square, (), (), (f4("m", 3, 4),))


def test_misfit_ignores_inputs_that_the_model_does_not_name() -> None:
    """Whether inputs fit is for the node that runs it to say; a neighbour must not be blamed for the caller's."""
    assert misfit(SIGNATURE, (f4("other", 9, 4), f4("x", 3, 4)), ("y",), (f4("y", 3, 2),)) == ""


def test_signature_is_written_as_people_read_it() -> None:
    """It stands in messages about wrong inputs."""
    assert str(TensorSignature("image", "f4", (1, 3, None, None))) == "image: f4[1, 3, ?, ?]"


def test_request_that_one_neighbour_calls_invalid_and_nobody_else_computes_fails_as_invalid() -> None:
    """The caller learns the likely reason, and not merely that the last one asked is busy."""
    bench = Bench(A, B)
    bench.offer(A, 1_000)
    bench.offer(B, 2_000)
    bench.ask()
    for node, status, detail in ((A, "invalid", "no such input"), (B, "busy", "full")):
        ((to, request),) = bench.requests()
        assert to == node
        bench.answer(node, request.request, status, detail=detail)
    answered = bench.answered()
    assert (answered.failure, answered.detail) == ("invalid", "no such input")


def test_hedged_request_that_loses_one_of_its_runs_waits_for_the_other() -> None:
    """A third run would cost another node the work that is half done here."""
    bench = Bench(A, B)
    bench.load((model(compute_ns=300 * MS),))
    bench.offer(A, 1_000)
    bench.ask(5 * SECOND)
    ((_, request),) = bench.requests()
    while not (here := bench.machine.outgoing()):
        bench.at(bench.machine.next_timer_at())
    bench.offer(B, 2_000)
    bench.answer(A, request.request, "failed")
    assert bench.requests() == bench.machine.outgoing() == []
    (compute,) = here
    assert isinstance(compute, Compute)
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE), bench.now)
    winner = bench.answered().winner
    assert winner is not None
    assert winner.node == ME
