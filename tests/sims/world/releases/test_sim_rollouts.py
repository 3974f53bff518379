"""Rollouts by the machines of whole nodes: metadata, chunks and words of canaries travel by themselves."""

from msgspec.structs import replace

from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.releases.catalogue import Order
from protocols.releases.events import ReleaseState
from protocols.releases.rollout.tally import Decision
from protocols.settings import NodeSettings
from sims.media.meetings import Meetings
from sims.virtual.driver import SimDriver
from sims.world.authors import Authors
from sims.world.releases.publisher import Publisher
from sims.world.releases.rollouts import BAD, GOOD, SimRollouts

PATH = "models/plate"
CANARIES = (NodeId("c1"), NodeId("c2"), NodeId("c3"))


class Town:
    """Three canaries and two others in reach of each other, which all serve release 1."""

    def __init__(self, share_failing: float, *liars: str) -> None:
        self.publisher = Publisher(1)
        faults = {1: GOOD, 2: share_failing}
        self.releases = SimRollouts(self.publisher, lambda path, counter: faults[counter], [NodeId(n) for n in liars])
        self.sim = self.releases.driver = SimDriver(1, adjust=self._adjust, capabilities=(self.releases.capability,))
        self._authors = Authors(self.sim, self.sim.random)
        for name in (*CANARIES, "v1", "v2"):
            self.sim.add(name, Role.VEHICLE)
        self.sim.meet()
        self.publisher.release(PATH, 1, 100_000, order=False)
        self.publisher.order(Order(serial=1, path=PATH, counter=1))
        self.sign()
        self.sim.run_for(20 * SECOND)
        assert self.serving() == [1] * 5

    def _adjust(self, settings: NodeSettings) -> NodeSettings:
        return replace(settings, seal=self._authors.seal(settings.node))

    def roll_out(self, state: str = "running") -> None:
        self.publisher.release(PATH, 2, 100_000, order=False)
        self.order = Order(serial=2, path=PATH, counter=2, canaries=CANARIES, soak_s=60, state=state)
        self.publisher.order(self.order)
        self.sign()

    def sign(self) -> None:
        self.publisher.sign()
        self.releases.seed(self.sim.nodes[NodeId("v1")])

    def serving(self) -> list[int]:
        return [self.releases.disk(node.name).served.get(PATH, 0) for node in self.sim.numbered]

    def run_for(self, seconds: float) -> None:
        self.sim.run_for(int(seconds * SECOND))


def test_good_release_is_tried_by_canaries_and_then_served_by_all() -> None:
    """The whole way of a release, with nobody but neighbours."""
    town = Town(GOOD)
    town.roll_out()
    town.run_for(40)
    assert town.serving() == [2, 2, 2, 1, 1]
    town.run_for(60)
    assert town.serving() == [2] * 5
    states = [event.state for _, event in town.sim.nodes[NodeId("c1")].events
              if isinstance(event, ReleaseState) and event.counter == 2]  # fmt: skip
    assert states == ["fetching", "fetched", "staged", "shadowing", "soaking", "healthy"]


def test_bad_release_is_taken_back_though_a_canary_lies() -> None:
    """The liar says healthy; the two others are enough."""
    town = Town(BAD, "c3")
    town.roll_out()
    town.run_for(200)
    assert town.serving() == [1] * 5
    assert {plan.decision(2) for plan in town.releases.plans.values()} == {Decision.HALTED}


def test_order_that_is_signed_again_with_another_state_takes_the_place_of_the_first() -> None:
    """Pause and abort are new bytes under the same serial; nodes must not go on with the old ones."""
    town = Town(GOOD)
    town.roll_out("paused")
    town.run_for(200)
    assert town.serving() == [1] * 5
    town.publisher.replace_order(replace(town.order, state="running"))
    town.sign()
    town.run_for(120)
    assert town.serving() == [2] * 5
    town.publisher.replace_order(replace(town.order, state="aborted"))
    town.sign()
    town.run_for(20)
    assert town.serving() == [1] * 5


def test_canary_that_was_off_goes_on_where_it_was() -> None:
    """Its disk has the releases, and its notes say which one it tries."""
    town = Town(GOOD)
    town.roll_out()
    town.run_for(40)
    node = town.sim.nodes[NodeId("c1")]
    town.releases.ends(node)
    town.sim.kill("c1")
    town.run_for(200)
    assert town.serving() == [2] * 5, "two of three canaries promote"
    town.sim.restart("c1")
    town.releases.begin(node)
    town.sim.meet()
    town.run_for(100)
    assert town.serving() == [2] * 5
    assert town.releases.plans[node.name].decision(2) is Decision.PROMOTED


def test_nodes_of_one_meeting_reach_each_other_and_nobody_else() -> None:
    """The figures of sparse contacts stand on this."""
    links = Meetings(4, 5)
    links.meet((0, 1, 2))
    assert links.stream_ns(0, 2, 100, 10) == 15
    assert links.stream_ns(0, 3, 100, 10) is None
    assert links.connect_ns(3, 0, 10) is None
    links.meet((2, 3))
    assert links.neighbours(0) == [1]
    assert links.multicast_ns(3, 100, 10) == (15, [2])
    links.part(range(4))
    assert links.neighbours(2) == []
    assert links.stream_ns(2, 3, 100, 10) is None
