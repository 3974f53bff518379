"""Groups of processes: a program that the node runs, and all that it has started."""

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

_KILLS: Final = 40
"""How often a group is killed before its rest is left alone: for four seconds."""
_LIMITED: Final = 'ulimit -d "$0" && ulimit -c 0 && exec "$@"'
"""A script for ``/bin/sh -c`` that sets ``RLIMIT_DATA`` to its first argument, in KiB, and becomes the program that the
others name. Limits that are set from outside come too late for what a program starts at once."""


async def kill_group(leader: int) -> None:
    """Kill a process group until nobody is left in it: a shell that is just starting something was seen to leave that
    behind when the group was killed once. ``leader``: the process whose number the group has."""
    for attempt in range(_KILLS):
        try:
            os.killpg(leader, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nobody is left, or what is left has another user
            break
        await asyncio.sleep(min(0.001 * 2**attempt, 0.1))


def limited(program: Sequence[str], memory_mib: int, *before: str) -> list[str]:
    """The command that becomes ``program``, behind ``before``, with its memory limited. When the thread that starts it
    ends, with the node, the kernel kills its process, where ``setpriv`` of util-linux is installed: nobody is left who
    would end it after its time."""
    tied = ("setpriv", "--pdeathsig", "KILL") if _setpriv() else ()
    return ["/bin/sh", "-c", _LIMITED, str(memory_mib * 1_024), *before, *tied, *program]


@cache
def _setpriv() -> str | None:
    return shutil.which("setpriv")


def program_in(folder: Path, run: Sequence[str]) -> list[str]:
    """A program and its arguments: one with a ``/`` in its name is found from ``folder``, others on the search path.
    Links stay as they are: the Python of a virtual environment is one, and finds its packages by its name."""
    first, *rest = run
    return [str(folder.absolute() / first) if os.sep in first else first, *rest]
