"""Releases of rules at whole nodes: from a stick and from a neighbour to rules that derive, and back again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

import meshnode
from cloud_relay.releases.publishing import publish_rules
from cloud_relay.releases.rotating import add_publisher
from meshnode.cli import additions
from meshnode.config.sections import NodeConfig
from meshnode.records.rules.section import RulesSection
from meshnode.records.section import CurationRulesSection, CurationSection
from meshnode.releases.console.verifying import _installed
from meshnode.releases.running import RunningReleases
from meshnode.releases.section import ReleasesSection
from meshnode.releases.store.incoming import put_in
from protocols.releases.catalogue import Gates, Order
from protocols.releases.events import ReleaseState
from tests.tools.mesh_fixture import House, given_house, until
from tests.tools.release_fixture import Publisher, given_publisher

__all__ = ["given_house", "given_publisher"]
PATH = "rules/traffic"
OWN = """
[[rule]]
name = "own"
keys = "veh/*/speed"
output = { key = "veh/{node}/own" }
"""


def rules(counter: int, where: str = "value >= 0.0", more: str = "") -> str:
    return f"""
[[rule]]
name = "derived"
keys = "veh/*/speed"
where = "{where}"
value = "value + {counter}.0"
output = {{ key = "veh/{{node}}/derived" }}
{more}
"""


class Fleet:
    """Whoever publishes rules, and the nodes that take them."""

    def __init__(self, house: House, publisher: Publisher) -> None:
        self.house, self.publisher = house, publisher
        with publisher.changing() as repository:
            add_publisher(repository, "rule-team", ["*"], "rules")

    def publish(self, counter: int, text: str, serial: int | None = None, **order: Any) -> None:
        """Publish rules, and order that they serve."""
        file = self.house.folder / "traffic.toml"
        file.write_text(text)
        with self.publisher.changing() as repository:
            publish_rules(repository, file, counter=counter)
            made = Order(serial=serial or counter, path=PATH, counter=counter, **order)
            repository.put(f"rollouts/{made.serial}.json", msgspec.json.encode(made))

    def config(self, node: str, *seeds: int, **section: Any) -> NodeConfig:
        own = self.house.folder / "own.toml"
        own.write_text(OWN)
        config = self.house.config(node, *seeds)
        return config.with_sections(
            ReleasesSection(root=self.publisher.root_path),
            RulesSection(files=(own,), **{"release": "traffic", **section}),
        )

    def bring(self, config: NodeConfig, node: meshnode.Node | None = None) -> None:
        """Walk by with a stick. ``node``: it runs."""
        put_in(self.publisher.folder, config.node.state_dir / "releases")
        if node is not None:
            node.part(RunningReleases).imported()


class Driven:
    """A node that senses its speed, and what its rules make of it."""

    def __init__(self, node: meshnode.Node) -> None:
        self.node, self.states = node, list[ReleaseState]()
        node.on_event(lambda event: self.states.append(event) if isinstance(event, ReleaseState) else None)
        self.derived: list[tuple[str, Any]] = []
        node.subscribe("veh/*/*", lambda reading: self.derived.append((reading.key.split("/")[2], reading.value)))

    def drive(self, value: Any = 1.0) -> list[tuple[str, Any]]:
        """What is derived from a speed."""
        self.derived.clear()
        self.node.publish(f"veh/{self.node.id}/speed", value, unit="1", sensor="s")
        return [each for each in self.derived if each[0] != "speed"]

    async def serves(self, counter: int) -> None:
        releases = self.node.part(RunningReleases)
        await until(lambda: releases.view()["paths"][0]["serving"] == counter, lambda: f"{self.states}")

    async def reached(self, counter: int, state: str) -> ReleaseState:
        def found() -> ReleaseState | None:
            return next((each for each in self.states if (each.counter, each.state) == (counter, state)), None)

        await until(lambda: found() is not None, lambda: f"{self.states}")
        state_ = found()
        assert state_ is not None
        return state_


@pytest.fixture
def fleet(house: House, publisher: Publisher) -> Fleet:
    return Fleet(house, publisher)


@asynccontextmanager
async def driven(config: NodeConfig) -> AsyncIterator[Driven]:
    async with meshnode.open(config) as node:
        yield Driven(node)


async def test_released_rules_hold_in_place_of_the_files_and_the_operator_can_go_back(fleet: Fleet) -> None:
    """From the next reading on, after a restart from the first one on, and back to the node's own."""
    config = fleet.config("held-1")
    async with driven(config) as node:
        assert node.drive() == [("own", 1)]
        fleet.publish(1, rules(1))
        fleet.bring(config, node.node)
        await node.serves(1)
        assert node.drive() == [("derived", 2)]
        fleet.publish(2, rules(2))
        fleet.bring(config, node.node)
        await node.serves(2)
        assert node.drive() == [("derived", 3)]
    async with driven(config) as node:
        assert node.drive() == [("derived", 3)]
        releases = node.node.part(RunningReleases)
        releases.pin(PATH, 1)
        await node.serves(1)
        assert node.drive() == [("derived", 2)]
        releases.pin(PATH, 0)
        await node.serves(0)
        assert node.drive() == [("own", 1)]
    async with driven(fleet.config("held-1", release=None)) as node:
        assert node.drive() == [("own", 1)], "and nothing of releases is used that the configuration does not name"


async def test_windows_of_released_rules_survive_a_restart_and_doctor_and_verify_know_them(fleet: Fleet) -> None:
    """The node begins with the rules that are installed, and not for a moment with those of its file."""
    config = fleet.config("kept-1")
    window = '[[rule]]\nname = "w"\nkeys = "veh/*/speed"\nwindow = { count = 3 }\ncompute = ["count"]\n'
    fleet.publish(1, rules(1, more=f'{window}output = {{ key = "veh/{{node}}/w", unit = "1" }}'))
    fleet.bring(config)
    (waits,) = [each for each in additions.check_rules(config) if each.check == "released rules"]
    assert (waits.status, waits.message) == ("ok", "no release of rules/traffic serves yet: [rules] files hold")
    async with driven(config) as node:
        await node.serves(1)
        assert [node.drive(), node.drive()] == [[("derived", 2)]] * 2
    async with driven(config) as node:
        assert [key for key, _ in node.drive()] == ["derived", "w"], "two of its readings came before"
        assert node.node.statistics().get("rules_lost", 0) == 0
    (found,) = [each for each in additions.check_rules(config) if each.check == "released rules"]
    assert (found.status, found.message.partition(";")[0]) == ("ok", "rules/traffic 1: derived, w")
    folder = config.node.state_dir / "releases"
    (whole,) = _installed(folder)
    assert (whole.is_fine, whole.what) == (True, "release 1 of rules/traffic, which serves")
    (folder / PATH / "1" / "traffic.toml").write_text("[[rule]]\n")
    assert [each.status for each in additions.check_rules(config)] == ["ok", "fail"]
    (damaged,) = _installed(folder)
    assert "traffic.toml has changed since it was installed" in damaged.what


async def test_released_rules_spread_to_a_neighbour_that_takes_them_and_to_no_other(fleet: Fleet) -> None:
    """The relay is gone, and one node that has them is enough."""
    fleet.publish(1, rules(1))
    one = fleet.config("spread-1")
    fleet.bring(one)
    async with driven(one) as first:
        await first.serves(1)
        port = first.node.port
        async with (
            driven(fleet.config("spread-2", port)) as second,
            driven(fleet.config("spread-3", port, release=None)) as other,
        ):
            await second.serves(1)
            assert second.drive() == [("derived", 2)]
            assert other.drive() == [("own", 1)]


@pytest.mark.parametrize(
    ("text", "section", "why"),
    [
        (rules(2, more='[[rule]]\nname = "own curation"\nkeys = "x"\noutput = { key = "veh/{node}/y" }'), {}, "load"),
        (rules(2, more='[[rule]]\nname = "w"\nkeys = "x"\nby = "key"\nwindow = { count = 9 }\ncompute = ["p50"]\n'
                       'output = { key = "veh/{node}/y", unit = "1" }'), {"max_mib": 4}, "memory"),
    ],
)  # fmt: skip
async def test_rules_that_do_not_fit_this_node_are_refused_and_said_to_have_failed(
    fleet: Fleet, text: str, section: dict[str, int], why: str
) -> None:
    """They compile at the relay; here a rule of the configuration has a name of theirs, or there is less memory."""
    name = f"refused-{why}"
    config = fleet.config(name, **section).with_sections(
        CurationRulesSection(rules=(CurationSection(name="own curation", keys="veh/*/nothing"),))
    )
    fleet.publish(1, rules(1))
    fleet.bring(config)
    async with driven(config) as node:
        await node.serves(1)
        fleet.publish(2, text, canaries=(name,), promote_quorum=1, halt_quorum=1)
        fleet.bring(config, node.node)
        failed = await node.reached(2, "failed")
        assert failed.detail.startswith(f"{why}: ")
        assert node.drive() == [("derived", 2)]
        orders = node.node.part(RunningReleases).view()["paths"][0]["orders"]
        assert [(each["decision"], each["step"]) for each in orders if each["counter"] == 2] == [("halted", "failed")]


async def test_canary_takes_rules_back_that_have_no_value_for_readings_and_promotes_good_ones(fleet: Fleet) -> None:
    """The verdict on rules are their errors."""
    canary = {
        "canaries": ("canary-1",),
        "promote_quorum": 1,
        "halt_quorum": 1,
        "soak_s": 3,
        "gates": Gates(min_runs=30),
    }
    config = fleet.config("canary-1")
    fleet.publish(1, rules(1))
    fleet.bring(config)
    async with driven(config) as node:
        await node.serves(1)

        async def live() -> None:
            while True:
                node.node.publish("veh/canary-1/speed", 1.0, unit="1", sensor="s")
                await asyncio.sleep(0.01)

        driving = asyncio.create_task(live())
        try:
            fleet.publish(2, rules(2, where="value.missing > 0.0"), **canary)
            fleet.bring(config, node.node)
            assert (await node.reached(2, "failed")).detail == "errors"
            await node.serves(1)
            fleet.publish(3, rules(3), **canary)
            fleet.bring(config, node.node)
            await node.reached(3, "healthy")
        finally:
            driving.cancel()
        assert node.drive() == [("derived", 4)]
