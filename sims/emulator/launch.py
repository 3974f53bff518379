"""Starts one program inside a network namespace, bound to the life of the harness.

    python launch.py PARENT NAMESPACE REALTIME PROGRAM [ARGUMENT …]

``PARENT``: process id of the harness; when it ends, however it ends, the kernel kills the program (PR_SET_PDEATHSIG,
which exec keeps). ``NAMESPACE``: an inherited descriptor, or -1 to stay. ``REALTIME``: 1 to run before all other
processes of the host where that is allowed. A program of its own, for code between fork and exec of a process with
threads may deadlock.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000


def _launch(parent: int, namespace: int, realtime: bool, command: list[str]) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the program can't be bound to the life of the harness")
    if os.getppid() != parent:  # it ended before we asked to be told
        sys.exit(1)
    if namespace >= 0:
        if library.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "the network namespace can't be entered")
        os.close(namespace)
    if realtime:
        with contextlib.suppress(OSError):  # the wire says in its report how it ran
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    os.execv(command[0], command)  # noqa: S606 - its arguments are the harness's own


if __name__ == "__main__":
    _launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4:])
