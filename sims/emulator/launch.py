"""Starts one program inside a network namespace, bound to the life of the harness.

    python launch.py PARENT NAMESPACE MOUNTS URGENCY PROGRAM [ARGUMENT …]

``PARENT``: the process id of the harness. When the harness ends, however it ends, the kernel kills the program
(PR_SET_PDEATHSIG, which exec keeps). ``NAMESPACE`` and ``MOUNTS``: inherited descriptors of a network namespace and of
a mount namespace, or -1 to stay. ``URGENCY``: the priority among what runs before all other processes of this host
(``SCHED_RR``, where that is allowed), because an emulated computer does not share its processor with other work, and
the air does not wait; 0: first among processes that take turns. This is a program of its own, because code between
fork and exec of a process with threads may deadlock.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_NICE = -20


def _launch(parent: int, namespace: int, mounts: int, urgency: int, command: list[str]) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the program can't be bound to the life of the harness")
    if os.getppid() != parent:  # the harness ended before the signal was set
        sys.exit(1)
    for descriptor, kind, what in ((namespace, _CLONE_NEWNET, "network"), (mounts, _CLONE_NEWNS, "mount")):
        if descriptor >= 0:
            if library.setns(descriptor, kind):
                raise OSError(ctypes.get_errno(), f"the {what} namespace can't be entered")
            os.close(descriptor)
    with contextlib.suppress(OSError):  # the report says how late the wire was
        os.sched_setscheduler(0, os.SCHED_RR if urgency else os.SCHED_OTHER, os.sched_param(urgency))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
        # Each session is a group of its own for the scheduler, and the nice value counts within it only.
        with open("/proc/self/autogroup", "w") as autogroup:
            autogroup.write(str(_NICE))
    os.execv(command[0], command)  # noqa: S606 - its arguments are the harness's own


if __name__ == "__main__":
    _launch(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
