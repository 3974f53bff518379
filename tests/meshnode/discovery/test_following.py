"""Nodes follow the interfaces of their host: real nodes on a network of namespaces, which changes while they run."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.lan import Computer, Lan, why_not
from benchmarks.wanderer import Wanderer
from meshnode.identity import create_mesh, issue
from tests.tools.eventually import eventually

REASON = why_not()
pytestmark = [pytest.mark.processes, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

Start = Callable[..., Wanderer]


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan() as made:
        yield made


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a node on a computer, and wait until it is ready: ``start(computer, tables)``."""
    create_mesh(tmp_path / "authority", "street")
    with ExitStack() as stack:

        def begin(computer: Computer, tables: str = "") -> Wanderer:
            home = tmp_path / computer.name
            issue(tmp_path / "authority", "vehicle", computer.name, home)
            (home / "node.toml").write_text(
                f'[node]\nid = "{computer.name}"\n[http]\nenabled = false\n[local]\nenabled = false\n{tables}'
            )
            return stack.enter_context(Wanderer(computer, home / "node.toml")).ready()

        yield begin


def troubles(node: Wanderer) -> list[str]:
    """The parts that don't work."""
    return [part for part, _, _ in node.ask("troubles")]


def places(node: Wanderer) -> list[tuple[str, str]]:
    """Interfaces and addresses on which mDNS works, without loopback."""
    found = [(place["name"], place["address"]) for place in node.ask("discovery")["interfaces"]]
    return [place for place in found if place[0] != "lo"]


def heard(node: Wanderer, other: str) -> list[str]:
    """The hosts at which ``node`` believes ``other``, by its newest advert."""
    adverts = [advert for advert in node.ask("discovery")["heard"] if advert["node"] == other]
    return [address.rpartition(":")[0] for advert in adverts for address in advert["addresses"]]


def meet(*nodes: Wanderer) -> None:
    """Wait until each is linked with each other, in both directions."""
    names = {node.name for node in nodes}

    def all_met() -> bool:
        return all(node.met() == names - {node.name} for node in nodes)

    eventually(all_met, lambda: f"all meet: {[(node.name, node.ask('peers')) for node in nodes]}")


def test_node_that_starts_without_any_network_waits_says_so_and_works_later(lan: Lan, start: Start) -> None:
    """A vehicle's modem comes up after the node. It found nobody until it was restarted, and nothing told."""
    early, there = lan.computer("veh-1", loopback=False), lan.computer("veh-2")
    there.plug("eth0", "10.1.0.2/24")
    waiting, other = start(early), start(there)
    assert troubles(waiting) == ["discovery"]
    assert places(waiting) == []
    assert waiting.ask("discovery")["addresses"] == []
    assert troubles(other) == []

    early.plug("wwan0", "10.1.0.1/24")
    meet(waiting, other)
    eventually(lambda: troubles(waiting) == [], "the trouble ends")
    assert places(waiting) == [("wwan0", "10.1.0.1")]
    assert waiting.ask("discovery")["addresses"] == ["10.1.0.1"]


def test_address_that_changes_is_announced_and_the_old_one_no_longer(lan: Lan, start: Start) -> None:
    """A lease ends, and the same network gives another address."""
    moving, staying = lan.computer("veh-1"), lan.computer("veh-2")
    moving.plug("eth0", "10.1.0.1/24")
    staying.plug("eth0", "10.1.0.2/24")
    one, two = start(moving), start(staying)
    meet(one, two)
    for old, new in (("10.1.0.1", "10.1.0.7"), ("10.1.0.7", "10.1.0.1")):  # and back, while the old one is remembered
        moving.remove("eth0", f"{old}/24")
        moving.add("eth0", f"{new}/24")
        eventually(lambda: heard(two, "veh-1") == [new], lambda: f"veh-2 hears {heard(two, 'veh-1')}, not {new}")  # noqa: B023
        assert one.ask("discovery")["addresses"] == [new]
        assert places(one) == [("eth0", new)]


def test_addresses_that_changed_one_after_the_other_do_not_pile_up(lan: Lan, start: Start) -> None:
    """Each old one was dialled for seconds before the turn came to the one that is in use."""
    moving, there = lan.computer("veh-1"), lan.computer("veh-2")
    moving.plug("eth0", "10.1.0.1/24")
    there.plug("eth0", "10.1.0.2/24")
    start(moving)
    still = start(there)
    for number in range(10, 16):
        moving.add("eth0", f"10.1.0.{number}/24")
        moving.remove("eth0", f"10.1.0.{number - 1 if number > 10 else 1}/24")
        eventually(
            lambda newest=f"10.1.0.{number}": heard(still, "veh-1")[:1] == [newest],  # type: ignore[misc]
            lambda: f"the newest comes first: {heard(still, 'veh-1')}",
        )
        time.sleep(1.1)  # an advert ends what is older than a second (RFC 6762, section 10.2)
    assert len(heard(still, "veh-1")) <= 3, "those that a new advert has just replaced may be there for a second"


def test_interface_that_was_down_or_removed_works_again(lan: Lan, start: Start) -> None:
    """A radio is switched off and on, and a modem is reset: the kernel makes the same interface anew, and forgets who
    had joined the group there."""
    shaky, there, late = lan.computer("veh-1"), lan.computer("veh-2"), lan.computer("veh-3")
    for number, computer in enumerate((shaky, there, late), 1):
        computer.plug("eth0", f"10.1.0.{number}/24")
    one, two = start(shaky), start(there)
    meet(one, two)
    before = one.ask("held")
    shaky.down("eth0")
    eventually(lambda: troubles(one) == ["discovery"], "the node says that it has no network")
    shaky.up("eth0")
    eventually(lambda: troubles(one) == [], "it works")
    for number in range(24):  # the kernel allows a socket twenty groups; each that is not left is lost
        shaky.unplug("eth0")
        if number % 2:  # else it is back before anybody looks
            eventually(lambda: places(one) == [], "it is left")
        shaky.plug("eth0", "10.1.0.1/24")
        eventually(lambda: places(one) == [("eth0", "10.1.0.1")], "it is joined")
    three = start(late)
    eventually(lambda: heard(one, "veh-3") == ["10.1.0.3"], "it hears who comes")
    eventually(lambda: heard(three, "veh-1") == ["10.1.0.1"], "it is heard")
    meet(one, two, three)
    after = one.ask("held")
    assert after["threads"] <= before["threads"] + 2  # of the pool, and of the engine for one more neighbour
    assert after["descriptors"] <= before["descriptors"] + 8  # four links at most


def test_second_interface_is_used_as_soon_as_it_is_there(lan: Lan, start: Start) -> None:
    """A vehicle comes to a depot with a network of its own, and keeps its modem."""
    with Lan() as depot:
        car, there, rsu = lan.computer("veh-1"), lan.computer("veh-2"), depot.computer("veh-3")
        car.plug("wwan0", "10.1.0.1/24")
        there.plug("eth0", "10.1.0.2/24")
        rsu.plug("eth0", "10.2.0.3/24")
        one, two, three = start(car), start(there), start(rsu)
        meet(one, two)
        depot.cable(car, "wlan0")
        car.add("wlan0", "10.2.0.1/24")
        car.up("wlan0")
        eventually(lambda: three.met() == {"veh-1"}, "it is met on the second interface")
        eventually(lambda: one.met() == {"veh-2", "veh-3"}, "and the first goes on")
        assert sorted(places(one)) == [("wlan0", "10.2.0.1"), ("wwan0", "10.1.0.1")]
        assert sorted(one.ask("discovery")["addresses"]) == ["10.1.0.1", "10.2.0.1"]


def test_interface_of_the_configuration_is_waited_for_and_no_other_is_used(lan: Lan, start: Start) -> None:
    """``[discovery] interfaces`` and ``[listen] advertise`` keep their meaning, whenever the interfaces come."""
    car, there = lan.computer("veh-1"), lan.computer("veh-2")
    car.plug("eth0", "10.1.0.1/24")
    there.plug("eth0", "10.1.0.2/24")
    tables = '[discovery]\ninterfaces = ["10.1.0.8"]\n[listen]\nadvertise = ["10.1.0.1", "10.9.9.9"]\n'
    one, two = start(car, tables), start(there)
    assert troubles(one) == ["discovery"]
    assert "10.1.0.8" in one.ask("troubles")[0][2]
    car.plug("eth1", "10.1.0.8/24")
    meet(one, two)
    assert places(one) == [("eth1", "10.1.0.8")]
    eventually(lambda: troubles(one) == [], "it works")
    assert sorted(heard(two, "veh-1")) == ["10.1.0.1", "10.9.9.9"]


def test_port_that_another_program_keeps_for_itself_is_a_trouble_and_waited_for(lan: Lan, start: Start) -> None:
    """Such a program ended the node, which could have worked with its seeds."""
    car, there = lan.computer("veh-1"), lan.computer("veh-2")
    car.plug("eth0", "10.1.0.1/24")
    there.plug("eth0", "10.1.0.2/24")
    script = (
        "import socket, sys; own = socket.socket(type=socket.SOCK_DGRAM); own.bind(('', 5353)); "
        "print(flush=True); sys.stdin.read()"
    )
    selfish = car.start([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert selfish.stdout is not None
        assert selfish.stdout.readline() == "\n"
        one = start(car)
        assert troubles(one) == ["discovery"]
        assert "5353" in one.ask("troubles")[0][2]
        assert one.ask("discovery") is None
    finally:
        selfish.communicate("", timeout=20)
    two = start(there)
    meet(one, two)
    assert troubles(one) == []
