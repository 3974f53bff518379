"""The processes of a demonstration: nodes and a relay, which tell what they do in lines of JSON."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import IO, Any, Final

RELAY: Final = "relay-1"
_GIVEN_AWAY: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
GRACE_S: Final = 30.0
"""A process that was told to stop is killed after this time. It is long enough for a slow machine, because no promise
is about how fast a node stops."""


class Processes:
    """Owns every process; none outlives :meth:`close`. Its methods are called from one thread."""

    def __init__(self, folder: Path, take: Callable[[str, dict[str, Any]], None]) -> None:
        """``take`` is called with the name of a process and each line that it prints, on a thread for each process."""
        self._folder, self._take = folder, take
        self._running: dict[str, subprocess.Popen[str]] = {}
        paths = (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))
        self._environment = {
            **os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }  # fmt: skip

    def start(self, name: str, arguments: list[str], log: IO[str]) -> None:
        """Start a process of this interpreter. ``log`` takes what it logs, and is closed here."""
        with log:
            process = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        self._running[name] = process
        threading.Thread(target=self._read, args=(name, process), daemon=True).start()

    def start_relay(self) -> None:
        """Start or restart the relay."""
        home = self._folder / RELAY
        arguments = ["-m", "cloud_relay", "run", "--config", str(home / "relay.toml"), "--log-level", "warning"]
        self.start(RELAY, arguments, (home / "log.txt").open("a"))

    def _read(self, name: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with suppress(json.JSONDecodeError):
                    self._take(name, json.loads(line))

    def kill(self, name: str) -> None:
        """Send SIGKILL, so that the process ends without a goodbye or a flush."""
        process = self._running[name]
        process.kill()
        process.wait()
        del self._running[name]

    def terminate(self, name: str) -> None:
        """Send SIGTERM. Call :meth:`wait` afterwards."""
        self._running[name].terminate()

    def wait(self, name: str) -> int:
        """Wait for a process that was told to end. Returns its exit status; one that hangs is killed."""
        process = self._running[name]
        try:
            status = process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = -signal.SIGKILL
        del self._running[name]
        return status

    def ended(self) -> Mapping[str, int]:
        """The exit statuses of processes that ended although nobody told them to, by name."""
        return {name: status for name, process in self._running.items() if (status := process.poll()) is not None}

    def close(self) -> None:
        """Kill all processes that still run."""
        for name in list(self._running):
            self.kill(name)


def free_port() -> int:
    """A TCP port of this host that is free now. The relay needs a fixed one, because it comes back on the same port.

    It is none of those that the kernel gives to whoever asks for any port: one of these may be somebody's when the
    relay comes back. And a client that tries one while nobody listens there is at last connected with itself.
    """
    given = int(_GIVEN_AWAY.read_text().split()[0]) if _GIVEN_AWAY.exists() else 32_768
    ports = range(10_000, given) if given > 11_000 else range(given, 65_536)
    while True:
        port = SystemRandom().choice(ports)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
