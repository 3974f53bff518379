"""Child processes of ours that run a module of this package: how one is started, and how it ends.

A child runs ``python -m MODULE``. ``multiprocessing`` is not used: it imports the program of the parent again in each
child. Nothing forks but the process that starts the workers of models (:mod:`meshnode.models.worker.forking`).
"""

import ctypes
import os
import signal
import sys
import sysconfig
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_FOLDER: Final = str(Path(__file__).resolve().parents[2])
"""Where the package is, whatever the working directory."""
_IS_INSTALLED: Final = _FOLDER in sysconfig.get_paths().values()
"""Then it is found anyway, and behind the standard library."""
_MEMORY_WORDS: Final = ("Failed to allocate memory", "bad_alloc", "MemoryError", "Unable to allocate")
"""What ONNX Runtime, C++ and NumPy say when they get no memory."""


def child_command(module: str, *arguments: object) -> list[str]:
    """The command that runs a module in a child."""
    return [sys.executable, "-P", "-X", "faulthandler", "-m", module, *map(str, arguments)]


def child_environment() -> dict[str, str]:
    """The environment in which a child finds this package."""
    environment = dict(os.environ)
    if not _IS_INSTALLED:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (_FOLDER, environment.get("PYTHONPATH"))))
    return environment


def end_with(parent: int) -> None:
    """Have the kernel end this process when the thread that started it ends. ``parent``: the id of its process."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this process could ask for the signal
        os._exit(0)


def how_it_exited(status: int) -> str:
    """How a process ended, for people. ``status``: of ``subprocess``, where signals are negative."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    more = ", which the kernel sends when memory runs out" if -status == signal.SIGKILL else ""
    return f"crashed ({name}{more})"


def is_about_memory(error: BaseException) -> bool:
    """Whether an error in a child, or what caused it, is that its limit of memory was reached."""
    while True:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY_WORDS):
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__
