"""What a neighbour's lies and claims cost: its own place in the order, and nobody else's time."""

from protocols.base.durations import MEMORY_NS
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS, SECOND
from protocols.inference.signature import ModelSignature, TensorSignature, misfit
from protocols.inference.standing import (
    FORGIVE_NS,
    MAX_STANDINGS,
    MISS_PAUSE_MIN_NS,
    WRONG_PAUSE_MAX_NS,
    WRONG_PAUSE_MIN_NS,
    Standings,
)
from protocols.wire.inference import InferAnswer
from protocols.wire.tensors import NamedTensor, Tensor
from tests.tools.inference_fixture import A, B, Bench, model

LIAR = NodeId("liar")


def f4(name: str, *shape: int) -> NamedTensor:
    """A tensor of zeros."""
    size = 4
    for each in shape:
        size *= each
    return NamedTensor(name, Tensor("f4", shape, memoryview(bytes(size))))


SIGNATURE = ModelSignature(
    (TensorSignature("x", "f4", (None, 4), ("batch", "")),),
    (TensorSignature("y", "f4", (None, 2), ("batch", "")), TensorSignature("boxes", "f4", (None, 4), ("found", ""))),
)
WANTED = ("y",)


def test_misfit_of_answers_names_what_is_wrong() -> None:
    """Names, types, shapes, and sizes that the model says are equal."""
    given = (f4("x", 3, 4),)
    assert misfit(SIGNATURE, given, (), (f4("y", 3, 2), f4("boxes", 17, 4))) == ""
    assert misfit(SIGNATURE, given, WANTED, (f4("y", 3, 2),)) == ""
    for wanted, outputs, said in (
        ((), (), "no outputs"),
        ((), (f4("y", 3, 2),), "lacks the output 'boxes'"),
        (WANTED, (f4("z", 3, 2),), "lacks the output 'y'"),
        (WANTED, (f4("y", 3, 2), f4("z", 1)), "gives no 'z'"),
        (WANTED, (f4("y", 3, 1),), "f4[3, 1] instead of f4[3, 2]"),
        (WANTED, (f4("y", 3),), "f4[3] instead of"),
        (WANTED, (f4("y", 4, 2),), "f4[4, 2] instead of f4[3, 2]"),
        (WANTED, (NamedTensor("y", Tensor("i4", (3, 2), memoryview(bytes(24)))),), "i4[3, 2] instead of"),
        (WANTED, (f4("y", 3, 2), f4("y", 9, 9)), "f4[9, 9] instead of"),
    ):
        assert said in misfit(SIGNATURE, given, wanted, outputs)
    assert misfit(SIGNATURE, given, WANTED, (f4("y", 4, 2),), by_name=False) == ""


def test_misfit_of_sizes_that_only_outputs_name_is_found() -> None:
    """Boxes and their scores come in pairs."""
    named = (TensorSignature("boxes", "f4", (None, 4), ("n", "")), TensorSignature("scores", "f4", (None,), ("n",)))
    signature = ModelSignature((), named)
    assert misfit(signature, (), (), (f4("boxes", 5, 4), f4("scores", 5))) == ""
    assert "instead of" in misfit(signature, (), (), (f4("boxes", 5, 4), f4("scores", 6)))


def test_misfit_of_a_model_that_is_not_here_is_looked_for_in_the_names_alone() -> None:
    """A node has no signature of it, but it knows what it asked for."""
    assert misfit(None, (), (), (f4("anything", 1),)) == ""
    assert "no outputs" in misfit(None, (), (), ())
    assert "lacks the output 'y'" in misfit(None, (), WANTED, (f4("z", 1),))


def test_wrong_answers_pause_a_neighbour_for_longer_each_time() -> None:
    """It is asked again now and then, since a repaired node deserves it; each lie costs it more."""
    standings, now, pauses = Standings(), 0, []
    for _ in range(9):
        standings.was_wrong(LIAR, now)
        standings.was_wrong(LIAR, now + 1)
        begun = now
        while standings.is_distrusted(LIAR, now):
            now += SECOND
        pauses.append(now - begun)
    assert pauses[:3] == [WRONG_PAUSE_MIN_NS, 2 * WRONG_PAUSE_MIN_NS, 4 * WRONG_PAUSE_MIN_NS]
    assert pauses[-1] == WRONG_PAUSE_MAX_NS
    now += FORGIVE_NS
    standings.was_wrong(LIAR, now)
    assert not standings.is_distrusted(LIAR, now + WRONG_PAUSE_MIN_NS)


def test_misses_put_a_neighbour_last_until_it_answers() -> None:
    """A node that was busy is not exiled."""
    standings = Standings()
    assert not standings.is_doubtful(LIAR, 0)
    standings.missed(LIAR, 0)
    standings.missed(LIAR, 1)
    assert standings.is_doubtful(LIAR, MISS_PAUSE_MIN_NS - 1)
    assert not standings.is_doubtful(LIAR, MISS_PAUSE_MIN_NS)
    standings.missed(LIAR, SECOND)
    assert standings.is_doubtful(LIAR, SECOND + MISS_PAUSE_MIN_NS)
    standings.succeeded(LIAR)
    assert not standings.is_doubtful(LIAR, SECOND + 1)


def test_standings_are_bounded() -> None:
    """Whoever gets many certificates must not fill the memory."""
    standings = Standings()
    for number in range(3 * MAX_STANDINGS):
        standings.was_wrong(NodeId(f"n{number}"), 0)
    assert len(standings._of) <= MAX_STANDINGS + 1


def test_claims_that_answers_disprove_are_not_believed_for_a_minute() -> None:
    """It claims 1 µs and takes 90 ms: honest ones that need 60 ms were asked second, every time."""
    bench = Bench(A, B)
    bench.offer(A, 1)
    bench.offer(B, 60_000)
    first = []
    for _ in range(20):
        bench.ask(hedge=False)
        ((node, request),) = bench.requests()
        first.append(node)
        bench.now += 91 * MS if node == A else 61 * MS
        bench.answer(node, request.request, compute_us=1)
        assert bench.answered().winner is not None
    assert first == [A, A, *[B] * 18]
    bench.now += MEMORY_NS
    bench.ask(hedge=False)
    assert [node for node, _ in bench.requests()] == [A], "it may have become faster"


def test_neighbour_that_reconnects_does_not_clear_its_record() -> None:
    """A pause that ends with the link is none."""
    bench = Bench(A, B)
    bench.offer(A, 1)
    bench.offer(B, 60_000)
    bench.ask()
    ((_, request),) = bench.requests()
    bench.machine.receive(InferAnswer(request.request, "done"), A, Role.RSU, bench.now)
    bench.machine.neighbour_gone(A, bench.now)
    bench.version = 0
    bench.offer(A, 1)
    bench.requests()
    bench.ask()
    assert [node for node, _ in bench.requests()] == [B]


def test_request_that_only_liars_could_compute_fails_and_names_them() -> None:
    """The caller learns why nobody is asked."""
    bench = Bench(A)
    bench.offer(A, 1)
    for said in ("a: the answer has no outputs", "a gave wrong answers"):
        bench.ask()
        for _, request in bench.requests():
            bench.machine.receive(InferAnswer(request.request, "done"), A, Role.RSU, bench.now)
        answered = bench.answered()
        assert answered.failure == "failed"
        assert said in answered.detail
    bench.now += WRONG_PAUSE_MIN_NS
    bench.ask()
    assert bench.requests()


def test_model_that_names_its_sizes_wrongly_is_found_out_by_own_runs() -> None:
    """Its export says that two sizes are equal. They are not, and honest neighbours must not pay for that."""
    bench = Bench(A)
    bench.load((model(compute_ns=50 * MS, signature=SIGNATURE),))
    image, answer = (f4("x", 3, 4),), (f4("y", 6, 2),)
    bench.machine.ask("plate", image, WANTED, SECOND, False, bench.now)
    (compute,) = bench.machine.outgoing()
    bench.machine.computed(compute.run, InferAnswer(0, "done", answer, 0, 50_000), bench.now + MS)
    assert bench.answered().winner is not None
    bench.offer(A, 1_000)
    bench.machine.ask("plate", image, WANTED, SECOND, False, bench.now)
    ((_, request),) = bench.requests()
    bench.machine.receive(InferAnswer(request.request, "done", answer), A, Role.RSU, bench.now)
    winner = bench.answered().winner
    assert winner is not None
    assert winner.node == A
