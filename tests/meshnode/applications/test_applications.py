"""Applications that a node runs: real programs with rights of their own, started again when they end or hang."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.applications.manifest import granted_rights, read_application
from meshnode.applications.process import begin_life
from meshnode.applications.running import RunningApplications
from meshnode.applications.section import ApplicationSection
from meshnode.cli.checks import examine
from protocols.base.errors import ConfigError
from protocols.base.ids import node_id
from tests.tools.eventually import eventually
from tests.tools.mesh_fixture import House, Member, until

pytestmark = pytest.mark.processes

Opened = Callable[..., Any]
MANIFEST = """name = "counter"
version = "1.2"
publisher = "Example"
licence = "Apache-2.0"
run = [{run}]
"""
HEAD = """import asyncio, meshnode, os, sys
async def main():
    async with meshnode.connect() as node:
        say = lambda value: node.publish("rsu/rsu-1/said", value, sensor="app", unit="1")
"""
TAIL = "asyncio.run(main())\n"
COUNTING = (
    HEAD
    + """
        with node.subscribe("rsu/*/speed", own=True) as speeds:
            say(0)
            async for reading in speeds:
                say(reading.value)
"""
    + TAIL
)
TRYING = (
    HEAD
    + """
        async def told(what):
            try:
                await what()
                say("may")
            except meshnode.MeshError as error:
                say(f"{type(error).__name__}: {error}")
        async def publish():
            node.publish("rsu/rsu-1/other", 1, sensor="app", unit="1")
        async def subscribe():
            node.subscribe("rsu/**", own=True)
        async def infer():
            await node.infer("plate", {})
        async def peers():
            node.peers()
        async def history():
            await node.history("rsu/**")
        for what in (publish, subscribe, infer, peers, history):
            await told(what)
        node.position = meshnode.Position(1.0, 2.0, 3.0)
        say("end")
        await node.flushed()
        await asyncio.sleep(60)
"""
    + TAIL
)


def written(folder: Path, program: str, asks: str = "", run: str = "") -> Path:
    """A manifest, and the program in Python that it names, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(program)
    path = folder / "application.toml"
    path.write_text(MANIFEST.format(run=run or f'"{sys.executable}", "program.py"') + asks)
    return path


@pytest.fixture(name="opened")
def given_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens a roadside unit that runs one application."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))

    @asynccontextmanager
    async def opened(program: str, asks: str = "", grants: str = "", run: str = "") -> AsyncIterator[meshnode.Node]:
        manifest = written(tmp_path / "counter", program, asks, run)
        config = House(tmp_path).file(
            "rsu-1", f'[discovery]\nmdns = false\n[[application]]\nmanifest = "{manifest}"\n{grants}\n', role="rsu"
        )
        async with meshnode.open(config) as node:
            yield node

    return opened


def count(node: meshnode.Node, name: str) -> int:
    return node.statistics().get(f"applications_{name}", 0)


def trouble(node: meshnode.Node) -> str:
    """What is wrong with the application now."""
    return " ".join(each.why for each in node.troubles.current() if each.part == "application")


def view(node: meshnode.Node) -> dict[str, Any]:
    (part,) = [part for part in node.parts if "applications" in part.node_view()]
    shown: dict[str, Any] = part.node_view()["applications"]
    return shown["counter"]


ASKS = 'reads = ["rsu/*/speed"]\npublishes = ["rsu/{id}/said"]\n'
GRANTS = 'reads = ["rsu/**"]\npublishes = ["rsu/{id}/**"]'


async def test_application_reads_and_publishes_what_it_is_granted(opened: Opened) -> None:
    """It needs to know no path: the node tells it where to connect."""
    async with opened(COUNTING, ASKS, GRANTS) as node:
        heard = node.subscribe("rsu/*/said", own=True)
        assert (await heard.next(30.0)).value == 0
        node.publish("rsu/rsu-1/speed", 13.9)
        assert (await heard.next(30)).value == 13.9
        await until(lambda: view(node)["published"] == 2, "the second one has been counted")
        shown = view(node)
        assert (shown["version"], shown["publisher"], shown["licence"]) == ("1.2", "Example", "Apache-2.0")
        assert (shown["started"], shown["refused"]) == (1, 0)
        assert trouble(node) == ""


async def test_application_of_a_node_with_a_long_path_connects_too(opened: Opened, tmp_path: Path) -> None:
    """A socket has a path of at most 107 bytes."""
    state = f'[node]\nid = "rsu-1"\nstate_dir = "{"deep/" * 24}state"\n'
    manifest = written(tmp_path / "counter", COUNTING, ASKS)
    config = House(tmp_path).file(
        "rsu-1", f'[discovery]\nmdns = false\n[[application]]\nmanifest = "{manifest}"\n{GRANTS}', role="rsu"
    )
    config.write_text(config.read_text().replace('[node]\nid = "rsu-1"\n', state))
    async with meshnode.open(config) as node:
        heard = node.subscribe("rsu/*/said", own=True)
        assert (await heard.next(30.0)).value == 0
        (part,) = [part for part in node.parts if isinstance(part, RunningApplications)]
        socket = part._applications["counter"]._socket
        assert len(str(socket)) < 107
    assert not socket.parent.exists()


async def test_application_gets_nothing_beyond_its_manifest(opened: Opened) -> None:
    """The table grants more, the node may do more, and the manifest asks for one key only."""
    async with opened(TRYING, 'publishes = ["rsu/{id}/said"]', GRANTS) as node:
        heard = node.subscribe("rsu/**", own=True)
        said = [(await heard.next(30.0)).value for _ in range(6)]
        assert said[-1] == "end"
        assert [text.partition(":")[0] for text in said[:-1]] == ["NotPermitted"] * 5
        for what in ("publish on 'rsu/rsu-1/other'", "read 'rsu/**'", "the model 'plate'", "'peers'"):
            assert any(what in text for text in said), what
        await until(lambda: count(node, "refused") >= 2, "the place and the model were refused")
        assert node.position is not None
        assert node.position.latitude_deg != 1.0


async def test_application_that_was_killed_is_started_again_and_goes_on(opened: Opened) -> None:
    async with opened(COUNTING, ASKS, GRANTS) as node:
        heard = node.subscribe("rsu/*/said", own=True)
        await heard.next(30.0)
        os.kill(view(node)["pid"], signal.SIGKILL)
        await until(lambda: "signal 9" in trouble(node), "the node says that it is gone")
        assert (await heard.next(30.0)).value == 0
        await until(lambda: trouble(node) == "", "all is well again")
        assert (count(node, "started"), count(node, "ended"), count(node, "running")) == (2, 1, 1)


async def test_application_that_hangs_is_started_again(opened: Opened) -> None:
    """One never connects, and ignores that it is asked to end."""
    run = '"/bin/sh", "-c", "trap \'\' TERM; echo begun; while :; do sleep 60; done"'
    async with opened("", "", "connects_within_s = 1", run) as node:
        await until(lambda: count(node, "started") >= 2, "it was started again")
        assert count(node, "hung") >= 1
        assert "had not connected" in trouble(node)
        assert "raise connects_within_s" in trouble(node)


async def test_application_that_falls_silent_is_started_again(opened: Opened) -> None:
    async with opened(
        HEAD + "        say(0)\n        await asyncio.sleep(600)\n" + TAIL, ASKS, f"{GRANTS}\nsilent_s = 1"
    ) as node:
        heard = node.subscribe("rsu/*/said", own=True)
        await heard.next(30.0)
        await heard.next(30.0)
        assert count(node, "hung") >= 1


async def test_application_that_eats_memory_fails_alone(opened: Opened) -> None:
    """And the node says what it said last."""
    async with opened("x = [bytes(1 << 20) for _ in range(4_000)]\n", "memory_mib = 64", "memory_mib = 64") as node:
        await until(lambda: "MemoryError" in trouble(node), "it has no memory left")
        assert node.publish("rsu/rsu-1/other", 1).dropped == 0


async def test_nothing_of_an_application_outlives_the_node(opened: Opened) -> None:
    """It has started something itself, which ignores that it is asked to end."""
    run = """"/bin/sh", "-c", "(trap '' TERM; sleep 600) & echo $! > child; sleep 600\""""
    async with opened("", "", "", run) as node:
        await until(lambda: count(node, "running") == 1, "it runs")
        child = node.folder.parent / "counter" / "child"
        await until(lambda: child.exists() and child.read_text().strip() != "", "its child runs")
        pid = int(child.read_text())
    eventually(lambda: not alive(pid), "it was killed, and the kernel has ended it")


def test_applications_of_a_killed_node_end(tmp_path: Path) -> None:
    """They would connect again to the next life of the node, beside those that it starts."""
    manifest = written(tmp_path / "counter", "", run='"/bin/sh", "-c", "echo $$ > pid; exec sleep 600"')
    config = House(tmp_path).file("rsu-1", f'[[application]]\nmanifest = "{manifest}"\n', role="rsu", mdns=False)
    with Member(config) as node:
        pid = eventually(
            lambda: (manifest.parent / "pid").read_text() if (manifest.parent / "pid").exists() else "", "it runs"
        )
        os.kill(int(pid), 0)
        node.end(signal.SIGKILL)
        eventually(lambda: not alive(int(pid)), "it is gone")


def alive(pid: int) -> bool:
    """Whether a process lives. One that has ended and that nobody has asked about yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_application_that_talks_too_much_does_not_fill_the_log(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    run = """"/bin/sh", "-c", "yes all is well | head -n 5000; exit 3\""""
    with caplog.at_level("INFO"):
        async with opened("", "", "", run) as node:
            await until(lambda: count(node, "ended") >= 1, "it has ended")
            assert "ended with status 3: all is well" in trouble(node)
            assert count(node, "lines_dropped") >= 4_900
    assert sum("says: all is well" in record.getMessage() for record in caplog.records) <= 200


async def test_application_that_writes_without_end_waits_and_the_node_does_not(tmp_path: Path) -> None:
    """Reading all of it took half of a core, and held up the event loop of the node by 60 ms."""
    life = await begin_life("a", ["yes"], tmp_path, dict(os.environ), 64, 0)
    try:
        pipe = life.voice._transport.get_pipe_transport(1)
        assert pipe is not None
        await until(lambda: pipe._paused, "enough was read for a second")  # ``is_reading`` is not in all versions
        assert life.voice.last == "y"
        assert life.voice.dropped > 100_000
    finally:
        await life.end()


async def test_application_that_asks_for_too_much_is_never_started(opened: Opened) -> None:
    """The rest of the node goes on, and says what to add."""
    async with opened(COUNTING, ASKS + "memory_mib = 512\n", 'reads = ["rsu/*/speed"]') as node:
        why = trouble(node)
        assert "asks for more" in why
        assert "publishes = ['rsu/{id}/said'], memory_mib = 512" in why
        assert "reads" not in why.partition("asks for more")[2].partition("grants:")[2]
        assert count(node, "started") == 0
        assert node.publish("rsu/rsu-1/other", 1).dropped == 0


# --- without a node ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "name"),
        ('name = "Two Words"', "is no name of an application"),
        ("run = []", "run"),
        ('reads = ["a//b"]', "empty chunk"),
        ("speed = 3", "speed"),
        ("memory_mib = 1", "memory_mib"),
        ("= 3", "line 1"),
    ],
)
def test_wrong_manifest_says_what_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "application.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        read_application(path)
    assert str(path) in str(caught.value)


def test_rights_are_what_is_asked_for_on_this_node(tmp_path: Path) -> None:
    """``{id}`` in both is the node's own: an application can't publish for another node."""
    path = written(tmp_path, "", 'publishes = ["rsu/{id}/count"]\ninfers = ["plate"]')
    manifest = read_application(path)
    section = ApplicationSection(manifest=path, publishes=("rsu/{id}/**",), infers=("*",))
    rights = granted_rights(manifest, section, node_id("rsu-7"))
    assert (rights.reads, rights.publishes, rights.infers) == ((), ("rsu/rsu-7/count",), ("plate",))
    with pytest.raises(ConfigError, match="infers = \\['plate'\\]"):
        granted_rights(manifest, ApplicationSection(manifest=path, publishes=("rsu/**",)), node_id("rsu-7"))


def test_doctor_says_what_each_application_may_do(tmp_path: Path) -> None:
    good = written(tmp_path / "good", "", ASKS)
    bad = written(tmp_path / "bad", "", run='"./missing"')
    config = House(tmp_path).file(
        "rsu-1",
        f'[discovery]\nmdns = false\n[[application]]\nmanifest = "{good}"\n{GRANTS}\n'
        f'[[application]]\nmanifest = "{bad}"\n[[application]]\nmanifest = "{good}"\n',
        role="rsu",
    )
    found = [(each.status, each.message) for each in examine(config) if each.check.startswith("application")]
    assert [status for status, _ in found] == ["ok", "fail", "fail"]
    assert "1.2 by Example (Apache-2.0): reads rsu/*/speed, publishes rsu/rsu-1/said" in found[0][1]
    assert "./missing is no program" in found[1][1]
    assert "asks for more" in found[2][1]
