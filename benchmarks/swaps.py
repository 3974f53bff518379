"""``python -m benchmarks.swaps``: what requests notice while the model that answers them is swapped.

A node serves a model, and a neighbour without it has that node compute its requests. Both ask at a steady rate, except
while eight requests of one of them wait. Meanwhile the node goes from one of eight releases to the next, so that each
is loaded anew. A request has failed when it was not answered. It is wrong when the answer is that of a release that did
not serve between its begin and its end. The neighbour names the release that it wants, and may hear of the newest one
up to a second after that began to serve.

The same time without swaps, before and after, tells what a swap costs in latency.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

import meshnode
from benchmarks import command
from benchmarks.load import percentiles
from benchmarks.released import NAME, PATH, adder
from meshnode.config.sections import (
    DiscoverySection,
    IdentitySection,
    ListenSection,
    LogSection,
    NodeConfig,
    NodeSection,
)
from meshnode.http.section import HttpSection
from meshnode.identity import create_mesh, issue
from meshnode.inference.section import ModelSection, ModelsSection
from meshnode.links.transport import Address
from meshnode.releases.install.installer import Installer
from meshnode.releases.running import RunningReleases
from meshnode.releases.section import ReleasesSection
from meshnode.releases.store.incoming import put_in
from protocols.base.errors import MeshError
from protocols.base.ids import Role, node_id
from protocols.releases.catalogue import Description, Order, ReleasedFile
from protocols.wire.readings import Position

RELEASES: Final = 8
"""More than are kept warm or linger, so that each is loaded anew."""
MAX_WAITING: Final = 8
"""Requests of one node under way: beyond twice as many, its neighbour would refuse them as busy."""
PAUSE_S: Final = 0.5
"""Between two swaps: a version that was given up lingers for two seconds, but only four of one model do."""
_TOLD_S: Final = {"here": 0.0, "neighbour": 1.0}
"""How long after a swap who asks may still mean the release before."""
_LIMIT_S: Final = 30.0
_DEADLINE_MS: Final = 10_000
_HERE: Final = Position(48.7661, 11.4298, 3.0)


@dataclass(slots=True)
class Asked:
    """What became of the requests of one node in one window."""

    count: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    took_us: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """For people and files."""
        p50_us, p99_us, max_us = percentiles(self.took_us)
        return {
            "requests": self.count, "failed": len(self.failed), "wrong": len(self.wrong), "p50_us": p50_us,
            "p99_us": p99_us, "max_us": max_us, "examples": [*self.failed[:3], *self.wrong[:3]],
        }  # fmt: skip


@dataclass(slots=True)
class SwapFigures:
    """All of it."""

    swaps: int
    swap_ms: list[float]
    """How long each took, from the order to the release that serves."""
    quiet: dict[str, Asked]
    swapping: dict[str, Asked]
    """By who asked: ``here`` and ``neighbour``."""


class _History:
    """Which release served when. A request may be answered by any that served between its begin and its end."""

    def __init__(self, counter: int) -> None:
        self.served = [(0.0, counter)]
        self.coming = counter

    def served_between(self, begin_s: float, end_s: float) -> set[int]:
        found = {self.coming}
        for at, (since_s, counter) in enumerate(self.served):
            until_s = self.served[at + 1][0] if at + 1 < len(self.served) else end_s
            if since_s <= end_s and until_s >= begin_s:
                found.add(counter)
        return found


def publish(folder: Path, releases: int = RELEASES) -> Path:
    """A repository of a relay with so many releases, and the order to serve the first. Returns its root."""
    from securesystemslib.signer import CryptoSigner

    from cloud_relay.releases.chunking import chunk_data
    from cloud_relay.releases.publishing import list_release
    from cloud_relay.releases.repository import opened

    roles = ("timestamp", "snapshot", "targets", "rollouts", "models")
    signers = {role: CryptoSigner.generate_ed25519() for role in roles}
    with opened(folder, lambda: datetime.now(UTC)) as repository:
        repository.create([CryptoSigner.generate_ed25519() for _ in range(3)], 2, signers)
        repository.use_keys(signers.values())
        for counter in range(1, releases + 1):
            content = chunk_data(adder(counter, 1_000_000), repository.shelf.keep)
            file = ReleasedFile(name=f"{NAME}.onnx", content=content)
            list_release(repository, Description(path=PATH, counter=counter, model=file.name, files=(file,)))
        order = Order(serial=1, path=PATH, counter=1)
        repository.put("rollouts/1.json", msgspec.json.encode(order))
        repository.commit()
    return folder / "metadata" / "1.root.json"


def _config(folder: Path, node: str, role: Role, *seeds: int) -> NodeConfig:
    home = folder / node
    issue(folder / "authority", role, node, home)
    return NodeConfig(
        node=NodeSection(id=node_id(node), state_dir=home / "state", position=_HERE),
        identity=IdentitySection.in_folder(home, node),
        listen=ListenSection(host="127.0.0.1"),
        discovery=DiscoverySection(mdns=False, seeds=tuple(Address("127.0.0.1", port) for port in seeds)),
        log=LogSection(level="error"),
        sections=(HttpSection(enabled=False),),
    )


@asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[meshnode.Node, meshnode.Node]]:
    """A node that has all releases installed, and a neighbour that has it compute."""
    create_mesh(folder / "authority", f"swaps-{os.getpid()}")
    root = publish(folder / "repository")
    factory = folder / "factory.onnx"
    factory.write_bytes(adder(RELEASES + 1))
    serving = _config(folder, "server", Role.RSU).with_sections(
        ModelsSection(models={NAME: ModelSection(path=factory)}), ReleasesSection(root=root, store_mib=256)
    )
    put_in(folder / "repository", serving.node.state_dir / "releases")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(meshnode.open(serving))
        asker = await stack.enter_async_context(meshnode.open(_config(folder, "asker", Role.VEHICLE, server.port)))
        await asyncio.gather(server.wait_for_peers(1), asker.wait_for_peers(1))
        await _until(lambda: _counter(server) == 1, "the ordered release serves")
        await _until(lambda: any(peer.offers for peer in asker.peers()), "the neighbour is offered the model")
        yield server, asker


async def _until(condition: Any, what: str) -> None:
    ends_s = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > ends_s:
            raise TimeoutError(f"not within {_LIMIT_S:g} s: {what}")
        await asyncio.sleep(0.002)


def _counter(node: meshnode.Node) -> int:
    return int(node.part(RunningReleases).node_view()["releases"][PATH])


async def _staged(node: meshnode.Node) -> Installer:
    """Stage the releases that no order names, and so nobody would serve."""
    active = node.part(RunningReleases).active
    assert active is not None, "it has [releases]"
    for counter in range(2, RELEASES + 1):
        description = active.performer.description(PATH, counter)
        assert description is not None, "it was brought"
        await asyncio.to_thread(active.installer.stage, description)
    return active.installer


async def _ask(
    node: meshnode.Node, hz: float, history: _History, told_s: float, into: Asked, stop: asyncio.Event
) -> None:  # fmt: skip
    zeros = {"x": np.zeros((1, 2), "f4")}
    waiting: set[asyncio.Task[None]] = set()

    async def one() -> None:
        begin_s = time.monotonic()
        into.count += 1
        try:
            result = await node.infer(NAME, zeros, deadline_ms=_DEADLINE_MS)
        except MeshError as error:
            into.failed.append(str(error))
            return
        end_s = time.monotonic()
        into.took_us.append((end_s - begin_s) * 1e6)
        added = int(result.outputs["y"][0, 0])
        if added not in history.served_between(begin_s - told_s, end_s):
            into.wrong.append(f"release {added} answered, and {history.served[-1][1]} serves")

    due_s = time.monotonic()
    while not stop.is_set():
        if len(waiting) < MAX_WAITING:
            task = asyncio.create_task(one())
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        due_s += 1 / hz
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
    await asyncio.gather(*waiting)


async def _window(
    nodes: dict[str, meshnode.Node], hz: float, history: _History, into: dict[str, Asked], during: Any
) -> None:
    stop = asyncio.Event()
    asking = [
        asyncio.create_task(_ask(node, hz, history, _TOLD_S[name], into[name], stop)) for name, node in nodes.items()
    ]
    try:
        await during()
    finally:
        stop.set()
        await asyncio.gather(*asking)


async def measure(folder: Path, count: int, hz: float, quiet_s: float) -> SwapFigures:
    """Ask, and swap meanwhile."""
    async with pair(folder) as (server, asker):
        installer = await _staged(server)
        history, nodes = _History(1), {"here": server, "neighbour": asker}
        figures = SwapFigures(count, [], {name: Asked() for name in nodes}, {name: Asked() for name in nodes})

        async def swap() -> None:
            for number in range(count):
                counter = (number + 1) % RELEASES + 1
                history.coming = counter
                began_s = time.monotonic()
                await asyncio.to_thread(installer.serve, PATH, counter)
                served_s = time.monotonic()
                figures.swap_ms.append((served_s - began_s) * 1e3)
                history.served.append((served_s, counter))
                await asyncio.sleep(PAUSE_S)

        for _ in range(2):
            await _window(nodes, hz, history, figures.quiet, lambda: asyncio.sleep(quiet_s / 2))
            if not figures.swap_ms:
                await _window(nodes, hz, history, figures.swapping, swap)
        return figures


def missed_promises(figures: SwapFigures) -> list[str]:
    """What was promised and did not hold."""
    missed = []
    for name, asked in (*figures.quiet.items(), *figures.swapping.items()):
        if asked.failed or asked.wrong:
            first = (asked.failed or asked.wrong)[0]
            missed.append(f"{len(asked.failed)} requests {name} failed and {len(asked.wrong)} were wrong: {first}")
        if not asked.count:
            missed.append(f"nothing was asked {name}")
    if len(figures.swap_ms) < figures.swaps:
        missed.append(f"{len(figures.swap_ms)} of {figures.swaps} swaps were made")
    return missed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("swaps", __doc__, "a request failed, or was answered by the wrong release")
    parser.add_argument("--swaps", type=command.between(1, 10_000), default=100, help="default: %(default)s")
    parser.add_argument("--hz", type=command.between(1.0, 1_000.0), default=50.0, help="of each node; %(default)s")
    parser.add_argument("--quiet", type=command.between(1.0, 600.0), default=10.0, help="seconds without swaps")
    options: argparse.Namespace = parser.parse_args(arguments)
    with command.measuring("swaps") as folder:
        figures = asyncio.run(measure(folder, options.swaps, options.hz, options.quiet))
    for kind in ("quiet", "swapping"):
        for name, asked in getattr(figures, kind).items():
            told = asked.figures()
            p50_ms, p99_ms, max_ms = (told[key] / 1e3 for key in ("p50_us", "p99_us", "max_us"))
            print(
                f"{kind:9} {name:10} {told['requests']:6} requests, {told['failed']} failed, {told['wrong']} wrong, "
                f"p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms, max {max_ms:.1f} ms"
            )
    took = sorted(figures.swap_ms)
    print(f"{len(took)} swaps, of {took[len(took) // 2]:.0f} ms in the median and {took[-1]:.0f} ms at most")
    content = {
        "swaps": figures.swaps, "swap_ms": figures.swap_ms,
        **{kind: {name: asked.figures() for name, asked in getattr(figures, kind).items()}
           for kind in ("quiet", "swapping")},
    }  # fmt: skip
    return command.finish(options, content, missed_promises(figures))


if __name__ == "__main__":
    sys.exit(main())
