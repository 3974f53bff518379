"""Signed readings on the machine: a forwarder that alters, invents or replays is found out and named."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocols.access import DEFAULT_RULES, AccessTable
from protocols.base import limits
from protocols.base.errors import ValueUnsupported
from protocols.base.ids import NodeId, Role
from protocols.base.sequences import MAX_INCARNATION, first_sequence
from protocols.readings.events import ReadingRefused
from protocols.readings.machine import Router
from protocols.readings.publication import checked_publication
from protocols.readings.quality import Quality
from protocols.readings.signing.held import Signed, SignedParcels
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.parcels import encode_alone, encode_signed, reading_statement
from protocols.wire.readings import EventTime, Readings, SignedReadings, Want
from tests.tools.readings_fixture import ALL, ME, SECOND, A, B, Bench
from tests.tools.signed_fixture import certificate, certificate_id, reading_seal, signature, signed
from tests.tools.strategies import HERE, HOW, MODEST, NOW_UTC_NS, reading

FAR = "far"
BEYOND = Quality(hops=2)
DAY_NS = 86_400 * SECOND


def listening(*peers: NodeId) -> Bench:
    """A machine with a subscription to everything, which ``b`` wants too."""
    bench = Bench(*(peers or (A, B)))
    bench.machine.subscribe("**", BEYOND, 0)
    bench.wants(B, Want("**", hops=2))
    return bench


def told(bench: Bench) -> list[ReadingRefused]:
    """The events about refused readings since the last call."""
    return [event for event in bench.machine.events() if type(event) is ReadingRefused]


def hazard(sequence: int = 1, value: object = 1, **more: object) -> SignedReadings:
    """A reading of a node beyond the neighbours, as it signed it."""
    return signed(reading("veh/far/hazard", FAR, sequence, value, **{"hops": 2, **more}))


# --- what an insider can do ----------------------------------------------------------------------------------------
def test_reading_of_another_node_without_a_signature_is_refused_and_takes_no_place() -> None:
    """Whoever passes on a made-up sequence would silence its victim."""
    bench = listening()
    assert bench.accept_plain(A, reading("veh/far/hazard", FAR, 1_000, hops=2)) == []
    assert len(bench.machine._table) == 0
    assert bench.accept_signed(A, hazard(1))
    assert bench.accept_plain(A, reading("veh/far/hazard", FAR, 1_001, hops=2)) == []
    assert bench.dropped() == {(A, "unsigned"): 2}
    assert [one.value for one in bench.sent(B)] == [1]


def test_reading_that_a_forwarder_changed_is_refused_and_the_forwarder_named() -> None:
    """A hazard that becomes "no hazard" on its way."""
    bench = listening()
    genuine, other = hazard(1, "ice"), hazard(1, "dry")
    assert bench.accept_signed(A, replace(genuine, parcel=other.parcel)) == []
    assert bench.sent(B) == []
    assert bench.dropped() == {(A, "forged"): 1}
    assert told(bench) == [ReadingRefused(A, FAR, "veh/far/hazard", "forged")]
    assert bench.accept_signed(B, genuine), "the genuine one comes by another way"


def test_reading_that_a_forwarder_made_up_is_refused_and_the_forwarder_named() -> None:
    """By its own key, which is a member's, in the name of another."""
    bench = listening()
    assert bench.accept_signed(A, signed(reading("veh/far/hazard", FAR, hops=2), by="a")) == []
    assert bench.dropped() == {(A, "forged"): 1}
    assert [event.source for event in told(bench)] == [A]


def test_reading_that_is_replayed_is_stale_and_costs_no_check() -> None:
    """A signature that is good proves nothing about when it was sent."""
    bench = listening()
    first, second = hazard(1), hazard(2)
    assert bench.accept_signed(A, first)
    assert bench.accept_signed(A, second)
    checked = bench.machine.counters()["signatures_checked"]
    for frame in (first, second, first):
        assert bench.accept_signed(A, frame) == []
    assert bench.dropped() == {(A, "stale"): 3}
    assert bench.machine.counters()["signatures_checked"] == checked == 2


def test_reading_of_an_earlier_life_is_not_replayed_to_a_node_that_has_restarted() -> None:
    """It remembers no sequence, but the author's entry says in which life it is."""
    bench = listening()
    bench.certificates.incarnations[FAR] = 7
    assert bench.accept_signed(A, hazard((6 << 32) + 9)) == []
    assert bench.accept_signed(A, hazard(7 << 32))
    assert bench.dropped() == {(A, "stale"): 1}


def test_reading_of_a_life_whose_clock_was_beyond_all_sequences_silences_no_later_life() -> None:
    """In 2039, nodes of the older scheme used more than 63 bits. An insider could replay it for ever."""
    bench = listening()
    wrong = hazard(2_180_000_000 << 32)
    assert bench.accept_signed(A, wrong) == []
    assert bench.accept_signed(A, hazard(first_sequence(2_180_000_001)))
    assert bench.accept_signed(A, wrong) == []
    assert bench.dropped() == {(A, "stale"): 2}
    bench = listening()
    assert bench.accept_plain(A, reading("veh/a/x", A, 2_180_000_000 << 32)), "from the node itself it is heard"
    bench.machine.remove_peer(A)
    later = signed(reading("veh/a/x", A, first_sequence(2_180_000_001), 1, hops=2))
    assert bench.accept_signed(B, later), "once it is out of range and began a new life"


def test_entry_of_no_valid_life_allows_every_sequence() -> None:
    """Its node goes above it, and could not publish at all otherwise."""
    bench = listening()
    bench.certificates.incarnations[FAR] = MAX_INCARNATION + 1
    assert bench.accept_signed(A, hazard(first_sequence(7)))


def test_reading_without_a_lifespan_is_not_replayed_for_ever() -> None:
    """Its time is signed, and beyond one hop a day is the longest life."""
    bench = listening()
    bench.now = DAY_NS + SECOND
    assert bench.accept_signed(A, hazard(1)) == []
    assert bench.accept_signed(A, hazard(2, lifespan_ms=1_000)) == []
    assert bench.dropped() == {(A, "expired"): 2}


def test_reading_whose_forwarder_gives_it_more_hops_than_its_author_is_refused() -> None:
    """Hops stand outside the signature, and the author's bound stands inside."""
    bench = listening()
    frame = hazard(1)
    assert bench.accept_signed(A, replace(frame, hops=3)) == []
    assert [event.because for event in told(bench)] == ["malformed"]
    ((_, delivered),) = bench.accept_signed(A, replace(frame, hops=1))
    assert delivered.hops == 1
    assert [one.hops for one in bench.sent(B)] == [0]


def test_parcel_of_two_streams_or_in_disorder_is_malformed() -> None:
    """Checks of sequence and access look at the newest reading of a parcel."""
    bench = listening()
    one = reading("veh/far/hazard", FAR, 5, hops=1)
    for others in (
        (replace(one, key="veh/far/other", sequence=6),), (replace(one, origin="victim", sequence=6),), (one,),
        (replace(one, sequence=4),),
    ):  # fmt: skip
        assert bench.accept_signed(A, signed(one, *others)) == []
    assert bench.accept_signed(A, replace(signed(one), parcel=memoryview(b"\x92\x06\x90"))) == []
    assert bench.accept_signed(A, replace(signed(one), parcel=memoryview(b"nothing"))) == []
    assert bench.dropped() == {(A, "malformed"): 6}


@MODEST
@given(st.data())
def test_frame_with_a_byte_changed_delivers_what_the_author_signed_or_nothing(data: st.DataObject) -> None:
    """Wherever a forwarder turns a bit."""
    bench = listening()
    genuine = bytearray(encode_frame(hazard(7, {"kind": "ice", "depth": 2.5})))
    at = data.draw(st.integers(0, len(genuine) - 1))
    genuine[at] ^= data.draw(st.integers(1, 255))
    try:
        frame = decode_untrusted_node_frame(bytes(genuine))
    except Exception:  # noqa: BLE001 - what decoding raises is for tests of the codec
        return
    if type(frame) is SignedReadings:
        for _, one in bench.accept_signed(A, frame):
            assert replace(one, hops=2) == reading("veh/far/hazard", FAR, 7, {"kind": "ice", "depth": 2.5}, hops=2), (
                "only the hops may differ"
            )


# --- who is to blame -----------------------------------------------------------------------------------------------
def test_reading_of_an_author_without_a_certificate_is_counted_and_blames_nobody() -> None:
    """The certificate may still be on its way, or be a new one."""
    bench = listening()
    bench.certificates.unknown.add(FAR)
    assert bench.accept_signed(A, hazard(1)) == []
    bench.certificates.unknown.clear()
    renewed = replace(hazard(2), certificate=certificate_id(b"another certificate"))
    assert bench.accept_signed(A, renewed) == []
    assert bench.dropped() == {(A, "author_unknown"): 2}
    assert told(bench) == []
    assert len(bench.machine._table) == 0


def test_own_reading_of_a_neighbour_is_delivered_at_once_and_passed_on_only_if_its_signature_is_good() -> None:
    """The next node would blame us for a bad one; the link proves it to us."""
    bench = listening()
    bad = signed(reading("veh/a/x", "a", 1, hops=2), by="nobody")
    assert len(bench.accept_signed(A, bad)) == 1
    assert bench.sent(B) == []
    assert bench.dropped() == {(A, "forged"): 1}
    assert [event.source for event in told(bench)] == [A]
    assert len(bench.accept_signed(A, signed(reading("veh/a/x", "a", 2, hops=2)))) == 1
    assert [(one.sequence, one.hops) for one in bench.sent(B)] == [(2, 1)]


def test_own_reading_of_a_neighbour_is_not_checked_while_nobody_else_wants_it() -> None:
    """A check costs more than everything else that a reading costs."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", ALL, 0)
    assert bench.accept_signed(A, signed(reading(hops=2)))
    assert bench.machine.counters()["signatures_checked"] == 0
    bench.wants(B, Want("**", hops=2))
    assert [one.hops for one in bench.sent(B)] == [1]
    assert bench.machine.counters()["signatures_checked"] == 1


def test_forger_is_told_of_once_a_minute_and_soon_checked_no_more() -> None:
    """It can fill neither the log nor the processor, and costs honest neighbours nothing."""
    bench = listening()
    for number in range(1_000):
        bench.accept_signed(A, signed(reading("veh/far/hazard", FAR, number, hops=1), by="a"))
    dropped = bench.dropped()
    most = limits.MAX_SIGNED_READINGS_BURST // limits.FORGED_READING_COST
    assert dropped[A, "forged"] <= most
    assert dropped[A, "forged"] + dropped[A, "over_rate"] == 1_000
    assert len(told(bench)) == 1
    assert bench.accept_signed(B, hazard(1_000))
    bench.now = 61 * SECOND
    bench.accept_signed(A, signed(reading("veh/far/hazard", FAR, 1_001, hops=1), by="a"))
    assert len(told(bench)) == 1


def test_large_parcel_costs_as_many_checks_as_it_takes_time() -> None:
    """Hashing 16 MB takes as long as 150 signatures."""
    bench = listening()
    size = 8 * limits.SIGNED_BYTES_PER_CHECK
    for number in range(1_000):
        bench.accept_signed(A, signed(reading("veh/far/hazard", FAR, number, bytes(size), hops=0)))
        if bench.dropped():
            break
    assert bench.machine.counters()["signatures_checked"] in range(100, 130)
    assert bench.dropped() == {(A, "over_rate"): 1}


# --- what is signed, and what travels ------------------------------------------------------------------------------
def test_published_reading_is_signed_only_if_it_may_be_passed_on_and_somebody_wants_it() -> None:
    """Traffic of one hop pays nothing, in time or in bytes."""
    bench = Bench(A)
    bench.publish("veh/me/x", 1, hops=2)
    bench.wants(A, Want("veh/me/y"))
    bench.publish("veh/me/y", 1)
    frame = bench.peers[A].realtime.take(bench.now)
    assert frame is not None
    assert type(decode_untrusted_node_frame(frame)) is Readings
    assert bench.machine.counters()["signed"] == 0
    bench.publish("veh/me/y", 2, hops=2)
    frame = bench.peers[A].realtime.take(bench.now)
    assert frame is not None
    sent = decode_untrusted_node_frame(frame)
    assert type(sent) is SignedReadings
    assert sent.certificate == certificate_id(certificate("me"))
    assert sent.signature == signature("me", reading_statement(sent.parcel))
    assert (sent.hops, bench.machine.counters()["signed"]) == (2, 1)


def test_reading_is_passed_on_as_the_bytes_that_its_author_made() -> None:
    """Others may write single precision or longer integers; encoding again would break the signature."""
    bench = listening()
    where = [48.5, 11.5, 2.0, None, None]
    parcel = msgpack.packb(
        [6, [["veh/far/x", FAR, 1, [1.5] * 300, where, [NOW_UTC_NS, 0], ["lidar", "1", 0.5, "", []], 3, 0, 2]]],
        use_single_float=True,
    )
    proof = signature(FAR, reading_statement(parcel))
    frame = decode_untrusted_node_frame(encode_signed(2, certificate_id(certificate(FAR)), proof, parcel))
    assert type(frame) is SignedReadings
    assert len(bench.accept_signed(A, frame)) == 1
    passed_on = bench.peers[B].realtime.take(bench.now)
    assert passed_on == encode_signed(1, frame.certificate, proof, parcel)


def test_late_subscriber_beyond_one_hop_gets_the_last_value_with_its_signature() -> None:
    """History is hearsay as well, of this node's own readings too."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", BEYOND, 0)
    bench.publish("veh/me/x", 1, hops=3)
    bench.accept_signed(A, hazard(4))
    bench.wants(B, Want("**", hops=2))
    frames = [decode_untrusted_node_frame(frame) for frame in iter(lambda: bench.peers[B].realtime.take(0), None)]
    assert [(type(frame), frame.hops) for frame in frames] == [(SignedReadings, 3), (SignedReadings, 1)]  # type: ignore[attr-defined]
    for author, frame in (("me", frames[0]), (FAR, frames[1])):
        assert type(frame) is SignedReadings
        assert frame.signature == signature(author, reading_statement(frame.parcel))


def test_readings_published_together_share_a_signature_and_are_passed_on_whole() -> None:
    """Sixty-four readings at the price of one."""
    bench = listening()
    publication = checked_publication("veh/me/x", HOW, HERE, hops=1)
    bench.machine.publish_many(publication, list(range(64)), None, [EventTime(bench.utc, 0)] * 64, 0, bench.utc)
    frame = bench.peers[B].realtime.take(0)
    assert frame is not None
    assert bench.machine.counters()["signed"] == 1
    far = signed(*[reading("veh/far/x", FAR, number, number, hops=1) for number in range(64)])
    assert len(bench.accept_signed(A, far)) == 64
    assert [one.value for one in bench.sent(B)] == list(range(64))
    assert bench.machine.counters()["forwarded"] == 64
    assert bench.machine.counters()["signatures_checked"] == 1


def test_neighbour_with_a_rate_limit_gets_the_newest_of_readings_that_were_signed_together() -> None:
    """One signature more, and not one for each."""
    bench = Bench(A, B)
    bench.wants(A, Want("**", 1_000_000))
    bench.wants(B, Want("**", 0, True))
    publication = checked_publication("veh/me/x", HOW, HERE, hops=1)
    for _ in range(2):
        put, _ = bench.machine.publish_many(
            publication, list(range(64)), None, [EventTime(bench.utc, 0)] * 64, 0, bench.utc
        )
        assert put.queued + put.dropped == 128
    assert [one.value for one in bench.sent(A)] == [63]
    assert [one.value for one in bench.sent(B)] == [63]
    assert bench.machine.counters()["signed"] == 4
    assert bench.dropped() == {(A, "rate_limited"): 127, (B, "conflated"): 127}


def test_signed_reading_never_shares_a_frame_with_others() -> None:
    """The queue puts plain readings of a key together."""
    bench = Bench(A)
    bench.wants(A, Want("**"))
    for number in range(6):
        bench.publish("veh/me/x", number, hops=number % 3 and 1)
    frames = [decode_untrusted_node_frame(frame) for frame in iter(lambda: bench.peers[A].realtime.take(0), None)]
    assert [type(frame) for frame in frames] == [Readings, SignedReadings, SignedReadings] * 2


def test_node_without_a_seal_sends_plain_readings_that_nobody_passes_on() -> None:
    """Its neighbours hear it, and no more."""
    bench = listening()
    assert len(bench.accept_plain(A, reading(hops=2))) == 1
    assert bench.sent(B) == []


# --- what is held --------------------------------------------------------------------------------------------------
@MODEST
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 30), st.integers(0, 3_000)), max_size=120))
def test_parcels_held_stay_within_their_bound_and_the_largest_holder_gives_way(
    rows: list[tuple[str, int, int]],
) -> None:
    """An insider that fills the table loses its own parcels."""
    bound = 20_000
    table = SignedParcels(bound)
    table.keep(reading("veh/quiet/x", "quiet"), Signed(1, b"", b"", b"", NodeId("quiet"), True))
    for source, key, size in rows:
        one = reading(f"veh/{source}/{key}", source)
        signed_parcel = Signed(1, b"", b"", bytes(size), NodeId(source), True)
        table.keep(one, signed_parcel)
        assert table.held_bytes <= bound
        assert table.of(one) in (signed_parcel, None)
    assert table.of(reading("veh/quiet/x", "quiet")) is not None
    assert table.of(reading("veh/quiet/x", "quiet", 2)) is None


def test_parcels_beyond_the_bound_push_out_those_of_the_neighbour_that_sent_most() -> None:
    """The last values that a quiet neighbour passed on can still be proven to late subscribers."""
    table = SignedParcels(20_000)
    quiet = reading("veh/quiet/x", "quiet")
    table.keep(quiet, Signed(1, b"", b"", bytes(100), NodeId("quiet"), True))
    for number in range(100):
        one = reading(f"veh/loud/{number}", "loud")
        table.keep(one, Signed(1, b"", b"", bytes(1_000), NodeId("loud"), True))
        assert table.of(one) is not None
        assert table.held_bytes <= 20_000
    assert table.of(quiet) is not None
    assert table.of(reading("veh/loud/0", "loud")) is None
    assert table.evicted == 100 - (20_000 - 612) // 1_512


def test_neighbours_that_come_and_go_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they may cost is kept when they leave, and a road-side unit meets thousands."""
    monkeypatch.setattr(limits, "MAX_SIGNED_PAYERS", 3)
    names = [NodeId(f"n{number}") for number in range(10)]
    bench = listening(B, *names)
    for sequence, name in enumerate(names):
        assert bench.accept_signed(name, hazard(sequence))
    assert len(bench.machine._authorship._payers) == 3


def test_node_that_holds_no_certificates_believes_no_hearsay() -> None:
    """A node without gossip can't prove anybody, and takes readings of its neighbours all the same."""
    bench = listening()
    bench.machine = Router(
        ME, Role.VEHICLE, 1, AccessTable(DEFAULT_RULES), bench.drops, bench.touched, [], reading_seal(ME)
    )  # fmt: skip
    bench.add(A)
    bench.machine.subscribe("**", BEYOND, 0)
    assert bench.accept_signed(A, hazard()) == []
    assert len(bench.accept(A, reading(hops=2))) == 1
    assert bench.dropped() == {(A, "author_unknown"): 1}


def test_reading_too_large_to_be_passed_on_is_refused_at_its_source_and_everywhere() -> None:
    """Hashing 16 MB takes long, and heartbeats wait meanwhile. Its sequence is not used up."""
    bench = Bench(A)
    bench.wants(A, Want("**"))
    large = bytes(limits.MAX_SIGNED_PARCEL_BYTES)
    assert bench.publish("veh/me/x", large)[0].queued == 1
    with pytest.raises(ValueUnsupported, match="without hops"):
        bench.publish("veh/me/x", large, hops=1)
    assert bench.publish("veh/me/x", 1, hops=1)[0].sequence == 2
    parcel = memoryview(encode_alone(reading("veh/far/x", FAR, 1, large, hops=1)))
    assert bench.accept_signed(A, SignedReadings(1, bytes(8), b"", parcel)) == []
    assert bench.dropped() == {(A, "malformed"): 1}


def test_role_of_a_renewed_certificate_is_decided_anew() -> None:
    """A node that was issued again with another role keeps no right of the old one."""
    bench = listening()
    bench.certificates.roles[FAR] = Role.RSU
    hazards = [reading("rsu/far/hazard", FAR, number, hops=1) for number in range(2)]
    assert bench.accept_signed(A, signed(hazards[0], roles={FAR: Role.RSU}))
    bench.certificates.roles[FAR] = Role.VEHICLE
    assert bench.accept_signed(A, signed(hazards[1], roles={FAR: Role.VEHICLE})) == []
    assert bench.dropped() == {(A, "denied"): 1}


def test_signed_readings_of_more_elements_than_the_allowance_are_dropped_before_they_are_decoded() -> None:
    """The same empty maps as in plain readings, which a signature does not make any lighter."""
    bench = Bench(A)
    bench.machine.subscribe("**", BEYOND, 0)
    maps = [{}] * 15_000
    frames = [signed(reading("veh/a/maps", A, number, maps, hops=2)) for number in range(1, 20)]
    taken = [bool(bench.accept_signed(A, frame)) for frame in frames]
    checks = limits.MAX_SIGNED_READINGS_BURST * limits.SIGNED_ELEMENTS_PER_CHECK
    assert sum(taken) == -(-checks // 15_001)
    assert bench.dropped()[A, "over_rate"] == taken.count(False)
    assert bench.accept_signed(A, signed(reading("veh/a/speed", A, 1, {"m/s": 3.5}, hops=2))), "small ones still come"
    bench.now += 2 * SECOND
    assert bench.accept_signed(A, signed(reading("veh/a/maps", A, 99, maps, hops=2)))
