"""One bad file of a model costs that model only, and once the file is good the model is served, without a restart."""

import asyncio
import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.processes import free_port
from meshnode.inference.files import ModelFiles
from meshnode.inference.section import ModelSection
from meshnode.models import ModelSpec, load_model
from meshnode.troubles import Troubles
from protocols.base.errors import ModelInvalid
from tests.tools.eventually import eventually, until
from tests.tools.mesh_fixture import House, Open, given_house, given_opened
from tests.tools.node_fixture import RunningNode, meshnode, prepare
from tests.tools.tiny_onnx import model_bytes, write_model

__all__ = ["given_house", "given_opened"]
ROOT = Path(__file__).resolve().parents[3]
DOUBLE = model_bytes([1, 2], "Add")
X = {"x": np.ones((1, 2), np.float32)}


def asked(node: RunningNode, model: str) -> tuple[int, Any]:
    inputs = [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]
    return node.post(f"/v2/models/{model}/infer", {"inputs": inputs})


def doctored(config: Path) -> dict[str, str]:
    """Status of the last finding about each model, by name."""
    lines = [line.split(None, 2) for line in meshnode("doctor", config).stdout.splitlines()]
    names = re.compile("model '(.*?)'|^(.*?):")
    findings = [(status, names.search(message)) for status, check, message in lines if check == "model"]
    return {named[1] or named[2]: status for status, named in findings if named}


@pytest.mark.processes
def test_output_that_cant_travel_is_named_by_doctor_and_to_whoever_asks_for_it(tmp_path: Path) -> None:
    """Over HTTP the node said that there is no such output; doctor said it twice."""
    config = prepare(tmp_path, "rsu-1", "rsu", f'[http]\nport = {free_port()}\n[models.iris]\npath = "iris.onnx"\n')
    shutil.copy(ROOT / "tests" / "meshnode" / "models" / "field" / "s1_zipmap.onnx", config.parent / "iris.onnx")
    why = "type seq(map(int64,tensor(float))) can't travel between nodes: export the model with options"
    why += "={'zipmap': False}"
    checked = meshnode("doctor", config)
    assert (checked.stdout + checked.stderr).count(why) == 1
    with RunningNode(config) as node:
        inputs = [{"name": "X", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]
        status, answer = node.post("/v2/models/iris/infer", {"inputs": inputs})
        assert (status, [output["name"] for output in answer["outputs"]]) == (200, ["output_label"])
        request = {"inputs": inputs, "outputs": [{"name": "output_probability"}]}
        status, answer = node.post("/v2/models/iris/infer", request)
        assert status == 400
        assert why in answer["error"]


@pytest.mark.processes
def test_bad_files_among_good_ones_cost_their_models_only_until_they_are_repaired(tmp_path: Path) -> None:
    """A copy that was cut off must not stop hazards from being passed on, and copying it again must be enough."""
    home = tmp_path / "rsu-1"
    tables = f"[http]\nport = {free_port()}\n"
    for name, more in {"good": "", "missing": "", "cut": "", "odd": "", "other": f'digest = "{"0" * 64}"\n'}.items():
        tables += f'[models.{name}]\npath = "{name}.onnx"\n{more}'
    config = prepare(tmp_path, "rsu-1", "rsu", tables)
    (home / "good.onnx").write_bytes(DOUBLE)
    (home / "other.onnx").write_bytes(DOUBLE)
    (home / "cut.onnx").write_bytes(DOUBLE[: len(DOUBLE) // 2])
    write_model(home / "odd.onnx", [1, 2], "NoSuchOperator")
    everything = {"good": "ok", "missing": "fail", "cut": "fail", "odd": "fail", "other": "fail"}
    assert doctored(config) == everything
    with RunningNode(config) as node:
        ready = node.get("/readyz")
        whys = {trouble["name"]: trouble["why"] for trouble in ready["troubles"]}
        assert ready["models"] == ["good"]
        assert set(whys) == {"missing", "cut", "odd", "other"}
        assert "there is no file" in whys["missing"]
        assert "has the digest" in whys["other"]
        assert asked(node, "good")[0] == 200
        for name, why in whys.items():
            status, answer = asked(node, name)
            assert status == 503, answer
            assert why in answer["error"], "whoever asks is told why"
        assert doctored(config) == everything
        for name in ("missing", "cut", "odd"):
            (home / f"{name}.onnx").write_bytes(DOUBLE)
        eventually(lambda: node.get("/readyz")["models"] == ["cut", "good", "missing", "odd"], "they are loaded")
        assert [trouble["name"] for trouble in node.get("/readyz")["troubles"]] == ["other"]
        assert asked(node, "missing")[1]["outputs"][0]["data"] == [2, 4]


@pytest.mark.processes
async def test_request_for_a_model_whose_file_is_bad_goes_to_a_neighbour_that_has_it(
    opened: Open, house: House
) -> None:
    """The mesh helps a node whose own copy is damaged, and the node computes itself once it is repaired."""
    good, bad = house.folder / "good.onnx", house.folder / "bad.onnx"
    good.write_bytes(DOUBLE)
    bad.write_bytes(DOUBLE[:20])
    vehicle = await opened("veh-1", models={"double": ModelSection(path=bad)})
    with pytest.raises(ModelInvalid, match=r"bad\.onnx is not an ONNX file, or it is cut off.*nobody else"):
        await vehicle.infer("double", X)
    rsu = await opened("rsu-1", vehicle.port, role="rsu", models={"double": ModelSection(path=good)})
    await vehicle.wait_for_peers(1, 30)
    await until(lambda: any(peer.offers for peer in vehicle.peers()), lambda: f"the offer comes: {vehicle.peers()}")
    assert (await vehicle.infer("double", X, deadline_ms=20_000)).ran_on == "rsu-1"
    bad.write_bytes(DOUBLE)
    await until(lambda: "double" in vehicle.models, "it is loaded")
    await until(lambda: any(peer.offers for peer in rsu.peers()), "and offered")
    assert vehicle.troubles.current() == []


async def test_model_whose_manifest_is_wrong_is_tried_again_when_the_manifest_changes(tmp_path: Path) -> None:
    """The model file itself need not be touched for that, and the next try would otherwise come after minutes."""
    path, manifest = write_model(tmp_path / "m.onnx", [1, 2]), tmp_path / "m.toml"
    manifest.write_text("licens = 'MIT'")
    troubles = Troubles()
    files = ModelFiles([ModelSpec("m", path)], lambda spec: load_model(spec) and None, troubles)
    files.load_all()
    assert "did you mean 'licence'?" in str(files.why_not("m"))
    (failed,) = files._failed.values()
    assert not files._is_due(failed)
    manifest.write_text("licence = 'MIT'")
    assert not files._is_due(failed), "it may still be written"
    assert files._is_due(failed)
    watching = asyncio.create_task(files.watch())
    await until(lambda: files.why_not("m") is None, "it is loaded")
    await watching
    assert troubles.current() == []


async def test_file_that_is_being_copied_is_not_tried_until_it_keeps_still(tmp_path: Path) -> None:
    """Each try reads and hashes the whole file: one for each block of a copy would take the disk from everybody."""
    path = tmp_path / "m.onnx"
    whole, tries = DOUBLE, []

    def load(spec: ModelSpec) -> None:
        tries.append(spec.path.stat().st_size if spec.path.exists() else None)
        if not path.exists() or hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(whole).digest():
            raise ModelInvalid("cut off")

    troubles = Troubles()
    files = ModelFiles([ModelSpec("m", path)], load, troubles)
    files.load_all()
    (failed,) = files._failed.values()
    assert not files._is_due(failed), "it is still missing"
    for size in range(10, len(whole), 10):
        path.write_bytes(whole[:size])
        assert not files._is_due(failed), "it has just changed"
    path.write_bytes(whole)
    assert not files._is_due(failed)
    assert files._is_due(failed), "it has kept still"
    async with asyncio.timeout(30):
        await files.watch()
    assert tries == [None, len(whole)]
    assert (files.why_not("m"), troubles.current()) == (None, [])


def test_model_that_fails_in_an_unforeseen_way_costs_that_model_only(tmp_path: Path) -> None:
    """Memory that runs out while a model is loaded must not end the node."""

    def load(spec: ModelSpec) -> None:
        if spec.name == "big":
            raise MemoryError("no room")

    troubles = Troubles()
    files = ModelFiles([ModelSpec("big", tmp_path / "b"), ModelSpec("small", tmp_path / "s")], load, troubles)
    files.load_all()
    assert [(trouble.part, trouble.name) for trouble in troubles.current()] == [("model", "big")]
    assert "no room" in (files.why_not("big") or "")
    assert files.why_not("small") is None
