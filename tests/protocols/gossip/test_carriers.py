"""What a carrier can do to the entries of others, and what an author can do to everybody: both pay for it alone."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.gossip.entries import Held
from protocols.gossip.events import EntryRefused
from protocols.gossip.store import EntryStore
from protocols.wire.entries import decode_untrusted_entry, encode_entry, encode_fingerprints
from protocols.wire.gossip import Carried, Entry, GossipEntries, GossipHave, GossipPull
from tests.tools.gossip_fixture import DAY_S, MS, SECOND, Alone, checks, entry, handed, seal

GENUINE = entry("a", 1, b"here")
DATA = encode_entry(GENUINE)
CHANGED = {
    "one integer more": b"\x98" + DATA[1:] + b"\x07",
    "bytes after the end": DATA + b"\x07",
    "longer array": b"\xdc\x00\x07" + DATA[1:],
    "longer text": DATA.replace(b"\xa1a", b"\xd9\x01a", 1),
    "longer integer": DATA.replace(b"address\x01", b"address\xcc\x01", 1),
    "longer binary": DATA.replace(b"\xc4\x04here", b"\xc5\x00\x04here", 1),
}


def bytes_of(data: bytes) -> GossipEntries:
    return GossipEntries((Carried(0, data),))


def fingerprint(one: Entry) -> int:
    return seal("x").fingerprint(one)


def counted(alone: Alone) -> dict[str, int]:
    """Counters above 0."""
    return {name: value for name, value in alone.gossip.counters().items() if value}


@pytest.mark.parametrize("data", CHANGED.values(), ids=CHANGED)
def test_other_bytes_of_a_signed_entry_are_malformed_and_cost_their_carrier(data: bytes) -> None:
    """A carrier that appended an integer made an entry that verified, displaced the original everywhere and was blamed
    on its author."""
    assert data != DATA
    alone = Alone()
    alone.meet("liar", "honest")
    alone.get(handed(GENUINE), "honest")
    root = alone.gossip.root
    tokens = alone.gossip._peers["liar"].checks.left(0)  # type: ignore[index]
    alone.get(bytes_of(data), "liar")
    assert alone.gossip.root == root
    assert "equivocations" not in counted(alone)
    assert [(event.source, event.because) for event in alone.told if type(event) is EntryRefused] == [
        ("liar", "malformed")
    ]
    assert alone.gossip._peers["liar"].checks.left(0) == tokens - limits.FORGED_ENTRY_COST  # type: ignore[index]


@given(st.binary(max_size=80) | st.lists(st.integers() | st.binary(max_size=9) | st.text(max_size=9), max_size=9).map(
    lambda fields: msgpack.packb([field if not isinstance(field, int) else field % 2**64 for field in fields])
))  # fmt: skip
def test_entries_that_decode_are_encoded_in_one_way(data: bytes) -> None:
    """Two forms of one statement would be two entries for whoever compares bytes."""
    try:
        decoded = decode_untrusted_entry(data)
    except RemoteProtocolError:
        return
    assert encode_entry(decoded) == data


def test_other_signature_or_certificate_of_one_statement_is_the_same_entry() -> None:
    """Of one ECDSA signature anybody can make another. It must not look like a second entry of that version."""
    twin = replace(GENUINE, credential=b"the other half of a pair")
    alone = Alone()
    alone.meet("peer")
    for one in (GENUINE, twin):
        alone.get(handed(one))
    assert counted(alone)["entries_duplicate"] == 1
    assert "equivocations" not in counted(alone)


def test_forgery_of_a_statement_does_not_keep_the_genuine_entry_away() -> None:
    """A liar that is faster than the truth would otherwise silence any author for ten minutes."""
    forged = replace(GENUINE, signature=b"guess")
    alone = Alone()
    alone.meet("liar", "honest")
    have = GossipHave(0, encode_fingerprints([fingerprint(GENUINE)]))
    assert alone.get(have, "liar") == [GossipPull(encode_fingerprints([fingerprint(GENUINE)]))]
    assert alone.get(have, "honest") == []
    alone.get(handed(forged), "liar")
    assert alone.said_to("honest")[-1:] == [GossipPull(encode_fingerprints([fingerprint(GENUINE)]))]
    alone.get(handed(GENUINE), "honest")
    assert alone.held() == {("a", "address"): 1}


def test_entry_whose_certificate_has_ended_costs_its_carrier_nothing() -> None:
    """The carrier's clock may differ by a minute, and it has checked the entry by its own."""
    alone = Alone()
    alone.meet("honest")
    before = alone.gossip._seal
    assert before is not None
    alone.gossip._seal = replace(before, is_current=lambda one: one.author != "a")
    checked = checks(alone)
    tokens = alone.gossip._peers["honest"].checks.left(0)  # type: ignore[index]
    for _ in range(3):
        alone.get(handed(GENUINE), "honest")
    assert counted(alone)["entries_uncertified"] == 1
    assert not [event for event in alone.told if type(event) is EntryRefused]
    assert alone.gossip._peers["honest"].checks.left(0) == tokens - 1, "it pays for one check and no fine"  # type: ignore[index]
    assert checked == [GENUINE], "it is not checked again"
    alone.run_for(limits.REFUSED_ENTRY_MEMORY_NS + SECOND)
    alone.gossip._seal = before
    alone.get(handed(GENUINE), "honest")
    assert alone.held() == {("a", "address"): 1}, "our own clock may have been wrong"


def test_author_that_signs_without_end_pays_and_its_carriers_do_not() -> None:
    """Each of its entries went to every node of the mesh and cost each carrier a token of its allowance."""
    alone = Alone()
    alone.meet("carrier")
    for version in range(1, 1_001):
        alone.get(handed(entry("author", version)), "carrier")
        alone.run_for(10 * MS)
    accepted = limits.MAX_AUTHOR_BURST + 10 * limits.AUTHOR_ENTRIES_PER_S
    assert counted(alone)["entries_accepted"] <= accepted + 1
    assert counted(alone)["entries_of_author_over_rate"] >= 1_000 - accepted - 1
    (refused,) = [event for event in alone.told if type(event) is EntryRefused]
    assert (refused.author, refused.because) == ("author", "over_rate")
    assert alone.gossip._peers["carrier"].checks.left(alone.now) == limits.MAX_ENTRY_BURST  # type: ignore[index]
    alone.get(handed(entry("other", 1)), "carrier")
    assert alone.held()["other", "address"] == 1


def test_last_entry_of_an_author_that_signed_too_many_arrives_later() -> None:
    """What is put off is not lost: anti-entropy brings the newest."""
    alone = Alone()
    alone.meet("carrier")
    for version in range(1, limits.MAX_AUTHOR_BURST + 11):
        alone.get(handed(entry("author", version)), "carrier")
    newest = entry("author", limits.MAX_AUTHOR_BURST + 10)
    assert alone.held()["author", "address"] == limits.MAX_AUTHOR_BURST
    alone.run_for(limits.AUTHOR_PAUSE_NS + SECOND)
    have = GossipHave(0, encode_fingerprints([fingerprint(newest)]))
    assert alone.get(have, "carrier") == [GossipPull(encode_fingerprints([fingerprint(newest)]))]
    alone.get(handed(newest), "carrier")
    assert alone.held()["author", "address"] == newest.version


def test_forgeries_do_not_use_up_the_allowance_of_the_author_they_name() -> None:
    """An author is blamed only for what it signed."""
    alone = Alone()
    alone.meet("liar", "honest")
    for version in range(2, 2 * limits.MAX_AUTHOR_BURST):
        alone.get(handed(replace(entry("a", version), signature=b"guess")), "liar")
    alone.get(handed(GENUINE), "honest")
    assert alone.held() == {("a", "address"): 1}


def test_list_of_all_buckets_is_answered_once_a_second() -> None:
    """Thirteen bytes asked for the list of the whole store, a hundred times a second."""
    alone = Alone(checks_at_once=32)
    alone.meet("peer", "other")
    for number in range(100):
        alone.get(handed(entry(f"n{number}", 1)), "other")
    alone.run_for(SECOND)
    alone.said_to("peer")
    for _ in range(50):
        alone.get(GossipHave((1 << 64) - 1, b""), "peer")
        alone.run_for(10 * MS)
    told = [frame for frame in alone.said_to("peer") if type(frame) is GossipHave]
    assert sum(len(frame.fingerprints) // 8 for frame in told) <= 100
    alone.run_for(SECOND)
    alone.get(GossipHave((1 << 64) - 1, b""), "peer")
    alone.run_for(200 * MS)
    told = [frame for frame in alone.said_to("peer") if type(frame) is GossipHave]
    assert sum(len(frame.fingerprints) // 8 for frame in told) == 100


def test_entries_that_end_together_are_forgotten_in_slices() -> None:
    """A carrier says how old each entry is, and could make the whole store end in one instant."""
    alone = Alone(checks_at_once=32)
    store: EntryStore = alone.gossip._store
    many = 3 * limits.MAX_ENDED_AT_ONCE
    before = seal("me")
    for number in range(many):
        one = entry(f"n{number}", 1, lifetime_s=10)
        data, key = encode_entry(one), (one.author, one.kind)
        store.put(Held(before.sealed(key, 1, 10, before.fingerprint(one), data), 0, alone.node))
    assert store.expire(10 * SECOND) == limits.MAX_ENDED_AT_ONCE
    assert store.next_end_ns <= 10 * SECOND, "the others are due at once"
    while len(store):
        assert store.expire(10 * SECOND) <= limits.MAX_ENDED_AT_ONCE


def test_entries_that_a_new_authority_does_not_vouch_for_are_given_up() -> None:
    """They would be passed on, and each neighbour of the new authority would take their carrier for a forger."""
    alone = Alone("me", checks_at_once=32)
    alone.meet("peer")
    for author in ("a", "b"):
        alone.get(handed(entry(author, 1)))
    mine = alone.gossip.put("address", b"here", DAY_S, alone.now)
    before = alone.gossip._seal
    assert before is not None
    alone.gossip._seal = replace(before, verify=lambda one: one.author != "b" and before.verify(one))
    alone.gossip.check_again(alone.gossip.stored(alone.now), alone.now)
    alone.gossip.sign_again(alone.now)
    alone.run_for(SECOND)
    assert alone.held() == {("a", "address"): 1, ("me", "address"): mine + 1}
