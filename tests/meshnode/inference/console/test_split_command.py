"""``meshnode split`` as a person runs it: the table, JSON, the drawing, stages as files, and mistakes."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from meshnode.models import ModelSpec, load_model, plate
from tests.tools import onnx_graphs
from tests.tools.node_fixture import meshnode
from tests.tools.onnx_graphs import write_text

pytestmark = pytest.mark.processes


@pytest.fixture(name="model")
def given_model(tmp_path: Path) -> Path:
    return write_text(tmp_path / "chain.onnx", onnx_graphs.CHAIN)


def test_split_shows_where_a_model_can_be_cut(model: Path, tmp_path: Path) -> None:
    """The first thing that somebody wants to know, in one screen."""
    ran = meshnode("split", str(model), "--svg", str(tmp_path / "cuts.svg"))
    assert ran.returncode == 0, ran.stderr
    head, columns, first, second, note = ran.stdout.splitlines()
    assert head.startswith("chain: 3 nodes, 0 B of weights, ")
    assert head.endswith("a run here; takes x: f4[1, 4] and gives y: f4[1, 4]")
    assert columns.split() == ["cut", "behind", "bytes", "time", "ms", "weights", "tensors"]
    assert first.split()[:3] == ["0", "1", "16"]
    assert first.endswith("a: f4[1, 4]")
    assert second.endswith("b: f4[1, 4]")
    assert note == "Its input x: f4[?, 4] is taken as x: f4[1, 4]: stages take this shape only."
    assert "Cuts of chain" in "".join(ET.parse(tmp_path / "cuts.svg").getroot().itertext())


def test_split_writes_stages_that_are_models_of_their_own(model: Path, tmp_path: Path) -> None:
    """Somebody may carry them to other computers by hand."""
    out = tmp_path / "new" / "stages"
    ran = meshnode("split", str(model), "--warm-up", "x=2,4", "--stages", "0,1", "--out", str(out), "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [each["path"] for each in told["stages"]] == [str(out / f"chain-{number}.onnx") for number in (1, 2, 3)]
    assert [cut["tensors"][0]["shape"] for cut in told["cuts"]] == [[2, 4], [2, 4]]
    x = np.array([[1, -2, 3, -4], [5, 6, 7, 8]], "f4")
    held = x
    for each in told["stages"]:
        stage = load_model(ModelSpec("stage", Path(each["path"]), digest=each["digest"]))
        ((_, held),) = stage.run({stage.inputs[0].name: held})
    ((_, expected),) = load_model(ModelSpec("chain", model)).run({"x": x})
    assert held.tobytes() == expected.tobytes()


def test_split_writes_the_manifest_beside_a_stage_that_takes_pictures(tmp_path: Path) -> None:
    """Without it the stage would take tensors only, and have another digest."""
    model = tmp_path / "plate.onnx"
    model.write_bytes(plate.find_detector().read_bytes())
    model.with_suffix(".toml").write_text(plate.manifest(96))
    ran = meshnode("split", str(model), "--stages", "14", "--out", str(tmp_path / "out"), "--json")
    assert ran.returncode == 0, ran.stderr
    first, second = json.loads(ran.stdout)["stages"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "plate-1.onnx",
        "plate-1.toml",
        "plate-2.onnx",
    ]
    loaded = load_model(ModelSpec("first", Path(first["path"]), digest=first["digest"]))
    assert [str(each) for each in loaded.inputs] == ["image: u1[?]"]
    assert second["manifest"] == ""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--stages", "0"), 2, "--stages and --out go together"),
        (("--stages", "0;1", "--out", "o"), 2, "'0;1' is not a list of cuts, as in 7,12"),
        (("--stages", "7", "--out", "o"), 2, "has no cut 7: it has the cuts 0 to 1"),
        (("--warm-up", "1,3"), 2, "'1,3' is not NAME=SIZES, as in image=1,3,320,320"),
        (("--warm-up", "y=1,3"), 1, "'warm_up' of model 'chain' doesn't fit it: model 'chain' has no input 'y'"),
        (("--svg", "no/such/folder/cuts.svg"), 2, "cuts.svg can't be written (No such file or directory)"),
    ],
)
def test_split_used_wrongly_says_what_to_do(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    """One line, and a status that tells a script whether trying again can help."""
    ran = meshnode("split", str(model), *arguments, cwd=tmp_path)
    assert ran.returncode == status, ran
    assert said in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr


def test_split_of_what_is_no_model_says_so(tmp_path: Path) -> None:
    """The most common mistake is a wrong path."""
    ran = meshnode("split", str(tmp_path / "absent.onnx"))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "model 'absent': there is no file" in ran.stderr
