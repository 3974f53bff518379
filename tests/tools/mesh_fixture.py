"""Whole nodes for tests: in this process through the public API, and as processes that print what happens to them.

``python -m tests.tools.mesh_fixture node.toml`` is such a process: it prints a line of JSON for every event and every
reading of others, and obeys the lines on its standard input (see ``_obey``). It ends by SIGTERM, or when its input
ends, so that it never outlives the test that started it.

Its fixtures are ``house`` and ``opened``: import ``given_house`` and ``given_opened`` where they are used.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest

import meshnode
from meshnode.config.sections import (
    AccessSection,
    DiscoverySection,
    IdentitySection,
    ListenSection,
    LogSection,
    MembershipSection,
    NodeConfig,
    NodeSection,
)
from meshnode.http.section import HttpSection
from meshnode.identity import create_mesh, issue
from meshnode.inference.section import InferenceSection, ModelSection, ModelsSection
from meshnode.links.transport import Address
from protocols.access import AccessRule
from protocols.base.effects import Event
from protocols.base.errors import MeshError
from protocols.base.ids import node_id
from protocols.wire.readings import Position, Reading
from tests.tools.eventually import LIMIT_S, eventually, until
from tests.tools.hub_fixture import enter
from tests.tools.node_fixture import PATIENT_INFERENCE, START_S, environment

HERE = Position(48.7661, 11.4298, 3.0)
_INFERENCE, _MEMBERSHIP = InferenceSection(deadline_ms=60_000), MembershipSection()
_POSITION = "position = { latitude_deg = 48.7661, longitude_deg = 11.4298, accuracy_m = 3.0 }"
_numbers = itertools.count()


class House:
    """Certificates and configurations of one mesh, whose name no other test has: mDNS reaches beyond a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mesh = f"test-{os.getpid()}-{next(_numbers)}"
        create_mesh(folder / "authority", self.mesh)

    def home(self, node: str, role: str = "vehicle") -> Path:
        """The folder with the node's certificate."""
        home = self.folder / node
        if not home.exists():
            issue(self.folder / "authority", role, node, home)
        return home

    def config(
        self, node: str, *seeds: int, role: str = "vehicle", engine: str = "express", where: Position | None = HERE,
        models: Mapping[str, ModelSection] | None = None, rules: tuple[AccessRule, ...] | None = None,
        inference: InferenceSection = _INFERENCE, membership: MembershipSection = _MEMBERSHIP,
    ) -> NodeConfig:  # fmt: skip
        """A node without mDNS and HTTP, to be opened in this process."""
        home = self.home(node, role)
        return NodeConfig(
            node=NodeSection(id=node_id(node), state_dir=home / "state", position=where),
            identity=IdentitySection.in_folder(home, node),
            listen=ListenSection(link_engine=engine, host="127.0.0.1"),  # type: ignore[arg-type]
            discovery=DiscoverySection(mdns=False, seeds=tuple(Address("127.0.0.1", port) for port in seeds)),
            membership=membership,
            access=AccessSection(rules=rules),
            log=LogSection(level="warning"),
            sections=(HttpSection(enabled=False), ModelsSection(models=models or {}), inference),
        )

    def file(self, node: str, tables: str = "", *, role: str = "vehicle", mdns: bool = True) -> Path:
        """Write a configuration file of a node on loopback. Returns its path."""
        path = self.home(node, role) / "node.toml"
        discovery = 'interfaces = ["127.0.0.1"]' if mdns else "mdns = false"
        path.write_text(
            f'[node]\nid = "{node}"\n{_POSITION}\n'
            f'[listen]\nhost = "127.0.0.1"\nadvertise = ["127.0.0.1"]\n[http]\nenabled = false\n'
            + ("" if "[inference]" in tables else PATIENT_INFERENCE)
            + (tables if "[discovery]" in tables else f"[discovery]\n{discovery}\n{tables}")
        )
        return path


# --- nodes in this process -------------------------------------------------------------------------------------------
Open = Callable[..., Any]


@pytest.fixture(scope="module", name="house")
def given_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(name="opened")
async def given_opened(house: House) -> AsyncIterator[Open]:
    """Open a node that is closed after the test: ``await opened("veh-1", other.port, role=…)``."""
    async with AsyncExitStack() as stack:

        async def make(node: str, *seeds: int, **options: Any) -> meshnode.Node:
            return await stack.enter_async_context(meshnode.open(house.config(node, *seeds, **options)))

        yield make


async def pair(opened: Open, rsu: str = "express", vehicle: str = "express") -> tuple[meshnode.Node, meshnode.Node]:
    """Open ``rsu-1`` and ``veh-1``, and wait until they have met."""
    here = await opened("rsu-1", role="rsu", engine=rsu)
    there = await opened("veh-1", here.port, engine=vehicle)
    await asyncio.gather(here.wait_for_peers(1), there.wait_for_peers(1))
    return here, there


async def wanted(publisher: meshnode.Node, key: str, count: int = 1) -> None:
    """Wait until ``count`` neighbours of ``publisher`` have said that they want ``key``."""
    await until(lambda: len(publisher.driver.engine.readings.wanted_by(key)) == count, f"{count} neighbours want {key}")


def dropped(node: meshnode.Node, reason: str) -> int:
    return sum(count for (_, _, why), count in node.drops() if why == reason)


# --- a node as a process ---------------------------------------------------------------------------------------------
class Member:
    """A child process with a node in it, and every line that it printed."""

    def __init__(self, config: Path, namespace: int | None = None) -> None:
        """``namespace``: the descriptor of the network namespace in which it runs; None: that of the test."""
        self.name = config.parent.name
        self.started_s = time.time()
        self.log = config.with_suffix(".log")
        inherited = () if namespace is None else (namespace,)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.tools.mesh_fixture", str(config), *map(str, inherited)],
                env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                pass_fds=inherited,
            )  # fmt: skip
        self.said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def heard(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines of a kind that have these values."""
        wanted = {"kind": kind, **fields}.items()
        return [
            line for line in list(self.said) if wanted <= {k: v for k, v in line.items() if k in dict(wanted)}.items()
        ]

    def wait_for(self, kind: str, *, since: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait for such a line, and return it. The first ``since`` of them are left out."""

        def found() -> list[dict[str, Any]]:
            lines = self.heard(kind, **fields)[since:]
            assert lines or self.process.poll() is None, f"{self.name} ended: {self.log.read_text()[-2_000:]}"
            return lines

        what, limit_s = f"{self.name} says {kind} {fields}", START_S if kind == "up" else LIMIT_S
        return eventually(found, lambda: f"{what}, not only {self.said[-20:]}", limit_s)[0]

    def tell(self, verb: str, *arguments: Any) -> None:
        """Send an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self.process.stdin.flush()

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Send an order and wait for its answer."""
        number = next(_numbers)
        self.tell(verb, *arguments, number)
        return self.wait_for("answer", number=number)["value"]

    def alive(self) -> set[str]:
        """The neighbours that it has met and that it considers alive."""
        return {peer["node"] for peer in self.ask("peers") if peer["met"] and peer["state"] == "alive"}

    @property
    def port(self) -> int:
        """The port of its inbox."""
        return int(self.wait_for("up")["port"])

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it if it still runs, and wait for its end. Returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(30)
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not (self.process.stdin and self.process.stdin.closed):
            self.end(signal.SIGKILL)


# --- the program of that process -------------------------------------------------------------------------------------
def _say(kind: str, **fields: Any) -> None:
    line = json.dumps({"at": time.time(), "kind": kind, **fields}, default=str)
    print(line + "\n", end="", flush=True)  # one call writes the whole line, because events come on several threads


def _happened(event: Event) -> None:
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name != "outputs"}
    _say(type(event).__name__, **{**fields, "kind_of": type(event).__name__})


def _received(reading: Reading) -> None:
    _say("reading", key=reading.key, origin=reading.origin, sequence=reading.sequence, value=reading.value)


def _obey(node: meshnode.Node, order: list[Any]) -> None:
    match order:
        case ["publish", str(key), value, int(number)]:
            _say("answer", number=number, value=node.publish(key, value).queued)
        case ["peers", int(number)]:
            peers = [
                {
                    "node": p.node,
                    "state": p.state,
                    "met": p.met,
                    "incarnation": p.incarnation,
                    "hears_us": p.hears_us,
                    "lanes": p.lanes,
                    "inbound_pipes": p.inbound_pipes,
                }
                for p in node.peers()
            ]
            _say("answer", number=number, value=peers)
        case ["statistics", int(number)]:
            _say("answer", number=number, value=node.statistics())
        case ["drops", int(number)]:
            _say("answer", number=number, value=[[*which, count] for which, count in node.drops()])
        case _:
            raise AssertionError(f"an order of this fixture: {order}")


async def _main(config: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    configured = meshnode.open(config)
    configured.on_event(_happened)
    async with configured as node:
        node.subscribe("**", callback=_received, own=False)
        _say("up", port=node.port, incarnation=node.incarnation)

        def listen() -> None:
            for line in sys.stdin:
                _obey(node, json.loads(line))
            loop.call_soon_threadsafe(stop.set)

        threading.Thread(target=listen, daemon=True).start()
        await stop.wait()
    _say("closed")


if __name__ == "__main__":
    for namespace in sys.argv[2:]:
        enter(int(namespace))
    try:
        asyncio.run(_main(Path(sys.argv[1])))
    except MeshError as error:
        sys.exit(str(error))
    sys.stdout.flush()
    os._exit(0)  # a thread that still reads its input would hold up the end
