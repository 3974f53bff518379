"""Real nodes over real multicast on loopback: mutual TLS links, datagrams, and strangers on the same group."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import meshnode
from meshnode.config.sections import DiscoverySection, IdentitySection, ListenSection, NodeConfig, NodeSection
from meshnode.http.section import HttpSection
from meshnode.identity import create_mesh, issue
from meshnode.links.transport import Address
from meshnode.multicast.section import MulticastSection
from meshnode.node import Node
from protocols.base import limits
from protocols.base.ids import Role, node_id
from protocols.wire.multicast.datagrams import encode_head
from protocols.wire.readings import Position
from tests.meshnode.links.test_slow_link import slow_way
from tests.tools.eventually import until

GROUP = "239.255.77.83"
WAIT_S = 30.0
pytestmark = pytest.mark.processes


def free_group_port() -> int:
    """A UDP port that nobody uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


def config(
    folder: Path, name: str, group_port: int | None, seeds: tuple[int, ...] = (), engine: str = "express"
) -> NodeConfig:
    if not (folder / "authority").exists():
        create_mesh(folder / "authority", "test")
    issue(folder / "authority", Role.VEHICLE.value, name, folder / name)
    multicast = MulticastSection(enabled=group_port is not None, interfaces=("127.0.0.1",), port=group_port or 7001)
    return NodeConfig(
        node=NodeSection(id=node_id(name), state_dir=folder / name / "state", position=Position(48.7, 11.4, 1.0)),
        identity=IdentitySection.in_folder(folder / name, name),
        listen=ListenSection(host="127.0.0.1", link_engine=engine),  # type: ignore[arg-type]
        discovery=DiscoverySection(mdns=False, seeds=tuple(Address("127.0.0.1", port) for port in seeds)),
        sections=(HttpSection(enabled=False), multicast),
    )


@contextlib.asynccontextmanager
async def mesh(folder: Path, *ports: int | None, engine: str = "express") -> AsyncIterator[list[Node]]:
    """Nodes that have all met, each with the port of its group; None: it sends no datagrams."""
    async with contextlib.AsyncExitStack() as open_nodes:
        nodes: list[Node] = []
        for number, port in enumerate(ports):
            seeds = tuple(node.port for node in nodes)
            opened = meshnode.open(config(folder, f"v-{number}", port, seeds, engine))
            nodes.append(await open_nodes.enter_async_context(opened))
        for node in nodes:
            await node.wait_for_peers(len(nodes) - 1, WAIT_S)
        yield nodes


async def counted(node: Node, name: str, least: int) -> None:
    """Wait until a counter of a node has reached a value."""
    await until(lambda: node.statistics().get(name, 0) >= least, f"{node.id} counts {least} {name}")


@pytest.mark.parametrize("engine", ["express", "nng"])
async def test_reading_reaches_all_who_listen_in_one_datagram(tmp_path: Path, engine: str) -> None:
    """Also a node that sends no datagrams and one that uses another group get each reading once, in order."""
    port, other = free_group_port(), free_group_port()
    async with mesh(tmp_path, port, port, port, None, other, engine=engine) as nodes:
        publisher = nodes[0].publisher("veh/v-0/speed", unit="m/s", sensor="test")
        received: list[list[object]] = [[] for _ in nodes]
        for node, values in zip(nodes[1:], received[1:], strict=True):
            node.subscribe("veh/v-0/speed", callback=lambda reading, values=values: values.append(reading.value))
        await until(lambda: publisher.put(-1).queued == 4, "everybody wants it")
        await counted(nodes[0], "multicast_listeners", 2)
        for values in received:
            values.clear()
        cast = nodes[0].statistics()["multicast_cast"]
        for value in range(50):
            assert publisher.put(value).queued == 4
            await asyncio.sleep(0.01)
        await until(lambda: all(values and values[-1] == 49 for values in received[1:]), "the last one has come")
        for values in received[3:]:  # on links, which lose nothing
            assert [value for value in values if value != -1] == list(range(50))
        for values in received[1:3]:
            new = [value for value in values if value != -1]
            assert new == sorted(set(new))  # type: ignore[type-var]
            assert len(new) > 25  # a busy host may drop some datagrams
        counters = nodes[0].statistics()
        assert counters["multicast_cast"] - cast >= 25
        assert counters["multicast_listeners"] == 2
        assert counters["multicast_interfaces"] == 1


async def test_stranger_that_floods_the_group_keeps_nobody_from_hearing(tmp_path: Path) -> None:
    """Datagrams of nobody, and some that begin with a genuine key."""
    port = free_group_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
    ):
        stranger.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((GROUP, port))
        membership = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        begun_s = time.monotonic()
        async with mesh(tmp_path, port, port, port) as nodes:
            for node in nodes:
                await counted(node, "multicast_listeners", 2)
            listener.settimeout(WAIT_S)
            genuine = await asyncio.to_thread(listener.recv, 2_000)
            received: list[object] = []
            nodes[1].subscribe("veh/v-0/**", callback=lambda reading: received.append(reading.value))
            for counter in range(3_000):
                head = encode_head(genuine[1:9], 1_000_000 + counter) if counter % 2 else b"nonsense"
                stranger.sendto(head + bytes(60), (GROUP, port))
                if counter % 100 == 0:
                    await asyncio.sleep(0.01)
            await counted(nodes[1], "multicast_strangers", 1)
            publisher = nodes[0].publisher("veh/v-0/hazard", unit="1", sensor="test", priority=7)
            await until(lambda: (publisher.put(1), received)[1], "a reading comes")
            counters = nodes[1].statistics()
            assert counters["multicast_forged"] == 0
            paid = limits.BROKEN_DATAGRAMS_PER_S * (1 + time.monotonic() - begun_s)
            assert counters["multicast_broken"] <= limits.MAX_BROKEN_DATAGRAMS_BURST + paid


async def test_node_whose_port_is_taken_says_so_and_works_without(tmp_path: Path) -> None:
    """A trouble with a way out, and links as before."""
    port = free_group_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((GROUP, port))  # without SO_REUSEADDR
        async with mesh(tmp_path, port, None) as nodes:
            assert any("another [multicast] port" in trouble.why for trouble in nodes[0].troubles.current())
            received: list[object] = []
            nodes[1].subscribe("veh/v-0/**", callback=lambda reading: received.append(reading.value))
            publisher = nodes[0].publisher("veh/v-0/speed", unit="m/s", sensor="test")
            await until(lambda: (publisher.put(1), received)[1], "a reading comes")


async def test_neighbours_that_are_slow_or_hang_slow_down_nobody_who_listens(tmp_path: Path) -> None:
    """One is on a link of 8 kB/s and hears no datagram, another one's program takes nothing for as long as it lasts.
    Whoever waited for either would be as slow; each reading is published when those who listen have had the one before.
    """
    port, go_on = free_group_port(), threading.Event()
    received: dict[str, list[int]] = {"v-1": [], "v-2": [], "hangs": [], "slow": []}

    def came(name: str, value: int) -> None:
        received[name].append(value)
        if name == "hangs" and value >= 0:
            go_on.wait(WAIT_S)

    async with contextlib.AsyncExitStack() as stack:
        nodes = {
            name: await stack.enter_async_context(
                meshnode.open(config(tmp_path, name, None if name == "slow" else port))
            )
            for name in received
        }
        way = await stack.enter_async_context(slow_way(nodes["slow"].port))
        stack.callback(go_on.set)
        seeds = (nodes["v-1"].port, nodes["v-2"].port, nodes["hangs"].port, way)
        here = await stack.enter_async_context(meshnode.open(config(tmp_path, "v-0", port, seeds)))
        await here.wait_for_peers(4, WAIT_S)
        publisher = here.publisher("veh/v-0/state", unit="1", sensor="test")
        for name, node in nodes.items():
            node.subscribe("veh/v-0/*", callback=lambda reading, name=name: came(name, reading.value[0]))
        await until(lambda: publisher.put([-1, b""]).queued == 4, "everybody wants it")
        await counted(here, "multicast_listeners", 3)
        good, begun_s = (received["v-1"], received["v-2"]), time.monotonic()
        for number in range(120):
            assert publisher.put([number, bytes(900)]).queued == 4
            await until(lambda number=number: all(values and values[-1] >= number for values in good), "it comes")  # type: ignore[misc]
        room = 9 * (1 + time.monotonic() - begun_s)
        assert len([value for value in received["slow"] if value >= 0]) < 40 + room, (
            "its link has room for nine a second"
        )
        await until(lambda: received["hangs"][-1] >= 0, "it has taken one")
        assert [value for value in received["hangs"] if value >= 0] == [received["hangs"][-1]]
        assert "pace_frames_per_s" not in here.statistics()
        assert {view.node for view in here.peers() if view.is_behind} <= {"slow", "hangs"}
        go_on.set()
        for name in ("slow", "hangs"):
            await until(lambda name=name: received[name][-1] == 119, f"{name} gets the newest", 90)  # type: ignore[misc]
