"""The ``meshnode`` command, as a user types it: real processes, exit statuses, and never a traceback."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, environment, meshnode, pair, prepare
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    folder = tmp_path_factory.mktemp("mesh")
    double = write_model(folder / "double.onnx", [1, 4], "Add")
    picture = write_model(folder / "picture.onnx", [1, 3, 2, 4], "Identity")
    camera = write_model(folder / "camera.onnx", ["n", 3, 2, 4], "Identity")
    (folder / "camera.toml").write_text("[preprocessing.x]\nwidth = 4\nheight = 2\n")
    paths = {"double": double, "picture": picture, "camera": camera}
    yield from pair(folder, "".join(f'[models.{name}]\npath = "{path}"\n' for name, path in paths.items()))


@pytest.fixture
def rsu(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[0]


@pytest.fixture
def vehicle(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[1]


def at(node: RunningNode) -> tuple[str, str]:
    """The options that choose a node."""
    return "--http", f"127.0.0.1:{node.http_port}"


def failed(ran: "subprocess.CompletedProcess[str]", status: int, *said: str) -> None:
    """The command ended with one clear line and that status."""
    assert ran.returncode == status, ran
    assert "Traceback" not in ran.stderr
    assert ran.stderr.strip()
    for words in said:
        assert words in ran.stderr, ran.stderr


# --- the command itself ----------------------------------------------------------------------------------------------
def test_command_asked_for_help_lists_its_commands_and_stays_light() -> None:
    """Completion and help run the command again and again: they must not load what only a node needs."""
    code = "import sys, meshnode.cli.main as m; print(*m.commands.commands); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    commands, loaded = ran.stdout.splitlines()
    assert sorted(commands.split()) == [
        "bundle", "doctor", "gossip", "history", "infer", "mesh", "models", "peers", "pub", "query", "rules", "run",
        "split", "sub", "trial", "watch",
    ]  # fmt: skip
    heavy = {"numpy", "onnxruntime", "rich", "cryptography", "uvicorn", "pynng", "zeroconf", "PIL", "asyncio"}
    assert heavy.isdisjoint(loaded.split())


def test_command_asked_for_its_version_says_one() -> None:
    """The first line of every bug report, from a source tree too."""
    ran = meshnode("--version")
    assert (ran.returncode, ran.stdout.startswith("meshnode")) == (0, True), ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pears",), "pears"),
        (("peers", "--jsn"), "--json"),
        (("sub",), "EXPRESSION"),
        (("sub", "a", "--every", "--conflate"), "use one of both"),
        (("peers", "--http", "localhost"), "HOST:PORT"),
        (("peers", "--http", "localhost:x"), "HOST:PORT"),
        (("peers", "--http", "localhost:1", "--node", "x.toml"), "one of them"),
        (("pub", "k", "1", "--at", "north"), "48.766"),
        (("infer", "m", "--input", "x", "--http", "127.0.0.1:1"), "no node answers"),
        (("mesh", "issue", "--role", "king", "--id", "a", "--out", "o", "f"), "king"),
    ],
)
def test_command_used_wrongly_says_how_to_use_it(arguments: tuple[str, ...], said: str) -> None:
    """The status tells a script that trying again won't help."""
    failed(meshnode(*arguments), 1 if said.startswith("no node") else 2, said)


@pytest.mark.parametrize("command", [("peers",), ("watch", "--once"), ("pub", "a", "1"), ("sub", "a")])
def test_command_without_a_node_says_how_to_start_one(command: tuple[str, ...]) -> None:
    """The most common mistake of the first hour."""
    with socket.socket() as unused:  # bound and not listening: nobody else gets the port meanwhile
        unused.bind(("127.0.0.1", 0))
        ran = meshnode(*command, "--http", f"127.0.0.1:{unused.getsockname()[1]}")
    failed(ran, 1, "no node answers", "meshnode run")
    assert len(ran.stderr.splitlines()) == 1


def test_command_sent_to_something_else_says_that_it_is_no_node() -> None:
    """Another program may have the port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        command = subprocess.Popen(
            [sys.executable, "-m", "meshnode.cli", "peers", "--http", f"127.0.0.1:{other.getsockname()[1]}"],
            env=environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        link, _ = other.accept()
        link.recv(4096)
        link.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
        link.close()
        _, said = command.communicate(timeout=60)
    assert command.returncode == 1
    assert "does not answer like a node" in said
    assert "Traceback" not in said


# --- mesh ------------------------------------------------------------------------------------------------------------
def test_mesh_made_and_node_issued_are_shown_as_such(tmp_path: Path) -> None:
    """The first two commands of everybody who tries this out."""
    made = meshnode("mesh", "init", "--name", "town", "--json", tmp_path / "town")
    assert json.loads(made.stdout)["mesh"] == "town"
    issued = meshnode(
        "mesh", "issue", "--role", "rsu", "--id", "rsu-7", "--days", "2", "--out", tmp_path / "rsu-7", tmp_path / "town"
    )
    assert issued.returncode == 0, issued.stderr
    assert (tmp_path / "rsu-7" / "rsu-7.key").stat().st_mode & 0o777 == 0o600
    shown = meshnode("mesh", "show", "--json", tmp_path / "rsu-7" / "rsu-7.crt", tmp_path / "town" / "authority.crt")
    node, authority = json.loads(shown.stdout)
    assert (node["node"], node["mesh"], node["problems"]) == ({"role": "rsu", "id": "rsu-7"}, "town", [])
    assert 1.9 < node["days_left"] <= 2
    assert (authority["mesh"], authority["what"], shown.returncode) == ("town", "authority of mesh town", 0)
    assert "rsu rsu-7 of mesh town" in meshnode("mesh", "show", tmp_path / "rsu-7" / "rsu-7.crt").stdout


def test_mesh_made_twice_in_one_folder_is_refused(tmp_path: Path) -> None:
    """A second authority would lock out every node of the first."""
    assert meshnode("mesh", "init", "--name", "town", tmp_path).returncode == 0
    failed(meshnode("mesh", "init", "--name", "town", tmp_path), 1, "exists already")
    failed(meshnode("mesh", "init", "--name", "Town Hall", tmp_path), 2, "Town Hall")


def test_certificate_shown_that_is_none_or_has_expired_is_a_failure(tmp_path: Path) -> None:
    """A script that renews certificates decides by the status."""
    meshnode("mesh", "init", "--name", "town", tmp_path / "town")
    meshnode("mesh", "issue", "--role", "rsu", "--id", "r", "--days", "0.00001", "--out", tmp_path, tmp_path / "town")
    shown = eventually(
        lambda: (ran := meshnode("mesh", "show", tmp_path / "r.crt")).returncode == 1 and ran, "the certificate expires"
    )
    assert "has expired" in shown.stdout
    failed(meshnode("mesh", "show", tmp_path / "r.key"), 1, "r.key")
    failed(meshnode("mesh", "show", tmp_path / "missing.crt"), 1, "missing.crt")


# --- run -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[node", "not valid TOML"),
        ('[node]\nid = "a"\n[htpp]\nport = 1\n', "http"),
        ('[node]\nid = "a"\n[http]\nport = "8470"\n', "port"),
        ('[node]\nid = "A B"\n', "A B"),
        (None, "does not exist"),
    ],
)
def test_run_with_a_wrong_configuration_names_the_mistake(tmp_path: Path, content: str | None, said: str) -> None:
    """Status 2: a supervisor need not try again."""
    config = tmp_path / "node.toml"
    if content is not None:
        config.write_text(content)
    ran = meshnode("run", config)
    failed(ran, 2, said)
    assert ran.stdout == ""


def test_run_with_no_certificate_says_how_to_get_one(tmp_path: Path) -> None:
    """Two lines of configuration are enough, two files are not."""
    (tmp_path / "node.toml").write_text('[node]\nid = "a"\n')
    failed(meshnode("run", tmp_path / "node.toml"), 2, "a.crt", "meshnode mesh issue")


def test_run_told_to_leave_says_goodbye_and_exits_with_0(rsu: RunningNode, tmp_path: Path) -> None:
    """A node that leaves on purpose is not mourned as dead by its neighbours."""
    for number, name in ((signal.SIGTERM, "veh-2"), (signal.SIGINT, "veh-3")):
        leaver = prepare(rsu.config.parent.parent, name, "vehicle", seeds=(rsu.port,))
        with RunningNode(leaver) as node:
            assert node.ready == f"ready {name} vehicle port {node.port} http {node.http_port}\n"
            eventually(lambda n=name: rsu.met(n), f"{name} is met")  # type: ignore[misc]
            assert node.stop(number) == 0
        log = node.log.read_text()
        assert "has left" in log
        assert "Traceback" not in log

        def states(node: str = name) -> list[str]:
            return [peer["state"] for peer in rsu.get("/v1/peers") if peer["node"] == node]

        eventually(lambda: states() != ["alive"], "the goodbye is heard")
        assert states() == ["left"]


def test_run_told_to_leave_while_it_starts_exits_with_0(tmp_path: Path) -> None:
    """An impatient supervisor stops what it has just started."""
    slow = write_model(tmp_path / "slow.onnx", [384, 384], "MatMul", repeat=400)
    for attempt in range(4):  # a stall of this process may last until it has started
        config = prepare(tmp_path, f"veh-{attempt}", "vehicle", f'[models.slow]\npath = "{slow}"\n')
        process = subprocess.Popen(
            [sys.executable, "-m", "meshnode.cli", "run", str(config)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        eventually((config.parent / "state" / "incarnation").exists, "the node begins to start")
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in said) == (0, False), said
        if out == "":
            break
    assert out == ""


def test_run_with_json_logs_one_object_a_line(tmp_path: Path) -> None:
    """Log collectors parse lines."""
    config = prepare(tmp_path, "veh-1", "vehicle")
    process = subprocess.Popen(
        [sys.executable, "-m", "meshnode.cli", "run", "--json", str(config)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready veh-1")
    process.terminate()
    _, said = process.communicate(timeout=60)
    entries = [json.loads(line) for line in said.splitlines()]
    assert [entry["message"] for entry in entries][-1] == "veh-1 has left"
    assert set(entries[-1]) == {"time", "level", "logger", "message"}


def test_run_of_a_second_node_on_one_state_folder_is_refused(rsu: RunningNode) -> None:
    """Two processes with one identity would refute each other for ever."""
    failed(meshnode("run", rsu.config), 1, "state", "in use by another process")


def test_run_with_an_http_port_in_use_goes_on_and_names_the_key_to_change(rsu: RunningNode, tmp_path: Path) -> None:
    """The default HTTP port is the same for all nodes of one host."""
    config = prepare(tmp_path, "veh-5", "vehicle", f"[http]\nport = {rsu.http_port}\n")
    with RunningNode(config) as node:
        assert node.ready.split()[5:] == ["http", "off"]
        told = node.log.read_text()
        assert f"127.0.0.1:{rsu.http_port}" in told
        assert "[http] port" in told


def test_run_with_http_off_says_so_in_its_ready_line(tmp_path: Path) -> None:
    """Whoever reads the line must not take a word for a port."""
    with RunningNode(prepare(tmp_path, "veh-1", "vehicle", "[http]\nenabled = false\n")) as node:
        assert node.ready.split()[5:] == ["http", "off"]
    failed(meshnode("peers", "--node", node.config), 2, "enabled = false")


# --- looking at a node -----------------------------------------------------------------------------------------------
def test_peers_of_a_node_are_shown_to_people_and_programs(rsu: RunningNode, vehicle: RunningNode) -> None:
    """One command answers: does it see the others?"""
    ran = meshnode("peers", *at(vehicle))
    assert ran.returncode == 0
    assert "rsu-1" in ran.stdout
    (peer,) = json.loads(meshnode("peers", "--json", *at(vehicle)).stdout)
    assert (peer["node"], peer["role"], peer["state"]) == ("rsu-1", "rsu", "alive")


def test_peers_of_a_lonely_node_are_a_failure(tmp_path: Path) -> None:
    """A script waits by this status."""
    with RunningNode(prepare(tmp_path, "veh-1", "vehicle")) as node:
        failed(meshnode("peers", *at(node)), 1, "no neighbours")


def test_node_named_by_its_configuration_is_found(rsu: RunningNode) -> None:
    """Nobody remembers ports."""
    failed(meshnode("peers", "--node", rsu.config), 2, "port = 0", "--http")
    config = rsu.config.with_name("same.toml")
    config.write_text(f'[node]\nid = "rsu-1"\n[http]\nport = {rsu.http_port}\n')
    assert "veh-1" in meshnode("peers", "--node", config).stdout


def test_watch_once_prints_one_frame(rsu: RunningNode) -> None:
    """What the live view shows, for a ticket or a cron job."""
    ran = meshnode("watch", "--once", *at(rsu))
    assert ran.returncode == 0, ran.stderr
    for words in ("rsu-1", "veh-1", "round trip", "readings", "inference", "drops"):
        assert words in ran.stdout


def _drain(screen: int) -> None:
    """Read what a process still draws, which would wait otherwise, until it has ended."""
    with contextlib.suppress(OSError):  # nobody draws any more
        while os.read(screen, 4_096):
            pass


def test_watch_interrupted_leaves_without_a_word(rsu: RunningNode) -> None:
    """Ctrl-C is how it ends."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "meshnode.cli", "watch", "--interval", "0.2", *at(rsu)],
        env={**environment(), "TERM": "xterm"}, stdout=terminal, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while b"rsu-1" not in shown:
        shown += os.read(screen, 4_096)
    process.send_signal(signal.SIGINT)
    drained = threading.Thread(target=_drain, args=(screen,), daemon=True)
    drained.start()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, "")


# --- readings --------------------------------------------------------------------------------------------------------
def test_reading_published_by_command_is_seen_by_command(rsu: RunningNode, vehicle: RunningNode) -> None:
    """The mesh's hello world."""
    ran = meshnode("pub", "veh/veh-1/speed", "13.9", "--unit", "m/s", "--at", "48.7,11.4,2", *at(vehicle))
    assert ran.returncode == 0, ran.stderr
    assert "published veh/veh-1/speed as veh-1" in ran.stdout
    seen = meshnode("sub", "veh/*/speed", "--count", "1", "--timeout", "30", *at(rsu))
    assert seen.returncode == 0, seen.stderr
    assert "veh/veh-1/speed 13.9 m/s  (veh-1 at 48.70000,11.40000)" in seen.stdout
    as_json = meshnode("sub", "veh/*/speed", "--count", "1", "--timeout", "30", "--json", *at(rsu))
    reading = json.loads(as_json.stdout)
    assert (reading["value"], reading["how"]["unit"], reading["where"]["accuracy_m"]) == (13.9, "m/s", 2)


@pytest.mark.parametrize(
    ("typed", "value"),
    [(["true"], True), (["hello"], "hello"), (['{"a": [1]}'], {"a": [1]}), (["NaN"], "NaN"), (["--text", "1"], "1"),
     (["--", "-3.5"], -3.5)],
)  # fmt: skip
def test_value_typed_is_json_or_else_text(vehicle: RunningNode, typed: list[str], value: Any) -> None:
    """A shell user types numbers and words, not quotes in quotes."""
    assert meshnode("pub", *at(vehicle), "veh/veh-1/typed", *typed).returncode == 0
    seen = meshnode("sub", "veh/veh-1/typed", "--count", "1", "--timeout", "30", "--json", *at(vehicle))
    assert json.loads(seen.stdout)["value"] == value


def test_reading_published_on_a_foreign_key_is_refused(vehicle: RunningNode) -> None:
    """The access table holds for commands too."""
    failed(meshnode("pub", "rsu/rsu-1/x", "1", *at(vehicle)), 2, "access table")
    failed(meshnode("pub", "veh//x", "1", *at(vehicle)), 2, "empty chunk")


def test_subscription_that_gets_nothing_is_a_failure(vehicle: RunningNode) -> None:
    """Nothing there is status 1, as with grep."""
    ran = meshnode("sub", "nobody/says/this", "--timeout", "0.2", *at(vehicle))
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "")


@pytest.mark.parametrize("way", ["interrupt", "closed pipe"])
def test_subscription_ended_by_its_reader_says_nothing(vehicle: RunningNode, way: str) -> None:
    """Ctrl-C and ``| head`` are how it ends; a traceback would look like a failure."""
    meshnode("pub", "veh/veh-1/ends", "1", *at(vehicle))
    process = subprocess.Popen(
        [sys.executable, "-m", "meshnode.cli", "sub", "veh/veh-1/ends", *at(vehicle)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert "veh/veh-1/ends 1" in process.stdout.readline()
    if way == "interrupt":
        process.send_signal(signal.SIGINT)
    else:
        process.stdout.close()
    assert process.wait(60) == (130 if way == "interrupt" else 141)
    assert process.stderr.read().strip() == ""
    process.stdout.close()
    process.stderr.close()


# --- inference -------------------------------------------------------------------------------------------------------
def test_inference_by_command_reads_and_writes_files(rsu: RunningNode, tmp_path: Path) -> None:
    """From a file to an answer without a line of code."""
    np.save(tmp_path / "x.npy", np.array([[1, 2, 3, 4]], "f4"))
    (tmp_path / "x.json").write_text("[1, 2, 3, 4]")
    for given in ("x=x.npy", "x=x.json", "x=[[1,2,3,4]]", "x:f4=[[1,2,3,4]]"):
        ran = meshnode("infer", "double", "--input", given, "--output", "y=y.npy", "--json", *at(rsu), cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        answer = json.loads(ran.stdout)
        assert answer["outputs"]["y"] == {"dtype": "f4", "shape": [1, 4], "data": [[2, 4, 6, 8]]}
        assert answer["parameters"]["ran_on"] == "rsu-1"
        assert np.load(tmp_path / "y.npy").tolist() == [[2, 4, 6, 8]]
        (tmp_path / "y.npy").unlink()


def test_inference_by_command_fits_an_image_to_the_model(rsu: RunningNode, tmp_path: Path) -> None:
    """The model says which size and layout it wants."""
    pixels = np.zeros((4, 8, 3), "u1")
    pixels[..., 0] = 255
    Image.fromarray(pixels).save(tmp_path / "red.png")
    ran = meshnode("infer", "picture", "--input", f"x={tmp_path / 'red.png'}", "--json", *at(rsu))
    assert ran.returncode == 0, ran.stderr
    red, green, blue = np.array(json.loads(ran.stdout)["outputs"]["y"]["data"])[0]
    assert (red == 1).all()
    assert (green == 0).all()
    assert (blue == 0).all()


def test_inference_by_command_sends_an_image_as_it_is_to_a_model_with_preprocessing(
    rsu: RunningNode, tmp_path: Path
) -> None:
    """Its manifest says how it is prepared, and whoever computes does so."""
    model = rsu.get("/v2/models/camera")
    assert model["inputs"] == [{"name": "x", "datatype": "UINT8", "shape": [-1]}]
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    ran = meshnode("infer", "camera", "--input", f"x={tmp_path / 'red.png'}", "--json", *at(rsu))
    assert ran.returncode == 0, ran.stderr
    red, green, blue = np.array(json.loads(ran.stdout)["outputs"]["y"]["data"])[0]
    assert (red == 255).all()
    assert not green.any()
    assert not blue.any()
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    ran = meshnode("infer", "camera", "--input", f"x={tmp_path / 'cut.png'}", *at(rsu))
    failed(ran, 2, "input 'x' of model 'camera': the picture can't be decoded", "send it again")


def test_doctor_shows_what_a_model_with_a_manifest_takes_and_runs_its_golden_vectors(tmp_path: Path) -> None:
    """Whoever installs a model asks the doctor whether it is the right one."""
    config = prepare(tmp_path, "rsu-1", "rsu", '[models.camera]\npath = "camera.onnx"\n')
    home = config.parent
    write_model(home / "camera.onnx", [1, 3, 2, 4], "Identity")
    manifest = "[preprocessing.x]\nwidth = 4\nheight = 2\n[[golden]]\ninputs = {x = 'r.png'}\noutputs = {y = 'r.npy'}\n"
    (home / "camera.toml").write_text(manifest)
    Image.new("RGB", (4, 2), (255, 0, 0)).save(home / "r.png")
    expected = np.zeros((1, 3, 2, 4), "f4")
    expected[0, 0] = 255
    np.save(home / "r.npy", expected)
    said = meshnode("doctor", config).stdout
    assert "takes x: u1[?], golden vectors held: 1" in said
    (home / "camera.toml").write_text("# so\n" + manifest.replace("height = 2", "height = 2\ncolours = 'bgr'"))
    said = meshnode("doctor", config).stdout
    assert "camera.toml: golden[0]: output 'y' is 0.0 at [0, 0, 0, 0] and not 255.0 (16 of 24 values differ)" in said


def test_inference_of_a_neighbours_model_by_command_says_who_computed(vehicle: RunningNode) -> None:
    """A vehicle without models asks all the same."""
    ran = meshnode("infer", "double", "--input", "x:f4=[[1,2,3,4]]", "--deadline-ms", "60000", *at(vehicle))
    assert (ran.returncode, ran.stdout.split()[:2]) == (0, ["y", "f4[1,"]), ran.stderr
    assert "computed by rsu-1" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("nobody-has-this", "--input", "x=1"), 1, "known: camera, double"),
        (("double", "--input", "x=[1,2]"), 2, "f4[1, 4]"),
        (("double", "--input", "z=[1,2,3,4]"), 2, "'z'"),
        (("double", "--input", "x=missing.npy"), 2, "missing.npy"),
        (("double", "--input", "x=double.onnx.json"), 2, "double.onnx.json"),
        (("double", "--input", "x=[1,"), 2, "JSON"),
        (("double", "--input", "x"), 2, "NAME=VALUE"),
        (("double", "--input", "x=[1,2,3,4]", "--output", "q"), 2, "no output 'q'"),
    ],
)
def test_inference_by_command_asked_for_wrongly_names_the_mistake(
    rsu: RunningNode, arguments: tuple[str, ...], status: int, said: str
) -> None:
    """A wrong name, shape or file is told in the user's words."""
    failed(meshnode("infer", *arguments, *at(rsu)), status, said)
