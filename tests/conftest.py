"""What holds for every test: Hypothesis judges outcomes, not speed, and says how to replay a failure; Ctrl-C works.

`make test` runs the files side by side, one worker a file: the longest first, traced for coverage only where that adds
something. A test that starts a process says so by its mark, which `make test-quick` leaves out.
"""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "house",
    deadline=None,  # the machine is shared: a slow example says nothing about the code
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("house")

# A shell that starts the tests in the background has them ignore interrupts, and so would every program they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test pulls the plug, so nothing waits for the disk here; a wrong descriptor is still an error. What a loss of power
# leaves is tried with benchmarks.failing_disk. Processes that tests start do wait.
os.fsync = os.fstat  # type: ignore[assignment]

HERE = Path(__file__).parent
LONGEST_FIRST = (
    "sims/runs/test_sweep_ray.py", "sims/checks/test_random_faults.py", "system/test_demo.py",
    "system/test_demo_update.py",
    "system/test_benchmarks.py", "sims/checks/test_checks.py", "meshnode/cli/test_cli.py",
    "meshnode/inference/console/test_infer_command.py",
    "meshnode/links/test_links.py", "system/test_bad_input.py", "system/test_fleet.py",
    "sims/emulator/test_emulator.py", "system/test_mesh.py", "sims/emulator/test_emulator_faults.py",
    "sims/world/test_sim_records.py", "sims/runs/test_sim_run.py", "meshnode/links/test_mdns.py",
    "sims/runs/test_sweep.py", "cloud_relay/test_relay_kill.py", "system/test_churn.py", "sims/report/test_report.py",
    "system/test_docs.py", "protocols/wire/test_codec.py", "protocols/membership/test_membership.py",
    "meshnode/links/test_link_trust.py", "meshnode/test_node_life.py", "system/test_fuzz.py",
    "meshnode/sensors/test_sensing.py",
    "meshnode/models/cutting/test_real_cuts.py", "meshnode/models/cutting/test_cuts.py",
    "meshnode/models/cutting/test_stage_folder.py", "meshnode/inference/console/test_split_command.py",
    "meshnode/discovery/test_following.py", "system/test_wandering.py", "meshnode/inference/test_streams.py",
    "meshnode/releases/test_releases_node.py", "meshnode/releases/test_campaigns.py",
    "meshnode/releases/test_models_command.py", "meshnode/releases/install/test_installer.py",
    "meshnode/releases/test_deltas_node.py", "cloud_relay/releases/test_process.py", "sims/world/test_sim_releases.py",
    "cloud_relay/sinks/test_sink_kill.py", "cloud_relay/sinks/test_kafka_sink.py", "system/test_demo_learning.py",
    "cloud_relay/http/test_description.py", "meshnode/sensors/gnss/test_receivers.py", "meshnode/mqtt/test_mqtt.py",
    "meshnode/sensors/camera/test_camera.py", "cloud_relay/learning/retraining/test_watching.py",
    "sims/world/test_full_channel.py",
)  # fmt: skip
"""Files that take more than about eight seconds: begun last, one of them would keep one worker busy and the others
idle. Those that are not named here follow as they are found."""
TRACED = (
    "protocols", "meshnode/gossip", "meshnode/identity", "meshnode/inference", "meshnode/local", "meshnode/readings",
    "meshnode/records", "meshnode/test_node_api.py", "sims/checks/test_checks.py", "sims/world", "system/test_abuse.py",
    "system/test_bad_input.py",
)  # fmt: skip
"""Where the coverage of ``protocols/`` comes from: when the list was made, all other tests together reached no line and
no branch beside. Tracing makes a simulation twice as slow."""
UNTRACED = ("test_worst_frame.py", "test_worst_frames.py", "test_full_channel.py")
"""Files that bound processor time, which tracing would lengthen (one that counts steps is not among them), and jams,
which reach no line that the tests of pace and queues don't reach."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: about half of the time is spent waiting for processes, timers and links."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_sessionfinish() -> None:
    """A test that failed may have left the store of a relay open, whose threads would keep this process for ever."""
    if (relays := sys.modules.get("tests.tools.relay_fixture")) is not None:
        relays.close_stores()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first. The tests of one file keep their order, and their shared fixtures."""
    order = {HERE / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


# --- coverage --------------------------------------------------------------------------------------------------------
class _Tracing:
    """Switches off the measurement that pytest-cov has begun, where it is not wanted, and on again."""

    def __init__(self) -> None:
        """Once it has begun; what is switched off is no longer the current one."""
        self._measurement = coverage.Coverage.current()
        self._places = tuple(HERE / name for name in TRACED)
        self._on = True

    def follow(self, item: pytest.Item) -> None:
        """Before a test and its fixtures."""
        wanted = any(item.path.is_relative_to(place) for place in self._places) and item.path.name not in UNTRACED
        if self._measurement is not None and wanted is not self._on:
            (self._measurement.start if wanted else self._measurement.stop)()
            self._on = wanted


_tracing = pytest.StashKey[_Tracing]()


# --- processes -------------------------------------------------------------------------------------------------------
_now: list[pytest.Item] = []


def _marked(starter: Callable[..., Any]) -> Callable[..., Any]:
    """``starter``, which refuses to start a process for a test without the mark.

    An audit hook would see all ways to start one, but in Python 3.11 it makes two threads that begin to be traced at
    the same time fail ("Cannot install a trace function while another trace function is being installed").
    """

    @functools.wraps(starter)
    def start(*arguments: Any, **options: Any) -> Any:
        if _now and _now[-1].get_closest_marker("processes") is None:
            raise AssertionError(f"{_now[-1].nodeid} starts a process: give it @pytest.mark.processes")
        return starter(*arguments, **options)

    return start


subprocess.Popen.__init__ = _marked(subprocess.Popen.__init__)  # type: ignore[method-assign]
os.posix_spawn, os.fork = _marked(os.posix_spawn), _marked(os.fork)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around a test and the fixtures that it sets up or tears down."""
    if _tracing not in item.config.stash:
        item.config.stash[_tracing] = _Tracing()
    item.config.stash[_tracing].follow(item)
    _now.append(item)
    try:
        return (yield)
    finally:
        _now.pop()
