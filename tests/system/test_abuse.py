"""What a neighbour with a valid certificate, or a careless application, could do to a node; each was done once."""

import logging
import threading
import time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base import limits
from protocols.base.errors import InvalidKey, RemoteProtocolError, ValueUnsupported
from protocols.base.keys import checked_expression
from protocols.membership.events import PeerRefused
from protocols.membership.neighbour import State
from protocols.readings.publication import checked_publication
from protocols.readings.quality import Quality
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.encoding.messagepack import has_too_many_elements
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Interest, Position, Provenance, Reading, Want
from sims.virtual.driver import SimDriver
from tests.tools.eventually import LIMIT_S, until
from tests.tools.lone_node_fixture import SECOND, Alone
from tests.tools.mesh_fixture import Open, given_house, given_opened, pair, wanted

__all__ = ["given_house", "given_opened"]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=60,
)  # fmt: skip
WHERE, HOW = Position(48.7, 11.4, 1.0), Provenance("test", "1")


def _reading(value: object) -> Reading:
    return Reading("veh/a/x", "a", 1, value, WHERE, EventTime(1, 1), HOW)


def test_frame_of_a_million_empty_dicts_is_refused_before_it_takes_memory() -> None:
    """Fifteen megabytes of them took ten seconds and a gigabyte, under the lock that heartbeats need."""
    small = encode_reading(_reading([None]))
    count = 1_000_000
    inner = small.replace(b"\x91\xc0", b"\xdd" + count.to_bytes(4, "big") + b"\x80" * count, 1)
    began_s = time.thread_time()
    with pytest.raises(RemoteProtocolError, match="elements"):
        decode_untrusted_node_frame(b"\x92\x06\x91" + inner)
    assert time.thread_time() - began_s < 0.5
    with pytest.raises(ValueUnsupported, match="array or as bytes"):
        encode_reading(_reading([{}] * 2 * limits.LARGE_FRAME_BYTES))


def test_large_bytes_pass_where_large_lists_do_not() -> None:
    """The bound is on what costs memory, not on data."""
    value = {"frame": b"x" * 4_000_000, "boxes": [[1.5, -2, "plate", None, True]] * 100, "id": 1 << 40}
    frame = b"\x92\x06\x91" + encode_reading(_reading(value))
    decoded = decode_untrusted_node_frame(frame)
    assert decoded.readings[0].value == value  # type: ignore[union-attr]


@given(values)
def test_elements_are_counted_as_the_decoder_makes_them(value: object) -> None:
    """Counted too low, the bound is none; too high, and good frames are refused."""

    def count(item: object) -> int:
        if isinstance(item, list):
            return 1 + sum(map(count, item))
        if isinstance(item, dict):
            return 1 + sum(1 + count(inner) for inner in item.values())
        return 1

    data = msgpack.packb(value)
    expected = count(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MAX_ELEMENTS", expected)
        assert not has_too_many_elements(data)
        patch.setattr(limits, "MAX_ELEMENTS", expected - 1)
        assert has_too_many_elements(data)


def test_expression_of_many_double_wildcards_is_refused() -> None:
    """256 of them against a thousand keys held a node up for three seconds."""
    assert checked_expression("**/hazard/**")
    with pytest.raises(InvalidKey, match="more than 2"):
        checked_expression("**/*/**/*/**/x")


def test_large_last_value_reaches_a_neighbour_whose_interest_came_before_the_lane() -> None:
    """It lay in the bulk queue for ever, and nobody dialled the lane."""
    driver = SimDriver(1)
    driver.add("v-0")
    driver.add("v-1")
    driver.publish("v-0", "veh/v-0/map", b"x" * 100_000)
    driver.subscribe("v-1", "veh/**", Quality())
    node = driver.nodes[next(iter(driver.nodes))]
    node.engine.membership.hint("v-1", None, (("v-1", 7000),), driver.now)
    driver.act(node, lambda engine, now: None)
    driver.meet()
    driver.run_for(3 * SECOND)
    (received,) = [reading for _, reading in driver.nodes[max(driver.nodes)].received]
    assert len(received.value) == 100_000


def test_bulk_lane_that_fails_is_dialled_again_while_something_waits_for_it() -> None:
    """One lost packet in the handshake must not cost an inference its answer."""
    alone = Alone()
    alone.lane("a")
    pipe = alone.pipes
    alone.receive(pipe, Interest(1, (Want("veh/**"),)))
    publication = checked_publication("veh/me/map", HOW, WHERE)
    alone.engine.readings.publish(publication, b"x" * 100_000, None, EventTime(1, 1), alone.now, 1)
    alone.engine.carry(alone.now)
    (first,) = alone.dials()
    alone.engine.lane_closed(first.dial, "reset", False, alone.now)
    alone.timers(SECOND)
    assert alone.dials(), "nobody dials the bulk lane again"


def test_rate_limited_subscriptions_that_come_and_go_leave_nothing() -> None:
    """Each reconnecting client of the HTTP stream left an entry in each stream."""
    driver = SimDriver(1)
    driver.add("v-0")
    engine = driver.nodes[next(iter(driver.nodes))].engine
    for _ in range(50):
        number = driver.subscribe("v-0", "veh/**", Quality(min_interval_ns=SECOND))
        driver.publish("v-0", "veh/v-0/a", 1)
        engine.readings.unsubscribe(number)
    driver.publish("v-0", "veh/v-0/a", 1)
    (stream,) = engine.readings._streams.values()
    assert len(stream.limited_last) == 0


async def test_listener_that_fails_takes_no_node_out_of_the_mesh(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the thread that sends heartbeats: a healthy node was dead to its neighbours."""
    with caplog.at_level(logging.ERROR):
        here, there = await pair(opened)
        here.on_event(lambda event: 1 / 0)
        seen: list[str] = []
        here.on_event(lambda event: seen.append(type(event).__name__))
        third = await opened("veh-3", here.port)
        await third.wait_for_peers(1)
        await third.close()
        await until(lambda: "NeighbourLeft" in seen, "the other listener knows")
        await until(
            lambda: any(p.node == "veh-3" and p.state is State.LEFT for p in here.peers()), "the node itself knows"
        )
        before = there.statistics()["frames_received"]
        await until(lambda: there.statistics()["frames_received"] > before + 3, "heartbeats go on")
    assert "a listener failed" in caplog.text


async def test_burst_published_in_a_callback_goes_out_while_the_callback_works(opened: Open) -> None:
    """The thread that would have sent the rest of the burst was the one that ran the callback."""
    here, there = await pair(opened)
    arrived = threading.Semaphore(0)
    there.subscribe(f"rsu/{here.id}/answer", callback=lambda _: arrived.release(), history=False)
    await wanted(here, f"rsu/{here.id}/answer")
    all_came: list[bool] = []

    def work(_: object) -> None:
        for number in range(20):
            here.publish(f"rsu/{here.id}/answer", number)
        all_came.append(all(arrived.acquire(timeout=LIMIT_S) for _ in range(20)))

    here.subscribe("veh/veh-1/question", callback=work, history=False)
    await wanted(there, "veh/veh-1/question")
    there.publish("veh/veh-1/question", 1)
    await until(lambda: all_came, "the callback has ended", 2 * LIMIT_S)
    assert all_came == [True]


def test_insider_whose_frames_are_none_is_named_once_however_often_it_comes_again() -> None:
    """Fifty new links a second, each with a good Hello and then garbage, wrote fifty lines a second into the log."""
    alone = Alone()
    for _ in range(20):
        pipe = alone.hello("veh-9")
        alone.receive(pipe, b"\xc1 garbage")
        alone.engine.inbound_closed(pipe, alone.now)
    told = [event for event in alone.engine.events() if type(event) is PeerRefused]
    assert [(event.who, event.code) for event in told] == [("veh-9", "protocol")]
    assert alone.engine.statistics()["frames_malformed"] == 20
    assert dict(alone.engine.drops.items())["veh-9", "", "malformed_frame"] == 20
    alone.timers(31 * SECOND)
    alone.receive(alone.hello("veh-9"), b"\xc1 garbage")
    assert any(type(event) is PeerRefused for event in alone.engine.events())
