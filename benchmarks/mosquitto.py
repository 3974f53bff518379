"""mosquitto itself, in a folder and on a port of its own, for as long as it is wanted."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from demo.processes import free_port

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


class Mosquitto:
    """One process at a time, which keeps its sessions over a restart."""

    def __init__(self, folder: Path, *settings: str) -> None:
        """``settings``: further lines of its configuration; by default anybody may connect."""
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1", "user root", "persistence true", f"persistence_location {folder}/",
            "max_queued_messages 0", "log_dest none", *(settings or ("allow_anonymous true",)),
        ]  # fmt: skip
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert MOSQUITTO is not None, "mosquitto is installed"
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        ends_s = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, "mosquitto ended: is its configuration right?"
                assert time.monotonic() < ends_s, "mosquitto does not listen"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it in order, so that it writes its sessions down. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None
