"""Models that are cut in a simulation: whoever runs which stage, the result is that of the whole model."""

import itertools

import pytest
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.inference.split.events import StageRange, StoreChunk
from protocols.inference.split.plan import CutPoint
from protocols.wire.tensors import NamedTensor, tensor_of
from sims.results.result import Result
from sims.runs.run import Run, simulate
from sims.scenario.file import Checks, Cut, Fault, Fixed, Group, Inference, Radio, RandomFaults, Scenario, load
from sims.world.models import INPUT, Model, Part, StageFiles

SECOND = limits.SECOND
MODEL = Model("plate", 100 * limits.MS, 500, 3_000, (CutPoint(900, 0.2, 70_000), CutPoint(50, 0.7, 200_000)), 250_000)
IMAGE = (NamedTensor(INPUT, tensor_of(b"camera 17".rjust(3_000, b"."))),)
SHARED = Scenario(
    "shared", "A board and a unit share a model", 30.0,
    (
        Group("board", 1, Fixed(((0.0, 0.0),)), device="single-board"),
        Group("unit", 1, Fixed(((20.0, 0.0),)), role="rsu", device="rsu-gpu", accept_stages=True),
    ),
    radio=Radio("ideal", range_m=500.0, bit_rate_mbps=50.0, shared=False),
    inference=(Inference(
        "board", input_bytes=100_000, compute_ms=100.0, deadline_ms=2_000, offered_by=("board",),
        weight_bytes=1_000_000, cuts=(Cut(0.2, 20_000, 100_000), Cut(0.8, 30_000, 900_000)),
    ),),
    checks=Checks(settle_s=10.0),
)  # fmt: skip


def run_by(ranges: list[tuple[int, int]]) -> bytes:
    """What the parts of the model give, one after the other."""
    tensors = IMAGE
    for first, last in ranges:
        tensors = Part(MODEL, first, last).run(tensors)
    return bytes(tensors[0].tensor.data)


def by(result: Result) -> dict[tuple[int, str], int]:
    """How often each stage ran where."""
    found: dict[tuple[int, str], int] = {}
    for part in result.parts:
        found[part.index, part.by] = found.get((part.index, part.by), 0) + part.runs
    return found


# --- the models ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ranges", [[(-1, 2)], [(-1, 0), (0, 2)], [(-1, 1), (1, 2)], [(-1, 0), (0, 1), (1, 2)]])
def test_stages_in_order_give_what_the_whole_model_gives(ranges: list[tuple[int, int]]) -> None:
    """Otherwise no check could compare them."""
    assert run_by(ranges) == run_by([(-1, 2)])
    assert len(run_by(ranges)) == 500


@pytest.mark.parametrize("ranges", [
    [(-1, 0), (1, 2)], [(-1, 1), (0, 2)], [(-1, 0), (0, 1), (0, 1), (1, 2)], [(0, 2)], [(-1, 0), (-1, 2)],
])  # fmt: skip
def test_stage_left_out_repeated_or_out_of_order_shows_in_the_result(ranges: list[tuple[int, int]]) -> None:
    """A check that such a run passes proves nothing."""
    assert run_by(ranges) != run_by([(-1, 2)])


def test_byte_changed_at_a_boundary_shows_in_the_result() -> None:
    """Whatever a neighbour changes must be seen, also where only the beginning decides what comes out."""
    (given,) = Part(MODEL, -1, 0).run(IMAGE)
    spoilt = bytearray(given.tensor.data)
    spoilt[-1] ^= 1
    (right,), (wrong,) = (
        Part(MODEL, 0, 2).run((NamedTensor(given.name, tensor_of(bytes(data))),))
        for data in (given.tensor.data, spoilt)
    )
    assert bytes(right.tensor.data) != bytes(wrong.tensor.data)


def test_stages_differ_in_digest_and_weigh_what_lies_between_their_cuts() -> None:
    """A stage is known by its digest, and its bytes are what the radio has to carry."""
    files = StageFiles([MODEL])
    ranges = [StageRange(first, last) for first, last in itertools.combinations(range(-1, 3), 2)]
    stages = [files.made("plate", between) for between in ranges]
    assert len({stage.digest for stage in stages}) == len(ranges)
    assert files.made("plate", StageRange(0, 1)).size_bytes == 4_096 + 130_000
    for between, stage in zip(ranges, stages, strict=True):
        assert len(stage.content) == stage.size_bytes
        assert files.part_in(bytes(stage.content[:256])) == files.part("plate", between)
    assert files.part_in(b"something else") is None


# --- runs ------------------------------------------------------------------------------------------------------------
def test_slow_board_runs_a_pipeline_with_a_fast_unit_and_is_sooner_done() -> None:
    """What splitting is for."""
    alone = simulate(replace(SHARED, inference=(replace(SHARED.inference[0], split="off"),)), 1)
    together = simulate(SHARED, 1)
    assert not alone.broken
    assert not together.broken
    assert alone.parts == []
    assert by(together)[1, "unit"] >= 15
    assert together.inference_by["pipeline"] >= 15
    assert together.inference.quantiles["p50"] < alone.inference.quantiles["p50"] / 2
    assert together.checks["answer_is_right"].passed == together.inference.count


def test_private_model_keeps_its_first_stage_at_home() -> None:
    """Frames are judged, not plans."""
    result = simulate(replace(SHARED, inference=(replace(SHARED.inference[0], private=True),)), 1)
    assert not result.broken
    assert result.checks["private_inputs_stay"].passed >= 15
    assert by(result)[0, "here"] >= 15
    assert (0, "unit") not in by(result)


def fetched(fault: Fault) -> list[tuple[int, int]]:
    """When the unit stored which part of a stage, in a run with a fault from which all recovers."""
    run = Run(replace(SHARED, duration_s=45.0, faults=(fault,)), 1)
    (unit,) = (stages for number, stages in run.world.stages.items() if run.world.names[number] == "unit-0")
    chunks: list[tuple[int, int]] = []
    store = unit._store

    def noted(effect: StoreChunk) -> None:
        chunks.append((run.world.now, effect.offset))
        store(effect)

    unit._store = noted  # type: ignore[method-assign]
    result = run.go()
    assert not result.broken
    assert result.inference_by["pipeline"] >= 20
    return chunks


@pytest.mark.parametrize("keeps", [True, False])
def test_stage_fetched_once_is_found_on_the_disk_after_a_crash_that_keeps_it(keeps: bool) -> None:
    """Weights are most of what splitting costs a radio."""
    chunks = fetched(Fault("crash", 14.0, 3.0, ("unit-0",), keep_disk=keeps))
    assert any(at_ns < 14 * SECOND for at_ns, _ in chunks)
    assert any(at_ns > 17 * SECOND for at_ns, _ in chunks) is not keeps


def test_disk_that_is_full_takes_no_stage_and_requests_stay_whole() -> None:
    """A stage that can't be kept is refused, and nothing else suffers."""
    result = simulate(replace(SHARED, faults=(Fault("full-disk", 0.0, 0.0, ("unit-0",)),)), 1)
    assert not result.broken
    assert result.inference_by == {"here": result.inference.count}
    assert result.counters["inference_stages_hosted"] == 0


def test_crash_of_the_unit_within_a_stage_is_made_good_from_the_boundary() -> None:
    """The first stage is not run again, and the caller gets one right answer."""
    result = simulate(load("split"), 1)
    assert not result.broken
    assert result.sometimes["replay"] >= 1
    assert result.counters["inference_stages_replayed"] >= 1
    assert sum(part.replays for part in result.parts) == result.sometimes["replay"]
    runs = by(result)
    assert runs[0, "here"] == runs[1, "rsu"] + runs[1, "here"] == result.inference_by["pipeline"]
    assert {part.device for part in result.parts} == {"single-board", "rsu-gpu"}


def test_stage_that_is_unloaded_while_it_runs_fails_its_run() -> None:
    """As in a real node, where the process of the stage ends."""
    run = Run(SHARED, 1)
    run.advance(20 * SECOND)
    unit = run.world.driver.nodes[NodeId("unit-0")]
    worker = run.world.workers[unit.number]
    answered: list[str] = []
    real = worker._answer
    worker._answer = lambda told: (answered.append(told[1].status), real(told))  # type: ignore[method-assign]
    worker.slowed = 10.0
    while worker._running is None:
        run.advance(run.world.now + limits.MS)
    worker.set_stages((), ())
    run.advance(run.world.now + SECOND)
    assert answered[0] == "failed"
    result = run.go()
    assert not result.broken


@pytest.mark.parametrize("seed", range(10))
def test_random_faults_break_no_promise_where_a_private_model_is_split(seed: int) -> None:
    """Two boards share a unit that crashes, is cut off, gets no processor or lies about its load."""
    boards = replace(SHARED.groups[0], count=2, mobility=Fixed(((0.0, 0.0), (0.0, 20.0))))
    kinds = ("crash", "partition", "one-way-loss", "clog", "slow-node", "full-disk", "false-load")
    result = simulate(replace(
        SHARED, duration_s=36.0, groups=(boards, SHARED.groups[1]),
        inference=(replace(SHARED.inference[0], private=True, rate_hz=2.0),),
        random_faults=RandomFaults(kinds, until_s=25.0, from_s=4.0, most=6),
    ), seed)  # fmt: skip
    assert result.broken == []
    assert result.checks["private_inputs_stay"].passed > 0
    assert result.inference_by["pipeline"] > 0


# --- batches ---------------------------------------------------------------------------------------------------------
BATCHES = replace(
    SHARED, duration_s=36.0, groups=(SHARED.groups[0], replace(SHARED.groups[1], device="rsu", accept_stages=False)),
    inference=(Inference(
        "board", rate_hz=0.25, input_bytes=20_000, output_bytes=100, compute_ms=20.0, deadline_ms=8_000, rows=32
    ),),
)  # fmt: skip


def test_batch_is_divided_among_the_node_and_its_neighbour_and_is_sooner_done() -> None:
    """Whoever computes which rows, each is right and in its place."""
    alone = simulate(replace(BATCHES, inference=(replace(BATCHES.inference[0], offered_by=("board",)),)), 1)
    together = simulate(BATCHES, 1)
    assert not alone.broken
    assert not together.broken
    assert alone.inference_by == {"here": alone.inference.count}
    assert together.inference_by == {"shards": together.inference.count}
    assert {(part.kind, part.by, part.of) for part in together.parts} == {("shard", "here", 0), ("shard", "unit", 0)}
    assert together.checks["answer_is_right"].passed == together.inference.count > 5
    assert together.inference.quantiles["p50"] < alone.inference.quantiles["p50"] / 2


def test_batch_of_a_private_model_stays_at_home() -> None:
    """Its rows are inputs as those of one request are."""
    result = simulate(replace(BATCHES, inference=(replace(BATCHES.inference[0], private=True),)), 1)
    assert not result.broken
    assert {part.by for part in result.parts} == {"here"}


def test_crash_of_the_unit_within_a_batch_loses_no_row() -> None:
    """What it had is computed elsewhere."""
    result = simulate(replace(BATCHES, faults=(Fault("crash", 9.3, 4.0, ("unit-0",)),)), 1)
    assert not result.broken
    assert not [by for by in result.inference_by if by.startswith("failed")]


# --- what is told ----------------------------------------------------------------------------------------------------
def test_parts_of_a_result_name_cuts_groups_and_devices() -> None:
    """A person has to see who ran what."""
    result = simulate(SHARED, 1)
    told = {(part.index, part.of, part.between, part.by, part.device) for part in result.parts}
    assert (0, 2, "inputs to cut 1", "here", "single-board") in told
    assert (1, 2, "cut 1 to outputs", "unit", "rsu-gpu") in told
    assert all(part.took_p50_ms >= part.compute_p50_ms > 0 for part in result.parts)
