"""Batches that are divided among machines in virtual time: who gets what, in which order, and what goes wrong."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from protocols.base import limits
from protocols.base.errors import BoundExceeded, InputInvalid, ModelUnknown
from protocols.inference.events import Answered
from protocols.inference.split.batches.rows import MAX_SHARDS
from protocols.inference.split.batches.shards import MAX_SHARDED
from protocols.wire.inference import InferAnswer
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.splitting_fixture import MS, SECOND, Linked, Mesh, rows_of

ROW_NS = 10 * MS


def mesh_of(*row_ns: int, unit: int | None = None, old: str = "") -> tuple[Mesh, list[Linked]]:
    """Nodes with the model of rows that know each other's offers; the first one asks. ``old``: one of version 1.8."""
    mesh = Mesh()
    nodes = [mesh.add(f"n{number}") for number in range(len(row_ns))]
    for node, each_ns in zip(nodes, row_ns, strict=True):
        node.is_old = node.node == old
        node.has_rows(each_ns, unit)
        node.settle()
    pass_time(mesh, 500 * MS)
    return mesh, nodes


def pass_time(mesh: Mesh, time_ns: int) -> None:
    end_ns = mesh.now + time_ns
    mesh.after(time_ns, mesh.nodes[0], lambda: None)
    mesh.run(lambda: mesh.now >= end_ns)


def answer_of(mesh: Mesh, node: Linked, at_most_ns: int = 100 * SECOND) -> Answered:
    mesh.run(lambda: bool(node.answered), at_most_ns)
    (answered,) = node.answered
    node.answered.clear()
    return answered


def check_right(answered: Answered, count: int) -> None:
    """Every row is there once and in its place, and the reports tell the same."""
    assert answered.winner is not None, answered.detail
    assert rows_of(answered) == list(range(count))
    assert [part.index for part in answered.parts] == list(range(len(answered.parts)))
    assert sum(part.size for part in answered.parts) == count
    assert {part.kind for part in answered.parts} == {"shard"}


def shares_of(answered: Answered) -> Counter[str]:
    return Counter(part.node for part in answered.parts)


def alone_ns(count: int, row_ns: int = ROW_NS) -> int:
    mesh, (alone,) = mesh_of(row_ns)
    alone.ask_rows(count)
    return answer_of(mesh, alone).took_ns


@pytest.mark.parametrize(("nodes", "least_gain"), [(2, 1.9), (4, 3.6)])
def test_batch_among_equal_nodes_takes_its_part_of_the_time(nodes: int, least_gain: float) -> None:
    """Dividing is for that."""
    mesh, (asker, *_others) = mesh_of(*[ROW_NS] * nodes)
    asker.ask_rows(128)
    answered = answer_of(mesh, asker)
    check_right(answered, 128)
    assert alone_ns(128) / answered.took_ns >= least_gain
    assert len(shares_of(answered)) == nodes
    assert not asker.machine.under_way()


def test_slow_neighbour_gets_less_and_delays_nothing() -> None:
    """Speed decides by itself who gets how many."""
    mesh, (asker, _slow) = mesh_of(ROW_NS, 4 * ROW_NS)
    asker.ask_rows(160)
    answered = answer_of(mesh, asker)
    check_right(answered, 160)
    shares = shares_of(answered)
    assert 1 <= shares["n1"] < shares["n0"] / 2
    assert answered.took_ns < 0.9 * alone_ns(160)


def test_neighbour_that_would_end_after_everything_else_gets_none() -> None:
    """A batch is never slower because there is a neighbour."""
    mesh, (asker, slow) = mesh_of(ROW_NS, 1_000 * ROW_NS)
    asker.ask_rows(64)
    answered = answer_of(mesh, asker)
    check_right(answered, 64)
    assert not slow.runs
    assert answered.took_ns <= alone_ns(64) * 1.01


def test_slow_asker_leaves_all_to_a_much_faster_neighbour() -> None:
    """Home is a node like another: what it would do last, it does not begin."""
    mesh, (asker, _fast) = mesh_of(1_000 * ROW_NS, ROW_NS)
    asker.ask_rows(64)
    answered = answer_of(mesh, asker)
    check_right(answered, 64)
    assert shares_of(answered)["n0"] == 0


@pytest.mark.parametrize("unit", [None, 1])
def test_shards_of_a_neighbour_that_dies_are_done_elsewhere(unit: int | None) -> None:
    """A car that drives away costs its shards, and not the batch."""
    mesh, (asker, dying, _other) = mesh_of(*[ROW_NS] * 3, unit=unit)
    asker.ask_rows(96)
    mesh.run(lambda: len(dying.runs) >= 4)
    mesh.kill(dying)
    answered = answer_of(mesh, asker)
    check_right(answered, 96)
    assert shares_of(answered)["n1"] >= 1
    assert [attempt.node for attempt in answered.attempts if attempt.outcome == "dead"] == ["n1"] * 2
    assert answered.took_ns < alone_ns(96) * 0.6


def garbage(answer: InferAnswer) -> InferAnswer:
    return InferAnswer(0, "done", (NamedTensor("z", tensor_of(b"?")),), 0, 1)


def cropped(answer: InferAnswer) -> InferAnswer:
    (named,) = answer.outputs
    rows = named.tensor.data.cast("i")[1:]
    return InferAnswer(0, "done", (NamedTensor("y", tensor_of(rows)),), 0, 1)


def too_few(answer: InferAnswer) -> InferAnswer:
    return InferAnswer(0, "done", answer.outputs[1:], 0, 1)


@pytest.mark.parametrize(("lie", "unit"), [(garbage, None), (cropped, None), (garbage, 1), (too_few, 1)])
def test_neighbour_that_lies_gets_no_further_shards(lie: Callable[[InferAnswer], InferAnswer], unit: int) -> None:
    """Outputs of the wrong name, or with a row too few, are computed again, and the liar is not asked for a while."""
    mesh, (asker, liar) = mesh_of(ROW_NS, ROW_NS, unit=unit)
    honest_runs = 2 if unit else 0  # so that several are asked for

    def lies(answer: InferAnswer) -> InferAnswer:
        return lie(answer) if len(liar.runs) > honest_runs else answer

    liar.lies = lies
    asker.ask_rows(96)
    answered = answer_of(mesh, asker)
    check_right(answered, 96)
    assert shares_of(answered)["n1"] <= honest_runs
    assert asker.machine.counters()["wrong_answers"] >= 1
    before = len(liar.runs)
    assert before <= 3 + honest_runs
    asker.ask_rows(16)
    check_right(answer_of(mesh, asker), 16)
    assert len(liar.runs) == before


@pytest.mark.parametrize("unit", [None, 1])
def test_shards_of_a_neighbour_that_stalls_in_the_tail_are_stolen(unit: int | None) -> None:
    """The last shards decide when a batch is done: whoever is idle begins them as well, and the first answer wins."""
    mesh, (asker, stalling) = mesh_of(ROW_NS, ROW_NS, unit=unit)
    asker.ask_rows(128)
    mesh.run(lambda: len(stalling.runs) >= 3)
    stalling.row_ns = 10_000 * ROW_NS
    answered = answer_of(mesh, asker)
    check_right(answered, 128)
    assert answered.took_ns < 1.2 * alone_ns(128)
    assert asker.machine.counters()["shards_stolen"] >= 1
    assert any(part.replays for part in answered.parts)
    pass_time(mesh, 100 * MS)
    assert not stalling.machine._serving.held  # its runs were cancelled
    assert not asker.machine.under_way()


def test_nothing_is_stolen_without_hedges() -> None:
    """Whoever wants no second runs gets none."""
    mesh, (asker, _slower) = mesh_of(ROW_NS, 3 * ROW_NS)
    asker.ask_rows(64, hedge=False)
    answered = answer_of(mesh, asker)
    check_right(answered, 64)
    assert all(part.replays == 0 for part in answered.parts)
    assert len(answered.attempts) == len(answered.parts)


def test_abandoned_batch_leaves_no_run_behind() -> None:
    """A caller that goes away must not leave work at neighbours."""
    mesh, (asker, other) = mesh_of(ROW_NS, ROW_NS)
    number = asker.ask_rows(128)
    mesh.run(lambda: len(other.runs) >= 3)
    asker.machine.abandon(number, mesh.now)
    asker.settle()
    before = len(other.runs), len(asker.runs)
    pass_time(mesh, SECOND)
    assert (len(other.runs), len(asker.runs)) == before
    assert (asker.answered, asker.machine.under_way()) == ([], [])
    assert not other.machine._serving.held
    asker.machine.abandon(number, mesh.now)


def test_batch_ends_at_its_deadline_and_says_how_far_it_came() -> None:
    """The caller gets one error in time, and nothing goes on behind it."""
    mesh, (asker, _other) = mesh_of(ROW_NS, ROW_NS)
    asker.ask_rows(128, budget_ns=300 * MS)
    answered = answer_of(mesh, asker)
    assert (answered.winner, answered.failure) == (None, "late")
    assert answered.took_ns <= 300 * MS
    assert " of 128 rows of 'rows' were done" in answered.detail
    pass_time(mesh, SECOND)
    assert not asker.machine.under_way()
    assert not asker.answered


def test_shard_that_fails_everywhere_fails_the_batch_and_is_named() -> None:
    """Nobody can repair one row of a batch who does not know which."""
    mesh, (asker, other) = mesh_of(ROW_NS, ROW_NS)

    def failing(answer: InferAnswer) -> InferAnswer:
        if any(30 * 2 in named.tensor.data.cast("i") for named in answer.outputs):
            return InferAnswer(0, "failed", detail="out of memory")
        return answer

    asker.lies = other.lies = failing
    asker.ask_rows(64, size=8)
    answered = answer_of(mesh, asker)
    assert (answered.winner, answered.failure) == (None, "failed")
    assert answered.detail == "rows 24 to 31 of 64 of 'rows': out of memory"
    assert not asker.machine.under_way()


def test_model_with_a_fixed_first_size_has_several_runs_in_a_shard() -> None:
    """Most detectors take one image at a time, and a request for each costs a tenth of a run of 15 ms."""
    mesh, (asker, _other) = mesh_of(15 * MS, 15 * MS, unit=1)
    asker.ask_rows(200)
    answered = answer_of(mesh, asker)
    check_right(answered, 200)
    sizes = [part.size for part in answered.parts]
    assert len(sizes) < 70
    assert sizes[:4] == [1] * 4  # nobody knows yet how large the outputs are
    assert max(sizes) == limits.MAX_REQUEST_RUNS
    assert sizes[-4:] == [1] * 4  # all are done at about the same time
    assert answered.took_ns < 1.03 * 200 * 15 * MS / 2


def test_slow_runs_are_asked_for_one_by_one() -> None:
    """Nothing is to be saved, and a node that is lost would take more with it."""
    mesh, (asker, _other) = mesh_of(150 * MS, 150 * MS, unit=1)
    asker.ask_rows(50)
    answered = answer_of(mesh, asker)
    check_right(answered, 50)
    assert {part.size for part in answered.parts} == {1}


def test_node_of_an_older_version_is_asked_for_one_run_at_a_time() -> None:
    """It would take one of the inputs and forget the others."""
    mesh, (asker, _old, _new) = mesh_of(*[5 * MS] * 3, unit=1, old="n1")
    asker.ask_rows(150)
    answered = answer_of(mesh, asker)
    check_right(answered, 150)
    sizes = {node: max(part.size for part in answered.parts if part.node == node) for node in ("n0", "n1", "n2")}
    assert sizes["n1"] == 1
    assert min(sizes["n0"], sizes["n2"]) > 1


def test_caller_can_have_one_run_in_each_shard() -> None:
    """As with any other size that is named."""
    mesh, (asker, _other) = mesh_of(MS, MS, unit=2)
    asker.ask_rows(60, size=2)
    answered = answer_of(mesh, asker)
    check_right(answered, 60)
    assert {part.size for part in answered.parts} == {2}


def test_run_that_fails_among_several_is_named() -> None:
    """The others of its shard are computed all the same, and the message names one row."""
    mesh, (asker, other) = mesh_of(5 * MS, 5 * MS, unit=1)

    def failing(answer: InferAnswer) -> InferAnswer:
        if any(30 * 2 in named.tensor.data.cast("i") for named in answer.outputs):
            return InferAnswer(0, "failed", detail="out of memory")
        return answer

    asker.lies = other.lies = failing
    asker.ask_rows(64)
    answered = answer_of(mesh, asker)
    assert (answered.winner, answered.failure) == (None, "failed")
    assert answered.detail == "row 30 of 64 of 'rows': out of memory"
    assert not asker.machine.under_way()


def test_shard_whose_answer_can_never_be_sent_is_done_run_by_run() -> None:
    """A node has other bounds than those that this one knows of."""
    mesh, (asker, other) = mesh_of(60 * MS, 5 * MS, unit=1)

    def only_one(answer: InferAnswer) -> InferAnswer:
        return answer if len(answer.outputs) == 1 else InferAnswer(0, "failed", detail="the answer is too large")

    asker.lies = other.lies = only_one
    asker.ask_rows(64)
    check_right(answer_of(mesh, asker), 64)


def test_shards_of_a_model_that_takes_any_number_are_worth_their_overhead() -> None:
    """A row of 20 µs is not sent alone: a shard takes longer than what it costs."""
    mesh, (asker, _other) = mesh_of(20_000, 20_000)
    for _ in range(3):
        asker.ask_rows(20_000)
        answered = answer_of(mesh, asker)
        check_right(answered, 20_000)
    assert min(part.compute_us for part in answered.parts[:-1]) >= 5_000
    assert len(shares_of(answered)) == 2
    asker.ask_rows(100)
    assert [part.size for part in answer_of(mesh, asker).parts] == [100]


def test_size_that_the_caller_names_is_taken() -> None:
    """Equal shards give equal bits, so whoever compares names the size."""
    mesh, (asker, _) = mesh_of(ROW_NS, ROW_NS)
    asker.ask_rows(10, size=4)
    assert [part.size for part in answer_of(mesh, asker).parts] == [4, 4, 2]


def test_private_model_is_divided_among_the_workers_of_this_node_only() -> None:
    """No neighbour sees its inputs, however fast it is."""
    mesh, (asker, fast) = mesh_of(ROW_NS, MS)
    asker.machine.configure(private=("rows",))
    asker.ask_rows(32)
    answered = answer_of(mesh, asker)
    check_right(answered, 32)
    assert not fast.runs


def test_neighbour_that_comes_later_gets_its_part() -> None:
    """A batch takes long, and a mesh moves."""
    mesh, (asker,) = mesh_of(ROW_NS)
    asker.ask_rows(256)
    mesh.run(lambda: len(asker.runs) >= 4)
    late = mesh.add("late")
    late.has_rows(ROW_NS)
    late.settle()
    answered = answer_of(mesh, asker)
    check_right(answered, 256)
    assert shares_of(answered)["late"] >= 1


def test_two_batches_at_once_are_both_right() -> None:
    """Each has its own shards."""
    mesh, (asker, _) = mesh_of(ROW_NS, ROW_NS)
    numbers = {asker.ask_rows(40), asker.ask_rows(56)}
    mesh.run(lambda: len(asker.answered) == 2)
    assert {answered.request for answered in asker.answered} == numbers
    assert sorted(len(rows_of(answered)) for answered in asker.answered) == [40, 56]
    for answered in asker.answered:
        check_right(answered, len(rows_of(answered)))


def test_batches_and_their_shards_are_bounded() -> None:
    """A caller in a loop must not fill the memory of its node, and one answer has so many reports at most."""
    mesh, (asker, _) = mesh_of(ROW_NS, ROW_NS, unit=1)
    with pytest.raises(InputInvalid, match=f"{MAX_SHARDS + 1} rows .* give {MAX_SHARDS} rows at a time"):
        asker.ask_rows(MAX_SHARDS + 1)
    for _ in range(MAX_SHARDED):
        asker.ask_rows(8)
    assert len(asker.machine.under_way()) <= limits.MAX_PENDING_REQUESTS
    with pytest.raises(BoundExceeded, match="16 batches"):
        asker.ask_rows(8)
    mesh.run(lambda: len(asker.answered) == MAX_SHARDED)


def test_batch_waits_while_other_requests_have_all_places() -> None:
    """Shards count as requests; they take the places that are left, and the batch is answered all the same."""
    mesh, (asker,) = mesh_of(MS)
    asker.has()
    for _ in range(limits.MAX_PENDING_REQUESTS):
        asker.ask()
    asker.ask_rows(8)
    mesh.run(lambda: any(answered.parts for answered in asker.answered))


def test_batch_of_a_model_that_nobody_has_is_refused() -> None:
    """As any other request."""
    mesh = Mesh()
    asker = mesh.add("n0")
    with pytest.raises(ModelUnknown, match="no model 'rows'"):
        asker.ask_rows(3)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 200), row_us=st.lists(st.integers(1, 50_000), min_size=1, max_size=5),
    unit=st.sampled_from((None, 1)), size=st.sampled_from((0, 0, 1, 3, 17)), dies=st.booleans(),
)  # fmt: skip
def test_any_batch_at_any_speeds_is_whole_and_in_order(
    count: int, row_us: list[int], unit: int | None, size: int, dies: bool
) -> None:
    """Each row is there once and in its place, whoever computes it and whoever is gone."""
    mesh, (asker, *others) = mesh_of(*(each * 1_000 for each in row_us), unit=unit)
    asker.ask_rows(count, 10_000 * SECOND, size=min(size, 1) if unit else size)
    if others and dies:
        mesh.run(lambda: bool(others[-1].runs or asker.answered), 10_000 * SECOND)
        mesh.kill(others[-1])
    answered = answer_of(mesh, asker, 10_000 * SECOND)
    check_right(answered, count)
    assert not asker.machine.under_way()
    here_ns = row_us[0] * 1_000
    a_shard_ns = here_ns * max(part.size for part in answered.parts)
    assert answered.took_ns <= count * here_ns + 4 * a_shard_ns + 20 * MS  # it begins without any measurement


def test_node_that_is_idle_does_not_wait_for_a_neighbour_that_is_late() -> None:
    """What it predicts of itself knows nothing of a shard that has been running for ten times as long: the last row
    waited behind that one, while this node had nothing to do."""
    mesh, (asker, _) = mesh_of(572_000, 2_476_000)
    asker.ask_rows(69, 10 * SECOND, size=17)
    answered = answer_of(mesh, asker, 10 * SECOND)
    check_right(answered, 69)
    assert answered.took_ns < 50 * MS  # 39 ms alone, and two shards are begun without any measurement


@pytest.mark.parametrize("is_kept", [True, False])
def test_batch_under_way_when_a_release_takes_over_ends_with_the_file_with_which_it_began(is_kept: bool) -> None:
    """Rows of two releases in one answer would be worse than none; but an update is no reason for a failure."""
    mesh, (asker, other) = mesh_of(ROW_NS, ROW_NS)
    asker.ask_rows(64)
    pass_time(mesh, 5 * ROW_NS)
    for node in (asker, other):
        before = node.models["rows"]
        node._load(structs.replace(before, digest="9" * 64, former=(before.digest,) if is_kept else ()))
        node.settle()
    answered = answer_of(mesh, asker)
    if is_kept:
        check_right(answered, 64)
        assert shares_of(answered)["n0"] > 0
    else:
        assert answered.winner is None
        assert "stands for another file now" in answered.detail
