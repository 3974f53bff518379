"""The real relay of an emulation: ``cloud-relay`` in a network of its own, which nodes reach by the cellular model.

Its number comes after those of the nodes. Nodes of groups with ``relay = true`` send it a record of each of their
streams once a second. At the end its own audit judges what it holds.
"""

import json
import os
import selectors
import subprocess
from pathlib import Path
from typing import Any

from msgspec import Struct

from sims.emulator.namespaces import Network, address_of
from sims.emulator.nodes import MESH_RELAY, RELAY_PORT, end_process, last_words, launch, program
from sims.errors import EmulatorError
from sims.scenario.file import Scenario

_READY_S = 30.0
_AUDIT_S = 30.0


def has_relay(scenario: Scenario) -> bool:
    """Whether any node sends records to a relay."""
    return any(group.relay for group in scenario.groups)


class Account(Struct):
    """Records of one node, by what became of them."""

    origin: str
    issued: int
    stored: int
    adds_up: bool


class RealRelay:
    """One relay and its lives."""

    def __init__(self, number: int, network: Network, folder: Path) -> None:
        """``folder``: where its certificate is, and where its configuration is written."""
        self._network, self._folder = network, folder
        self._running: subprocess.Popen[bytes] | None = None
        self._config = folder / "relay.toml"
        self._config.write_text(f'[relay]\nid = "{MESH_RELAY}"\nhost = "{address_of(number)}"\nport = {RELAY_PORT}\n')

    def start(self) -> None:
        """Start its next life."""
        command = [*program("cloud-relay"), "run", "--config", str(self._config), "--log-level", "warning"]
        self._running = launch(command, self._network, errors=self._folder / "errors.log")

    def wait_until_ready(self) -> None:
        """Wait until the relay answers. :raises EmulatorError: when it is not ready in time."""
        assert self._running is not None, "start() comes first"
        assert self._running.stdout is not None, "launch() gives it a pipe"
        with selectors.DefaultSelector() as selector:
            selector.register(self._running.stdout, selectors.EVENT_READ)
            ready = selector.select(_READY_S) and b"ready" in os.read(self._running.stdout.fileno(), 4_096)
        if not ready:
            raise EmulatorError(f"the relay did not start: {last_words(self._folder / 'errors.log') or 'no word'}")

    def kill(self) -> None:
        """Kill it, as a power failure does."""
        if self._running is not None:
            end_process(self._running, 0.0)
            self._running = None

    def end(self, patience_s: float) -> None:
        """Have it finish, and kill it after ``patience_s``."""
        if self._running is not None:
            self._running.terminate()
            end_process(self._running, patience_s)
            self._running = None

    def accounts(self) -> list[Account]:
        """What it holds of each node. :raises EmulatorError: when its store can't be read."""
        command = [*program("cloud-relay"), "audit", "--config", str(self._config), "--json"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_AUDIT_S, check=False)  # noqa: S603 - our own
            told: dict[str, Any] = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise EmulatorError(f"the relay's store can't be audited: {error}") from error
        return [
            Account(entry["origin"], entry["issued"], entry["stored"], entry["adds_up"]) for entry in told["origins"]
        ]
