"""Where emulations are possible, and what is left of them."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sims.emulator.namespaces import TUN
from sims.emulator.run import emulate
from sims.results.result import Result
from sims.scenario.file import Scenario

POSSIBLE = sys.platform == "linux" and os.geteuid() == 0 and TUN.exists()
WHY_NOT = "the emulator needs Linux, root and /dev/net/tun"
as_root = pytest.mark.skipif(not POSSIBLE, reason=WHY_NOT)


def emulation(scenario: Scenario, folders: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One run with real nodes, and their journals; skips where that is impossible."""
    if not POSSIBLE:
        pytest.skip(WHY_NOT)
    journals = folders.mktemp("journals")
    return emulate(scenario, 1, keep=journals), journals


def wait(condition: Callable[[], bool], what: str, for_s: float = 20.0) -> None:
    """Until it holds."""
    deadline_s = time.monotonic() + for_s
    while not condition():
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.02)


def processes_below(folder: str) -> list[int]:
    """Ids of processes that have ``folder`` in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if folder.encode() in command and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


def children_of(process: int) -> list[int]:
    """Ids of the processes that a process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            if parent == process:
                found.append(int(entry.parent.name))
    return found


def command_of(process: int) -> str:
    """Its command line; nothing when it has ended, even if nobody has asked yet how."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
