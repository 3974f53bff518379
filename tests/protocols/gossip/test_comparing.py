"""Comparing stores, and entries that wait: what two nodes say to each other when they differ, and what not."""

from random import Random

import pytest
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.ids import Incarnation, NodeId
from protocols.events import DuplicateIdentity
from protocols.gossip.entries import Stored
from protocols.gossip.machine import Gossip
from protocols.gossip.settings import GossipSettings
from protocols.wire.entries import decode_fingerprints, encode_entry, encode_fingerprints, entry_statement
from protocols.wire.gossip import Entry, GossipDigest, GossipFrame, GossipHave, GossipPull
from tests.tools.gossip_fixture import DAY_S, MS, SECOND, Alone, checks, entry, handed, seal, signature


def fingerprint(one: Entry) -> int:
    return seal("x").fingerprint(one)


def have(*entries: Entry) -> GossipHave:
    """News of these entries."""
    return GossipHave(0, encode_fingerprints([fingerprint(one) for one in entries]))


def pull(*entries: Entry) -> GossipPull:
    return GossipPull(have(*entries).fingerprints)


def digest(alone: Alone, buckets: list[int] | None = None) -> GossipDigest:
    """What a node with the same store sends when it compares; with other ``buckets`` it holds something else."""
    store = alone.gossip._store
    if buckets is None:
        return GossipDigest(store.root, len(store), encode_fingerprints(store.buckets))
    return GossipDigest(1, 1, encode_fingerprints(buckets))


def holding(count: int, node: str = "me") -> Alone:
    """A node that holds ``count`` entries, with a neighbour ``peer`` that knows nothing of it."""
    alone = Alone(node, checks_at_once=99)
    alone.meet("other")
    for number in range(count):
        alone.get(handed(entry(f"n{number}", 1)), "other")
    alone.run_for(SECOND)
    alone.meet("peer")
    return alone


def held_by(alone: Alone) -> set[int]:
    return set(alone.gossip._store.fingerprints)


# --- comparing -----------------------------------------------------------------------------------------------------
def test_comparison_of_equal_stores_costs_no_list() -> None:
    """Two nodes that meet at a crossing hold the same nearly always."""
    alone = holding(5)
    assert alone.get(digest(alone)) == []


def test_comparison_that_both_began_is_answered_by_the_larger_id_alone() -> None:
    """Both would list what differs, and each answer is a kilobyte on the air."""
    other = [0] * limits.ENTRY_BUCKETS
    lists = []
    for node in ("a-smaller-id", "z-larger-id"):
        alone = holding(5, node)
        alone.get(GossipDigest(7, 7))
        lists.append([type(frame) for frame in alone.get(digest(alone, other))])
    assert lists == [[], [GossipHave]]


def test_comparison_that_is_repeated_at_once_is_not_answered_again() -> None:
    """512 bytes that a neighbour repeats a hundred times a second would ask for 8 KiB each time."""
    alone = holding(5, "z-larger-id")
    other = digest(alone, [0] * limits.ENTRY_BUCKETS)
    assert len(alone.get(other)) == 1
    assert alone.get(other) == []
    alone.run_for(limits.EXCHANGE_PAUSE_NS)
    assert len(alone.get(other)) == 1


def test_store_that_begins_to_differ_from_an_equal_one_beacons_soon_again() -> None:
    """Peace had made the interval a minute; what is new must not wait for its end."""
    alone = holding(2)
    equal = GossipDigest(alone.gossip.root, 2)
    for _ in range(8):
        alone.get(equal)
        alone.run_for(limits.TRICKLE_MAX_NS)
    alone.get(equal)
    before = len(alone.sent)
    alone.get(GossipDigest(7, 3))
    alone.run_for(2 * limits.TRICKLE_MIN_NS)
    beacons = [to for _, to, frame in alone.sent[before:] if frame == equal]
    assert set(beacons) >= {"other"}


@pytest.mark.parametrize("most", [1, 8, 200])
def test_list_of_many_entries_comes_in_small_frames_and_leaves_out_none(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """What a frame covers it must list whole, or the other side sends what we have; a bucket that is too large for a
    frame is told as news instead."""
    monkeypatch.setattr(limits, "MAX_FINGERPRINTS_PER_FRAME", most)
    alone = holding(100, "z-larger-id")
    frames = alone.get(digest(alone, [0] * limits.ENTRY_BUCKETS))
    told: set[int] = set()
    for frame in frames:
        assert type(frame) is GossipHave
        listed = decode_fingerprints(frame.fingerprints)
        assert len(listed) <= most
        told.update(listed)
        contents = alone.gossip._store.contents()
        covered = [number for number in range(limits.ENTRY_BUCKETS) if frame.covered >> number & 1]
        assert {one for number in covered for one in contents[number]} == (set(listed) if covered else set())
    assert told == held_by(alone)


# --- entries that wait ---------------------------------------------------------------------------------------------
def test_entry_that_comes_twice_before_its_turn_is_checked_once() -> None:
    """Two neighbours push the same news in the same millisecond, and a check is what costs."""
    alone = Alone(checks_at_once=1)
    alone.meet("first", "second")
    checked = checks(alone)
    one, later = entry("a", 1), entry("b", 1)
    alone.get(handed(later, one), "first")
    alone.get(handed(one), "second")
    alone.run_for(10 * MS)
    assert checked == [later, one]
    assert alone.gossip.counters()["entries_duplicate"] == 1
    assert set(alone.held()) == {("a", "address"), ("b", "address")}


def test_entry_that_is_outdated_before_its_turn_is_not_checked() -> None:
    """An author that moves tells of two addresses in quick succession."""
    alone = Alone(checks_at_once=1)
    alone.meet("peer")
    checked = checks(alone)
    alone.get(handed(entry("b", 1), entry("a", 2), entry("a", 1)))
    alone.run_for(10 * MS)
    assert [(one.author, one.version) for one in checked] == [("b", 1), ("a", 2)]
    assert alone.held()["a", "address"] == 2
    assert alone.gossip.counters()["entries_stale"] == 1


def test_entries_of_an_author_that_wait_together_are_counted_against_it_one_by_one() -> None:
    """All had passed the first look at its allowance when none was checked yet."""
    alone = Alone(checks_at_once=1)
    alone.meet("peer")
    most = limits.MAX_AUTHOR_BURST
    many = [entry("a", version) for version in range(1, most + 17)]
    for at in range(0, len(many), 16):
        alone.get(handed(*many[at : at + 16]))
    alone.run_for(SECOND // 2)
    assert alone.held() == {("a", "address"): most}
    assert alone.gossip.counters()["entries_of_author_over_rate"] == 16


def test_entry_that_only_its_age_leaves_without_a_place_is_taken_from_who_knows_better() -> None:
    """A carrier that lies about the age of an entry must neither keep it away nor have it looked at for nothing."""
    alone = Alone(max_entries=2)
    alone.meet("liar", "honest")
    alone.get(handed(entry("x", 1, lifetime_s=500), entry("y", 1, lifetime_s=500)), "honest")
    alone.run_for(10 * MS)
    wanted = entry("wanted", 1, lifetime_s=1_000)
    tokens = alone.gossip._peers[NodeId("liar")].checks.left(alone.now)
    alone.get(handed(wanted, age_ms=900_000), "liar")
    assert alone.gossip._peers[NodeId("liar")].checks.left(alone.now) == tokens - 1
    assert ("wanted", "address") not in alone.held()
    alone.get(handed(wanted), "honest")
    alone.run_for(10 * MS)
    assert ("wanted", "address") in alone.held()


def test_what_is_remembered_of_refused_entries_and_their_authors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An insider can invent as many as it likes."""
    monkeypatch.setattr(limits, "MAX_REFUSED_ENTRIES", 4)
    monkeypatch.setattr(limits, "MAX_ENTRIES", 4)
    alone = Alone(checks_at_once=99, max_entries=4)
    alone.meet("peer")
    for number in range(20):
        alone.get(handed(entry(f"n{number}", 2, lifetime_s=1_000 + number)))
        alone.get(handed(entry(f"n{number}", 1)))
    admission = alone.gossip._admission
    assert len(admission._refused) == len(admission._authors) == 4
    assert list(alone.held()) == [(f"n{number}", "address") for number in range(16, 20)]


# --- asking --------------------------------------------------------------------------------------------------------
def test_entry_is_asked_of_the_next_that_is_still_there() -> None:
    """Of three that offered it the first is silent and the second has driven away."""
    one = entry("a", 1)
    alone = Alone()
    alone.meet("first", "second", "third")
    assert alone.get(have(one), "first") == [pull(one)]
    for peer in ("first", "second", "third"):
        assert alone.get(have(one), peer) == [], "it is on its way"
    alone.gossip.neighbour_gone(NodeId("second"), alone.now)
    said = alone.run_for(limits.PULL_TIMEOUT_NS + MS)
    assert [to for to, frame in said if type(frame) is GossipPull] == ["third"]


def test_on_a_full_channel_an_entry_is_waited_for_until_it_can_have_come() -> None:
    """Who asks another one too soon gets it twice, and a page of entries takes as long as five positions."""
    one = entry("a", 1)
    alone = Alone()
    alone.gossip.gap_ns = SECOND  # between two turns of one neighbour
    alone.meet("first", "second")
    alone.get(have(one), "first")
    alone.get(have(one), "second")
    pulls = [to for to, frame in alone.run_for(10 * SECOND) if type(frame) is GossipPull]
    assert pulls == []
    pulls = [to for to, frame in alone.run_for(10 * SECOND) if type(frame) is GossipPull]
    assert pulls == ["second"]


def test_in_a_crowd_the_first_news_passes_at_once_and_what_follows_in_common_frames() -> None:
    """Forty nodes that tell each other of one thing at the same time fill a channel for a second."""
    alone = Alone()
    alone.gossip.crowd_gap_ns = SECOND
    alone.meet("first", "second")
    alone.run_for(10 * SECOND)
    alone.said_to("second")

    def news() -> list[GossipFrame]:
        return [frame for frame in alone.said_to("second") if type(frame) is GossipHave]

    alone.get(handed(entry("a", 1)), "first")
    assert news() == [have(entry("a", 1))]
    alone.get(handed(entry("b", 1)), "first")
    alone.get(handed(entry("c", 1)), "first")
    alone.run_for(3_900 * MS)
    assert news() == []
    alone.run_for(200 * MS)
    assert len(news()) == 1
    said = alone.run_for(40 * SECOND)
    beacons = [to for to, frame in said if type(frame) is GossipDigest]
    assert 2 <= beacons.count(NodeId("second")) <= 5, "eight gaps apart"


def test_neighbour_whose_allowance_is_used_up_is_asked_when_it_has_some_again() -> None:
    """What an insider forged must not cut us off from the genuine entries that only it carries."""
    one = entry("a", 1)
    alone = Alone()
    alone.meet("peer")
    forged = [replace(entry("b", version), signature=b"guess") for version in range(1, 40)]
    for bad in forged:
        alone.get(handed(bad))
        alone.run_for(2 * MS)
    assert alone.get(have(one)) == [], "each forgery cost it twenty"
    said = alone.run_for(5 * SECOND)
    assert ("peer", pull(one)) in said


# --- this node -----------------------------------------------------------------------------------------------------
def test_own_entry_that_is_outrun_again_reports_that_another_node_has_this_identity() -> None:
    """Once may be a lost state; twice is a copied key, and somebody must be told."""
    alone = Alone("me")
    alone.meet("peer")
    version = alone.gossip.put("address", b"now", DAY_S, alone.now)
    for number in range(2):
        alone.get(handed(entry("me", version + 100 * (number + 1), b"the other")))
        told = [event for event in alone.told if type(event) is DuplicateIdentity]
        assert told == [DuplicateIdentity(NodeId("me"), True, "peer")] * number
        alone.run_for(5 * SECOND)
    assert alone.gossip.entries(alone.now)[0].body == b"now"


def test_machine_without_a_seal_takes_nothing_from_the_disk() -> None:
    """It could prove none of it."""
    gossip = Gossip(NodeId("me"), Incarnation(7), None, GossipSettings(), Random(1))
    gossip.restore([Stored(encode_entry(entry("a", 1)), 0, NodeId("peer"))], 0)
    assert len(gossip) == 0
    assert not gossip.has_news()


def test_certificate_of_an_author_is_that_of_its_newest_address_with_its_life() -> None:
    """Signed readings are proven by it, and an older life of it must not be replayed."""
    alone = Alone()
    alone.meet("peer")
    draft = Entry("a", "address", (9 << 20) + 3, DAY_S, b"", b"certificate", b"")
    alone.get(handed(replace(draft, signature=signature("a", entry_statement(draft))), entry("b", 1, kind="other")))
    alone.run_for(10 * MS)
    assert alone.gossip.certificate_of(NodeId("a")) == (b"certificate", 9)
    assert alone.gossip.certificate_of(NodeId("b")) is None


def test_neighbour_that_was_never_met_may_go() -> None:
    """Its links broke before both directions were open. What was asked of others goes on."""
    one = entry("a", 1)
    alone = Alone()
    alone.meet("peer")
    assert alone.get(have(one)) == [pull(one)]
    alone.gossip.neighbour_gone(NodeId("stranger"), alone.now)
    assert not [frame for _, frame in alone.run_for(SECOND) if type(frame) is GossipPull]
    assert alone.get(handed(one)) == []
    assert alone.held() == {("a", "address"): 1}


def test_entry_of_the_disk_without_a_place_costs_no_neighbour_anything() -> None:
    """What this node kept itself is nobody's fault."""
    alone = Alone(max_entries=1)
    alone.meet("peer")
    alone.get(handed(entry("x", 1, lifetime_s=500)))
    tokens = alone.gossip._peers[NodeId("peer")].checks.left(alone.now)
    old = Stored(encode_entry(entry("wanted", 1, lifetime_s=1_000)), 900 * SECOND, NodeId("peer"))
    alone.gossip.restore([old], alone.now)
    assert alone.gossip.counters()["entries_without_place"] == 1
    assert alone.gossip._peers[NodeId("peer")].checks.left(alone.now) == tokens
    assert list(alone.held()) == [("x", "address")]


def test_entry_that_was_replaced_while_a_new_authority_was_asked_does_not_come_back() -> None:
    """The snapshot that is checked again is a moment old."""
    alone = Alone()
    alone.meet("peer")
    alone.get(handed(entry("a", 1)))
    stored = alone.gossip.stored(alone.now)
    alone.run_for(MS)
    alone.get(handed(entry("a", 2)))
    alone.gossip.check_again(stored, alone.now)
    alone.run_for(SECOND)
    assert alone.held() == {("a", "address"): 2}
