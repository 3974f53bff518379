"""The receiving thread gets the priority that was asked for, or says why not."""

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from meshnode.links.express.engine import open_express
from tests.tools.link_fixture import MESH, Recorder, given_ca, given_pki  # noqa: F401 -- fixtures

AS_NOBODY = """
import os, resource
from meshnode.links.priority import raise_priority  # while it may read where Python is
policy = os.sched_getscheduler(0)
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
print(raise_priority("normal"))
print(raise_priority("high"))
print(raise_priority("realtime"))
print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0) == policy)
"""
OURS, POLICY = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
"""Of these tests: whoever starts them may have given them another priority than usual."""


@pytest.mark.processes
def test_priority_that_is_not_allowed_is_told_with_the_way_out() -> None:
    """A node without privileges runs all the same; its operator learns what to allow."""
    done = subprocess.run([sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, check=True, timeout=30)
    normal, high, realtime, left = done.stdout.splitlines()
    assert normal == "None"
    assert "LimitNICE=-10" in high
    assert "LimitRTPRIO=5" in realtime
    assert left == f"{OURS} True"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise priorities everywhere")
@pytest.mark.parametrize(
    ("priority", "nice", "policy"),
    [("normal", OURS, POLICY), ("high", -10, POLICY), ("realtime", OURS, os.SCHED_RR)],
)
def test_priority_is_the_receiving_threads_alone(pki: Any, priority: Any, nice: int, policy: int) -> None:
    """Inference beside it must not hold up the computer: only what receives goes first."""
    told = Recorder()
    links = open_express(pki("a"), told, MESH, priority=priority)
    try:
        done = threading.Event()
        links.post(done.set)  # its priority is set by then
        assert done.wait(30)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "mesh-io"]
        assert thread.native_id is not None
        assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == nice
        assert os.sched_getscheduler(thread.native_id) & ~os.SCHED_RESET_ON_FORK == policy
        own = threading.get_native_id()
        assert (os.getpriority(os.PRIO_PROCESS, own), os.sched_getscheduler(own)) == (OURS, POLICY)
    finally:
        links.close()
