"""What waits for a lane: bounds, order, and that every reading is taken or counted as dropped exactly once."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocols.base import limits
from protocols.base.errors import BoundExceeded
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.lanes import Queues
from protocols.links.pace import Pace
from protocols.links.queues import BEHIND_NS, URGENT, LaneQueue
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.membership import Goodbye, Heartbeat
from protocols.wire.parcels import encode_alone, encode_together
from protocols.wire.readings import Interest, Readings
from tests.tools.queue_fixture import PEER, put, taken
from tests.tools.strategies import EXPLORE, reading


# --- order ---------------------------------------------------------------------------------------------------------
def test_take_gives_heartbeat_then_control_then_readings_by_priority() -> None:
    """A brake event overtakes everything but the proof of life."""
    queue = LaneQueue(PEER, Drops())
    put(queue, 1, priority=0)
    put(queue, 2, priority=7)
    put(queue, 3, priority=7)
    goodbye, interest = encode_frame(Goodbye(1)), encode_frame(Interest(1, ()))
    queue.put_latest("Interest", interest)
    queue.put_control(goodbye)
    queue.put_heartbeat(encode_frame(Heartbeat(1, 0, 0, 0, 0)))
    newest = encode_frame(Heartbeat(2, 0, 0, 0, 0))
    queue.put_heartbeat(newest)
    assert [queue.take(0) for _ in range(3)] == [newest, goodbye, interest]
    assert taken(queue) == [2, 3, 1]
    assert not queue


def test_take_of_many_readings_keeps_frames_small() -> None:
    """Nothing overtakes a frame, so none may be long on the air; a large one travels alone."""
    queue = LaneQueue(PEER, Drops())
    for sequence in range(100):
        put(queue, sequence)
    counts = []
    while (frame := queue.take(0)) is not None:
        counts.append(len(decode_untrusted_node_frame(frame).readings))  # type: ignore[union-attr]
    assert counts == [limits.MAX_READINGS_PER_FRAME, 100 - limits.MAX_READINGS_PER_FRAME]
    for sequence in range(4):
        put(queue, sequence, size=limits.MAX_REALTIME_FRAME_BYTES // 2)
    put(queue, 4, size=3 * limits.MAX_REALTIME_FRAME_BYTES)
    sizes = []
    while (frame := queue.take(0)) is not None:
        sizes.append(len(frame))
    assert len(sizes) == 5
    assert max(sizes[:4]) <= limits.MAX_REALTIME_FRAME_BYTES


def test_take_skips_what_expired_and_counts_it() -> None:
    """A stale brake event is worse than none."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    put(queue, 1, expires_ns=10)
    put(queue, 2, expires_ns=11)
    assert taken(queue, 10) == [2]
    put(queue, 3, expires_ns=10)
    assert queue.take(10) is None
    assert dict(drops.items()) == {(PEER, "k", "expired_in_queue"): 2}


# --- bounds --------------------------------------------------------------------------------------------------------
def test_put_when_full_evicts_the_oldest_of_the_lowest_priority() -> None:
    """A chatty sensor can't push out a warning."""
    drops = Drops()
    queue = LaneQueue(PEER, drops, max_readings=3)
    for sequence, priority in enumerate((5, 2, 2)):
        assert put(queue, sequence, priority=priority)
    assert put(queue, 3, priority=2)
    assert not put(queue, 4, priority=1)
    assert put(queue, 5, priority=7)
    assert taken(queue) == [5, 0, 3]
    assert drops.total == 3


def test_put_that_could_not_fit_evicts_nobody() -> None:
    """Room is made only when it is enough."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    for sequence in range(2):
        put(queue, sequence, priority=7, size=15 * 1024 * 1024)
    put(queue, 2, priority=0, size=1024 * 1024)
    assert not put(queue, 3, priority=3, size=8 * 1024 * 1024)
    assert drops.total == 1
    assert taken(queue) == [0, 1, 2]


def test_readings_put_together_get_places_for_all_of_them_or_push_nobody_out() -> None:
    """A recording of sixty-four values that can't fit must not cost the others their places for nothing."""
    drops = Drops()
    queue = LaneQueue(PEER, drops, max_readings=6)
    for sequence in range(1, 4):
        put(queue, sequence, priority=3)
    put(queue, 4, priority=5)
    together = encode_together([reading(key="many", sequence=number) for number in range(10, 16)])
    assert not queue.put_reading("many", together, 4, NEVER, False, count=6), "the urgent one may not give way"
    assert dict(drops.items()) == {(PEER, "many", "queue_full"): 6}
    assert queue.put_reading("many", together, 5, NEVER, False, count=6)
    assert dict(drops.items())[PEER, "k", "queue_full"] == 4
    assert taken(queue) == list(range(10, 16))
    seven = encode_together([reading(key="many", sequence=number) for number in range(20, 27)])
    assert not queue.put_reading("many", seven, 7, NEVER, False, count=7), "an empty queue has no more places"
    assert not queue


def test_conflated_value_that_grows_stays_within_the_bound() -> None:
    """Many small values, replaced in place by large ones, once took any amount of memory."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    for sequence in range(8):
        put(queue, sequence, key=f"k{sequence}", conflate=True)
    for sequence in range(8):
        put(queue, 8 + sequence, key=f"k{sequence}", size=8 * 1024 * 1024, conflate=True)
        assert queue.waiting_bytes <= limits.MAX_QUEUE_BYTES
    came = taken(queue)
    assert came
    assert len(came) + drops.total == 16


def test_conflated_value_that_is_no_larger_keeps_the_place_of_the_older() -> None:
    """A stream of 100 Hz on a slow link must not go to the end of the line with each value, or none ever leaves."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    put(queue, 1, key="fast", size=9, conflate=True)
    put(queue, 2, key="slow", size=1)
    before_bytes = queue.waiting_bytes
    for sequence in range(3, 10):
        put(queue, sequence, key="fast", size=5, conflate=True, expires_ns=10)
    assert queue.waiting_bytes == before_bytes - 4
    assert (queue.waiting_readings, drops.total) == (2, 7)
    assert taken(queue, 9) == [9, 2]
    assert queue.waiting_bytes == 0


def test_conflated_value_of_a_new_priority_moves_there() -> None:
    """A key whose newest reading is urgent must not wait where the old one did."""
    queue = LaneQueue(PEER, Drops())
    put(queue, 1, key="brake", priority=0, conflate=True)
    put(queue, 2, key="other", priority=3)
    put(queue, 3, key="brake", priority=7, conflate=True)
    assert taken(queue) == [3, 2]


def test_control_frames_push_readings_out_but_have_a_bound_of_their_own() -> None:
    """Control goes first even for room; a neighbour that takes nothing costs so much and no more."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    for sequence in range(3):
        put(queue, sequence, priority=7, size=10 * 1024 * 1024)
    queue.put_control(bytes(10 * 1024 * 1024))
    assert queue.waiting_readings == 2
    queue.put_latest("Interest", bytes(1024))
    for _ in range(limits.MAX_CONTROL_FRAMES - 1):
        queue.put_control(b"x")
    with pytest.raises(BoundExceeded, match="does not take frames"):
        queue.put_control(b"x")
    queue.put_latest("Interest", bytes(2048))
    assert drops.items()
    full = LaneQueue(PEER, drops)
    full.put_control(bytes(limits.MAX_QUEUE_BYTES))
    with pytest.raises(BoundExceeded):
        full.put_control(b"x")
    with pytest.raises(BoundExceeded):
        full.put_latest("Offers", b"x")


def test_tensor_on_the_bulk_lane_evicts_ordinary_readings_and_no_urgent_ones() -> None:
    """Somebody who borrows computing time must not push out the picture of an accident; a refused tensor has other
    ways."""
    drops = Drops()
    queue = Queues(PEER, drops, limits.MAX_QUEUE_READINGS).bulk
    for sequence, priority in enumerate((4, 3, 7)):
        put(queue, sequence, priority=priority, size=10 * 1024 * 1024)
    tensor = bytes(10 * 1024 * 1024)
    queue.put_control(tensor)
    with pytest.raises(BoundExceeded, match="does not take frames"):
        queue.put_control(tensor)
    queue.put_latest("Offers", bytes(10 * 1024 * 1024))  # what it says of itself is control as on the other lane
    assert [len(queue.take(0) or b"") for _ in range(2)] == [10 * 1024 * 1024] * 2
    assert taken(queue) == [2]
    assert dict(drops.items()) == {(PEER, "k", "queue_full"): 2, (PEER, "", "control_queue_full"): 1}


def test_latest_of_a_kind_replaces_the_one_that_waits() -> None:
    """A stalled neighbour must get the last Interest, not the first 256."""
    queue = LaneQueue(PEER, Drops())
    for number in range(1_000):
        queue.put_latest("Interest", bytes([number % 256]) * 10)
    queue.put_latest("Offers", b"offers")
    assert queue.waiting_bytes == 16
    assert [queue.take(0), queue.take(0), queue.take(0)] == [bytes([999 % 256]) * 10, b"offers", None]


def test_clear_counts_everything_that_waited() -> None:
    """The neighbour is gone; what it did not get is on record."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    put(queue, 1)
    put(queue, 2, key="c", conflate=True)
    queue.put_control(b"x")
    queue.put_latest("Interest", b"y")
    queue.put_heartbeat(b"z")
    queue.clear("neighbour_gone")
    assert not queue
    assert (queue.waiting_bytes, queue.waiting_readings, queue.take(0)) == (0, 0, None)
    assert dict(drops.items()) == {
        (PEER, "k", "neighbour_gone"): 1,
        (PEER, "c", "neighbour_gone"): 1,
        (PEER, "", "neighbour_gone"): 2,
    }
    put(queue, 3, key="c", conflate=True)
    assert taken(queue) == [3]


def test_drops_beyond_the_bound_are_lumped_by_peer_and_none_is_lost() -> None:
    """Keys come from neighbours: their variety must not take memory."""
    drops = Drops()
    for number in range(limits.MAX_DROP_REASONS + 500):
        drops.count("p", f"k{number}", "stale", 2)
    counted = dict(drops.items())
    assert len(counted) == limits.MAX_DROP_REASONS
    assert counted["p", "*", "stale"] == 2 * 501
    assert sum(counted.values()) == drops.total


def test_drops_of_one_peer_do_not_hide_those_of_others() -> None:
    """An insider that invents keys made the counters useless for all neighbours."""
    drops = Drops()
    for number in range(2 * limits.MAX_DROP_REASONS):
        drops.count("insider", f"k{number}", "denied")
        if number % 64 == 0:
            drops.count("honest", f"h{number}", "queue_full")
    drops.count("late", "x", "expired")
    counted = dict(drops.items())
    assert all(
        counted["honest", f"h{number}", "queue_full"] == 1 for number in range(0, 2 * limits.MAX_DROP_REASONS, 64)
    )
    assert counted["late", "x", "expired"] == 1
    assert {peer for peer, _, _ in counted} == {"insider", "honest", "late"}
    assert len(counted) <= limits.MAX_DROP_REASONS
    assert sum(counted.values()) == drops.total


def test_drops_of_more_peers_than_there_are_counters_are_still_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A road-side unit meets thousands of vehicles."""
    monkeypatch.setattr(limits, "MAX_DROP_REASONS", 50)
    drops = Drops()
    for number in range(500):
        drops.count(f"n{number}", "x", "stale")
        drops.count(f"n{number}", "y", "expired")
    counted = dict(drops.items())
    assert len(counted) <= 52
    assert sum(counted.values()) == drops.total == 1_000


# --- any history ---------------------------------------------------------------------------------------------------
class AnyHistory(RuleBasedStateMachine):
    """Puts, takes and clears in any order, against a book of what was put."""

    @initialize()
    def begin(self) -> None:
        self.drops = Drops()
        self.pace = Pace()
        self.queue = LaneQueue(PEER, self.drops, max_readings=6, pace=self.pace)
        self.now = 1
        self.sequence = 0
        self.control = 0
        self.came: list[int] = []
        self.urgent: set[int] = set()

    @rule(
        key=st.sampled_from("abce"),
        priority=st.integers(0, 7),
        size=st.sampled_from([1, 1, 40_000, 6_000_000, 15_000_000]),
        lifespan=st.none() | st.integers(0, 3),
        conflate=st.booleans(),
        times=st.sampled_from([1, 1, 8]),
    )
    def put(self, key: str, priority: int, size: int, lifespan: int | None, conflate: bool, times: int) -> None:
        for _ in range(times):
            self.sequence += 1
            if priority >= URGENT:
                self.urgent.add(self.sequence)
            expires_ns = NEVER if lifespan is None else self.now + lifespan
            before = self.drops.total
            queued = put(
                self.queue,
                self.sequence,
                key=key,
                priority=priority,
                size=size,
                expires_ns=expires_ns,
                conflate=conflate and key != "e",
                every=key == "e",
            )
            assert queued or self.drops.total > before

    @rule(
        key=st.sampled_from("abc"),
        priority=st.integers(0, 7),
        count=st.integers(2, 8),
        size=st.sampled_from([1, 2_000_000]),
        lifespan=st.none() | st.integers(0, 3),
    )
    def put_together(self, key: str, priority: int, count: int, size: int, lifespan: int | None) -> None:
        """Several readings in one frame, which waits, expires and gives way as a whole."""
        sequences = range(self.sequence + 1, self.sequence + 1 + count)
        if priority >= URGENT:
            self.urgent.update(sequences)
        self.sequence += count
        data = encode_together([reading(key=key, sequence=number, value=bytes(size)) for number in sequences])
        expires_ns = NEVER if lifespan is None else self.now + lifespan
        waited, before = self.queue.waiting_readings, self.drops.total
        if not self.queue.put_reading(key, data, priority, expires_ns, False, count=count):
            assert self.drops.total >= before + count
        elif waited + count > 6:
            assert self.drops.total > before, "others made room"

    @rule(size=st.sampled_from([1, 20_000_000]))
    def put_control(self, size: int) -> None:
        try:
            self.queue.put_control(bytes(size))
            self.control += 1
        except BoundExceeded:
            self.control += 1

    @rule(full=st.sampled_from([False, False, True]))
    def take(self, full: bool) -> None:
        frame = self.queue.take(self.now, full)
        if frame is None:
            assert full or self.pace.active or not self.queue
        elif frame[:1] == b"\0":
            assert not full
            self.control -= 1
        else:
            came = [one.sequence for one in decode_untrusted_node_frame(frame).readings]  # type: ignore[union-attr]
            assert not full or self.urgent.issuperset(came)
            self.came.extend(came)

    @rule(rate=st.sampled_from([0.0, 2.0, 1_000.0]))
    def keep_pace(self, rate: float) -> None:
        """The channel is full, or free again."""
        self.pace.active, self.pace.rate = rate > 0, rate
        self.pace.turns(self.now)

    @rule()
    def wait_for_a_turn(self) -> None:
        if (due_ns := self.pace.next_turn_at()) < NEVER:
            self.now = max(self.now, due_ns)
            assert self.pace.turns(self.now) == [PEER]

    @rule(passed=st.sampled_from([1, 3, BEHIND_NS]))
    def wait(self, passed: int) -> None:
        self.now += passed

    @rule()
    def clear(self) -> None:
        self.queue.clear("gone")

    @invariant()
    def bounds_hold(self) -> None:
        assert 0 <= self.queue.waiting_readings <= 6
        assert 0 <= self.queue.waiting_bytes <= limits.MAX_QUEUE_BYTES

    @invariant()
    def reading_of_which_every_one_is_wanted_gives_way_to_none(self) -> None:
        assert (PEER, "e", "conflated") not in dict(self.drops.items())

    @invariant()
    def every_reading_is_somewhere_exactly_once(self) -> None:
        assert len(set(self.came)) == len(self.came)
        lost = sum(count for (_, key, _), count in self.drops.items() if key)
        assert len(self.came) + lost + self.queue.waiting_readings == self.sequence


AnyHistory.TestCase.settings = settings(max_examples=30, stateful_step_count=25, derandomize=not EXPLORE)
TestQueueHistories = AnyHistory.TestCase


def test_encoded_reading_in_a_queue_is_what_the_neighbour_decodes() -> None:
    """The queue joins encoded readings without looking into them."""
    queue = LaneQueue(PEER, Drops())
    value = {"a": [1, "x"]}
    queue.put_reading("k", encode_alone(reading(value=value)), 3, NEVER, False)
    frame = queue.take(0)
    assert frame is not None
    assert msgspec.msgpack.decode(frame)[0] == 6
    assert decode_untrusted_node_frame(frame) == Readings((reading(value=value),))


def test_background_frame_goes_last_and_makes_no_lane_behind() -> None:
    """A chunk of a release yields to readings and tensors, and older readings don't give way because of it."""
    queue = LaneQueue(PEER, Drops())
    queue.put_background(b"chunk")
    queue.put_reading("a", b"\x93reading", 0, NEVER, False)
    queue.put_control(b"control")
    assert queue.take(0, full=True) is None
    assert [queue.take(1), queue.take(2), queue.take(3), queue.take(4)] == [b"control", b"\x93reading", b"chunk", None]
    queue.put_background(b"chunk")
    assert queue.take(5, full=True) is None
    assert queue.take(5 + 10 * BEHIND_NS, full=True) is None
    assert not queue.is_behind
    assert queue


def test_background_frames_are_few_and_evict_nothing() -> None:
    """They are pulled by credit: who asks for more than fits is told, and loses none of its readings."""
    queue = LaneQueue(PEER, drops := Drops())
    for _ in range(limits.MAX_BACKGROUND_FRAMES):
        queue.put_background(b"chunk")
    with pytest.raises(BoundExceeded, match="of the background wait"):
        queue.put_background(b"chunk")
    assert drops.total == 1
    queue.clear("neighbour_gone")
    assert drops.total == 1 + limits.MAX_BACKGROUND_FRAMES
    assert not queue
