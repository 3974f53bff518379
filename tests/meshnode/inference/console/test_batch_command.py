"""``meshnode infer --batch`` and ``--tiles``, as a user types them: two real nodes that divide what they are given."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meshnode.inference.console.asking import NodeAnswer
from meshnode.inference.console.batch import Piece, Pieces, Share, batches, results_of, share_table
from protocols.base.errors import InputInvalid, RemoteProtocolError
from tests.tools.node_fixture import RunningNode, meshnode, pair
from tests.tools.tiny_onnx import write_model

HERE, THERE = "veh-1", "rsu-1"


@pytest.fixture(scope="module", name="vehicle")
def given_vehicle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """Two nodes with the same models and speed."""
    folder = tmp_path_factory.mktemp("mesh")
    tables = "[inference]\nemulate_slowdown = 300\ndeadline_ms = 60000\n" + "".join(
        f'[models.{name}]\npath = "{write_model(folder / f"{name}.onnx", shape, op, repeat=repeat)}"\n'
        for name, shape, op, repeat in (
            ("double", [1, 4], "Add", 1), ("many", ["n", 4], "Add", 1), ("work", [1, 64, 64], "MatMul", 2),
            ("pixels", [1, 3, 4, 4], "Identity", 1), ("photo", [1, 3, 4, 4], "Identity", 1),
        )
    )  # fmt: skip
    (folder / "photo.toml").write_text("[preprocessing.x]\nwidth = 4\nheight = 4\n")
    with_nodes = pair(folder, tables, tables)
    _, vehicle = next(with_nodes)
    yield vehicle
    next(with_nodes, None)


def infer(node: RunningNode, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    ran = meshnode("infer", *arguments, "--http", f"127.0.0.1:{node.http_port}")
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


@pytest.mark.processes
def test_folder_is_divided_and_each_file_gets_its_own_result(vehicle: RunningNode, tmp_path: Path) -> None:
    """Who has a folder wants the results by file, and to see who computed how many."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(24):
        np.save(frames / f"frame{number:02}.npy", np.full((1, 64, 64), number / 64, "f4"))
    for _ in range(4):  # while one of them stalls, the other computes all
        ran = infer(vehicle, "work", "--input", f"x={frames}", "--batch", "--out", tmp_path / "out")
        assert ran.returncode == 0, ran.stderr
        head, *rows = [line.split() for line in ran.stdout.splitlines()]
        assert head[:4] == ["node", "where", "rows", "shards"]
        if len(rows) == 2:
            break
    assert {(row[0], row[1]) for row in rows} == {(HERE, "here"), (THERE, "neighbour")}
    assert sum(int(row[2]) for row in rows) == 24
    assert "24 of 24 files computed" in ran.stderr
    results = sorted((tmp_path / "out").iterdir())
    assert [path.stem for path in results] == [f"frame{number:02}" for number in range(24)]
    for number, path in enumerate(results):
        assert np.load(path) == pytest.approx(np.full((1, 64, 64), number**4 / 64.0), rel=1e-4)


@pytest.mark.processes
def test_array_with_many_rows_is_a_batch_too(vehicle: RunningNode, tmp_path: Path) -> None:
    """A recording is one file."""
    rows = np.arange(40, dtype="f4").reshape(10, 4)
    np.save(tmp_path / "recording.npy", rows)
    ran = infer(vehicle, "many", "--input", f"x={tmp_path}/recording.npy", "--batch", "--shard", "3", "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["outputs"]["y"]["data"] == (2 * rows).tolist()
    assert set(result["ran_on"]) <= {HERE, THERE}
    shards = sum(
        int(line.split()[3]) for line in ran.stderr.splitlines() if line.split()[1:2] in (["here"], ["neighbour"])
    )
    assert shards == 4


@pytest.mark.processes
@pytest.mark.parametrize(("model", "form"), [("pixels", "FP32 [1, 3, 4, 4]"), ("photo", "PNG files")])
def test_image_is_cut_into_tiles_and_a_table_says_who_ran_which(
    vehicle: RunningNode, tmp_path: Path, model: str, form: str
) -> None:
    """Tiles are named after their place, so that a result can be put back into the image."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 11, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    ran = infer(
        vehicle, model, "--input", f"x={tmp_path}/street.png", "--tiles", "4x4", "--overlap", "1", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert f"becomes 8 tiles of 4 x 4, as {form}" in ran.stderr
    places = [(left, top) for top in (0, 2) for left in (0, 3, 6, 7)]
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines[:8]] == [f"street+{left}+{top}" for left, top in places]
    assert all(f"{HERE} (here)" in line or f"{THERE} (neighbour)" in line for line in lines[:8])
    scale = np.float32(255 if model == "pixels" else 1)
    for left, top in places:
        tile = np.load(tmp_path / "out" / f"street+{left}+{top}.npy")
        expected = pixels[top : top + 4, left : left + 4].transpose(2, 0, 1)[None].astype("f4") / scale
        assert np.array_equal(tile, expected)


@pytest.mark.processes
def test_options_that_make_no_batch_are_refused_with_the_way_out(vehicle: RunningNode, tmp_path: Path) -> None:
    """A typing mistake says what to type."""
    for number, shape in enumerate(((1, 4), (1, 5))):
        np.save(tmp_path / f"{number}.npy", np.zeros(shape, "f4"))
    for arguments, message in (
        (("double", "--input", "x=[[1,2,3,4]]", "--overlap", "3"), "--overlap needs --tiles"),
        (("double", "--input", "x=[[1,2,3,4]]", "--shard", "3"), "--shard needs --batch"),
        (("pixels", "--input", f"x={tmp_path}/a.png", "--tiles", "big"), "--tiles 'big' is not WIDTHxHEIGHT"),
        (("pixels", "--input", "x=[[1]]", "--tiles", "4x4"), "--tiles needs one image"),
        (("many", "--input", f"x={tmp_path}/*.npy", "--batch"), "a batch needs rows of one type and size"),
        (("double", "--input", f"x={tmp_path}/1.npy", "--batch"), "expected f4[1, 4], given f4[1, 5]"),
    ):
        ran = infer(vehicle, *arguments)
        assert ran.returncode != 0
        assert message in ran.stderr, ran.stderr


# --- without nodes ---------------------------------------------------------------------------------------------------
def row(*values: float) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.array([values], "f4")


def test_pieces_are_put_together_until_a_request_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be larger than what one request takes; what is the same for all is sent with each."""
    monkeypatch.setattr("meshnode.inference.console.batch.MAX_BATCH_BYTES", 24)
    pieces = [Piece(f"p{n}", {"x": np.full((1 + n % 2, 2), n, "f4"), "scale": row(3)}) for n in range(4)]
    made = list(batches(Pieces(pieces, 4, frozenset("x"), frozenset())))
    assert [batch.names for batch in made] == [("p0", "p1"), ("p2", "p3")]
    assert [batch.rows for batch in made] == [(1, 2), (1, 2)]
    assert [np.asarray(batch.inputs["x"])[:, 0].tolist() for batch in made] == [[0, 1, 1], [2, 3, 3]]
    assert all(np.array_equal(np.asarray(batch.inputs["scale"]), row(3)) for batch in made)


def test_pieces_of_two_inputs_need_as_many_rows_of_each() -> None:
    """Otherwise depths would belong to other images."""
    pieces = [Piece(f"p{n}", {"x": np.zeros((1, 2)), "depth": np.zeros((1 + n, 2))}) for n in range(2)]
    with pytest.raises(InputInvalid, match="'depth' has other numbers of rows"):
        list(batches(Pieces(pieces, 2, frozenset(("x", "depth")), frozenset())))


def test_result_of_a_piece_names_all_nodes_that_had_rows_of_it() -> None:
    """A shard may have rows of two files, and a file rows of two shards."""
    (batch,) = batches(Pieces(
        [Piece("a", {"x": np.zeros((3, 1))}), Piece("b", {"x": np.zeros((2, 1))})], 2, frozenset("x"), frozenset()
    ))  # fmt: skip
    parameters = {"shards": "veh-1:2:1.5:0,rsu-1:2:2.5:1,veh-1:1:3.000:0"}
    answer = NodeAnswer({"y": np.arange(5)}, parameters)
    a, b = results_of(batch, answer)
    assert (a.nodes, a.outputs["y"].tolist()) == ((HERE, THERE), [0, 1, 2])
    assert (b.nodes, b.outputs["y"].tolist()) == ((THERE, HERE), [3, 4])
    assert b.line(HERE) == "b  done  rsu-1 (neighbour), veh-1 (here)  compute 5.5 ms  begun again 1 times"
    table = [line.split() for line in share_table([Share(HERE, 2, 1.5, 0), Share(THERE, 9, 2.5, 1)], HERE)]
    assert table[1] == ["rsu-1", "neighbour", "9", "1", "2.5", "2.5", "1"]
    assert table[2][:4] == ["veh-1", "here", "2", "1"]


@pytest.mark.parametrize("shards", ["", "veh-1:2", "veh-1:9:1.0:0", "a:b:c:d"])
def test_answer_that_does_not_tell_who_computed_is_refused(shards: str) -> None:
    """A node of an older version would have computed something else."""
    (batch,) = batches(Pieces([Piece("a", {"x": np.zeros((3, 1))})], 1, frozenset("x"), frozenset()))
    with pytest.raises(RemoteProtocolError):
        list(results_of(batch, NodeAnswer({"y": np.arange(3)}, {"shards": shards})))
