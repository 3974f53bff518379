"""Functions on events, with real programs: called once, within their limits, and never able to hold up the node."""

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.functions.calling import call
from meshnode.groups import program_in
from meshnode.loading import load
from protocols.base.errors import ConfigError
from protocols.base.limits import MAX_LINEAGE
from tests.tools.eventually import eventually
from tests.tools.mesh_fixture import House, until
from tests.tools.node_fixture import environment

pytestmark = pytest.mark.processes

Opened = Callable[..., Any]


@pytest.fixture(name="opened")
def given_opened(tmp_path: Path) -> Opened:
    """Opens a node with functions, whose programs are written beside its configuration."""

    @asynccontextmanager
    async def opened(program: str, options: str = "", name: str = "f") -> AsyncIterator[meshnode.Node]:
        config = House(tmp_path).file(
            "rsu-1",
            f'[discovery]\nmdns = false\n[[function]]\nname = "{name}"\nkeys = "rsu/*/hotspot"\n'
            f'run = ["./program", "an argument"]\n{options}\n',
            role="rsu",
        )
        path = config.parent / "program"
        path.write_text(f"#!/bin/sh\n{program}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        async with meshnode.open(config) as node:
            yield node

    return opened


def count(node: meshnode.Node, name: str) -> int:
    return node.statistics().get(f"functions_{name}", 0)


async def test_program_is_called_once_for_each_reading_and_publishes_what_it_writes(opened: Opened) -> None:
    """An action: a sign is switched on, and says so."""
    program = """read line; echo "$line" >> calls; echo "$1" >> arguments
echo '{"key": "rsu/rsu-1/sign", "value": {"on": true}, "priority": 6}'"""
    async with opened(program, 'publishes = "rsu/*/sign"') as node:
        heard = node.subscribe("rsu/*/sign")
        for number in range(3):
            node.publish("rsu/rsu-1/hotspot", number, unit="1", lineage=("brakes",))
        signs = [await heard.next(30) for _ in range(3)]
        assert [(sign.value, sign.priority) for sign in signs] == [({"on": True}, 6)] * 3
        assert signs[0].how.lineage == ("function f", "brakes")
        await until(lambda: count(node, "called") == 3, "all calls have ended")
        assert count(node, "published") == 3
        folder = node.folder
    lines = (folder / "calls").read_text().splitlines()
    assert [f'"value":{number},' in line for number, line in enumerate(lines)] == [True] * 3
    assert (folder / "arguments").read_text() == "an argument\n" * 3


async def test_what_a_function_published_does_not_call_it_again(opened: Opened) -> None:
    """It would call itself for ever."""
    program = """echo '{"key": "rsu/rsu-1/hotspot", "value": 1}'"""
    async with opened(program, 'publishes = "rsu/**"') as node:
        heard = node.subscribe("rsu/*/hotspot")
        node.publish("rsu/rsu-1/hotspot", 0)
        assert [(await heard.next(30)).value for _ in range(2)] == [0, 1]
        node.publish("rsu/rsu-1/hotspot", 2)
        await until(lambda: count(node, "called") == 2, "both readings of others were given to it")
        assert count(node, "published") == 2


async def test_function_that_says_a_lineage_of_its_own_does_not_hide_that_of_its_reading(opened: Opened) -> None:
    """Two functions that did so called each other 130 times a second, for ever."""
    program = """echo '{"key": "rsu/rsu-1/sign", "value": 1, "lineage": ["mine", "brakes"]}'"""
    async with opened(program, 'publishes = "rsu/**"') as node:
        heard = node.subscribe("rsu/*/sign")
        node.publish("rsu/rsu-1/hotspot", 0, lineage=("function g", "brakes"))
        assert (await heard.next(30)).how.lineage == ("function f", "mine", "brakes", "function g")


@pytest.mark.parametrize(
    "bad",
    ["this is no reading", '{"key": "veh/other/x", "value": 1}', '{"key": "rsu/rsu-1/x", "value": 1, "priority": 9}'],
)
async def test_of_a_call_with_a_bad_line_nothing_is_published(opened: Opened, bad: str) -> None:
    """A caller that sees half of it could not tell a failed call from one that has done its work."""
    program = f"""echo '{{"key": "rsu/rsu-1/sign", "value": 1}}'; echo '{bad}'"""
    async with opened(program, 'publishes = "**"') as node:
        node.publish("rsu/rsu-1/hotspot", 1)
        await until(lambda: count(node, "refused") == 1, f"{node.statistics()}")
        assert count(node, "published") == 0


async def test_reading_with_a_full_lineage_is_counted_apart_and_makes_no_call(opened: Opened) -> None:
    """What would be published of it has no room for one more step; nothing is wrong with the program."""
    async with opened('cat >> calls; echo \'{"key": "rsu/rsu-1/x", "value": 1}\'', 'publishes = "**"') as node:
        node.publish("rsu/rsu-1/hotspot", 1, lineage=tuple(f"step {number}" for number in range(MAX_LINEAGE)))
        node.publish("rsu/rsu-1/hotspot", 2, lineage=tuple(f"step {number}" for number in range(MAX_LINEAGE - 1)))
        await until(lambda: count(node, "published") == 1, f"{node.statistics()}")
        assert (count(node, "lineage_full"), count(node, "called")) == (1, 1)
        assert not node.troubles.current()


@pytest.mark.parametrize(
    ("program", "options", "outcome", "why"),
    [
        ("echo no sign here >&2; exit 3", "", "failed", "ended with status 3: no sign here"),
        ("kill -9 $$", "", "failed", "ended by signal 9"),
        ("sleep 60", "timeout_s = 0.2", "late", "had not ended after 0.2 s"),
        ("head -c 3000000 /dev/zero", "", "failed", "wrote more than 1048576 bytes"),
        ("yes", "", "failed", "wrote more than 1048576 bytes"),
        ("yes >&2", "", "failed", "wrote more than 16777216 bytes on standard error"),
        ("echo '{\"key\": \"rsu/rsu-1/x\", \"value\": 1}'", "", "refused", "set 'publishes'"),
        ("echo '{\"key\": \"veh/other/x\", \"value\": 1}'", 'publishes = "**"', "refused", "veh/other/x"),
        ("echo this is no reading", 'publishes = "**"', "refused", "is not a reading"),
        ("python3 -c 'bytearray(1 << 30)'", "memory_mib = 64", "failed", "MemoryError"),
    ],
)  # fmt: skip
async def test_program_that_does_harm_is_ended_named_and_counted(
    opened: Opened, program: str, options: str, outcome: str, why: str
) -> None:
    async with opened(program, options) as node:
        node.publish("rsu/rsu-1/hotspot", 1)
        await until(lambda: count(node, outcome) == 1, f"{outcome}: {node.statistics()}")
        (trouble,) = node.troubles.current()
        assert (trouble.part, trouble.name, trouble.essential) == ("function", "f", False)
        assert why in trouble.why


async def test_what_a_program_leaves_behind_is_killed_with_it(opened: Opened) -> None:
    """A shell that starts something in the background would otherwise gather processes for months."""
    async with opened("sleep 300 & echo $! > child; wait", "timeout_s = 0.5") as node:
        written = node.folder / "child"
        for calls in range(1, 10):  # a stall may leave a program no time to begin
            node.publish("rsu/rsu-1/hotspot", 1)
            await until(lambda calls=calls: count(node, "late") == calls, "the call is late")  # type: ignore[misc]
            if written.exists() and written.read_text():
                break
        child = int(written.read_text())

        def is_gone() -> bool:
            try:
                return "(sleep)" not in Path(f"/proc/{child}/stat").read_text() or _is_zombie(child)
            except FileNotFoundError:
                return True

        await until(is_gone, "the process in the background is gone")


@pytest.mark.parametrize("held", ["exec sleep 60", "exec sleep 60 <&3 3<&-"], ids=["output", "all pipes"])
async def test_program_that_leaves_a_child_in_a_session_of_its_own_is_done_and_its_pipes_are_closed(
    opened: Opened, held: str
) -> None:
    """It can't be killed with the group. The call must neither wait for it nor keep descriptors for it."""
    program = f"""exec 3<&0; setsid sh -c 'echo $$ >> children; {held}' &
until [ -s children ]; do :; done; echo '{{"key": "rsu/rsu-1/sign", "value": 1}}'"""
    async with opened(program, 'publishes = "rsu/*/sign"\ntimeout_s = 20') as node:
        heard = node.subscribe("rsu/*/sign")
        before = descriptors()
        try:
            for number in range(3):
                node.publish("rsu/rsu-1/hotspot", "x" * 200_000)  # more than a pipe holds
                assert (await heard.next(30)).value == 1
                await until(lambda called=number + 1: count(node, "called") == called, f"{node.statistics()}")
            assert count(node, "late") == 0
            await until(lambda: descriptors() <= before, "the pipes are closed")
        finally:
            for child in (node.folder / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


_PUBLISHING = """
import asyncio, meshnode, sys
async def main():
    async with meshnode.open(sys.argv[1]) as node:
        node.publish("rsu/rsu-1/hotspot", 1, unit="1", sensor="s", where=meshnode.Position(1.0, 2.0, 3.0))
        await asyncio.sleep(600)
asyncio.run(main())
"""


def test_call_of_a_killed_node_ends(tmp_path: Path) -> None:
    """Nobody was left who ended it after its time, so those of node after node gathered."""
    run = 'run = ["/bin/sh", "-c", "echo $$ > called; exec sleep 600"]'
    config = House(tmp_path).file(
        "rsu-1", f'[discovery]\nmdns = false\n[[function]]\nname = "f"\nkeys = "**"\n{run}\n', role="rsu"
    )
    called = config.parent / "called"
    with subprocess.Popen([sys.executable, "-c", _PUBLISHING, str(config)], env=environment()) as node:
        try:
            pid = int(eventually(lambda: called.exists() and called.read_text(), "it was called"))
            os.kill(pid, 0)
        finally:
            node.kill()
    eventually(lambda: _has_ended(pid), "it is gone")


def _has_ended(pid: int) -> bool:
    try:
        return _is_zombie(pid)
    except OSError:
        return True


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def test_closing_node_ends_a_call_under_way_and_does_not_wait_for_it(opened: Opened) -> None:
    async with opened("echo $$ > pid; sleep 300", "timeout_s = 300") as node:
        node.publish("rsu/rsu-1/hotspot", 1)
        pid_file = node.folder / "pid"
        await until(lambda: pid_file.exists() and pid_file.read_text().strip() != "", "it was called")
        pid, began_s = int(pid_file.read_text()), time.monotonic()
    assert time.monotonic() - began_s < 30
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("turns", [1, 3])
async def test_call_that_is_cancelled_while_its_program_starts_leaves_nothing_behind(
    tmp_path: Path, turns: int
) -> None:
    """The pipes are connected one after the other, and the program may have started something already."""
    before, program = descriptors(), ("/bin/sh", "-c", "sleep 300 & echo $! > child; wait")
    made = asyncio.create_task(call(program, tmp_path, b"", 300.0, 64))
    for _ in range(turns):
        await asyncio.sleep(0)
    child = _text_of(tmp_path / "child")
    made.cancel()
    await asyncio.wait((made,), timeout=30.0)
    try:
        assert made.cancelled()
        await until(lambda: descriptors() <= before, "the pipes are closed")
    finally:
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


def _text_of(path: Path) -> str:
    """What a program has written, if it does within half a second. The event loop does not go on meanwhile."""
    until_s = time.monotonic() + 0.5
    while not path.exists() or not path.read_text():
        if time.monotonic() > until_s:
            return ""
    return path.read_text()


async def test_readings_that_come_faster_than_calls_give_way_and_the_newest_is_called_for(opened: Opened) -> None:
    async with opened("cat >> calls", "max_waiting = 2\nmin_interval_ms = 100") as node:
        for number in range(50):
            node.publish("rsu/rsu-1/hotspot", number)
        await until(lambda: count(node, "called") + count(node, "gave_way") == 50, f"{node.statistics()}")
        assert count(node, "gave_way") >= 40
        assert '"value":49' in (node.folder / "calls").read_text().splitlines()[-1]


async def test_program_that_is_not_there_is_a_trouble_that_ends_once_it_is(opened: Opened) -> None:
    async with opened("exit 0") as node:
        path = node.folder / "program"
        path.rename(path.with_name("elsewhere"))
        node.publish("rsu/rsu-1/hotspot", 1)
        await until(lambda: count(node, "not_started") == 1, "it can't be started")
        assert "program can't be started" in node.troubles.current()[0].why
        path.with_name("elsewhere").rename(path)
        node.publish("rsu/rsu-1/hotspot", 2)
        await until(lambda: not node.troubles.current(), "the trouble has ended")


def test_program_that_is_a_link_is_started_by_its_own_name(tmp_path: Path) -> None:
    """The Python of a virtual environment is a link; started by what it points to, it had none of its packages."""
    (tmp_path / "python").symlink_to("/bin/sh")
    assert program_in(tmp_path, ["./python", "program.py"]) == [f"{tmp_path}/python", "program.py"]
    assert program_in(tmp_path, ["python", "./program.py"]) == ["python", "./program.py"]


def test_two_functions_of_one_name_are_refused(tmp_path: Path) -> None:
    table = '[[function]]\nname = "f"\nkeys = "a"\nrun = ["true"]\n'
    with pytest.raises(ConfigError, match=r"function\[1\].name = 'f': is used twice"):
        load(House(tmp_path).file("rsu-1", table + table))
