"""gpsd itself, listening to a device for as long as it is wanted."""

import shutil
import socket
import subprocess
import time

GPSD = shutil.which("gpsd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


class Gpsd:
    """One process at a time, on one port."""

    def __init__(self, port: int, *devices: str) -> None:
        self.port, self.devices = port, devices
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert GPSD is not None, "gpsd is installed"
        asked = [GPSD, "-N", "-n", "-b", "-S", str(self.port), *self.devices]
        self._process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends_s = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, "gpsd ended"
                assert time.monotonic() < ends_s, "gpsd does not listen"
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """End it without a word. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
