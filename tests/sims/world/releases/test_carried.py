"""The simple simulation of rollouts comes to the same ends as whole nodes do."""

from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.releases.catalogue import Listed, Order
from protocols.releases.rollout.tally import Decision
from sims.world.releases.carried import CarriedFleet, Signed
from sims.world.releases.rollouts import BAD, GOOD

PATH = "models/plate"
CANARIES = tuple(NodeId(f"c{number}") for number in range(1, 6))
NAMES = (*CANARIES, NodeId("v1"), NodeId("v2"))
ORDERS = (
    Order(serial=1, path=PATH, counter=1),
    Order(serial=2, path=PATH, counter=2, canaries=CANARIES, soak_s=60),
)
LISTED = tuple(Listed(PATH, counter, bytes(32), 100) for counter in (1, 2))


def fleet(share_failing: float, *liars: str, hidden_s: int = 0) -> CarriedFleet:
    """All serve release 1, and ``v1`` has release 2 and its order."""
    faults = {1: GOOD, 2: share_failing}
    made = CarriedFleet(
        [(name, Role.VEHICLE) for name in NAMES], [NodeId(name) for name in liars],
        lambda path, counter: faults[counter], hidden_s * SECOND,
    )  # fmt: skip
    for node in made.nodes.values():
        made.learn(node, Signed(1, LISTED[:1], ORDERS[:1]), holds=True)
    made.learn(made.nodes[NodeId("v1")], Signed(2, LISTED, ORDERS), holds=True)
    return made


def live(made: CarriedFleet, seconds: int) -> None:
    for _ in range(seconds // 10):
        made.meet([name for name in NAMES if made.nodes[name].running])
        made.run_for(10 * SECOND)


def serving(made: CarriedFleet) -> list[int]:
    return [node.served[PATH] for node in made.nodes.values()]


def test_good_release_reaches_all_though_two_canaries_lie() -> None:
    """Three honest canaries of five are enough."""
    made = fleet(GOOD, "c4", "c5")
    live(made, 200)
    assert serving(made) == [2] * 7


def test_release_whose_faults_show_late_is_taken_back_from_the_canaries() -> None:
    """It passes the shadow and fails in the soak."""
    made = fleet(BAD, "c4", "c5", hidden_s=30)
    live(made, 30)
    assert serving(made) == [2] * 5 + [1] * 2
    live(made, 200)
    assert serving(made) == [1] * 7
    assert {node.rollouts.decision(2) for node in made.nodes.values()} == {Decision.HALTED}


def test_node_that_was_parked_comes_to_the_same_end() -> None:
    """It starts with what it had, and reads what the others said."""
    made = fleet(GOOD)
    made.park(NodeId("v2"))
    live(made, 200)
    assert serving(made) == [2] * 6 + [1]
    made.wake(NodeId("v2"))
    live(made, 20)
    assert serving(made) == [2] * 7


def test_liar_gives_no_genuine_chunks() -> None:
    """A release that only a liar hands out reaches nobody."""
    made = fleet(GOOD, "v1")
    live(made, 100)
    assert serving(made)[:5] == [1] * 5
