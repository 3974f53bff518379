"""A model that is cut, run by two real nodes: planned, fetched, answered, and replayed when the helper is killed."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meshnode
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.models import ModelSpec, load_model
from protocols.base.errors import InferenceError
from protocols.engine import Engine
from protocols.inference.split.views import PlanView
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Member, Open, given_house, given_opened
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house", "given_opened"]
pytestmark = pytest.mark.processes
SIDE = 384
REPEAT = 8
SLOW = 40.0
"""The whole takes some tenths of a second on the vehicle, and on a busy machine still several times as long as on the
roadside unit."""


@pytest.fixture(scope="module", name="model")
def given_model(house: House) -> Path:
    """``work`` squares a matrix eight times, and can be cut between any two of them."""
    return write_model(house.folder / "work.onnx", [SIDE, SIDE], "MatMul", repeat=REPEAT)


@pytest.fixture(name="private")
def given_private(house: House, model: Path) -> Path:
    """The same model in another folder, with a manifest that keeps its inputs at home."""
    folder = house.folder / "private"
    folder.mkdir(exist_ok=True)
    path = folder / "work.onnx"
    path.write_bytes(model.read_bytes())
    path.with_suffix(".toml").write_text("[split]\nfirst_cut_at_home = true\n")
    return path


@pytest.fixture(name="helper")
def given_helper(house: House) -> Iterator[Callable[..., Member]]:
    """Start an RSU without models, as a process, that takes stages of neighbours."""
    with ExitStack() as stack:

        def start(node: str, slowdown: float = 1.0, accepts: bool = True) -> Member:
            tables = (
                "[discovery]\nmdns = false\n"
                f"[inference]\nemulate_slowdown = {slowdown}\naccept_stages = {str(accepts).lower()}\n"
            )
            member = stack.enter_context(Member(house.file(node, tables, role="rsu")))
            member.wait_for("up")
            return member

        yield start


@pytest.fixture(name="matrix")
def given_matrix() -> Any:
    return np.random.default_rng(3).standard_normal((SIDE, SIDE), dtype="f4") * 0.1


def plans(node: meshnode.Node) -> list[PlanView]:
    return node.driver.look(lambda engine, _: engine.inference.split.views())


async def in_force(node: meshnode.Node) -> None:
    await until(lambda: any(plan.state == "in force" for plan in plans(node)), "a plan in force", 120.0)


def whole_answer(model: Path, matrix: Any) -> bytes:
    """What the model gives when it is not split."""
    ((_, array),) = load_model(ModelSpec("work", model)).run({"x": matrix})
    return bytes(array.tobytes())


def parts_of(house: House, model: Path) -> dict[str, Any]:
    return {
        "models": {"work": ModelSection(path=model, split="latency", whole=False)},
        "inference": InferenceSection(emulate_slowdown=SLOW, deadline_ms=60_000),
    }


async def test_stages_of_a_private_model_run_at_home_and_at_a_neighbour_that_had_nothing(
    house: House, opened: Open, helper: Callable[..., Member], private: Path, matrix: Any
) -> None:
    """The RSU gets its stage over the mesh, and the answer is that of the whole model, bit for bit."""
    rsu = helper("rsu-1")
    node = await opened("veh-1", rsu.port, **parts_of(house, private))
    with pytest.raises(InferenceError):
        await node.infer("work", {"x": matrix}, deadline_ms=100)  # no stage is ready yet, and nobody has the whole
    await in_force(node)
    split = await node.infer("work", {"x": matrix})
    assert [part.node for part in split.parts] == ["veh-1", "rsu-1"]
    assert split.outputs["y"].tobytes() == whole_answer(private, matrix)


async def test_helper_that_is_killed_while_it_computes_costs_no_request(
    house: House, opened: Open, helper: Callable[..., Member], private: Path, matrix: Any
) -> None:
    """The boundary that the vehicle has kept is computed by itself."""
    rsu = helper("rsu-2", slowdown=SLOW / 2)
    node = await opened("veh-2", rsu.port, **parts_of(house, private))
    await in_force(node)
    task = asyncio.create_task(node.infer("work", {"x": matrix}))

    def at_the_neighbour() -> bool:
        """Whether a stage of the request is under way there, and not one of a plan that is being timed."""

        def look(engine: Engine, _: int) -> bool:
            asked = engine.inference._asking.requests
            piped = engine.inference.split.pipelines.piped.values()
            children = [asked[each.child] for each in piped if not each.trial and each.child in asked]
            return any(run.node == "rsu-2" for child in children for run in child.runs.values())

        return node.driver.look(look)

    await until(at_the_neighbour, "a stage under way at the RSU")
    rsu.process.send_signal(signal.SIGKILL)
    split = await task
    assert len(split.parts) > 1
    assert {part.node for part in split.parts} == {"veh-2"}
    assert sum(part.replays for part in split.parts) >= 1
    assert split.outputs["y"].tobytes() == whole_answer(private, matrix)
