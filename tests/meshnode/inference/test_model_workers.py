"""Worker processes of models in a node: what it tells of them, and who computes while a model is out of service."""

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import meshnode
from benchmarks.misbehaving import write_misbehaving
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.models.worker import WorkerModel
from protocols.base.errors import InferenceError
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Open, given_house, given_opened
from tests.tools.node_fixture import meshnode as command
from tests.tools.node_fixture import prepare
from tests.tools.tiny_onnx import write_model
from tests.tools.worker_fixture import running

__all__ = ["given_house", "given_opened"]
pytestmark = pytest.mark.processes
ONES = {"x": np.ones((1, 2), "f4")}


def worker_of(node: meshnode.Node, model: str) -> int | None:
    """The process of that model, if it has one now."""
    loaded = node.models[model]
    assert isinstance(loaded, WorkerModel)
    return loaded.process_id


def kill_worker(node: meshnode.Node, model: str) -> None:
    """Kill the process of that model, unless it has none now, or one that has just died of the last time."""
    process_id = worker_of(node, model)
    if process_id is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


async def test_model_out_of_service_is_a_trouble_and_neighbours_compute_it(opened: Open, house: House) -> None:
    """An application must get its answer, and the operator must be told why it came from elsewhere."""
    model = {"double": ModelSection(path=write_model(house.folder / "double.onnx", [1, 2], "Add"))}
    rsu = await opened("rsu-1", role="rsu", models=model)
    vehicle = await opened("veh-1", rsu.port, models=model)
    await until(lambda: any(peer.offers for peer in vehicle.peers()), "the neighbour offers the model")
    assert (await vehicle.infer("double", ONES, deadline_ms=20_000)).outputs["y"].tolist() == [[2, 2]]
    while not vehicle.troubles.current():
        kill_worker(vehicle, "double")
        result = await vehicle.infer("double", ONES, deadline_ms=20_000)
        assert result.outputs["y"].tolist() == [[2, 2]], "no request fails meanwhile"
    (trouble,) = vehicle.troubles.current()
    assert (trouble.part, trouble.name, trouble.essential) == ("model", "double", False)
    assert "out of service" in trouble.why
    assert "SIGKILL" in trouble.why
    assert (await vehicle.infer("double", ONES, deadline_ms=20_000)).ran_on == "rsu-1"
    assert vehicle.statistics()["model_workers_crashed"] == 3
    await until(lambda: not vehicle.troubles.current(), "it is back")
    await until(lambda: worker_of(vehicle, "double") is not None, "with a process")


async def test_model_out_of_service_says_why_when_nobody_else_has_it(opened: Open, house: House) -> None:
    """The one who asks is the first who can do something about it."""
    model = {"double": ModelSection(path=write_model(house.folder / "double.onnx", [1, 2], "Add"))}
    node = await opened("veh-1", models=model)
    while not node.troubles.current():
        kill_worker(node, "double")
        with contextlib.suppress(InferenceError):  # a run that loses two processes fails
            await node.infer("double", ONES, deadline_ms=20_000)
    with pytest.raises(InferenceError, match=r"out of service.*SIGKILL"):
        await node.infer("double", ONES, deadline_ms=20_000)


async def test_node_without_models_and_one_without_isolation_start_no_process(opened: Open, house: House) -> None:
    """Who only reads sensors pays nothing, and who wants models in the node's process has them there."""
    model = {"double": ModelSection(path=write_model(house.folder / "double.onnx", [1, 2], "Add"))}
    without = await opened("veh-1")
    inside = await opened("rsu-1", role="rsu", models=model, inference=InferenceSection(isolation="none"))
    assert (await inside.infer("double", ONES)).outputs["y"].tolist() == [[2, 2]]
    for node in (without, inside):
        assert node.statistics()["model_workers_started"] == 0
    assert not isinstance(inside.models["double"], WorkerModel)


async def test_worker_ends_when_its_node_closes(house: House) -> None:
    """Opening and closing nodes for months must leave nothing."""
    model = {"double": ModelSection(path=write_model(house.folder / "double.onnx", [1, 2], "Add"))}
    async with meshnode.open(house.config("veh-1", models=model)) as node:
        process_id = worker_of(node, "double")
    assert process_id is not None
    assert not running(process_id)


def test_doctor_tells_a_model_that_grows_and_goes_on(tmp_path: Path) -> None:
    """A crash of the doctor itself would say nothing about the other checks."""
    tables = '[models.bad]\npath = "bad.onnx"\nmemory_limit_mib = 2\n[models.good]\npath = "good.onnx"\n'
    config = prepare(tmp_path, "rsu-1", "rsu", tables + '[inference]\nproviders = ["cuda", "cpu"]\n')
    write_model(config.parent / "bad.onnx", [4], "Identity", repeat=100_000)
    write_misbehaving(config.parent / "good.onnx", "hang")
    done = command("doctor", config)
    told = [line.split(None, 2) for line in done.stdout.splitlines()]
    models = [(status, message) for status, check, message in told if check == "model"]
    assert [status for status, _ in models] == ["fail", "ok", "warn"], done.stdout
    assert "memory_limit_mib" in models[0][1]
    assert "'cuda' is not in the installed onnxruntime" in models[2][1]
