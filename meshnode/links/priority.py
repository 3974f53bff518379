"""The priority of the receiving thread, so that readings don't wait for other programs of a busy computer."""

import os
import threading
from typing import Literal

Priority = Literal["normal", "high", "realtime"]

_NICE = -10
"""A higher priority than that of ordinary programs, and lower than that of the kernel's own threads."""
_REALTIME_PRIORITY = 5
"""From 1 to 99: above all ordinary programs, below device drivers and sound."""


def raise_priority(priority: Priority) -> str | None:
    """Give the calling thread its priority. Returns the reason when the system does not allow it."""
    try:
        if priority == "realtime":
            # a round-robin thread that never sleeps is stopped by the kernel after 95 % of each second
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_REALTIME_PRIORITY))
        elif priority == "high":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    except OSError as error:
        limit = "LimitRTPRIO=5" if priority == "realtime" else "LimitNICE=-10"
        return f"the receiving thread keeps its ordinary priority ({error.strerror}): allow {limit} in its systemd unit"
    return None
