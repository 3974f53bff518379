"""``meshnode infer`` with many files, as a user types it: real nodes, real processes, exit statuses."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, environment, meshnode, pair, prepare
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module", name="nodes")
def given_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    """The RSU has all models. A run of ``work`` takes the vehicle a thousand times as long."""
    folder = tmp_path_factory.mktemp("mesh")
    tables = "".join(
        f'[models.{name}]\npath = "{write_model(folder / f"{name}.onnx", shape, op, dtype=dtype, repeat=repeat)}"\n'
        for name, shape, op, dtype, repeat in (
            ("double", [1, 4], "Add", "f4", 1), ("bytes", ["n"], "Identity", "u1", 1),
            ("pixels", [1, 3, 2, 4], "Identity", "f4", 1), ("work", [96, 96], "MatMul", "f4", 4),
        )
    )  # fmt: skip
    slow = (
        f'[models.slow]\npath = "{folder / "work.onnx"}"\n[inference]\nemulate_slowdown = 1000\ndeadline_ms = 60000\n'
    )
    yield from pair(folder, tables, slow)


@pytest.fixture(name="rsu")
def given_rsu(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[0]


@pytest.fixture(name="vehicle")
def given_vehicle(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[1]


@pytest.fixture(name="frames")
def given_frames(tmp_path: Path) -> Path:
    """Twelve arrays for ``double``."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(12):
        np.save(folder / f"frame{number:02}.npy", np.full((1, 4), number, "f4"))
    return folder


def infer(node: RunningNode, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    ran = meshnode("infer", *arguments, "--http", f"127.0.0.1:{node.http_port}")
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def test_folder_is_computed_and_a_table_says_who_did(rsu: RunningNode, frames: Path, tmp_path: Path) -> None:
    """The question of everybody who tries a mesh: who ran what, and how long did it take."""
    ran = infer(rsu, "double", "--input", f"x={frames}", "--in-flight", "3", "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    head, row = ran.stdout.splitlines()
    assert head.split()[:3] == ["node", "where", "requests"]
    assert row.split()[:3] == ["rsu-1", "here", "12"]
    assert len(row.split()) == 11
    assert "12 of 12 requests computed" in ran.stderr
    results = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in results] == [f"frame{number:02}.npy" for number in range(12)]
    assert [np.load(path).tolist() for path in results] == [[[2 * number] * 4] for number in range(12)]


def test_pattern_of_a_neighbours_model_is_told_line_by_line(vehicle: RunningNode, frames: Path) -> None:
    """With -v, what became of each file."""
    ran = infer(vehicle, "double", "--input", f"x={frames}/frame0[0-3].npy", "-v", "--deadline-ms", "20000")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.split()[:4] for line in lines[:8:2]] == [
        [f"frame0{n}", "done", "rsu-1", "(neighbour)"] for n in range(4)
    ]
    assert [line.split("  ")[-1] for line in lines[1:8:2]] == [f"{2 * n}, {2 * n}, {2 * n}, {2 * n}" for n in range(4)]
    assert lines[9].split()[:3] == ["rsu-1", "neighbour", "4"]


def test_json_of_several_requests_is_one_object_a_line_in_the_order_of_the_files(
    rsu: RunningNode, frames: Path, tmp_path: Path
) -> None:
    """A program reads it as it comes, and the failures with it."""
    np.save(frames / "frame05.npy", np.zeros((1, 4)))
    (frames / "frame07.npy").write_bytes(b"cut off")
    ran = infer(rsu, "double", "--input", f"x={frames}", "--json")
    assert ran.returncode == 1
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["request"] for line in lines] == [f"frame{number:02}" for number in range(12)]
    assert lines[3]["outputs"] == {"y": {"dtype": "f4", "shape": [1, 4], "data": [[6, 6, 6, 6]]}}
    assert lines[3]["parameters"]["ran_on"] == "rsu-1"
    assert [lines[5]["outcome"], lines[7]["outcome"]] == ["invalid", "invalid"]
    assert "expected f4[1, 4], given f8[1, 4]" in lines[5]["error"]
    for words in ("meshnode: frame05: ", "frame07.npy is not a NumPy file", "10 of 12 requests computed", "-  "):
        assert words in ran.stderr
    saved = infer(
        rsu, "double", "--input", f"x={frames}/frame00.npy", "--input", "x=[1,2,3,4]", "--json", "--out", tmp_path
    )
    assert [json.loads(line)["saved"] for line in saved.stdout.splitlines()] == [
        str(tmp_path / "frame00.npy"), str(tmp_path / "000002.npy")
    ]  # fmt: skip


def test_images_go_encoded_to_a_model_of_bytes_and_as_pixels_to_others(rsu: RunningNode, tmp_path: Path) -> None:
    """The user is told once what the model gets."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.full((4, 8, 3), number, "u1")).save(photos / f"p{number}.png")
    ran = infer(rsu, "bytes", "--input", f"x={photos}", "--out", tmp_path / "sent")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("is sent as it is") == 1
    for number in range(3):
        assert np.load(tmp_path / f"sent/p{number}.npy").tobytes() == (photos / f"p{number}.png").read_bytes()
    ran = infer(rsu, "pixels", "--input", f"x={photos}", "--out", tmp_path / "seen")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("(8 x 4 pixels, decoded to RGB, resized to 4 x 2, scaled to values from 0 to 1)") == 1
    assert np.load(tmp_path / "seen/p2.npy").shape == (1, 3, 2, 4)


def test_request_that_fails_does_not_end_the_others_and_many_failures_are_summed_up(
    rsu: RunningNode, frames: Path
) -> None:
    """A wrong option fails every request, and a screen full of one message hides what is wrong."""
    ran = infer(rsu, "double", "--input", f"x={frames}", "--output", "q")
    assert ran.returncode == 1
    assert ran.stderr.count("no output 'q'") == 10
    assert "more requests failed; -v shows each of them" in ran.stderr
    assert ran.stdout.splitlines()[1].split()[:3] == ["-", "invalid", "12"]
    assert "0 of 12 requests computed" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--input", "x=missing.npy"), "missing.npy can't be read"),
        (("--input", "x=EMPTY"), "no files that can be read"),
        (("--input", "x=EMPTY/*.npy"), "no file matches"),
        (("--input", "x=FRAMES", "--output", "y=y.npy"), "use --out FOLDER"),
        (("--input", "x=FRAMES", "--out", "FRAMES"), "folder of inputs"),
        (("--input", "x=FRAMES", "--in-flight", "0"), "in-flight"),
        (("--input", "x=[NaN, 1, 2, 3]"), "NaN"),
        (("--input", "x=FRAMES", "--out", "FRAMES/frame00.npy/out"), "can't be made"),
    ],
)
def test_files_that_can_not_be_used_are_told_before_anything_is_asked(
    rsu: RunningNode, frames: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Status 2: trying again can't help."""
    (frames.parent / "empty").mkdir()
    places = {"FRAMES": str(frames), "EMPTY": str(frames.parent / "empty")}
    for name, path in places.items():
        arguments = tuple(argument.replace(name, path) for argument in arguments)
    before = rsu.get("/v1/node")["statistics"]["inference_asked"]
    ran = infer(rsu, "double", *arguments)
    assert (ran.returncode, said in ran.stderr) == (2, True), ran.stderr
    assert rsu.get("/v1/node")["statistics"]["inference_asked"] == before


def test_command_interrupted_says_what_was_done_and_leaves_nothing_at_the_node(
    rsu: RunningNode, vehicle: RunningNode, tmp_path: Path
) -> None:
    """Ctrl-C is how a long run ends, and the node must not compute on for nobody."""
    for number in range(200):
        np.save(tmp_path / f"{number:03}.npy", np.zeros((96, 96), "f4"))
    command = subprocess.Popen(
        [sys.executable, "-m", "meshnode.cli", "infer", "slow", "--input", f"x={tmp_path}", "-v", "--http",
         f"127.0.0.1:{vehicle.http_port}"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout is not None
    assert command.stdout.readline().startswith("000  done  veh-1 (here)")
    command.send_signal(signal.SIGINT)
    said, errors = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "Traceback" not in errors
    assert "of 200 requests computed" in errors
    assert "the command ended early" in errors
    assert said.splitlines()[-1].split()[:2] == ["veh-1", "here"]

    def waiting() -> list[int]:
        return [
            offer["waiting"] for peer in rsu.get("/v1/peers") for offer in peer["offers"] if offer["model"] == "slow"
        ]

    eventually(lambda: waiting() == [0], "the vehicle tells its neighbour that nothing is computed there")
    assert vehicle.get("/v1/node")["statistics"]["inference_asked"] < 100


def test_node_that_goes_ends_the_run_at_once(tmp_path: Path) -> None:
    """Thousands of files must not be read to be told as often that nobody answers."""
    work = write_model(tmp_path / "work.onnx", [96, 96], "MatMul", repeat=4)
    tables = f'[models.work]\npath = "{work}"\n[inference]\nemulate_slowdown = 1000\n'
    files = tmp_path / "files"
    files.mkdir()
    for number in range(500):
        np.save(files / f"{number:03}.npy", np.zeros((96, 96), "f4"))
    with RunningNode(prepare(tmp_path, "veh-9", "vehicle", tables)) as node:
        command = subprocess.Popen(
            [sys.executable, "-m", "meshnode.cli", "infer", "work", "--input", f"x={files}", "-v",
             "--deadline-ms", "60000", "--http", f"127.0.0.1:{node.http_port}"],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert command.stdout is not None
        assert command.stdout.readline().startswith("000  done")
        node.process.kill()
        _, errors = command.communicate(timeout=60)
    assert command.returncode == 1
    assert "Traceback" not in errors
    assert "of 500 requests computed" in errors
    assert errors.splitlines()[-1].startswith("meshnode: ")
    assert "hung up before it had answered" in errors or "no node answers" in errors
