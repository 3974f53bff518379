"""A lane that can't keep up: what goes first, what is left out, and what that costs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base import limits
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.pace import Pace
from protocols.links.queues import BEHIND_NS, URGENT, LaneQueue
from protocols.links.shortfall import Shortfall
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.membership import Goodbye, Heartbeat
from protocols.wire.parcels import encode_alone, encode_together
from protocols.wire.readings import Readings
from tests.tools.queue_fixture import PEER, behind, put, taken
from tests.tools.strategies import EXPLORE, THOROUGH, reading


def test_full_lane_takes_urgent_readings_and_nothing_else() -> None:
    """A hazard must not wait behind positions, and positions not where nobody can replace them."""
    queue = LaneQueue(PEER, Drops())
    put(queue, 1, priority=5)
    put(queue, 2, priority=URGENT)
    queue.put_control(encode_frame(Goodbye(1)))
    frame = queue.take(0, full=True)
    assert frame is not None
    decoded = decode_untrusted_node_frame(frame)
    assert type(decoded) is Readings
    assert [one.sequence for one in decoded.readings] == [2]
    assert queue.take(0, full=True) is None
    assert queue.take(1) == encode_frame(Goodbye(1))
    assert taken(queue, 1) == [1]


def test_newest_reading_of_a_key_replaces_what_waits_once_a_lane_is_behind() -> None:
    """What is sent next must be new, each key must get its turn, and urgent readings are events: none is left out."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    for sequence in (1, 2, 3):
        put(queue, sequence, key="position")
    put(queue, 4, key="speed")
    assert queue.take(1, full=True) is None
    assert queue.take(1 + BEHIND_NS, full=True) is None
    assert queue.is_behind
    for sequence in (5, 6):
        put(queue, sequence, key="position")
    for sequence in (7, 8):
        put(queue, sequence, key="hazard", priority=URGENT)
    assert taken(queue, BEHIND_NS + 1) == [7, 8, 6, 4]
    assert dict(drops.items()) == {(PEER, "position", "conflated"): 4}
    assert not queue.is_behind
    for sequence in (9, 10):
        put(queue, sequence, key="position")
    assert taken(queue, BEHIND_NS + 2) == [9, 10], "it has caught up"


def test_reading_that_came_before_a_conflated_one_goes_and_not_both() -> None:
    """A subscriber gets a past value, which is not conflated, and then new ones, which are."""
    queue, drops = behind()
    put(queue, 1)
    put(queue, 2, conflate=True)
    assert taken(queue, 2 + BEHIND_NS) == [0, 2]
    put(queue, 3, conflate=True)
    put(queue, 4, conflate=True, size=5)
    assert taken(queue, 2 + BEHIND_NS) == [4]
    assert (queue.waiting_bytes, dict(drops.items())) == (0, {(PEER, "k", "conflated"): 2})


def test_reading_of_another_origin_never_replaces_one_of_the_same_key() -> None:
    """Else an insider could wipe out what others say about a place, on every lane that is slow."""
    queue, _ = behind()
    for sequence, origin in enumerate(("veh-1", "veh-2", "veh-1"), 1):
        data = encode_alone(reading(key="street", sequence=sequence))
        queue.put_reading("street", data, 3, NEVER, False, origin=origin)
    assert taken(queue, 2 + BEHIND_NS) == [0, 3, 2]


def test_conflated_reading_of_another_origin_replaces_nothing() -> None:
    """A forwarder sends readings of several nodes on one lane, and each of them has a newest one."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    for sequence, origin in enumerate(("veh-1", "veh-2", "", "veh-1", "veh-2"), 1):
        data = encode_alone(reading(key="street", sequence=sequence))
        queue.put_reading("street", data, 3, NEVER, True, origin=origin)
    assert taken(queue) == [4, 5, 3]
    assert dict(drops.items()) == {(PEER, "street", "conflated"): 2}


def test_readings_that_were_published_together_are_not_overtaken_by_newer_ones() -> None:
    """The receiver would drop them all as stale."""
    queue, _ = behind()
    put(queue, 1)
    together = encode_together([reading(key="k", sequence=number) for number in (2, 3)])
    queue.put_reading("k", together, 3, NEVER, False, count=2)
    put(queue, 4)
    put(queue, 5)
    assert taken(queue, 2 + BEHIND_NS) == [0, 1, 2, 3, 5]


def test_reading_of_which_every_one_is_wanted_gives_way_to_none() -> None:
    """Who counts events needs all of them; who shows a position on the same lane still gets the newest."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    put(queue, 1, key="count", every=True)  # the lone one keeps what was asked for
    for now in (1, 1 + BEHIND_NS):
        assert queue.take(now, full=True) is None
    for sequence in range(2, 8, 2):
        put(queue, sequence, key="position")
        put(queue, sequence + 1, key="count", every=True)
    assert taken(queue, 2 + BEHIND_NS) == [1, 6, 3, 5, 7]
    assert dict(drops.items()) == {(PEER, "position", "conflated"): 2}


def test_readings_of_which_every_one_is_wanted_stay_within_the_bound_and_their_lifespan() -> None:
    """Asking for all must not cost the publisher more than others do, and what has expired is of use to nobody."""
    drops = Drops()
    queue = LaneQueue(PEER, drops, max_readings=4)
    for sequence in range(6):
        put(queue, sequence, every=True, expires_ns=BEHIND_NS if sequence == 3 else NEVER)
        assert queue.take(1, full=True) is None
    assert queue.take(1 + BEHIND_NS, full=True) is None
    assert taken(queue, 2 + BEHIND_NS) == [2, 4, 5]
    assert dict(drops.items()) == {(PEER, "k", "queue_full"): 2, (PEER, "k", "expired_in_queue"): 1}


@settings(max_examples=100, derandomize=not EXPLORE)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "veh-1"]), st.integers(0, 7), st.booleans())))
def test_lane_that_is_behind_sends_all_that_are_wanted_and_the_newest_of_the_others(
    puts: list[tuple[str, str, int, bool]],
) -> None:
    """However wants change while readings wait: nothing wanted is missing, and no stream goes back in its time."""
    queue, drops = behind()
    stream_of: dict[int, tuple[str, str, int]] = {}
    wanted, newest = {0}, {}
    for sequence, (key, origin, priority, every) in enumerate(puts, 1):
        data = encode_alone(reading(key=key, sequence=sequence))
        assert queue.put_reading(key, data, priority, NEVER, False, every, origin=origin)
        stream_of[sequence] = key, origin, priority
        newest[stream_of[sequence]] = sequence
        if every or priority >= URGENT:
            wanted.add(sequence)
    came = taken(queue, 2 + BEHIND_NS)
    assert wanted.union(newest.values()) <= set(came)
    assert len(came) + drops.total == len(puts) + 1
    for stream in newest:
        of_stream = [sequence for sequence in came if stream_of.get(sequence) == stream]
        assert of_stream == sorted(of_stream)


def test_lane_that_is_behind_looks_through_what_must_stay_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of readings that all stay would be looked through for each frame of a slow link."""
    queue, _ = behind()
    looks = 0

    def looked(now: int) -> None:
        nonlocal looks
        looks += 1
        LaneQueue._leave_out_older(queue, now)

    monkeypatch.setattr(queue, "_leave_out_older", looked)
    for sequence in range(1, 1_000):
        put(queue, sequence, every=True, size=1_000)
        if sequence % 5 == 0:
            assert queue.take(2 + BEHIND_NS) is not None
    assert looks <= 3


def test_lane_that_is_behind_tells_what_it_sends_and_what_it_leaves_out() -> None:
    """An operator sees who gets less than is published. A lane with room has nothing to count, and pays nothing."""
    queue, _ = behind()
    for sequence in range(1, 5):
        put(queue, sequence, key=f"k{sequence % 2}", size=1_000)
    frames = len([frame for frame in iter(lambda: queue.take(2 + BEHIND_NS), None) if frame])
    now, figures = 2 + BEHIND_NS, queue.shortfall
    assert (figures.left_out, frames) == (2, 2)
    assert not queue.is_behind, "it has caught up, as after each frame"
    assert figures.is_recent(now)
    assert figures.frames_per_s(now + 2 * limits.SECOND) == 1.0
    put(queue, 9)
    now += 4 * limits.SECOND
    assert taken(queue, now) == [9]
    assert (figures.frames_per_s(now), figures.left_out, figures.is_recent(now)) == (0.0, 2, False)


def test_rate_of_a_slow_lane_is_that_of_the_last_seconds() -> None:
    """It must neither jump with each frame nor tell of what was long ago."""
    figures = Shortfall()
    rates = []
    for tenth in range(100):
        figures.sent(now := tenth * 100 * limits.MS)
        rates.append(figures.frames_per_s(now))
    assert (set(rates[20:]), set(rates[:20])) == ({10.0}, {0.0})
    assert 5 < figures.frames_per_s(now + limits.SECOND) < 10, "nothing went for a second"
    assert figures.frames_per_s(now + 4 * limits.SECOND) == 0.0
    figures.sent(now + 100 * limits.SECOND)
    assert figures.frames_per_s(now + 100 * limits.SECOND) < 1


def test_full_lane_with_many_keys_costs_the_publisher_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour that asks for everything and takes nothing must not have all that waits looked through each time."""
    queue, _ = behind()
    looked = 0
    leave_out = queue._leave_out_older

    def counted(now: int) -> None:
        nonlocal looked
        looked += queue.waiting_readings
        leave_out(now)

    monkeypatch.setattr(queue, "_leave_out_older", counted)
    for number in range(2_000):
        put(queue, number, key=f"k/{number}")
        assert queue.take(2 + BEHIND_NS, full=True) is None
    assert looked < 2 * 2_000


def test_question_for_an_answer_is_not_replaced_by_a_plain_heartbeat() -> None:
    """On a full lane it waits for longer than the interval of heartbeats."""
    queue = LaneQueue(PEER, Drops())
    question, plain = encode_frame(Heartbeat(1, 0, 0, 0, 0, (), True)), encode_frame(Heartbeat(2, 0, 0, 0, 0))
    queue.put_heartbeat(question, asks=True)
    queue.put_heartbeat(plain)
    assert [queue.take(0), queue.take(0)] == [question, None]
    queue.put_heartbeat(plain)
    assert queue.take(0) == plain


def test_turn_is_not_lost_when_all_readings_have_expired() -> None:
    """Control frames would wait with nobody in line for them."""
    pace = Pace()
    pace.active, pace.rate = True, 10.0
    queue = LaneQueue(PEER, Drops(), pace=pace)
    goodbye, now = encode_frame(Goodbye(1)), 2
    for number in range(8):
        put(queue, number, key=f"k/{number}", expires_ns=1)
        put(queue, 10 + number, key=f"l/{number}", expires_ns=1)
        queue.put_control(goodbye)
        while (frame := queue.take(now)) is None:
            assert pace.next_turn_at() < NEVER
            now = max(now + 1, pace.next_turn_at())
            pace.turns(now)
        assert frame == goodbye


def test_urgent_readings_that_wait_go_together_in_one_segment() -> None:
    """A hundred frames would keep a full radio busy for as long as anything."""
    queue = LaneQueue(PEER, Drops())
    for sequence in range(40):
        put(queue, sequence, priority=7)
    frames = 0
    while queue.take(0, full=True) is not None:
        frames += 1
    assert 1 < frames < 10


def test_burst_that_waits_for_less_than_a_moment_loses_nothing() -> None:
    """A log that is handed over at once is no sign of a slow link."""
    queue = LaneQueue(PEER, Drops())
    for sequence in range(1, 101):
        put(queue, sequence)
    for now in range(0, BEHIND_NS, BEHIND_NS // 10):
        assert queue.take(now, full=True) is None
    assert taken(queue, BEHIND_NS - 1) == list(range(1, 101))


def test_reading_that_would_expire_on_its_way_is_not_sent() -> None:
    """It would cost the channel a frame, and nobody could use it."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    queue.delay_ns = 50 * limits.MS
    put(queue, 1, expires_ns=limits.SECOND)
    put(queue, 2, expires_ns=limits.SECOND)
    assert taken(queue, limits.SECOND - 50 * limits.MS) == []
    assert dict(drops.items()) == {(PEER, "k", "expired_in_queue"): 2}


def test_lanes_of_a_node_that_keeps_a_pace_wait_for_their_turn() -> None:
    """Readings have three turns in four, so that gossip on a full channel neither stops nor takes it."""
    pace = Pace()
    pace.active, pace.rate = True, 10.0
    queue = LaneQueue(PEER, Drops(), pace=pace)
    for sequence in range(1, 9):
        put(queue, sequence, key=f"k/{sequence}", size=limits.MAX_REALTIME_FRAME_BYTES // 2 + 1)
        queue.put_control(encode_frame(Goodbye(sequence)))
    now, kinds = 0, []
    for _ in range(8):
        while (frame := queue.take(now)) is None:
            now = max(now + 1, pace.next_turn_at())
            pace.turns(now)
        kinds.append(type(decode_untrusted_node_frame(frame)).__name__)
    assert kinds.count("Goodbye") == 2
    assert kinds.count("Readings") == 6
    assert now > 0.5 * limits.SECOND


def paced() -> tuple[LaneQueue, Pace]:
    """A lane of a node that keeps a pace and has a turn left."""
    pace = Pace()
    pace.active, pace.rate = True, 10.0
    return LaneQueue(PEER, Drops(), pace=pace), pace


def test_what_is_small_goes_along_with_a_turn() -> None:
    """A segment of its own would cost a full channel as much as a reading does."""
    queue, _ = paced()
    beat, goodbye = encode_frame(Heartbeat(1, 0, 0, 0, 0)), encode_frame(Goodbye(1))
    put(queue, 1)
    queue.put_heartbeat(beat)
    queue.put_control(goodbye)
    queue.put_latest("Interest", goodbye)
    now = limits.SECOND
    frame = queue.take(now)
    assert frame is not None
    along = queue.take_along(len(frame), now)
    together = [decode_untrusted_node_frame(one) for one in (frame, *along)]
    assert sorted(type(one).__name__ for one in together) == ["Goodbye", "Goodbye", "Heartbeat", "Readings"]
    assert not queue
    assert queue.waiting_bytes == queue.waiting_readings == 0
    assert queue.take_along(len(frame), now) == []


def test_readings_go_along_before_control_frames_and_neither_makes_a_second_segment() -> None:
    """The newest position is what a turn is for."""
    queue, _ = paced()
    long, now = encode_frame(Goodbye(1, "x" * 200)), limits.SECOND
    queue.put_heartbeat(encode_frame(Heartbeat(1, 0, 0, 0, 0)))
    queue.put_control(long)
    put(queue, 1, key="a", size=300)
    put(queue, 2, key="b", size=300)
    put(queue, 3, key="c", size=900)
    frame = queue.take(now)
    assert frame is not None
    assert type(decode_untrusted_node_frame(frame)) is Heartbeat
    (readings,) = queue.take_along(len(frame), now)
    decoded = decode_untrusted_node_frame(readings)
    assert type(decoded) is Readings
    assert [one.sequence for one in decoded.readings] == [1, 2]
    assert len(frame) + len(readings) < 1_300
    assert queue.waiting_readings == 1, "it waits for the next turn, as the long control frame does"


def test_only_the_newest_goes_along_with_a_hazard_once_the_pace_is_the_least() -> None:
    """A hazard to each of sixty neighbours that took a second of positions along filled the channel."""
    sequences = {}
    for rate in (10.0, 2.0):
        queue, pace = paced()
        pace.rate, pace.lanes, now = rate, 4, limits.SECOND
        while pace.take_turn(PEER, now):
            pass  # the turns that are left
        for number in range(8):
            put(queue, number, key="position")
            assert queue.take(now + number * 100 * limits.MS) is None
        put(queue, 8, key="hazard", priority=7)
        hazard = queue.take(now + limits.SECOND)
        assert hazard is not None
        (along,) = queue.take_along(len(hazard), now + limits.SECOND)
        decoded = decode_untrusted_node_frame(along)
        assert type(decoded) is Readings
        sequences[rate] = [one.sequence for one in decoded.readings]
    assert sequences == {10.0: list(range(8)), 2.0: [7]}


def test_nothing_goes_along_with_a_frame_that_fills_a_segment() -> None:
    """It would begin a second one, and a lane does not take it along with a large frame at all."""
    queue, _ = paced()
    beat = encode_frame(Heartbeat(1, 0, 0, 0, 0))
    put(queue, 1, size=1_400, priority=7)
    queue.put_heartbeat(beat)
    frame = queue.take(limits.SECOND)
    assert frame is not None
    assert queue.take_along(len(frame), limits.SECOND) == []
    assert queue.take(2 * limits.SECOND) == beat


@THOROUGH
@given(
    st.lists(
        st.tuples(st.sampled_from(["reading", "hazard", "beat", "control", "latest"]), st.integers(0, 1_500)),
        max_size=30,
    )
)
def test_everything_that_is_put_comes_out_once_with_a_turn_or_along_with_one(puts: list[tuple[str, int]]) -> None:
    """Whatever waits, and however large it is."""
    queue, pace = paced()
    kinds = [kind for kind, _ in puts]
    sent: list[str] = []
    sent_readings: list[tuple[int, int]] = []
    for number, (kind, size) in enumerate(puts):
        match kind:
            case "reading":
                put(queue, number, key=f"k/{number}", size=size)
            case "hazard":
                put(queue, number, key=f"k/{number}", size=size, priority=7)
            case "beat":
                queue.put_heartbeat(encode_frame(Heartbeat(number, 0, 0, 0, 0)))
            case "control":
                queue.put_control(encode_frame(Goodbye(number, "x" * min(size, 200))))
            case _:
                queue.put_latest("Interest", encode_frame(Goodbye(number)))
    now = limits.SECOND
    while queue:
        frame = queue.take(now)
        if frame is None:
            now = max(now + 1, pace.next_turn_at())
            pace.turns(now)
            continue
        along = queue.take_along(len(frame), now)
        assert not along or len(frame) + sum(map(len, along)) <= 1_300
        for one in (frame, *along):
            decoded = decode_untrusted_node_frame(one)
            if type(decoded) is Readings:
                sent_readings += [
                    (one.sequence, 7 if kinds[one.sequence] == "hazard" else 3) for one in decoded.readings
                ]
            else:
                sent.append(type(decoded).__name__)
    for kind, least in (("hazard", 7), ("reading", 3)):
        put_in = [number for number, one in enumerate(kinds) if one == kind]
        assert [number for number, priority in sent_readings if priority == least] == put_in
    assert sent.count("Heartbeat") == min(kinds.count("beat"), 1), "the newest"
    assert sent.count("Goodbye") == kinds.count("control") + min(kinds.count("latest"), 1)
