"""The queues of neighbours that are gone or were never there."""

from protocols.base.ids import Lane, NodeId
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.lanes import Lanes
from protocols.wire.membership import Goodbye
from protocols.wire.parcels import encode_alone
from tests.tools.strategies import reading

A = NodeId("a")


def test_frame_for_a_neighbour_without_queues_is_not_taken() -> None:
    """Whoever sends it must be able to say that it did not go out."""
    lanes = Lanes(Drops(), 10)
    assert not lanes.put(A, Goodbye(1, "bye"))
    assert lanes.of_node == {}
    lanes.queues_of(A)
    assert lanes.put(A, Goodbye(1, "bye"))
    assert lanes.taken() == [lanes.of_node[A].realtime]


def test_neighbour_that_is_forgotten_twice_loses_what_waited_once() -> None:
    """It died, and then its restart is noticed: the counters must not tell of twice as much."""
    drops = Drops()
    lanes = Lanes(drops, 10)
    queue = lanes.opened(7, A, Lane.REALTIME)
    queue.put_reading("k", encode_alone(reading()), 3, NEVER, False)
    for _ in range(2):
        lanes.forget(A, "neighbour_gone")
    assert dict(drops.items()) == {("a", "k", "neighbour_gone"): 1}
    assert lanes.of_dial == {}
    assert queue.dial == 0
    lanes.closed(7)
    assert lanes.taken() == []
