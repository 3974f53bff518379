"""Where one node dials, when, and how often: hints from strangers, seeds, and what a Hello said."""

from protocols.base import limits
from protocols.base.ids import Lane, NodeId, Role
from protocols.base.time import NEVER
from protocols.membership.dial_limit import FIRST, MOST
from protocols.membership.events import HangUp, PeerRefused
from protocols.wire.membership import Goodbye
from tests.tools.lone_node_fixture import Alone
from tests.tools.strategies import identity

MS, SECOND = limits.MS, limits.SECOND


# --- hints ---------------------------------------------------------------------------------------------------------
def test_hints_of_a_flood_are_bounded_in_number_and_in_dials() -> None:
    """Anybody on the radio can send adverts for doors that never answer."""
    alone = Alone()
    for number in range(3 * limits.MAX_ADVERTS):
        alone.engine.membership.hint(
            f"fake-{number}", NodeId(f"fake-{number}"), (("192.0.2.9", number),) * 50, alone.now
        )
    first = alone.dials()
    assert len(first) == FIRST
    assert alone.engine.statistics()["hints_ignored"] == 2 * limits.MAX_ADVERTS
    assert alone.engine.next_timer_at() > alone.now
    for dial in first:
        alone.engine.lane_closed(dial.dial, "no answer", False, alone.now)
    second = alone.dials()
    assert len(second) == FIRST
    assert {dial.port for dial in second}.isdisjoint({dial.port for dial in first}), "before those that failed"
    dialled = len(second)
    while (due_ns := alone.engine.next_timer_at()) < NEVER:
        alone.now = max(alone.now + 1, due_ns)
        dialled += len(alone.dials())
    assert dialled == MOST, "those that nobody answers keep no others waiting, until their number is too large"


def test_adverts_of_strangers_and_a_slow_handshake_leave_two_dials_a_second() -> None:
    """As many fake ones as there are would make a crowd that has a dial in a quarter of a minute."""
    alone = Alone()
    for number in range(limits.MAX_ADVERTS):
        alone.engine.membership.hint(f"fake-{number}", NodeId(f"fake-{number}"), (("192.0.2.9", number),), alone.now)
    slow = alone.dials()[0]
    alone.now += 2 * SECOND
    alone.engine.lane_opened(slow.dial, identity("fake-0"), alone.now)
    begun = 0
    for _ in range(100):
        begun += len(alone.dials())
        alone.now += 100 * MS
    assert begun >= 20


def test_neighbour_that_came_itself_is_dialled_back_despite_a_full_table() -> None:
    """A stranger's flood must not keep authenticated nodes apart."""
    alone = Alone()
    for number in range(limits.MAX_ADVERTS):
        alone.engine.membership.hint(f"fake-{number}", NodeId(f"fake-{number}"), (("192.0.2.9", number),), alone.now)
    alone.dials()
    alone.hello("real", port=4242)
    alone.now = alone.engine.next_timer_at()
    addresses = [(dial.host, dial.port) for dial in alone.dials()[:1]]
    assert ("192.0.2.1", 4242) in addresses


def test_hint_that_leads_nowhere_makes_room_for_a_newer_one() -> None:
    """Yesterday's adverts must not keep out today's."""
    alone = Alone()
    for number in range(limits.MAX_ADVERTS):
        alone.engine.membership.hint(f"old-{number}", NodeId(f"old-{number}"), (("192.0.2.9", number),), alone.now)
    for _ in range(60):
        for dial in alone.dials():
            alone.engine.lane_closed(dial.dial, "no answer", False, alone.now)
        alone.now += limits.REDIAL_MAX_NS
    alone.dials()
    before = alone.engine.statistics()["hints_ignored"]
    alone.engine.membership.hint("new", NodeId("new"), (("192.0.2.8", 1),), alone.now)
    assert alone.engine.statistics()["hints_ignored"] == before + 1, "one was forgotten for it"


def test_full_forged_advert_leaves_a_place_for_where_a_node_proved_to_be() -> None:
    """Eight made-up addresses must not push out the one that answered."""
    alone = Alone()
    alone.hello("real", port=4242)
    (dial,) = alone.dials()
    alone.engine.lane_closed(dial.dial, "reset", False, alone.now)
    tried = set()
    for number in range(40):
        forged = tuple((f"192.0.2.{100 + number % 2 * 8 + at}", 1) for at in range(limits.MAX_ADVERT_ADDRESSES))
        alone.engine.membership.hint("real", NodeId("real"), forged, alone.now)
        for _ in range(12):
            alone.now += limits.REDIAL_MAX_NS
            for dial in alone.dials():
                tried.add((dial.host, dial.port))
                alone.engine.lane_closed(dial.dial, "no answer", False, alone.now)
    assert ("192.0.2.1", 4242) in tried


def test_hint_with_anothers_address_does_not_block_the_real_one() -> None:
    """A stranger may advertise rsu-1 at the address of veh-2; rsu-1 must still be dialled where it is."""
    alone = Alone()
    alone.engine.membership.hint("rsu-1", NodeId("rsu-1"), (("192.0.2.2", 7000),), alone.now)
    dial = alone.dials()[0].dial
    alone.engine.lane_opened(dial, identity("veh-2"), alone.now)
    assert HangUp(dial) in alone.engine.outgoing()
    alone.engine.handle_timer(alone.now)
    refused = [event for event in alone.engine.events() if type(event) is PeerRefused]
    assert refused[0].detail == "its advert says rsu-1, its certificate veh-2"
    alone.engine.membership.hint("rsu-1", NodeId("rsu-1"), (("192.0.2.1", 7000),), alone.now)
    assert [(dial.host, dial.port) for dial in alone.dials()] == [("192.0.2.1", 7000)]


def test_hint_withdrawn_ends_dialling_but_no_link() -> None:
    """MDNS is a hint in both directions."""
    alone = Alone()
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 7000),), alone.now)
    alone.engine.membership.hint("gone", NodeId("gone"), (("192.0.2.8", 7000),), alone.now)
    x, gone = alone.dials()
    alone.engine.lane_opened(x.dial, identity("x"), alone.now)
    alone.engine.membership.withdraw("x")
    alone.engine.membership.withdraw("gone")
    alone.engine.membership.withdraw("never heard of")
    alone.engine.lane_closed(gone.dial, "no answer", False, alone.now)
    alone.engine.outgoing()
    alone.now += 60 * SECOND
    assert alone.dials() == []
    alone.engine.membership.hint("later", NodeId("later"), (("192.0.2.9", 1),), alone.now)
    alone.engine.membership.withdraw("later")
    assert alone.dials() == []


def test_hint_that_moved_gives_up_the_dial_to_the_old_place() -> None:
    """A vehicle got another address while we knocked at the former one."""
    alone = Alone()
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 1),), alone.now)
    old = alone.dials()[0]
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.8", 2),), alone.now)
    assert alone.engine.outgoing() == [HangUp(old.dial)]
    assert [(dial.host, dial.port) for dial in alone.dials()] == [("192.0.2.8", 2)]
    alone.engine.lane_opened(old.dial, identity("x"), alone.now)
    assert HangUp(old.dial) in alone.engine.outgoing()
    alone.engine.lane_closed(old.dial, "closed", False, alone.now)


def test_network_that_changed_has_everybody_dialled_again_soon_and_ends_no_lane() -> None:
    """While the modem was away every dial failed, and the pauses grew to eight seconds. The first dial after it came
    back went out from an address that was gone, and waited for its time-out."""
    alone = Alone()
    lane = alone.lane("there")
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 1), ("192.0.2.8", 1)), alone.now)
    for _ in range(12):
        for dial in alone.dials():
            alone.engine.lane_closed(dial.dial, "network is unreachable", False, alone.now)
        alone.now += limits.REDIAL_MAX_NS // 8
    under_way = alone.dials()
    while not under_way:
        alone.now += SECOND
        under_way = alone.dials()

    alone.engine.membership.network_changed(alone.now)
    effects = alone.engine.outgoing()
    assert effects == [HangUp(under_way[0].dial)]
    assert HangUp(lane) not in effects
    assert alone.engine.next_timer_at() <= alone.now + limits.REDIAL_MIN_NS
    alone.now += limits.REDIAL_MIN_NS
    (again,) = alone.dials()
    assert (again.host, again.timeout_ns) == ("192.0.2.7", 1_500 * MS)


def test_network_that_changes_all_the_time_dials_nobody_who_refused_us() -> None:
    """A loose cable must not turn a refusal into a knock at each contact."""
    alone = Alone()
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 1),), alone.now)
    (dial,) = alone.dials()
    alone.engine.lane_closed(dial.dial, "wrong mesh", True, alone.now)
    for _ in range(20):
        alone.engine.membership.network_changed(alone.now)
        alone.now += limits.REDIAL_MIN_NS
        assert alone.dials() == []


def test_hint_about_ourselves_or_without_address_is_no_hint() -> None:
    """Our own advert comes back to us."""
    alone = Alone()
    alone.engine.membership.hint("me", NodeId("me"), (("192.0.2.7", 1),), alone.now)
    alone.engine.membership.hint("x", NodeId("x"), (), alone.now)
    assert alone.dials() == []


def test_hint_with_several_addresses_tries_them_in_turn_and_briefly() -> None:
    """One of them may lead nowhere; IPv6 and IPv4 of one host often do."""
    alone = Alone()
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 1), ("192.0.2.8", 1)), alone.now)
    tried = []
    for _ in range(6):
        dial = alone.dials()[0]
        tried.append((dial.host, dial.timeout_ns // MS))
        alone.engine.lane_closed(dial.dial, "no answer", False, alone.now)
        alone.now += 60 * SECOND
    assert [host[-1] for host, _ in tried] == ["7", "8"] * 3
    assert [timeout_ms for _, timeout_ms in tried] == [1_500, 1_500, 3_000, 3_000, 5_000, 5_000]


def test_seed_welcomes_whoever_answers_but_not_ourselves() -> None:
    """A seed has an address and no name."""
    alone = Alone()
    alone.engine.membership.hint("seed", None, (("192.0.2.7", 1),), alone.now)
    dial = alone.dials()[0].dial
    alone.engine.lane_opened(dial, identity("me"), alone.now)
    assert HangUp(dial) in alone.engine.outgoing()
    alone.now += 600 * SECOND
    assert alone.dials() == [], "we know ourselves"
    alone.engine.membership.hint("other", None, (("192.0.2.8", 1),), alone.now)
    dial = alone.dials()[0].dial
    alone.engine.lane_opened(dial, identity("x", Role.RSU), alone.now)
    assert alone.engine.peers(alone.now)[0].lanes == (Lane.REALTIME,)
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.8", 1),), alone.now)
    assert alone.dials() == [], "it has a lane already"


def test_second_way_to_one_inbox_is_closed() -> None:
    """Two seeds may lead to one node."""
    alone = Alone()
    alone.engine.membership.hint("one", None, (("192.0.2.7", 1),), alone.now)
    alone.engine.membership.hint("two", None, (("192.0.2.8", 1),), alone.now)
    first, second = alone.dials()
    alone.engine.lane_opened(first.dial, identity("x"), alone.now)
    alone.engine.lane_opened(second.dial, identity("x"), alone.now)
    assert HangUp(second.dial) in alone.engine.outgoing()


def test_seed_of_a_neighbour_is_dialled_as_soon_as_the_lane_to_it_ends() -> None:
    """Its name may lead to where it is now, while the address of its last Hello leads nowhere for ever."""
    alone = Alone()
    alone.engine.membership.hint("name", None, (("x.street", 1),), alone.now)
    seed = alone.dials()[0].dial
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 1),), alone.now)
    (other,) = alone.dials()
    alone.engine.lane_opened(other.dial, identity("x"), alone.now)
    alone.engine.lane_opened(seed, identity("x"), alone.now)
    alone.now += limits.REDIAL_MAX_NS // 2
    assert alone.dials() == [], "a lane to it is open"
    alone.now += SECOND
    alone.engine.lane_closed(other.dial, "it has moved", False, alone.now)
    assert [dial.host for dial in alone.dials()] == ["x.street"]


def test_seed_whose_name_led_to_another_node_for_a_while_is_tried_again() -> None:
    """It was taken for a second way to that node for as long as a lane to that node was open."""
    alone = Alone()
    alone.engine.membership.hint("x", None, (("x.street", 1),), alone.now)
    alone.engine.membership.hint("y", None, (("y.street", 1),), alone.now)
    first, misled = alone.dials()
    alone.engine.lane_opened(first.dial, identity("x"), alone.now)
    alone.engine.lane_opened(misled.dial, identity("x"), alone.now)
    alone.engine.outgoing()
    alone.now += limits.REDIAL_MAX_NS // 2
    (again,) = alone.dials()
    assert again.host == "y.street"
    alone.engine.lane_opened(again.dial, identity("y"), alone.now)
    assert {peer.node for peer in alone.engine.peers(alone.now) if peer.lanes} == {"x", "y"}
    alone.now += limits.REDIAL_MAX_NS // 2
    assert alone.dials() == [], "each leads to a node of its own"


def test_dial_refused_for_its_identity_is_left_alone_for_a_while() -> None:
    """NNG alone would redial 17 times in half a second."""
    alone = Alone()
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 1),), alone.now)
    alone.engine.lane_closed(alone.dials()[0].dial, "certificate of another mesh", True, alone.now)
    assert [type(event) for event in alone.engine.events()] == [PeerRefused]
    alone.now += limits.REFUSAL_MEMORY_NS - SECOND
    assert alone.dials() == []
    alone.now += 2 * SECOND
    assert len(alone.dials()) == 1


def test_refusals_of_many_strangers_fill_neither_memory_nor_log() -> None:
    """An attacker has as many addresses as it likes."""
    alone = Alone()
    for number in range(5 * limits.MAX_ADVERTS):
        alone.engine.membership.refused_before_identity(f"stranger-{number}", "no certificate", alone.now)
    alone.engine.handle_timer(alone.now)
    assert len(alone.engine.events()) <= limits.MAX_ADVERTS
    assert alone.engine.statistics()["pipes_refused"] == 5 * limits.MAX_ADVERTS
    alone.now += limits.REFUSAL_MEMORY_NS + 1
    alone.engine.membership.refused_before_identity("fresh", "no certificate", alone.now)
    alone.engine.handle_timer(alone.now)
    assert len(alone.engine.events()) == 1


def test_hint_of_somebody_refused_lately_waits() -> None:
    """It was let go for its certificate; its advert, heard again, is no reason to knock."""
    alone = Alone()
    assert alone.engine.membership.admit(identity("x", Role.RELAY), alone.now)
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 1),), alone.now)
    assert alone.dials() == []
    assert alone.engine.next_timer_at() == alone.now + limits.REFUSAL_MEMORY_NS


def test_bulk_lane_that_opens_after_a_goodbye_is_closed() -> None:
    """It was dialled before the neighbour left. If its end is not reported, a lane to nobody stays open for good."""
    alone = Alone()
    alone.lane("x")
    alone.engine.membership.want_bulk(NodeId("x"))
    (bulk,) = alone.dials()
    alone.receive(1, Goodbye(5, "leaving"))
    alone.engine.outgoing()
    alone.engine.lane_opened(bulk.dial, identity("x"), alone.now)
    assert HangUp(bulk.dial) in alone.engine.outgoing()
    assert alone.engine.peers(alone.now)[0].lanes == ()
