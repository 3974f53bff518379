"""Gossip: stores converge, entries only go forward and only by their author, and nobody can make that dear."""

from collections import Counter
from random import Random

import pytest
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.errors import BoundExceeded, LocalProtocolError, ValueUnsupported
from protocols.base.ids import Incarnation, NodeId, Role
from protocols.base.sequences import first_sequence, first_version
from protocols.base.time import NEVER
from protocols.gossip.entries import Stored
from protocols.gossip.events import EntryAccepted, EntryRefused
from protocols.gossip.machine import Gossip
from protocols.gossip.settings import GossipSettings
from protocols.gossip.trickle import Trickle
from protocols.wire.entries import decode_fingerprints, encode_entry, encode_fingerprints
from protocols.wire.gossip import Carried, Entry, GossipDigest, GossipEntries, GossipFrame, GossipHave, GossipPull
from tests.tools.gossip_fixture import DAY_S, MS, SECOND, Alone, checks, entry, handed, seal


def counted(alone: Alone) -> dict[str, int]:
    """Counters above 0."""
    return {name: value for name, value in alone.gossip.counters().items() if value}


def fingerprint(one: Entry) -> int:
    return seal("x").fingerprint(one)


# --- entries -------------------------------------------------------------------------------------------------------
def test_entry_of_a_higher_version_replaces_the_lower() -> None:
    """The newest word of an author is the one that counts."""
    alone = Alone()
    alone.meet("peer")
    alone.get(handed(entry("a", 1)))
    alone.get(handed(entry("a", 3)))
    assert alone.held() == {("a", "address"): 3}
    assert alone.told == [EntryAccepted("a", "address", version, "peer", 0) for version in (1, 3)]  # type: ignore[arg-type]


def test_entry_of_a_lower_version_is_not_taken_and_answered_with_news() -> None:
    """Who replays an old address changes nothing, and learns that it is old."""
    alone = Alone()
    alone.meet("peer", "other")
    newest = entry("a", 3)
    alone.get(handed(newest), "other")
    alone.run_for(SECOND)
    answers = alone.get(handed(entry("a", 2)))
    assert alone.held() == {("a", "address"): 3}
    assert answers == [GossipHave(0, encode_fingerprints([fingerprint(newest)]))]
    assert counted(alone)["entries_stale"] == 1


@pytest.mark.parametrize("forged", [
    replace(entry("a", 9), body=b"elsewhere"), replace(entry("a", 9), version=10), replace(entry("a", 9), kind="b"),
    replace(entry("a", 9), author="b"), replace(entry("a", 9), lifetime_s=1), replace(entry("a", 9), signature=b""),
], ids=["body", "version", "kind", "author", "lifetime", "signature"])  # fmt: skip
def test_forged_entry_is_refused_told_once_and_remembered(forged: Entry) -> None:
    """Every field is covered by the signature; a forger costs one check an entry, and one line in the log."""
    alone = Alone()
    alone.meet("peer")
    checked = checks(alone)
    alone.get(handed(forged))
    alone.get(handed(forged))
    assert alone.held() == {}
    assert [type(event) for event in alone.told] == [EntryRefused]
    assert counted(alone)["entries_forged"] == 2
    assert checked == [forged]


def test_two_entries_of_one_version_are_settled_alike_whatever_came_first() -> None:
    """An author who says two things at once must not divide the mesh."""
    left, right = entry("a", 5, b"left"), entry("a", 5, b"right")
    stores = []
    for order in ((left, right), (right, left)):
        alone = Alone()
        alone.meet("peer")
        for one in order:
            alone.get(handed(one))
        stores.append((alone.gossip.root, [view.body for view in alone.gossip.entries(0)]))
        assert counted(alone).get("equivocations", 0) + counted(alone).get("entries_stale", 0) == 1
    assert stores[0] == stores[1]


def test_own_entry_that_comes_back_newer_is_gone_above() -> None:
    """A node that lost its state must not be outranked by its own past for ever."""
    alone = Alone("me")
    alone.meet("peer")
    first = alone.gossip.put("address", b"now", DAY_S, alone.now)
    alone.get(handed(entry("me", first + 100, b"long ago")))
    assert alone.held() == {("me", "address"): first + 101}
    assert alone.gossip.entries(0)[0].body == b"now"
    assert counted(alone)["own_entries_outrun"] == 1


def test_own_entry_of_a_later_life_is_gone_above_as_the_life_after_it() -> None:
    """Others allow no sequence below that life, so this node must not publish in its own."""
    alone = Alone("me")
    alone.meet("peer")
    alone.gossip.put("address", b"now", DAY_S, alone.now)
    assert alone.gossip.own.first_sequence == first_sequence(7)
    alone.get(handed(entry("me", first_version(9) + 3, b"long ago")))
    assert alone.held() == {("me", "address"): first_version(10)}
    assert alone.gossip.own.first_sequence == first_sequence(10)
    beyond = (1 << 63) - 5
    alone.get(handed(entry("me", beyond, b"of no life")))
    alone.run_for(2 * SECOND)
    assert alone.held() == {("me", "address"): beyond + 1}
    assert alone.gossip.own.first_sequence == first_sequence(10)


def test_own_entry_outrun_again_and_again_is_answered_later_and_later() -> None:
    """A copied key makes two nodes answer one another; each answer costs the whole mesh a signature check."""
    alone = Alone("me")
    alone.meet("peer")
    version = alone.gossip.put("address", b"now", DAY_S, alone.now)
    answers = 0
    for _ in range(600):
        held = alone.held()["me", "address"]
        if held > version:
            answers += 1
            version = held + 1
            alone.get(handed(entry("me", version, b"the other")))
        alone.run_for(SECOND)
    alone.get(handed(entry("me", version + 1, b"the other")))
    assert answers <= 12, "the pause doubles from a second"
    alone.run_for(700 * SECOND)
    assert alone.held()["me", "address"] > version, "and still it goes above at last"


def test_own_entry_that_can_not_be_repeated_is_tried_again_later() -> None:
    """A renewed certificate may be longer; a timer that is due at once, for ever, would stop everything else."""
    alone = Alone("me")
    alone.meet("peer")
    alone.gossip.put("address", b"x" * 400, 3_000, alone.now)
    long = b"c" * limits.MAX_ENTRY_BYTES
    alone.gossip._seal = replace(alone.gossip._seal, sign=lambda statement: (long, b"s"))
    alone.now += 1_000 * SECOND
    alone.gossip.handle_timer(alone.now)
    assert counted(alone)["own_entries_failed"] == 1
    assert alone.gossip.next_timer_at() > alone.now


def test_versions_of_a_later_life_are_above_those_of_the_former() -> None:
    """Else the mesh would take a restarted node for its past."""
    former, later = (Gossip(NodeId("me"), Incarnation(n), seal("me"), GossipSettings(), Random(1)) for n in (7, 8))
    last = max(former.put("address", b"", DAY_S, 0) for _ in range(1_000))
    assert later.put("address", b"", DAY_S, 0) > last


def test_entry_ends_with_its_lifetime_however_often_it_changed_hands() -> None:
    """Ages travel: a copy is as old as the original."""
    one, other = Alone("one"), Alone("other")
    one.meet("peer")
    other.meet("peer")
    one.get(handed(entry("a", 1, lifetime_s=10), age_ms=4_000))
    one.run_for(2 * SECOND)
    (carried,) = one.get(GossipPull(encode_fingerprints([fingerprint(entry("a", 1, lifetime_s=10))])))
    assert isinstance(carried, GossipEntries)
    other.get(carried)
    other.run_for(4 * SECOND - 1)
    assert other.held()
    other.run_for(1)
    assert not other.held()
    assert other.gossip.root == 0


def test_ended_entry_is_not_taken_and_another_copy_still_may_be() -> None:
    """Who lies about an age can only hurt its own copy."""
    alone = Alone()
    alone.meet("peer", "other")
    alone.get(handed(entry("a", 1, lifetime_s=10), age_ms=10_000))
    assert not alone.held()
    alone.get(handed(entry("a", 1, lifetime_s=10), age_ms=9_000), "other")
    assert alone.held()


def test_own_entry_is_repeated_long_before_it_ends() -> None:
    """A parked vehicle that runs stays known."""
    alone = Alone("me")
    first = alone.gossip.put("address", b"x", 9, alone.now)
    alone.run_for(10 * SECOND)
    assert alone.held() == {("me", "address"): first + 3}


def test_put_of_what_can_not_travel_names_the_reason() -> None:
    """The caller can act on it."""
    alone = Alone("me")
    with pytest.raises(ValueUnsupported, match="1024 are allowed: shorten its body of 1000"):
        alone.gossip.put("address", bytes(1_000), DAY_S, 0)
    with pytest.raises(LocalProtocolError, match="kind"):
        alone.gossip.put("", b"", DAY_S, 0)
    with pytest.raises(LocalProtocolError, match="lifetime"):
        alone.gossip.put("address", b"", 0, 0)
    for number in range(limits.MAX_KINDS_PER_AUTHOR):
        alone.gossip.put(f"kind-{number}", b"", DAY_S, 0)
    with pytest.raises(BoundExceeded, match="has no place"):
        alone.gossip.put("one-too-many", b"", DAY_S, 0)
    alone.gossip.put("kind-0", b"newer", DAY_S, 0)


def test_machine_without_a_seal_is_mute_and_deaf() -> None:
    """Simulations and tools that don't sign pay nothing."""
    gossip = Gossip(NodeId("me"), Incarnation(7), None, GossipSettings(), Random(1))
    gossip.neighbour_met(NodeId("peer"), Role.RSU, 0)
    gossip.receive(GossipDigest(1, 1), NodeId("peer"), Role.RSU, 0)
    gossip.receive(handed(entry("a", 1)), NodeId("peer"), Role.RSU, 0)
    assert gossip.messages() == []
    assert len(gossip) == 0
    assert gossip.next_timer_at() == NEVER
    with pytest.raises(LocalProtocolError, match="seal"):
        gossip.put("address", b"", DAY_S, 0)


def test_restored_entries_are_checked_and_keep_their_age() -> None:
    """The file of a former life is no more trusted than a neighbour."""
    before, after = Alone("me"), Alone("me")
    before.meet("peer")
    before.get(handed(*(entry(f"n{number}", 1, lifetime_s=60) for number in range(10))))
    before.run_for(5 * SECOND)
    stored = before.gossip.stored(before.now)
    stored.append(stored[0]._replace(data=encode_entry(replace(entry("a", 1), body=b"changed"))))
    stored.append(stored[0]._replace(data=b"torn"))
    after.gossip.restore(stored, after.now)
    after.run_for(SECOND)
    assert after.gossip.root == before.gossip.root
    assert {view.age_ns for view in after.gossip.entries(after.now)} == {6 * SECOND}
    assert counted(after)["entries_forged"] == counted(after)["entries_malformed"] == 1


# --- bounds --------------------------------------------------------------------------------------------------------
def test_insider_can_hold_only_a_few_places() -> None:
    """One stolen certificate must not push everybody else out."""
    alone = Alone()
    alone.meet("peer")
    for number in range(3 * limits.MAX_KINDS_PER_AUTHOR):
        alone.get(handed(entry("a", 1, kind=f"kind-{number}")))
    alone.get(handed(entry("b", 1)))
    assert Counter(author for author, _ in alone.held()) == {"a": limits.MAX_KINDS_PER_AUTHOR, "b": 1}


def test_full_store_keeps_what_ends_last() -> None:
    """In every node the same ones, so that full stores still agree."""
    alone = Alone(max_entries=3)
    alone.meet("peer")
    for lifetime_s in (100, 500, 300, 200, 400, 50):
        alone.get(handed(entry(f"n{lifetime_s}", 1, lifetime_s=lifetime_s)))
    assert sorted(alone.held()) == [(f"n{lifetime_s}", "address") for lifetime_s in (300, 400, 500)]
    assert counted(alone)["entries_evicted"] == 2
    assert counted(alone)["entries_without_place"] == 1


def test_flood_of_forged_entries_is_checked_no_faster_than_allowed() -> None:
    """A check takes 80 µs: without the bound one neighbour takes a processor."""
    checked = 0

    def verify(_: Entry) -> bool:
        nonlocal checked
        checked += 1
        return False

    gossip = Gossip(NodeId("me"), Incarnation(7), replace(seal("me"), verify=verify), GossipSettings(), Random(1))
    gossip.neighbour_met(NodeId("peer"), Role.VEHICLE, 0)
    version = 0
    for now in range(0, 10 * SECOND, 25 * MS):
        frame = handed(*(entry("a", version := version + 1) for _ in range(8)))
        gossip.receive(frame, NodeId("peer"), Role.VEHICLE, now)
        gossip.handle_timer(now)
    assert checked < limits.MAX_ENTRY_BURST + 10 * limits.ENTRIES_PER_S / limits.FORGED_ENTRY_COST
    assert gossip.counters()["entries_over_rate"] > 2_000


def test_signatures_are_checked_a_few_at_a_time() -> None:
    """A reading that comes meanwhile waits for a few checks, not for a whole frame of them."""
    alone = Alone(checks_at_once=2, check_pause_ns=3 * MS)
    alone.meet("peer")
    alone.get(handed(*(entry(f"n{number}", 1) for number in range(8))))
    assert len(alone.held()) == 2
    alone.run_for(6 * MS)
    assert len(alone.held()) == 6
    alone.run_for(3 * MS)
    assert len(alone.held()) == 8


def test_flood_of_frames_is_not_looked_at() -> None:
    """A beacon of 20 bytes must not cost 500 of answer each time."""
    alone = Alone("the-larger-id")
    alone.meet("peer")
    alone.get(handed(entry("a", 1)))
    answers = [answer for _ in range(1_000) for answer in alone.get(GossipDigest(5, 5))]
    assert len(answers) == 1
    assert counted(alone)["frames_over_rate"] == 1_001 - limits.MAX_GOSSIP_FRAME_BURST


def test_flood_of_offers_and_pulls_stays_within_bounds() -> None:
    """Fingerprints are free to invent, and eight bytes of asking cost a kilobyte."""
    alone = Alone()
    alone.meet("peer")
    invented = Random(3)
    asked = []
    for _ in range(10):
        names = encode_fingerprints([invented.getrandbits(64) for _ in range(limits.MAX_FINGERPRINTS_PER_FRAME)])
        asked += [frame for frame in alone.get(GossipHave(0, names)) if isinstance(frame, GossipPull)]
    assert [len(frame.fingerprints) // 8 for frame in asked] == [limits.MAX_PULL]
    assert counted(alone)["offers_over_bound"] > 0
    one = entry("a", 1, bytes(800))
    alone.get(handed(one))
    served = [alone.get(GossipPull(encode_fingerprints([fingerprint(one)] * limits.MAX_PULL))) for _ in range(200)]
    given = sum(len(frame.entries) for frames in served for frame in frames if isinstance(frame, GossipEntries))
    assert given <= limits.MAX_SERVED_BURST


def test_restored_entries_do_not_hold_up_what_neighbours_tell() -> None:
    """A node that comes back with thousands of addresses must not miss an order for seconds."""
    before, after = Alone("me", checks_at_once=99), Alone("me")
    before.meet("peer")
    for number in range(300):
        before.get(handed(entry(f"n{number}", 1)))
    after.meet("peer")
    after.gossip.restore(before.gossip.stored(0), after.now)
    after.get(handed(entry("urgent", 1)))
    after.run_for(2 * MS)
    assert ("urgent", "address") in after.held()
    assert len(after.held()) < 10
    after.run_for(SECOND)
    assert len(after.held()) == 301


def test_entries_that_the_disk_holds_are_not_fetched_from_neighbours() -> None:
    """A node that comes back with thousands of addresses would have them all sent again while it checks its own."""
    many = [entry(f"n{number}", 1) for number in range(40)]
    alone = Alone("me")
    alone.meet("first", "second")
    alone.gossip.restore([Stored(encode_entry(one), 0, NodeId("first")) for one in many], alone.now)
    have = GossipHave(0, encode_fingerprints([fingerprint(one) for one in many]))
    said = alone.get(have, "first") + alone.get(have, "second") + [frame for _, frame in alone.run_for(5 * SECOND)]
    assert not [frame for frame in said if isinstance(frame, GossipPull)]
    assert not [frame for frame in said if isinstance(frame, GossipHave)], "both have told that they have them"
    assert len(alone.held()) == 40


def test_entry_of_the_disk_that_fails_its_check_is_fetched_when_told_of_again() -> None:
    """The disk may have a wrong age of it: what has no place then may have one by the age that others know."""
    wanted = entry("wanted", 1, lifetime_s=1_000)
    alone = Alone("me", max_entries=3)
    alone.meet("peer")
    stored = [(entry("first", 1), 0), (wanted, 600 * SECOND)]
    alone.gossip.restore([Stored(encode_entry(one), age_ns, alone.node) for one, age_ns in stored], alone.now)
    have = GossipHave(0, encode_fingerprints([fingerprint(wanted)]))
    pull = GossipPull(have.fingerprints)
    assert pull not in alone.get(have), "it waits for its check"
    alone.get(handed(*(entry(f"n{number}", 1, lifetime_s=500) for number in range(2))))
    alone.run_for(5 * MS)
    assert ("wanted", "address") not in alone.held()
    assert pull in alone.get(have)
    alone.get(handed(wanted))
    alone.run_for(5 * MS)
    assert ("wanted", "address") in alone.held()


def test_answer_to_a_pull_comes_in_frames_of_eight_kibibytes() -> None:
    """A brake event waits behind one of them at most."""
    alone = Alone(checks_at_once=99)
    alone.meet("peer")
    many = [entry(f"n{number}", 1, bytes(800)) for number in range(20)]
    for one in many:
        alone.get(handed(one))
    frames = alone.get(GossipPull(encode_fingerprints([fingerprint(one) for one in many])), "other")
    sizes = [sum(len(carried.entry) for carried in frame.entries) for frame in frames]  # type: ignore[union-attr]
    assert len(sizes) == 3
    assert max(sizes) <= limits.MAX_ENTRIES_FRAME_BYTES


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x90", encode_entry(entry("a", 1))[:-1], b"\x97" + b"\x01" * 7])
def test_malformed_entry_is_counted_and_its_sender_fined(data: bytes) -> None:
    """Parsing is cheap, but not free."""
    alone = Alone()
    alone.meet("peer")
    alone.get(GossipEntries((Carried(0, data),)))
    assert counted(alone)["entries_malformed"] == 1
    assert [event.because for event in alone.told if isinstance(event, EntryRefused)] == ["malformed"]


def test_author_who_makes_fingerprints_collide_breaks_nothing() -> None:
    """Two entries of one author with one fingerprint take 2^32 tries: the second is taken for the first."""
    alone = Alone()
    same = replace(seal("me"), hash=lambda _: b"\7" * 8)
    gossip = Gossip(NodeId("me"), Incarnation(7), same, GossipSettings(), Random(1))
    gossip.neighbour_met(NodeId("peer"), Role.VEHICLE, 0)
    gossip.receive(handed(entry("a", 1, kind="x"), entry("a", 1, kind="y")), NodeId("peer"), Role.VEHICLE, alone.now)
    assert [view.kind for view in gossip.entries(0)] == ["x"]
    assert gossip.root == int.from_bytes(b"\7" * 8, "little")


# --- frames --------------------------------------------------------------------------------------------------------
def test_beacon_of_an_equal_store_is_not_answered() -> None:
    """Peace costs 20 bytes."""
    alone = Alone()
    alone.meet("peer")
    alone.get(handed(entry("a", 1)))
    assert alone.get(GossipDigest(alone.gossip.root, 1)) == []


def test_stores_that_differ_find_out_what_each_side_lacks() -> None:
    """Beacon, buckets, lists, pulls, entries: then both hold everything."""
    here, there = Alone("here"), Alone("there")
    here.meet("third")
    there.meet("third")
    here.get(handed(*(entry(f"n{number}", 1) for number in range(40))), "third")
    there.get(handed(*(entry(f"n{number}", 1 + number % 2) for number in range(20, 60))), "third")
    for one in (here, there):
        one.run_for(SECOND)
    here.gossip.neighbour_met(there.node, Role.VEHICLE, here.now)
    there.gossip.neighbour_met(here.node, Role.VEHICLE, there.now)
    sent = talk(here, there)
    assert here.gossip.root == there.gossip.root
    assert len(here.held()) == 60
    bodies = sum(len(frame.entries) for frame in sent if isinstance(frame, GossipEntries))
    assert bodies <= 20 + 20 + 10 + 10  # what each lacks, and of those that differ in version at most both


def test_thousands_of_entries_are_caught_up_at_the_pace_that_is_allowed() -> None:
    """Who asks at its own pace has nothing dropped for going too fast, and needs few frames."""
    here, there = Alone("here", checks_at_once=99), Alone("there")
    here.gossip.restore([Stored(encode_entry(entry(f"n{number}", 1)), 0, here.node) for number in range(1_500)], 0)
    here.run_for(SECOND)
    there.run_for(SECOND)
    here.gossip.neighbour_met(there.node, Role.VEHICLE, here.now)
    there.gossip.neighbour_met(here.node, Role.VEHICLE, there.now)
    sent = talk(here, there)
    assert here.gossip.root == there.gossip.root
    for one in (here, there):
        assert not {"entries_over_rate", "frames_over_rate", "pulls_timed_out", "entries_duplicate"} & set(counted(one))
    assert sum(isinstance(frame, GossipPull) for frame in sent) < 1_500 / 8


def talk(here: Alone, there: Alone) -> list[GossipFrame]:
    """Ten seconds in which frames go to and fro, 50 ms each way."""
    sent: list[GossipFrame] = []
    for _ in range(200):
        said = [(there, frame) for frame in here.said_to("there")] + [(here, frame) for frame in there.said_to("here")]
        for receiver, frame in said:
            sent.append(frame)
            receiver.get(frame, "there" if receiver is here else "here")
        for one in (here, there):
            one.run_for(50 * MS)
    return sent


def test_node_of_the_smaller_id_begins_the_comparison_on_contact() -> None:
    """Once is enough."""
    for node, frames in (("a", 1), ("z", 0)):
        gossip = Gossip(NodeId(node), Incarnation(7), seal(node), GossipSettings(), Random(1))
        gossip.neighbour_met(NodeId("m"), Role.VEHICLE, 0)
        said = gossip.messages()
        assert len(said) == frames
        assert all(isinstance(frame, GossipDigest) and len(frame.buckets) == 512 for _, frame in said)


def test_news_goes_to_everybody_who_may_lack_it_and_to_roadside_units_first() -> None:
    """Theirs are the long links. Who told of it is not told."""
    alone = Alone()
    alone.meet("a-vehicle", "b-vehicle", "source")
    alone.meet("z-rsu", role=Role.RSU)
    one = entry("x", 1)
    alone.get(GossipHave(0, encode_fingerprints([fingerprint(one)])), "b-vehicle")
    before = len(alone.sent)
    alone.get(handed(one), "source")
    assert [(to, frame) for _, to, frame in alone.sent[before:]] == [
        (to, GossipHave(0, encode_fingerprints([fingerprint(one)]))) for to in ("z-rsu", "a-vehicle")
    ]


def test_own_entry_is_pushed_whole() -> None:
    """Nobody can have it yet: asking would only take time."""
    alone = Alone("me")
    alone.meet("a", "b")
    alone.gossip.put("address", b"x", DAY_S, 0)
    assert [(to, type(frame)) for to, frame in alone.gossip.messages()] == [("a", GossipEntries), ("b", GossipEntries)]


def test_news_in_quick_succession_is_gathered() -> None:
    """A thousand entries must not become a thousand frames."""
    alone = Alone(checks_at_once=99)
    alone.meet("peer", "other")
    for number in range(50):
        alone.get(handed(entry(f"n{number}", 1)))
        alone.run_for(MS)
    alone.run_for(200 * MS)
    told = [frame for _, to, frame in alone.sent if to == "other" and isinstance(frame, GossipHave)]
    assert len(told) == 2
    assert sum(len(decode_fingerprints(frame.fingerprints)) for frame in told) == 50


def test_entry_is_asked_of_one_neighbour_and_then_of_another() -> None:
    """One copy is enough, and a mute neighbour must not keep it away."""
    alone = Alone()
    alone.meet("first", "second")
    have = GossipHave(0, encode_fingerprints([fingerprint(entry("a", 1))]))
    pull = GossipPull(have.fingerprints)
    assert alone.get(have, "first") == [pull]
    assert alone.get(have, "second") == []
    asked = [(to, frame) for to, frame in alone.run_for(3 * SECOND) if isinstance(frame, GossipPull)]
    assert asked == [("second", pull)]


def test_neighbour_that_answers_drop_by_drop_holds_nothing_back() -> None:
    """Each entry has its own time: one answer does not win time for the others."""
    alone = Alone()
    alone.meet("drip", "other")
    many = [entry(f"n{number}", 1) for number in range(10)]
    have = GossipHave(0, encode_fingerprints([fingerprint(one) for one in many]))
    alone.get(have, "drip")
    alone.get(have, "other")
    asked = []
    for one in many[:2]:
        asked += alone.run_for(1_500 * MS)
        alone.get(handed(one), "drip")
    (pulled,) = [frame for to, frame in asked if to == "other" and isinstance(frame, GossipPull)]
    assert set(decode_fingerprints(pulled.fingerprints)) == {fingerprint(one) for one in many[1:]}


def test_neighbour_that_goes_is_asked_for_nothing_any_more() -> None:
    """What it was asked for is asked of another at once."""
    alone = Alone()
    alone.meet("first", "second")
    have = GossipHave(0, encode_fingerprints([fingerprint(entry("a", 1))]))
    alone.get(have, "first")
    alone.get(have, "second")
    alone.gossip.neighbour_gone(NodeId("first"), alone.now)
    assert alone.gossip.messages() == [("second", GossipPull(have.fingerprints))]
    alone.gossip.neighbour_gone(NodeId("second"), alone.now)
    assert alone.run_for(200 * SECOND) == []


# --- Trickle -------------------------------------------------------------------------------------------------------
def test_trickle_doubles_its_interval_and_speaks_once_in_each_second_half() -> None:
    """RFC 6206, section 4.2."""
    trickle, spoken, now = Trickle(SECOND, 8 * SECOND, Random(5)), [], 0
    trickle.start(0)
    while now < 31 * SECOND:
        now = trickle.due_ns
        if trickle.handle_timer(now):
            spoken.append(now / SECOND)
    for at, (begin, end) in zip(spoken, [(0, 1), (1, 3), (3, 7), (7, 15), (15, 23), (23, 31)], strict=False):
        assert (begin + end) / 2 <= at <= end
    assert len(spoken) == 6


def test_trickle_reset_begins_small_again_and_does_nothing_when_it_is() -> None:
    """Section 4.2, step 6: a storm of inconsistencies does not postpone the beacon for ever."""
    trickle = Trickle(SECOND, 64 * SECOND, Random(5))
    trickle.start(0)
    due_ns = trickle.due_ns
    trickle.reset(SECOND // 4)
    assert trickle.due_ns == due_ns
    while trickle.interval < 5:
        trickle.handle_timer(trickle.due_ns)
    trickle.reset(20 * SECOND)
    assert 20 * SECOND < trickle.due_ns <= 21 * SECOND
    trickle.stop()
    trickle.reset(30 * SECOND)
    assert trickle.due_ns == NEVER


def test_beacon_is_left_out_for_neighbours_that_said_the_same() -> None:
    """In a quiet mesh a link carries one beacon an interval, not two."""
    alone = Alone()
    alone.meet("talker", "mute")
    beacon = GossipDigest(alone.gossip.root, 0)
    heard = Counter[str]()
    for _ in range(120):
        alone.get(beacon, "talker")
        heard.update(to for to, _ in alone.run_for(SECOND))
    assert heard["talker"] == 0
    assert heard["mute"] >= 6


def test_difference_that_nothing_settles_does_not_keep_beacons_frequent() -> None:
    """A certificate that has ended by one clock and not by another is no reason to talk for ever."""
    alone = Alone()
    alone.meet("other")
    for _ in range(600):
        alone.get(GossipDigest(99, 9), "other")
        alone.run_for(SECOND)
    late = [frame for at, _, frame in alone.sent if at > 300 * SECOND]
    assert sum(not frame.buckets for frame in late if isinstance(frame, GossipDigest)) <= 6
