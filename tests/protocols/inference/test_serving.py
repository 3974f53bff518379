"""Requests of neighbours: helping is bounded, shared, and never at the cost of this node's own work."""

from collections import Counter

from protocols.access import AccessRule
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.inference.events import CancelCompute, Compute
from protocols.inference.serving import MAX_REQUEST_BURST, MAX_SERVED_BYTES, MAX_SERVED_PER_NEIGHBOUR
from protocols.wire.frame import Frame
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.inference_fixture import DIGEST, IMAGE, MS, OTHER, SECOND, A, B, Bench, C, model


def serve(
    bench: Bench, node: NodeId, number: int, inputs: tuple[NamedTensor, ...] = IMAGE, **more: object
) -> Frame | None:
    """Ask this node; its answer at once, if it has one."""
    fields: dict[str, object] = {"model": "plate", "digest": DIGEST, "budget_us": 100_000, **more}
    bench.machine.receive(InferRequest(number, inputs=inputs, **fields), node, Role.VEHICLE, bench.now)  # type: ignore[arg-type]
    messages = bench.machine.messages()
    return messages[0][1] if messages else None


def test_serve_of_what_is_not_offered_or_not_permitted_is_unknown() -> None:
    """A neighbour learns no more than that."""
    bench = Bench(A, rules=(AccessRule(Role.RSU, "infer", "**"),))
    bench.load((model(), model("secret", served=False)))
    for wrong in ({"model": "nothing"}, {"model": "secret"}, {"digest": OTHER}, {}):
        answer = serve(bench, A, 1, **wrong)
        assert type(answer) is InferAnswer
        assert (answer.request, answer.status) == (1, "unknown")
    assert bench.machine.outgoing() == []


def test_serve_is_bounded_per_neighbour_in_number() -> None:
    """Helping can't drown a node, and what finds no place is told so at once."""
    bench = Bench(A, B)
    bench.load((model(),))
    for number in range(MAX_SERVED_PER_NEIGHBOUR):
        assert serve(bench, A, number) is None
    busy = serve(bench, A, 99)
    assert type(busy) is InferAnswer
    assert (busy.status, busy.detail) == ("busy", "me holds 16 requests")
    assert bench.machine.counters()["refused_busy"] == 1
    assert serve(bench, B, 1) is None


def test_serve_when_all_places_are_taken_takes_one_from_the_largest_holder() -> None:
    """Two insiders took all places, and everybody else was told that the node is busy."""
    bench = Bench(A, B, C)
    bench.load((model(),))
    for number in range(MAX_SERVED_PER_NEIGHBOUR):
        assert serve(bench, A, number) is None
        assert serve(bench, B, number) is None
    bench.machine.outgoing()
    evicted: Counter[NodeId] = Counter()
    for number in range(10):
        bench.machine.receive(InferRequest(number, "plate", DIGEST, 100_000, IMAGE), C, Role.VEHICLE, bench.now)
        for node, answer in bench.machine.messages():
            assert type(answer) is InferAnswer
            assert (answer.status, answer.request >= MAX_SERVED_PER_NEIGHBOUR - 6) == ("busy", True), "the newest goes"
            evicted[node] += 1
    assert evicted == {A: 5, B: 5}
    kinds = Counter(type(effect) for effect in bench.machine.outgoing())
    assert kinds == {Compute: 10, CancelCompute: 10}
    refused = serve(bench, C, 99)
    assert type(refused) is InferAnswer
    assert refused.status == "busy", "with equal shares nobody loses to anybody"


def test_serve_shares_the_bytes_of_inputs_too() -> None:
    """One neighbour's four images of 16 MiB left no room for anybody's kilobyte."""
    bench = Bench(A, B)
    bench.load((model(),))
    large = (NamedTensor("image", tensor_of(bytes(MAX_SERVED_BYTES // 4))),)
    for number in range(4):
        assert serve(bench, A, number, large) is None
    again = serve(bench, A, 5, large)
    assert type(again) is InferAnswer
    assert again.status == "busy"
    bench.machine.receive(InferRequest(1, "plate", DIGEST, 100_000, IMAGE), B, Role.VEHICLE, bench.now)
    ((loser, answer),) = bench.machine.messages()
    assert type(answer) is InferAnswer
    assert (loser, answer.request, answer.status) == (A, 3, "busy")


def test_served_requests_of_one_neighbour_have_an_allowance() -> None:
    """Each costs time under the engine's lock, also when it is refused."""
    bench = Bench(A, B)
    bench.load((model(),))
    answered = 0
    for number in range(3 * MAX_REQUEST_BURST):
        answered += serve(bench, A, number, model="nothing") is not None
    assert answered == MAX_REQUEST_BURST
    assert list(bench.drops.items()) == [((A, "", "too_many_requests"), 2 * MAX_REQUEST_BURST)]
    assert serve(bench, B, 1, model="nothing") is not None
    bench.now += SECOND
    assert serve(bench, A, 1, model="nothing") is not None


def test_served_runs_say_who_wants_them() -> None:
    """Whoever runs them lets this node's own go first, and neighbours take turns."""
    bench = Bench(A)
    bench.load((model(),))
    serve(bench, A, 1)
    bench.ask()
    assert [effect.asked_by for effect in bench.machine.outgoing() if type(effect) is Compute] == [A, None]


def test_request_for_several_runs_counts_with_all_of_them() -> None:
    """Eight take eight times as long, and no insider can ask for a hundred."""
    bench = Bench(A, B)
    bench.load((model(),))
    assert serve(bench, A, 1, IMAGE * 8) is None
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    assert compute.inputs == IMAGE * 8
    bench.at(bench.now + 80 * MS)
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE * 8, compute_us=80_000), bench.now)
    ((_, done),) = bench.machine.messages()
    assert type(done) is InferAnswer
    assert (done.status, len(done.outputs)) == ("done", 8)
    for node, runs, budget_us, status in (
        (A, 9, 500_000, "invalid"), (A, 8, 79_000, "late"), (A, 7, 79_000, None), (A, 2, 79_000, "late"),
        (B, 2, 29_000, "late"), (B, 2, 31_000, None),
    ):  # fmt: skip
        answer = serve(bench, node, 2, IMAGE * runs, budget_us=budget_us)
        assert (answer.status if type(answer) is InferAnswer else answer) == status, (node, runs, budget_us)


def test_request_that_has_to_be_done_sooner_is_not_taken_to_wait_for_those_of_a_batch() -> None:
    """Its neighbour's own later ones don't go first."""
    bench = Bench(A)
    bench.load((model(),))
    serve(bench, A, 1)
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE, compute_us=10_000), bench.now)
    bench.machine.messages()
    for number in (2, 3):
        assert serve(bench, A, number, IMAGE * 8, budget_us=10_000_000) is None
    assert serve(bench, A, 4, budget_us=30_000) is None
    assert serve(bench, A, 5, budget_us=10_000_000) is None


def test_runs_of_neighbours_do_not_make_this_node_give_its_own_away() -> None:
    """A neighbour filled the queue, and from then on got all own requests of its victim."""
    bench = Bench(A)
    bench.load((model(compute_ns=10 * MS, queue_ns=160 * MS, own_queue_ns=0),))
    bench.offer(A, 9_000)
    bench.ask()
    assert bench.requests() == []


def test_served_run_that_hangs_gives_its_place_back() -> None:
    """32 runs that never end would otherwise make this node busy for good."""
    bench = Bench(A)
    bench.load((model(),))
    serve(bench, A, 7)
    (compute,) = bench.machine.outgoing()
    bench.at(bench.machine.next_timer_at())
    assert bench.now == 100 * MS + SECOND
    ((_, answer),) = bench.machine.messages()
    assert type(answer) is InferAnswer
    assert (answer.request, answer.status) == (7, "late")
    assert type(compute) is Compute
    assert bench.machine.outgoing() == [CancelCompute(compute.run)]
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE), bench.now)
    assert bench.machine.messages() == []


def test_served_request_cancelled_is_not_answered() -> None:
    """Only by who asked."""
    bench = Bench(A, B)
    bench.load((model(),))
    serve(bench, A, 7)
    (compute,) = bench.machine.outgoing()
    bench.machine.receive(InferCancel(7), B, Role.VEHICLE, 0)
    assert bench.machine.outgoing() == []
    bench.machine.receive(InferCancel(7), A, Role.VEHICLE, 0)
    assert type(compute) is Compute
    assert bench.machine.outgoing() == [CancelCompute(compute.run)]


def test_served_requests_cancelled_at_too_high_a_rate_are_computed_all_the_same() -> None:
    """Each cancel has this node look through what it holds; those beyond the allowance are dropped and counted."""
    bench = Bench(A)
    bench.load((model(),))
    serve(bench, A, 7)
    (compute,) = bench.machine.outgoing()
    for _ in range(MAX_REQUEST_BURST + 1):
        bench.machine.receive(InferCancel(8), A, Role.VEHICLE, 0)
    bench.machine.receive(InferCancel(7), A, Role.VEHICLE, 0)
    assert bench.machine.outgoing() == []
    assert dict(bench.drops.items())[A, "", "too_many_requests"] >= 2
    assert type(compute) is Compute
    bench.machine.computed(compute.run, InferAnswer(0, "done", IMAGE), 0)
    ((_, answer),) = bench.machine.messages()
    assert type(answer) is InferAnswer
    assert (answer.request, answer.status) == (7, "done")


def test_served_budget_is_bounded() -> None:
    """A request may not hold a place for centuries."""
    bench = Bench(A)
    bench.load((model(),))
    serve(bench, A, 7, budget_us=2**64 - 1)
    (compute,) = bench.machine.outgoing()
    assert type(compute) is Compute
    assert compute.budget_ns == limits.MAX_BUDGET_MS * MS
