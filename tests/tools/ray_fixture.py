"""A real Ray cluster of two machines, which are two addresses of this one; nothing of it leaves this host.

Ray comes from an environment of its own, made by ``.ci/ray``, that knows nothing of pytest.
"""

import contextlib
import os
import secrets
import socket
import subprocess
from pathlib import Path

import psutil

from tests.tools.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "ray" / "bin"
HEAD, OTHER = "127.0.0.2", "127.0.0.3"
"""Ray replaces 127.0.0.1 by an address that others can reach."""
_START_S = 150
_STARTS = 3
"""Ray gives up a start after 45 s, which a computer with much else to do may need."""


class Cluster:
    """Two machines with a processor each. ``environment``: the environment of a process that joins."""

    def __init__(self, folder: Path) -> None:
        """``folder`` must have a short name, because sockets are in it."""
        self._folder = folder
        # Without this file the head would ask metadata services of clouds for its name. It also tells Ray's makers
        # that reports are off, for which it gets port 9, where nobody listens.
        (folder / "ray_bootstrap_config.yaml").write_text("{}\n")
        self.environment = os.environ | {
            "HOME": str(folder), "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        }  # fmt: skip
        for tries_left in reversed(range(_STARTS)):
            with socket.create_server((HEAD, 0)) as free:
                port = free.getsockname()[1]
            self.address = f"{HEAD}:{port}"
            self._machines: list[subprocess.Popen[bytes]] = []
            try:
                self._start(HEAD, "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
                self._start(OTHER, f"--address={self.address}")
            except BaseException as error:
                self.close()
                if not tries_left or not isinstance(error, AssertionError):
                    raise
            else:
                return

    def _start(self, host: str, *arguments: str) -> None:
        told = self._folder / f"{host}.txt"
        command = [BIN / "ray", "start", "--block", "--num-cpus=1", f"--node-ip-address={host}", *arguments]
        with told.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
            )
        self._machines.append(process)

        def started() -> bool:
            assert process.poll() is None, told.read_text("utf-8")
            return "Ray runtime started" in told.read_text("utf-8")

        eventually(started, lambda: f"Ray starts: {told.read_text('utf-8')}", _START_S)

    def workers(self, machine: int) -> list[psutil.Process]:
        """The processes of a machine (0: the head) that make a run now."""
        found = []
        for process in psutil.Process(self._machines[machine].pid).children(recursive=True):
            try:
                if process.cmdline()[:1] == ["ray::_compute_there"]:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def close(self) -> None:
        """End all processes of the cluster, by their ids: ``ray stop`` would end every Ray of this host."""
        families = [
            member
            for machine in self._machines
            if machine.poll() is None
            for member in psutil.Process(machine.pid).children(recursive=True)
        ]
        for machine in self._machines:
            machine.kill()
            machine.wait()
        for member in families:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
