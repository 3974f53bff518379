"""Pipelines of several machines in virtual time: plans, stages that are made ready, requests, and what goes wrong."""

import pytest
from msgspec import structs

from protocols.access import DEFAULT_RULES, AccessRule
from protocols.base import limits
from protocols.base.ids import Role
from protocols.inference.events import Answered
from protocols.inference.placement import LocalModel
from protocols.inference.split.events import StageRange, StoreChunk
from protocols.inference.split.hosting import MAX_HOSTED
from protocols.inference.split.plan import PlacedStage, Plan
from protocols.inference.split.splitting import TRIALS
from protocols.wire.inference import InferAnswer, StageAsked, StageChunk, StageWanted
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.inference_fixture import A, B, Bench
from tests.tools.splitting_fixture import MS, SECOND, Linked, Mesh

WHOLE_RESULT = b"\x00\x01\x02"
"""Each of the three parts of the model has run once, in their order."""


def in_force(node: Linked) -> bool:
    return any(view.state == "in force" for view in node.machine.split.views())


def pair(car_ns: int = 100 * MS, rsu_ns: int = 10 * MS) -> tuple[Mesh, Linked, Linked]:
    """A slow vehicle whose inputs are private, and a fast roadside unit, with a plan in force."""
    mesh = Mesh()
    car, rsu = mesh.add("car", car_ns), mesh.add("rsu", rsu_ns)
    car.has()
    car.split(private=True)
    mesh.run(lambda: in_force(car))
    return mesh, car, rsu


def first_stage(node: Linked) -> tuple[str, LocalModel]:
    """The stage that takes the inputs of the model."""
    return next(
        (name, model) for name, model in node.models.items()
        if ":" in name and model.signature is not None and model.signature.inputs[0].name == "t0"
    )  # fmt: skip


def answer_of(mesh: Mesh, node: Linked) -> Answered:
    mesh.run(lambda: bool(node.answered))
    (answered,) = node.answered
    node.answered.clear()
    return answered


def result_of(answered: Answered) -> bytes:
    assert answered.winner is not None, answered.detail
    return bytes(answered.outputs[0].tensor.data)[-3:]


def test_private_model_runs_its_first_stage_at_home_and_the_rest_at_a_faster_neighbour() -> None:
    """Raw inputs stay at home, and the answer comes sooner: what splitting is for."""
    mesh, car, rsu = pair()
    before = len(rsu.runs)
    car.ask()
    answered = answer_of(mesh, car)
    assert [part.node for part in answered.parts] == ["car", "rsu"]
    assert result_of(answered) == WHOLE_RESULT
    assert answered.took_ns < car.run_ns // 2
    assert [asked_by for _, asked_by in rsu.runs[before:]] == ["car"]


def test_stage_that_a_neighbour_lacks_comes_from_its_owner_once() -> None:
    """The bytes travel by digest, and not with each request."""
    mesh, car, rsu = pair()
    assert rsu.disk
    fetched = {digest: len(content) for digest, content in rsu.disk.items()}
    for _ in range(3):
        car.ask()
        answer_of(mesh, car)
    assert {digest: len(content) for digest, content in rsu.disk.items()} == fetched
    assert rsu.drops.total == 0
    assert car.drops.total == 0


def test_neighbour_that_dies_while_it_computes_is_replaced_from_the_boundary() -> None:
    """Nothing that the first stage has done is done again, and the caller gets one right answer."""
    mesh, car, rsu = pair()
    number = car.ask()
    mesh.run(lambda: car.machine.split.pipelines.under_way().get(number) == 1)
    before = len(car.runs)
    mesh.kill(rsu)
    answered = answer_of(mesh, car)
    assert result_of(answered) == WHOLE_RESULT
    assert [(part.node, part.replays) for part in answered.parts] == [("car", 0), ("car", 1)]
    assert len(car.runs) == before + 1
    assert not car.machine.under_way()


def test_stage_that_nobody_can_run_for_a_moment_is_tried_again_until_the_deadline() -> None:
    """The neighbour dies before this node has loaded the stage itself: the request waits for that and is answered."""
    mesh, car, rsu = pair()
    mesh.kill(mesh.add("gone", 10 * MS))
    for name in [name for name in car.models if ":" in name]:
        del car.models[name]
    first = car.machine.split._splits["plate"].force.staged.stages[0]  # type: ignore[union-attr]
    car._load(car._stage_model(first.stage, "", StageRange(-1, 0)))
    del car.models["plate"]
    car.machine.set_models(tuple(car.models.values()), mesh.now)
    number = car.ask()
    mesh.run(lambda: car.machine.split.pipelines.under_way().get(number) == 1)
    mesh.kill(rsu)
    answered = answer_of(mesh, car)
    assert result_of(answered) == WHOLE_RESULT
    assert [part.node for part in answered.parts] == ["car", "car"]


def test_stage_that_nobody_can_run_fails_at_the_deadline_and_is_named() -> None:
    """The caller learns which stage it was, and no request hangs."""
    mesh, car, rsu = pair()
    car.machine.set_models(tuple(model for name, model in car.models.items() if name != "plate"), mesh.now)
    number = car.ask(SECOND)
    mesh.run(lambda: car.machine.split.pipelines.under_way().get(number) == 1)
    car._perform = lambda effect: None  # type: ignore[method-assign]
    car.machine.set_models((), mesh.now)
    mesh.kill(rsu)
    answered = answer_of(mesh, car)
    assert answered.failure == "late"
    assert "stage 2 of 2" in answered.detail


def test_node_that_has_only_stages_runs_all_of_them_while_no_neighbour_does() -> None:
    """Between the loss of a helper and the next plan, each request failed because nobody has the whole model."""
    mesh, car, rsu = pair()
    car.models.pop("plate")
    car.machine.set_models(tuple(car.models.values()), mesh.now)
    mesh.kill(rsu)
    for _ in range(3):
        car.ask()
        answered = answer_of(mesh, car)
        assert result_of(answered) == WHOLE_RESULT
        assert [part.node for part in answered.parts] == ["car", "car"]
        end_ns = mesh.now + 15 * SECOND
        mesh.run(lambda end_ns=end_ns: mesh.now >= end_ns)  # type: ignore[misc]


def test_plan_in_force_while_others_are_not_ready_has_its_spare_stages_at_home() -> None:
    """Stages of the others may fill the link for a minute. Without spare ones, a request behind them would fail."""
    mesh = Mesh()
    car, _, mute = mesh.add("car", 100 * MS), mesh.add("rsu", 10 * MS), mesh.add("mute", 10 * MS)
    mute._perform = lambda effect: None  # type: ignore[method-assign]
    car.has()
    car.split(private=True)
    mesh.run(lambda: in_force(car))
    splitting = car.machine.split
    assert {view.state for view in splitting.views()} == {"in force", "waiting"}
    (split,) = splitting._splits.values()
    assert split.force is not None
    names = {planned.name for planned in split.force.staged.stages}
    mesh.run(lambda: names <= car.models.keys(), 2 * MS)
    assert {view.state for view in splitting.views()} == {"in force", "waiting"}


def test_plan_ends_with_its_neighbour_and_comes_back_with_it() -> None:
    """A parked or passing neighbour must leave the node as it was without it."""
    mesh, car, rsu = pair()
    mesh.kill(rsu)
    assert not in_force(car)
    car.ask()
    answered = answer_of(mesh, car)
    assert [attempt.node for attempt in answered.attempts] == ["car"]
    assert not answered.parts
    mesh.add("rsu-2", 10 * MS)
    mesh.run(lambda: in_force(car))
    assert car.machine.split.views()[0].stages[-1].node == "rsu-2"


@pytest.mark.parametrize(("accepts", "rules", "word"), [
    (False, DEFAULT_RULES, "takes no stages"),
    (True, tuple(rule for rule in DEFAULT_RULES if rule.verb != "infer"), "may not compute"),
    (True, (AccessRule(Role.RSU, "infer", "other"),), "may not compute"),
])  # fmt: skip
def test_neighbour_that_refuses_a_stage_is_not_asked_for_runs(
    accepts: bool, rules: tuple[AccessRule, ...], word: str
) -> None:  # fmt: skip
    """Who takes no stages of others, or does not permit the model, is left out, and the node goes on alone."""
    mesh = Mesh()
    car, rsu = mesh.add("car", 100 * MS), mesh.add("rsu", 10 * MS, accepts, rules)
    car.has()
    car.split(private=True)
    mesh.run(lambda: rsu.machine.hosting.refused > 0)
    mesh.run(lambda: mesh.now > 3 * SECOND)
    assert not in_force(car)
    assert (rsu.runs, rsu.disk) == ([], {})
    details = [loan.detail for loan in car.machine.split.lending._loans.values()]
    assert any(word in detail for detail in details)
    car.ask()
    assert result_of(answer_of(mesh, car)) == WHOLE_RESULT


def test_private_inputs_never_leave_even_when_the_neighbour_has_the_whole_model() -> None:
    """The rule of the manifest is a constraint and not a preference."""
    mesh = Mesh()
    car, rsu = mesh.add("car", 100 * MS), mesh.add("rsu", 5 * MS, accepts=False)
    car.split(private=True)
    car.has()
    rsu.has()
    rsu.settle()
    mesh.run(lambda: mesh.now > 2 * SECOND)
    for _ in range(20):
        car.ask()
        assert result_of(answer_of(mesh, car)) == WHOLE_RESULT
    assert not rsu.runs


def test_pipeline_is_not_taken_when_the_whole_is_as_fast() -> None:
    """A plan never makes the caller slower: the neighbour has the whole model, which is faster than its parts."""
    mesh = Mesh()
    car, rsu = mesh.add("car", 100 * MS), mesh.add("rsu", 5 * MS)
    car.has()
    rsu.has()
    rsu.settle()
    car.split()
    mesh.run(lambda: mesh.now > 5 * SECOND)
    for _ in range(40):
        car.ask()
        answered = answer_of(mesh, car)
        assert not answered.parts
    assert answered.attempts[-1].node == "rsu"


def garbage(answer: InferAnswer) -> InferAnswer:
    return InferAnswer(0, "done", (NamedTensor("t9", tensor_of(b"?")),), 0, 1)


def test_neighbour_that_answers_a_stage_with_garbage_loses_the_work() -> None:
    """What it answers is checked against the stage, and the boundary is computed at home."""
    mesh, car, rsu = pair()
    rsu.lies = garbage
    car.ask()
    assert result_of(answer_of(mesh, car)) == WHOLE_RESULT
    assert car.machine.counters()["wrong_answers"] == 1
    before = len(rsu.runs)
    car.ask()
    assert result_of(answer_of(mesh, car)) == WHOLE_RESULT
    assert len(rsu.runs) == before


def test_neighbour_that_never_answers_a_stage_costs_no_request() -> None:
    """A run that hangs is hedged or rescued within the deadline."""
    mesh, car, rsu = pair()
    rsu.lies = lambda answer: InferAnswer(0, "failed", detail="out of memory")
    car.ask()
    answered = answer_of(mesh, car)
    assert result_of(answered) == WHOLE_RESULT
    assert [attempt.outcome for attempt in answered.attempts] == ["done", "failed", "done"]


def test_abandoned_pipeline_ends_the_run_of_its_stage() -> None:
    """A caller that goes away must not leave work behind at a neighbour."""
    mesh, car, rsu = pair()
    number = car.ask()
    mesh.run(lambda: car.machine.split.pipelines.under_way().get(number) == 1)
    car.machine.abandon(number, mesh.now)
    car.settle()
    end_ns = mesh.now + SECOND
    mesh.run(lambda: mesh.now >= end_ns)
    assert (car.answered, car.machine.under_way()) == ([], [])
    assert not rsu.machine._serving.held


def test_stage_whose_bytes_are_altered_on_the_way_is_not_loaded() -> None:
    """The digest decides, so a carrier or a broken disk can't put another stage in place of the one that was meant."""
    mesh = Mesh()
    car, rsu = mesh.add("car", 100 * MS), mesh.add("rsu", 10 * MS)
    car.has()
    car.split(private=True)
    mesh.run(lambda: bool(rsu.disk))
    for digest in rsu.disk:
        rsu.disk[digest] = b"X" + rsu.disk[digest][1:]
    mesh.run(lambda: rsu.machine.hosting.dropped > 0)
    assert (rsu.machine.counters()["stages_hosted"], rsu.runs) == (0, [])


def test_stage_in_force_is_kept_ready_and_dropped_once_its_owner_is_gone() -> None:
    """A stage takes the memory of a process: it stays as long as somebody has a plan with it, and no longer."""
    mesh, car, rsu = pair()
    start_ns = mesh.now
    mesh.run(lambda: mesh.now > start_ns + 200 * SECOND, 300 * SECOND)
    assert in_force(car)
    assert "ready" in [stage.state for stage in rsu.machine.hosting.view(mesh.now)]
    mesh.kill(car)
    start_ns = mesh.now
    mesh.run(lambda: not rsu.machine.hosting.hosted, 100 * SECOND)
    assert all(not model.stage_of for model in rsu.models.values())


def test_faster_neighbour_that_comes_gets_the_stage_after_the_dwell() -> None:
    """Plans follow the mesh, but don't flap."""
    mesh, car, _ = pair(rsu_ns=50 * MS)
    first = car.machine.split.views()[0]
    adopted_ns = mesh.now
    mesh.add("gpu", 2 * MS)
    mesh.run(lambda: in_force(car) and car.machine.split.views()[0].stages[-1].node == "gpu")
    assert mesh.now - adopted_ns >= 10 * SECOND
    assert car.machine.split.views()[0].epoch > first.epoch


def test_trials_run_where_their_plan_says_though_a_stage_was_lent_before() -> None:
    """A stage that was forgotten, and is needed again, is asked for again: else its trial runs anywhere."""
    mesh, car, _ = pair(rsu_ns=50 * MS)
    mesh.add("gpu", 2 * MS)
    mesh.run(lambda: in_force(car) and car.machine.split.views()[0].stages[-1].node == "gpu")
    tried = car.machine.split.describe(mesh.now)[0].plans
    assert len(tried) == 3
    assert [plan.why for plan in tried if plan.state == "passed over"] == ["another plan was faster"] * 2
    end_ns = mesh.now + 100 * SECOND
    mesh.run(lambda: mesh.now > end_ns, 200 * SECOND)
    assert car.drops.total == 0  # neighbours say that they drop what nobody wants any more


def with_another_plan() -> tuple[Mesh, Linked]:
    """A vehicle that makes a plan ready which has no stage in common with the one in force."""
    mesh, car, _ = pair(rsu_ns=50 * MS)
    gpu = mesh.add("gpu", 2 * MS)
    stages = PlacedStage(-1, 1, car.node), PlacedStage(1, 2, gpu.node)
    car.planner = lambda effect: [Plan(stages, MS, MS)]
    mesh.run(lambda: any(view.state == "waiting" for view in car.machine.split.views()))
    return mesh, car


def test_requests_follow_the_plan_in_force_while_another_is_made_ready_and_timed() -> None:
    """A plan that is only tried must not take away the stages that requests need now."""
    mesh, car = with_another_plan()
    car.ask()
    assert [part.node for part in answer_of(mesh, car).parts] == ["car", "rsu"]
    assert [view.state for view in car.machine.split.views()] == ["in force", "waiting"]


def test_request_under_way_ends_by_the_plan_that_it_began_with() -> None:
    """Another plan comes into force while the first stage is computed: the second one is still there for it."""
    mesh, car = with_another_plan()
    split = car.machine.split._splits["plate"]
    mesh.run(lambda: len(split.drafts[0].times_ns) == TRIALS - 1)
    number = car.ask()
    mesh.run(lambda: not split.drafts)
    assert car.machine.split.pipelines.under_way() == {number: 0}
    assert car.machine.split.views()[0].stages[-1].node == "gpu"
    answered = answer_of(mesh, car)
    assert result_of(answered) == WHOLE_RESULT
    assert [part.node for part in answered.parts] == ["car", "rsu"]
    assert car.machine.counters()["fell_back_whole"] == 0
    end_ns = mesh.now + 3 * SECOND
    mesh.run(lambda: mesh.now > end_ns)
    assert len([name for name in car.models if name.startswith("plate:")]) == 2


def test_neighbour_that_was_too_busy_for_a_stage_is_asked_again_after_a_pause() -> None:
    """One refusal must not shut out the only neighbour until it leaves."""
    mesh = Mesh()
    car, rsu = mesh.add("car", 100 * MS), mesh.add("rsu", 10 * MS, accepts=False)
    car.has()
    car.split(private=True)
    mesh.run(lambda: not car.machine.split.views() and rsu.machine.hosting.refused > 0)
    rsu.machine.hosting.accepts = True
    mesh.run(lambda: in_force(car), 20 * SECOND)


def test_private_inputs_never_go_to_a_neighbour_that_offers_the_first_stage() -> None:
    """Whoever has the same file can cut it in the same place, and knows the name and the digest of the stage."""
    mesh, car, rsu = pair()
    name, model = first_stage(car)
    rsu._load(structs.replace(model, served=True, compute_ns=1))
    rsu.settle()
    mesh.run(lambda: any(offer.model == name for offer in car.machine.offers_of(rsu.node)))
    car.lies = lambda answer: InferAnswer(0, "failed", detail="out of memory")
    car.ask()
    assert answer_of(mesh, car).winner is None
    assert name not in [model for model, _ in rsu.runs]


def test_stage_that_is_forgotten_under_way_has_the_whole_model_computed() -> None:
    """A request that began before ends with a result all the same."""
    mesh, car, _ = pair()
    car.ask()
    car.machine.split.forget_model("plate")
    car.models = {"plate": car.models["plate"]}
    car.machine.set_models(tuple(car.models.values()), mesh.now)
    answered = answer_of(mesh, car)
    assert result_of(answered) == WHOLE_RESULT
    assert car.machine.counters()["fell_back_whole"] == 1
    assert [attempt.node for attempt in answered.attempts] == ["car", "car"]


def test_stage_runs_for_neighbours_that_call_its_model_differently() -> None:
    """The digest says which stage is meant; the table of access is asked about the name that each of them uses."""
    mesh, car, rsu = pair()
    van = mesh.add("van", 100 * MS)
    van.has("detector")
    van.split(private=True, name="detector")
    mesh.run(lambda: in_force(van))
    for node, name in ((van, "detector"), (car, "plate")):
        node.ask(name=name)
        answered = answer_of(mesh, node)
        assert result_of(answered) == WHOLE_RESULT
        assert [part.node for part in answered.parts] == [node.node, "rsu"]
    assert {"car", "van"} in [set(stage.asked_by) for stage in rsu.machine.hosting.view(mesh.now)]


def test_stage_is_fetched_from_another_neighbour_when_the_first_has_left() -> None:
    """Two vehicles want the same stage, and the one that asked first drives away while the disk is looked at."""
    bench = Bench(A, B)
    bench.machine.hosting.accepts = True
    asked = StageAsked("a" * 64, "plate", "1" * 64, 1_000)
    bench.machine.receive(asked, A, Role.RSU, 0)
    bench.machine.receive(asked, B, Role.RSU, 0)
    bench.machine.neighbour_gone(A, 0)
    bench.machine.hosting.found("a" * 64, False, 0)
    assert [(to, frame.offset) for to, frame in bench.machine.messages() if isinstance(frame, StageWanted)] == [(B, 0)]


def test_hosting_gives_up_the_stages_of_whoever_holds_most() -> None:
    """One neighbour can't fill the places of all others."""
    bench = Bench(A, B)
    bench.machine.hosting.accepts = True
    for number in range(MAX_HOSTED + 3):
        bench.machine.receive(StageAsked(f"{number:064x}", "plate", "1" * 64, 1_000), A, Role.RSU, 0)
    bench.machine.receive(StageAsked("f" * 64, "plate", "1" * 64, 1_000), B, Role.RSU, 0)
    hosted = bench.machine.hosting.view(0)
    assert len(hosted) == MAX_HOSTED
    assert [stage.payer for stage in hosted].count(B) == 1


def test_short_rest_of_a_stage_is_asked_for_when_all_before_it_has_come() -> None:
    """A small frame goes by the realtime lane, and overtakes the large ones that were asked for before it."""
    bench = Bench(A, B)
    machine, chunk_bytes = bench.machine, limits.STAGE_CHUNK_BYTES
    machine.hosting.accepts = True
    digest = "a" * 64

    def wanted() -> list[int]:
        return [frame.offset for _, frame in machine.messages() if isinstance(frame, StageWanted)]

    machine.receive(StageAsked(digest, "plate", "1" * 64, 2 * chunk_bytes + 1_000), A, Role.RSU, 0)
    machine.hosting.found(digest, False, 0)
    assert wanted() == [0, chunk_bytes]
    machine.receive(StageChunk(digest, 0, bytes(chunk_bytes)), A, Role.RSU, 0)
    assert wanted() == []
    machine.receive(StageChunk(digest, chunk_bytes, bytes(chunk_bytes)), A, Role.RSU, 0)
    assert wanted() == [2 * chunk_bytes]
    machine.receive(StageChunk(digest, 2 * chunk_bytes, bytes(1_000)), A, Role.RSU, 0)
    assert machine.hosting.view(0)[0].state == "loading"


def test_chunk_that_was_not_asked_for_is_not_stored() -> None:
    """A neighbour writes to the disk only what this node fetches, in order and of the right size."""
    bench = Bench(A, B)
    machine = bench.machine
    machine.hosting.accepts = True
    digest = "a" * 64
    machine.receive(StageAsked(digest, "plate", "1" * 64, 2 * limits.STAGE_CHUNK_BYTES), A, Role.RSU, 0)
    machine.hosting.found(digest, False, 0)
    data = bytes(limits.STAGE_CHUNK_BYTES)
    for source, frame in (
        (B, StageChunk(digest, 0, data)),
        (A, StageChunk(digest, limits.STAGE_CHUNK_BYTES, data)),
        (A, StageChunk(digest, 0, data[:-1])),
        (A, StageChunk("b" * 64, 0, data)),
    ):
        machine.receive(frame, source, Role.RSU, 0)
    assert not any(isinstance(effect, StoreChunk) for effect in machine.outgoing())
    machine.receive(StageChunk(digest, 0, data), A, Role.RSU, 0)
    assert [effect.offset for effect in machine.outgoing() if isinstance(effect, StoreChunk)] == [0]
    assert bench.drops.total == 4
