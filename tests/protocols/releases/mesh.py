"""Nodes in reach of each other in virtual time, with all that releases need."""

from collections.abc import Callable
from random import Random

from msgspec.structs import replace

from protocols.access import AccessRule
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS, SECOND
from protocols.releases.machine import Releases
from protocols.settings import NodeSettings
from sims.virtual.driver import SimDriver
from sims.world.authors import Authors
from sims.world.releases.nodes import SimReleases
from sims.world.releases.publisher import Publisher

PATH = "models/plate"


class Mesh:
    """Nodes in reach of each other, and a publisher."""

    def __init__(
        self, *names: str, rules: tuple[AccessRule, ...] | None = None, seed: int = 1, bytes_per_s: int = 0,
        machine: Callable[[NodeSettings, Random], Releases] | None = None,
    ) -> None:  # fmt: skip
        self.publisher = Publisher(seed)
        self.releases = SimReleases(self.publisher, machine=machine)
        self._rules = rules
        self.driver = self.releases.driver = SimDriver(
            seed, adjust=self._adjust, capabilities=(self.releases.capability,)
        )
        self._authors = Authors(self.driver, self.driver.random)
        for name in names:
            self.driver.add(name, Role.RSU if name.startswith("rsu") else Role.VEHICLE)
        if bytes_per_s:
            for sender in names:
                for receiver in names:
                    self.driver.shape(sender, receiver, 5 * MS, bytes_per_s)
        self.driver.meet()
        self.driver.run_for(SECOND)

    def _adjust(self, settings: NodeSettings) -> NodeSettings:
        settings = replace(settings, seal=self._authors.seal(settings.node))
        return settings if self._rules is None else replace(settings, access=self._rules)

    def seed(self, name: str) -> None:
        self.releases.seed(self.driver.nodes[NodeId(name)])

    def run_for(self, seconds: float) -> None:
        self.driver.run_for(int(seconds * SECOND))

    def serving(self) -> dict[str, int]:
        """The counter that each node serves; 0: none."""
        return {node.name: self.releases.disk(node.name).served.get(PATH, 0) for node in self.driver.numbered}

    def counter(self, name: str, what: str) -> int:
        return self.driver.nodes[NodeId(name)].engine.statistics()[f"releases_{what}"]

    def events(self, name: str, kind: type) -> list[object]:
        return [event for _, event in self.driver.nodes[NodeId(name)].events if type(event) is kind]
