"""Commands about datasets under bad input, kills, full disks, and each other."""

import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from cloud_relay.datasets.names import VersionName
from cloud_relay.datasets.shelf import DatasetShelf
from tests.tools.dataset_fixture import run, shown, tried
from tests.tools.node_fixture import environment
from tests.tools.relay_fixture import RelayInProcess, batch, given_relay  # noqa: F401 -- a fixture


def shelf_of(relay: RelayInProcess) -> DatasetShelf:
    return DatasetShelf(relay.path.parent / "datasets")


def many(relay: RelayInProcess, count: int = 2_000) -> None:
    for first in range(1, count, 200):
        relay.send(batch(*range(first, first + 200), value=[0.5] * 20))


# --- names and questions ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "-x-", "a@1", "a b", "ü", "a\0b", "a\nb", "x" * 65]
)
def test_names_that_are_no_folders_are_refused(relay: RelayInProcess, name: str) -> None:
    """A name is that of a folder: nothing outside of the folder of datasets is ever touched."""
    before = sorted(relay.path.parent.rglob("*"))
    done = tried(relay, "create", "--", name)
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert "is no name of a dataset" in done.output
    for command in ("show", "verify", "remove"):
        assert tried(relay, command, "--", name).exit_code == 2
    assert sorted(relay.path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("create", ["new", "--box", "1,2,3"], "is not four numbers"),
        ("create", ["new", "--since", "yesterday"], "'yesterday'"),
        ("create", ["new", "--licence", "x" * 201], "--licence"),
        ("create", ["new", "--notes", "\x1b[2J"], "printable"),
        ("create", ["there", "--key", "veh/**"], "there is a dataset 'there' already, which asks for everything"),
        ("show", ["none"], "there is no dataset 'none'"),
        ("show", ["there@7"], "has no version 7: it has 1"),
        ("show", ["there@0"], "names no version"),
        ("show", ["there@01"], "names no version"),
        ("remove", ["there"], "does not say what to remove"),
        ("remove", ["--all", "there@1"], "does not say what to remove"),
        ("export", ["there", "x.txt"], "does not say in which format"),
        ("export", ["there", "taken.csv"], "add --overwrite"),
        ("export", ["there", "none/x.csv"], "can't be written"),
        ("verify", ["there", "none.csv"], "No such file"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(
    relay: RelayInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: list[str], said: str
) -> None:
    """With the value and the way out, and nothing changed."""
    monkeypatch.chdir(tmp_path)
    relay.send(batch(1, value=1.5))
    run(relay, "create", "there")
    (tmp_path / "taken.csv").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = tried(relay, command, *words)
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1), done.output
    assert said in done.output
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "taken.csv").read_text() == "mine"


def test_versions_are_listed_and_removed_and_no_number_comes_again(relay: RelayInProcess) -> None:
    """`speeds@2` in somebody's paper must not become other records."""
    relay.send(batch(1, value=1.5))
    for _ in range(2):
        run(relay, "create", "speeds", "--key", "veh/**")
    run(relay, "create", "a.b-c_d")
    lines = run(relay, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["a.b-c_d@1", "speeds@1", "speeds@2"]
    assert "--key 'veh/**'" in lines[1]
    assert [one["version"] for one in json.loads(run(relay, "list", "--json").stdout)] == [1, 1, 2]
    assert run(relay, "remove", "speeds@2").output == "speeds@2: 1 version removed\n"
    assert tried(relay, "show", "speeds@2").exit_code == 2
    assert run(relay, "create", "speeds").output.startswith("speeds@3: 1 records")
    assert run(relay, "remove", "--all", "speeds").output == "speeds: 2 versions removed\n"
    assert [line.split()[0] for line in run(relay, "list").stdout.splitlines()] == ["a.b-c_d@1"]


def test_folder_of_datasets_is_that_of_the_configuration(relay: RelayInProcess, tmp_path: Path) -> None:
    """Beside the relay's other state, and readable by its owner only, because records tell where vehicles were."""
    config = tmp_path / "relay.toml"
    config.write_text(f'[relay]\nid = "relay-1"\nstate_dir = "state"\n[store]\npath = "{relay.path.name}"\n')
    relay.send(batch(1, value=1.5))
    done = CliRunner().invoke(main, ["dataset", "create", "--config", str(config), "speeds"])
    assert done.exit_code == 0, done.output
    made = tmp_path / "state/datasets/speeds/1"
    assert sorted(file.name for file in made.iterdir()) == ["members.jsonl.gz", "version.json"]
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "state/datasets").rglob("*")} == {0}


def test_damaged_datasets_are_named_and_hold_up_no_others(relay: RelayInProcess, tmp_path: Path) -> None:
    """A disk that lies must not lead to a shorter export that looks whole."""
    relay.send(batch(*range(1, 6), value=1.5))
    for name in ("good", "bad", "cut", "short"):
        run(relay, "create", name)
    folder = relay.path.parent / "datasets"
    (folder / "bad/1/version.json").write_text("{")
    lines = folder / "cut/1/members.jsonl.gz"
    lines.write_bytes(lines.read_bytes()[:-20])
    lines = folder / "short/1/members.jsonl.gz"
    lines.write_bytes(gzip.compress(b"".join(gzip.decompress(lines.read_bytes()).splitlines(keepends=True)[:3])))
    done = tried(relay, "list")
    assert "bad@1" in done.stdout
    assert "DAMAGED" in done.stdout
    assert "good@1" in done.stdout
    for name, said in (("bad", "can't be read as a version"), ("cut", "is damaged"), ("short", "is damaged")):
        done = tried(relay, "export", name, str(tmp_path / "x.csv"))
        assert (done.exit_code, said in done.output) == (2, True), done.output
    assert not (tmp_path / "x.csv").exists()
    assert tried(relay, "verify", "short").exit_code == 1
    for name in ("bad", "cut"):
        run(relay, "remove", f"{name}@1")


# --- several at once -------------------------------------------------------------------------------------------------
def test_versions_made_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    """Two operators, or a timer and an operator: nobody's version is lost."""
    shelf = DatasetShelf(tmp_path)
    parts = []
    for number in range(8):
        part = tmp_path / "speeds" / f".{number:08}.part"
        part.mkdir(parents=True)
        (part / "lock").touch()
        parts.append(part)
    made: list[int] = []
    threads = [threading.Thread(target=lambda part=part: made.append(shelf.publish("speeds", part))) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(1, 9))
    assert shelf.numbers("speeds") == list(range(1, 9))


def test_version_that_is_being_made_is_left_alone(relay: RelayInProcess) -> None:
    """What looks like the rest of a killed process may be somebody's work."""
    relay.send(batch(1, value=1.5))
    with shelf_of(relay).making("speeds") as made:
        # A lock belongs to a process, or to one opening of a file, as here.
        with shelf_of(relay).making("speeds") as other:
            assert made.members.parent.exists()
            assert other.members.parent != made.members.parent
        assert made.members.parent.exists()
    assert not (relay.path.parent / "datasets/speeds").exists()


# --- killed, interrupted, full ---------------------------------------------------------------------------------------
STOPPING = (
    "import os, sys\n"
    "{patch}\n"
    "from cloud_relay.cli import main; main()\n"
)  # fmt: skip
IN_CREATE = (
    "from cloud_relay.datasets.members import MemberList as C\n"
    "add = C.add\n"
    "def stopped(self, member):\n"
    "    add(self, member)\n"
    "    if member.sequence == 1000: os.kill(os.getpid(), {number})\n"
    "C.add = stopped\n"
)
IN_EXPORT = (
    "from cloud_relay.export.commas import CsvExport as C\n"
    "add = C.add\n"
    "def stopped(self, row):\n"
    "    add(self, row)\n"
    "    if row['sequence'] == 1000: self._text.flush(); os.kill(os.getpid(), {number})\n"
    "C.add = stopped\n"
)


def stopped(patch: str, number: int, *words: str) -> int:
    """A command that gets a signal in the middle of its work. Returns its status."""
    code = STOPPING.format(patch=patch.format(number=int(number)))
    process = subprocess.run(
        [sys.executable, "-c", code, "dataset", *words], env=environment(), capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in process.stderr, process.stderr
    return process.returncode


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_creation_leaves_no_version_and_begins_again_cleanly(
    relay: RelayInProcess, number: signal.Signals
) -> None:
    """SIGTERM leaves nothing at all; after SIGKILL the next command removes what is left."""
    many(relay)
    folder = relay.path.parent / "datasets/speeds"
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    assert stopped(IN_CREATE, number, "create", "--store", str(relay.path), "speeds") == expected
    assert len(list(folder.glob(".*.part"))) == (1 if number == signal.SIGKILL else 0)
    assert run(relay, "list").output == ""
    assert run(relay, "create", "speeds").output.startswith("speeds@1: 2000 records")
    assert [path.name for path in folder.iterdir()] == ["1"]


@pytest.mark.processes
def test_killed_export_leaves_no_file_and_begins_again_cleanly(relay: RelayInProcess, tmp_path: Path) -> None:
    """Half a file under the final name would be taken for a whole one."""
    many(relay)
    run(relay, "create", "speeds")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".s.csv.notours.part").write_text("not ours")
    words = ("export", "--store", str(relay.path), "speeds", str(out / "s.csv"))
    assert stopped(IN_EXPORT, signal.SIGKILL, *words) == -9
    (left,) = [file for file in out.iterdir() if file.name != ".s.csv.notours.part"]
    assert left.name.startswith(".s.csv.")
    assert left.stat().st_size > 0
    run(relay, "export", "speeds", str(out / "s.csv"))
    assert sorted(file.name for file in out.iterdir()) == [
        ".s.csv.notours.part", "s.csv", "s.csv.card.json", "s.csv.card.md"
    ]  # fmt: skip
    run(relay, "verify", "speeds", str(out / "s.csv"))


@pytest.fixture(name="disk")
def given_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a quarter of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.processes
@pytest.mark.parametrize("form", ["parquet", "csv", "arrow"])
def test_full_disk_is_told_and_leaves_nothing(
    relay: RelayInProcess, disk: Path, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """And what filled it is still there, untouched."""
    many(relay)
    run(relay, "create", "speeds")
    (disk / "other").write_bytes(bytes(200 * 1024))
    done = tried(relay, "export", "speeds", str(disk / f"s.{form}"))
    assert (done.exit_code, "free space on that disk" in done.output) == (2, True), done.output
    assert [file.name for file in disk.iterdir()] == ["other"]
    (disk / "other").write_bytes(bytes(252 * 1024))
    done = tried(relay, "create", "speeds", "--folder", str(disk / "sets"))
    assert (done.exit_code, "free space on that disk" in done.output) == (2, True), done.output
    assert not (disk / "sets/speeds").exists()
    assert "ignored" not in capfd.readouterr().err


# --- how far it is ---------------------------------------------------------------------------------------------------
@pytest.mark.processes
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(relay: RelayInProcess) -> None:
    """Who waits sees that it goes on; a log gets lines and no control characters."""
    many(relay)
    patch = "import cloud_relay.datasets.progress as p; p.TOLD_EACH_S = 0.0"
    words = ["dataset", "create", "--store", str(relay.path), "speeds"]
    command = [sys.executable, "-c", STOPPING.format(patch=patch), *words]
    plain = subprocess.run(command, env=environment(), capture_output=True, timeout=60, check=True)
    assert b"speeds: 1,024 records\n" in plain.stderr
    assert b"\x1b" not in plain.stderr
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command[:3], "dataset", "verify", "--store", str(relay.path), "speeds"],
        env=environment() | {"TERM": "xterm"}, stderr=theirs, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    try:
        while more := os.read(ours, 65_536):
            drawn += more
    except OSError:
        pass  # the other end of a terminal is closed
    os.close(ours)
    assert process.wait(60) == 0
    assert b"2,000 of 2,000 records" in drawn


def test_a_version_is_found_by_the_newest_number(relay: RelayInProcess) -> None:
    """9 comes before 10, as numbers and not as texts."""
    relay.send(batch(1, value=1.5))
    for _ in range(10):
        run(relay, "create", "speeds")
    assert shelf_of(relay).found(VersionName("speeds", None)) == VersionName("speeds", 10)
    assert shown(relay, "speeds")["version"] == 10
