"""``meshnode models``: a release on a stick, what a node shows of it, going back, and the check of a disk."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, prepare
from tests.tools.node_fixture import meshnode as command
from tests.tools.release_fixture import Publisher
from tests.tools.released_fixture import NAME, PATH, adder

pytestmark = pytest.mark.processes


def published(folder: Path) -> Publisher:
    """A relay's repository with two releases and an order for each."""
    publisher = Publisher(folder)
    for counter in (1, 2):
        publisher.roll_out(counter, counter, NAME, adder(counter, 50_000))
    return publisher


def node_of(folder: Path, node: str, publisher: Publisher) -> Path:
    tables = f'[models.adder]\npath = "adder.onnx"\n[releases]\nroot = "{publisher.root_path}"\n'
    config = prepare(folder, node, "vehicle", tables)
    (config.parent / "adder.onnx").write_bytes(adder(0.5))
    return config


def serving(node: RunningNode) -> int:
    return int(node.get("/v1/releases")["paths"][0]["serving"])


def test_release_goes_by_stick_from_node_to_node_and_back_to_an_older_one(tmp_path: Path) -> None:
    """Everything that an operator does with a laptop, and with no network at all."""
    publisher = published(tmp_path / "repository")
    first = node_of(tmp_path, "stick-1", publisher)
    done = command("models", "import", first, publisher.folder)
    assert (done.returncode, "takes them in when it starts" in done.stdout) == (0, True), done
    with RunningNode(first) as node:
        eventually(lambda: serving(node) == 2, lambda: str(node.get("/v1/releases")))
        shown = command("models", "list", "--http", f"127.0.0.1:{node.http_port}")
        assert shown.returncode == 0
        assert "models/adder" in shown.stdout
        listed = json.loads(command("models", "list", "--json", "--http", f"127.0.0.1:{node.http_port}").stdout)
        assert listed["paths"][0]["listed"] == [1, 2]
        stick = tmp_path / "stick.tar"
        exported = command("models", "export", first, stick)
        assert exported.returncode == 0, exported
        back = command("models", "rollback", "adder", "--http", f"127.0.0.1:{node.http_port}")
        assert "goes back to the own file" in back.stdout, back
        eventually(lambda: serving(node) == 0)
        command("models", "rollback", "adder", "--follow-orders", "--http", f"127.0.0.1:{node.http_port}")
        eventually(lambda: serving(node) == 2)
    second = node_of(tmp_path, "stick-2", publisher)
    with RunningNode(second) as node:
        brought = command("models", "import", second, stick, "--http", f"127.0.0.1:{node.http_port}")
        assert "brought to the running node" in brought.stdout, brought
        eventually(lambda: serving(node) == 2, lambda: str(node.get("/v1/releases")))


def test_verify_finds_what_was_changed_on_the_disk(tmp_path: Path) -> None:
    """Who repairs a node wants to know what is broken, and who audits it, whether its log is whole."""
    publisher = published(tmp_path / "repository")
    config = node_of(tmp_path, "verify-1", publisher)
    command("models", "import", config, publisher.folder)
    with RunningNode(config) as node:
        eventually(lambda: serving(node) == 2, lambda: str(node.get("/v1/releases")))
    fine = command("models", "verify", config)
    assert fine.returncode == 0, fine
    assert "release 2 of models/adder, which serves" in fine.stdout
    releases = config.parent / "state" / "releases"
    log = releases / "audit.jsonl"
    log.write_text(log.read_text().replace('"what": "staged"', '"what": "nothing"', 1))
    model = releases / PATH / "2" / "adder.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    broken = command("models", "verify", config)
    assert broken.returncode == 1
    assert "does not follow the line before it" in broken.stdout
    assert "FAIL  release 2 of models/adder, which serves" in broken.stdout


def test_import_of_something_else_and_of_a_damaged_stick_is_refused(tmp_path: Path) -> None:
    """A stick has holiday photos on it, or has been in the washing machine."""
    publisher = published(tmp_path / "repository")
    config = node_of(tmp_path, "wrong-1", publisher)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    done = command("models", "import", config, tmp_path / "photos")
    assert done.returncode == 1
    assert "holds no current.bundle" in done.stderr
    chunk = next(path for path in (publisher.folder / "chunks").rglob("*") if path.is_file())
    chunk.write_bytes(b"washed")
    done = command("models", "import", config, publisher.folder)
    assert done.returncode == 1
    assert "is damaged: write it again" in done.stderr


def test_node_that_is_killed_while_it_installs_serves_when_it_starts_again(tmp_path: Path) -> None:
    """The whole node, with its metadata, its rollout and its worker processes. The campaign kills it more often."""
    publisher = published(tmp_path / "repository")
    config = node_of(tmp_path, "killed-1", publisher)
    for pause_s in (0.05, 0.3):
        with RunningNode(config) as node:
            command("models", "import", config, publisher.folder, "--http", f"127.0.0.1:{node.http_port}")
            eventually(lambda: node.get("/v1/releases")["metadata"], "the metadata is taken")
            time.sleep(pause_s)  # the moment is what is tried, and any is right
            node.stop(signal.SIGKILL)
    with RunningNode(config) as node:
        models = {model["name"]: model for model in node.get("/v1/models")}
        assert models["adder"]["loaded"]
        eventually(lambda: serving(node) == 2, lambda: str(node.get("/v1/releases")))
    assert command("models", "verify", config).returncode == 0
