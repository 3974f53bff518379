"""Emulations for tests, and the processes that may be left of them."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sims.emulator.namespaces import TUN
from sims.emulator.run import emulate
from sims.results.result import Result
from sims.scenario.file import Scenario

POSSIBLE = sys.platform == "linux" and os.geteuid() == 0 and TUN.exists()
WHY_NOT = "the emulator needs Linux, root and /dev/net/tun"
ATTEMPTS = 4
as_root = pytest.mark.skipif(not POSSIBLE, reason=WHY_NOT)


def emulation(
    scenario: Scenario, folders: pytest.TempPathFactory, undisturbed: Callable[[Result], bool]
) -> tuple[Result, Path]:
    """Make a run with real nodes, and return its result and the folder of journals. The test is skipped where that is
    impossible.

    An emulation runs in real time, so other programs can spoil it, and then it says so. It is made again until it is
    ``undisturbed``, a few times at most. A fault of ours would show in every run.
    """
    if not POSSIBLE:
        pytest.skip(WHY_NOT)
    for _ in range(ATTEMPTS):
        journals = folders.mktemp("journals")
        result = emulate(scenario, 1, keep=journals)
        if undisturbed(result):
            break
    return result, journals


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
    """The command line of a process. It is empty when the process has ended, even if nobody has waited for it yet."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
