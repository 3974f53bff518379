"""What people and programs see of a model that two nodes compute together: answers, plans, commands, metrics."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meshnode
from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, pair
from tests.tools.node_fixture import meshnode as command
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes
SIDE = 384


@pytest.fixture(scope="module", name="nodes")
def given_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    """The vehicle splits a private model, and has loaded only its own stages. The RSU runs the rest, and has nothing of
    its own."""
    folder = tmp_path_factory.mktemp("mesh")
    model = write_model(folder / "work.onnx", [SIDE, SIDE], "MatMul", repeat=6)
    model.with_suffix(".toml").write_text("[split]\nfirst_cut_at_home = true\n")
    tables = (
        f'[models.work]\npath = "{model}"\nsplit = "latency"\nwhole = false\n'
        "[inference]\nemulate_slowdown = 100\ndeadline_ms = 20000\n"
    )
    for rsu, vehicle in pair(folder, "[inference]\naccept_stages = true\n", tables):
        eventually(lambda vehicle=vehicle: in_force(vehicle), "a plan in force", 90.0)
        yield rsu, vehicle


@pytest.fixture(name="rsu")
def given_rsu(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[0]


@pytest.fixture(name="vehicle")
def given_vehicle(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[1]


def states(node: RunningNode) -> list[str]:
    return [plan["state"] for model in node.get("/v1/plans")["models"] for plan in model["plans"]]


def in_force(node: RunningNode) -> bool:
    return "in force" in states(node)


def printed(node: RunningNode, *arguments: str | Path, status: int = 0) -> str:
    ran = command(*arguments, "--http", f"127.0.0.1:{node.http_port}")
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module", name="matrix")
def given_matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "x.npy"
    np.save(path, np.random.default_rng(1).standard_normal((SIDE, SIDE), "f4") * 0.1)
    return path


def test_answer_over_http_names_who_ran_which_stage(vehicle: RunningNode) -> None:
    """A client in any language learns where its request was computed, though parameters are texts and numbers only."""
    inputs = [{"name": "x", "shape": [SIDE, SIDE], "datatype": "FP32", "data": [0.0] * SIDE**2}]
    status, answer = vehicle.post("/v2/models/work/infer", {"inputs": inputs, "outputs": [{"name": "y"}]})
    assert status == 200, answer
    parts = json.loads(answer["parameters"]["parts"])
    assert [(part["kind"], part["index"], part["node"]) for part in parts] == [
        ("stage", 0, "veh-1"), ("stage", 1, "rsu-1"),
    ]  # fmt: skip
    assert answer["parameters"]["part_count"] == 2
    assert all(part["took_ms"] >= part["compute_ms"] > 0 for part in parts)
    assert parts[1]["input_bytes"] == parts[1]["output_bytes"] == SIDE**2 * 4


async def test_local_application_learns_who_ran_which_stage(vehicle: RunningNode, matrix: Path) -> None:
    """The same result as in the node's process, and the plans as plain data."""
    async with meshnode.connect(vehicle.config) as node:
        result = await node.infer("work", {"x": np.load(matrix)})
        assert [(part.index, part.node) for part in result.parts] == [(0, "veh-1"), (1, "rsu-1")]
        assert result.outputs["y"].shape == (SIDE, SIDE)
        (model,) = node.ask("plans")["models"]
    assert (model["model"], model["private"]) == ("work", True)


def test_plans_say_who_runs_what_and_hosts_say_for_whom(vehicle: RunningNode, rsu: RunningNode) -> None:
    """Both sides of a plan can be looked at, each on its own node."""
    (model,) = vehicle.get("/v1/plans")["models"]
    plan = next(plan for plan in model["plans"] if plan["state"] == "in force")
    assert [(stage["node"], stage["state"]) for stage in plan["stages"]] == [("veh-1", "here"), ("rsu-1", "ready")]
    assert sum(stage["share"] for stage in plan["stages"]) == pytest.approx(1.0, abs=1e-3)
    assert plan["timed_ms"] > 0
    assert [(each["node"], each["why_not"]) for each in model["neighbours"]] == [("rsu-1", "")]
    hosted = rsu.get("/v1/plans")["hosted"]
    assert {(each["model"], each["asked_by"][0]) for each in hosted} == {("work", "veh-1")}
    assert "ready" in {each["state"] for each in hosted}


def test_model_in_parts_is_listed_and_its_stages_are_not(vehicle: RunningNode, rsu: RunningNode) -> None:
    """A stage is nobody's model: it must not be offered, asked for by name, or counted as one."""
    (model,) = vehicle.get("/v1/models")
    assert (model["name"], model["loaded"], model["in_parts"]) == ("work", False, True)
    assert vehicle.get("/v2/models/work/ready")["ready"]
    assert vehicle.get("/v2/models/work")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [SIDE, SIDE]}]
    assert (rsu.get("/v1/models"), rsu.get("/readyz")["models"]) == ([], [])
    assert all(not peer["offers"] for peer in vehicle.get("/v1/peers"))


def test_infer_prints_a_table_of_stages(vehicle: RunningNode, matrix: Path) -> None:
    """The first question of whoever splits a model."""
    said = printed(vehicle, "infer", "work", "--input", f"x={matrix}")
    assert "computed by veh-1+rsu-1 in" in said
    rows = [line.split()[:4] for line in said.splitlines() if line.startswith("stage")]
    assert rows == [["stage", "1", "veh-1", "here"], ["stage", "2", "rsu-1", "neighbour"]]


def test_split_shows_the_plan_of_a_running_node_and_why(vehicle: RunningNode, rsu: RunningNode) -> None:
    """Predicted against timed, what else was tried, and who could help."""
    eventually(lambda: "passed over" in states(vehicle), "all plans have been tried", 90.0)
    said = printed(vehicle, "split", "work")
    assert "work on veh-1, for a short latency: 5 cuts; its inputs stay on veh-1" in said
    assert "in force" in said
    assert "passed over" in said
    assert any(line.split()[0] == "rsu-1" and line.endswith("yes") for line in said.splitlines() if line.split())
    assert "rsu-1 does not split 'work', but none" in printed(rsu, "split", "work", status=2)
    assert json.loads(printed(vehicle, "split", "work", "--json"))["model"] == "work"


def test_watch_and_peers_tell_of_plans_and_stages(vehicle: RunningNode, rsu: RunningNode) -> None:
    """Where operators look first."""
    for name in ("peers", "watch"):
        once = ("--once",) if name == "watch" else ()
        assert "plan       work: veh-1" in printed(vehicle, name, *once)
        assert "stage      of work for veh-1" in printed(rsu, name, *once)


def test_metrics_have_the_latencies_of_stages(vehicle: RunningNode, matrix: Path) -> None:
    """Labels are the model and the kind of part, and not nodes: their number is bounded."""
    printed(vehicle, "infer", "work", "--input", f"x={matrix}")
    lines = vehicle.ask("GET", "/metrics")[2].decode().splitlines()
    (count,) = (line for line in lines if line.startswith("meshnode_inference_part_latency_seconds_count"))
    assert count.startswith('meshnode_inference_part_latency_seconds_count{kind="stage",model="work"} ')
    assert float(count.split()[-1]) >= 2
    assert any(line.startswith("meshnode_inference_piped_total ") for line in lines)


def refusals(content: Any) -> list[str]:
    return [each["refused"] for model in content["models"] for each in model["neighbours"]]


def test_neighbour_that_takes_no_stages_is_named_with_its_reason(tmp_path: Path) -> None:
    """The commonest mistake: the other side was not told to accept them."""
    model = write_model(tmp_path / "work.onnx", [64, 64], "MatMul", repeat=3)
    tables = f'[models.work]\npath = "{model}"\nsplit = "latency"\n[inference]\nemulate_slowdown = 100\n'
    for _, vehicle in pair(tmp_path, "", tables):
        eventually(lambda vehicle=vehicle: any(refusals(vehicle.get("/v1/plans"))), "the refusal", 90.0)
        said = printed(vehicle, "split", "work", status=1)
        assert ": rsu-1 takes no stages: set 'accept_stages' in [inference] there" in said
