"""Real nodes for tests: certificates, a configuration, and ``meshnode run`` as a process on loopback."""

import http.client
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from meshnode.identity import create_mesh, issue
from tests.tools.eventually import eventually

START_S = 90.0
"""What starts has to load libraries and to warm up models, beside tests that do the same."""
_POSITION = "position = { latitude_deg = 48.7661, longitude_deg = 11.4298, accuracy_m = 3.0 }"
PATIENT_INFERENCE = "[inference]\ndeadline_ms = 60_000\n"
"""A deadline that no test reaches: that of a node is as short as a stall of a busy machine."""
PATIENT_MEMBERSHIP = "[membership]\nsuspect_after_silence_ms = 60_000\n"
ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """The environment of the tests, with which a child finds the packages wherever it runs."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def meshnode(
    *arguments: str | Path, timeout_s: float = 120.0, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "meshnode.cli", *map(str, arguments)],
        env=environment(), cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def prepare(folder: Path, node: str, role: str, tables: str = "", seeds: tuple[int, ...] = ()) -> Path:
    """Issue a certificate and write a configuration without mDNS and with free ports. Returns its path."""
    authority = folder / "authority"
    if not authority.exists():
        create_mesh(authority, "test")
    home = folder / node
    issue(authority, role, node, home)
    addresses = ", ".join(f'"127.0.0.1:{port}"' for port in seeds)
    config = home / "node.toml"
    http_table = "" if "[http]" in tables else "[http]\nport = 0\n"
    inference_table = "" if "[inference]" in tables else PATIENT_INFERENCE
    config.write_text(
        f'[node]\nid = "{node}"\n{_POSITION}\n[listen]\nhost = "127.0.0.1"\n'
        f"[discovery]\nmdns = false\nseeds = [{addresses}]\n{http_table}{inference_table}{tables}"
    )
    return config


@dataclass
class RunningNode:
    """A process of ``meshnode run`` whose ready line has come."""

    config: Path
    program: str = "meshnode.cli"
    """The module that is run: ``meshnode`` itself, or a program with more parts."""
    process: "subprocess.Popen[str]" = field(init=False)
    ready: str = field(init=False)
    port: int = field(init=False)
    http_port: int = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.config.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.program, "run", str(self.config)],
                env=environment(), stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.ready = self._first_line()
        words = self.ready.split()
        self.port = int(words[4])
        self.http_port = 0 if words[6] == "off" else int(words[6])

    def _first_line(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(START_S) else ""
        if not line.startswith("ready "):
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            raise AssertionError(f"{self.config} did not start: {line!r} {self.log.read_text()}")
        return line

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Make an HTTP request. Returns status, headers in lower case, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON at a path, which must exist."""
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, content: Any) -> tuple[int, Any]:
        """Post a JSON body. Returns the status and the JSON of the answer."""
        status, _, body = self.ask("POST", path, json.dumps(content), {"Content-Type": "application/json"})
        return status, json.loads(body)

    @property
    def grpc_port(self) -> int:
        """Where its gRPC endpoint listens."""
        return int(self.get("/v1/node")["grpc_port"])

    def met(self, node: str) -> bool:
        """Whether that neighbour is alive and both directions of the link to it are open."""
        return any(p["node"] == node and p["met"] and p["state"] == "alive" for p in self.get("/v1/peers"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it, if it still runs, and wait for its end. Returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def pair(folder: Path, rsu_tables: str = "", vehicle_tables: str = "") -> Iterator[tuple[RunningNode, RunningNode]]:
    """Start ``rsu-1`` and ``veh-1``, and wait until they have met. Neither suspects the other one of being dead because
    it stalls for some seconds."""
    rsu_tables, vehicle_tables = (f"{PATIENT_MEMBERSHIP}{tables}" for tables in (rsu_tables, vehicle_tables))
    with (
        RunningNode(prepare(folder, "rsu-1", "rsu", rsu_tables)) as rsu,
        RunningNode(prepare(folder, "veh-1", "vehicle", vehicle_tables, (rsu.port,))) as vehicle,
    ):
        eventually(lambda: vehicle.met("rsu-1") and rsu.met("veh-1"), "the two nodes meet")
        yield rsu, vehicle
