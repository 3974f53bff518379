"""What a neighbour says about other nodes: what is believed, who gets it, and what it can't change."""

import pytest

from protocols.base import limits
from protocols.base.ids import Role
from protocols.readings.quality import Quality
from protocols.wire.readings import Want
from tests.tools.readings_fixture import ALL, SECOND, A, B, Bench
from tests.tools.signed_fixture import signed
from tests.tools.strategies import reading

FAR = Quality(hops=1)


def test_hearsay_about_a_neighbour_is_never_delivered_and_never_silences_it() -> None:
    """One copy with a made-up sequence would otherwise mute the hazards of a road-side unit for minutes."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", FAR, 0)
    bench.wants(B, Want("**", hops=8))
    assert bench.accept(B, reading("veh/a/brake", "a", 1_000, "forged", hops=8)) == []
    genuine = [reading("veh/a/brake", "a", sequence, "genuine") for sequence in range(1, 201)]
    for one in genuine:
        assert [got for _, got in bench.accept(A, one)] == [one]
        assert bench.accept(B, reading("veh/a/brake", "a", 2**64 - 1, "forged")) == []
    assert bench.dropped() == {(B, "stale"): 201}


def test_hearsay_about_a_neighbour_is_not_believed_after_its_stream_was_pushed_out() -> None:
    """The table of streams is bounded. Whoever fills it must not become the voice of others."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", FAR, 0)
    assert bench.accept(A, reading("veh/a/brake", "a", 1))
    for number in range(16_500):
        bench.now += limits.MS
        bench.accept(B, reading(f"veh/b/{number}", "b", 1))
    assert bench.accept(B, reading("veh/a/brake", "a", 2**64 - 1, "forged")) == []
    for sequence in range(2, 200):
        assert bench.accept(A, reading("veh/a/brake", "a", sequence))


def test_hearsay_is_for_subscriptions_with_hops_alone() -> None:
    """The default, hops = 0, is safe: neither a reading, nor a last value, nor a sign of life comes from others."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", Quality(deadline_ns=SECOND), 0)
    far, _ = bench.machine.subscribe("veh/c/**", Quality(hops=1, deadline_ns=SECOND), 0)
    assert [numbers for numbers, _ in bench.accept(B, reading("veh/c/x", "c", 1))] == [(far,)]
    assert bench.accept(B, reading("veh/d/x", "d", 1)) == []
    assert bench.machine.subscribe("**", ALL, 0)[1] == []
    assert [one.key for one in bench.machine.subscribe("**", FAR, 0)[1]] == ["veh/c/x"]
    bench.now = 2 * SECOND
    bench.machine.handle_timer(bench.now)
    assert [(event.subscription, event.key) for event in bench.machine.events()] == [(far, "veh/c/x")]


def test_hearsay_does_not_hide_the_silence_of_a_neighbour_that_left() -> None:
    """A deadline without hops watches the node itself, not what others say about it."""
    bench = Bench(A, B)
    near, _ = bench.machine.subscribe("veh/a/x", Quality(deadline_ns=SECOND), 0)
    far, _ = bench.machine.subscribe("veh/a/x", Quality(deadline_ns=SECOND, hops=1), 0)
    bench.accept(A, reading(sequence=1))
    bench.machine.remove_peer(A)
    for sequence in range(2, 6):
        bench.now += SECOND // 2
        assert [numbers for numbers, _ in bench.accept(B, reading(sequence=sequence))] == [(far,)]
        bench.machine.handle_timer(bench.now)
    assert [event.subscription for event in bench.machine.events()] == [near]


@pytest.mark.parametrize("hops", [0, 1])
def test_hearsay_that_nobody_asked_for_takes_no_place(hops: int) -> None:
    """The wants of a neighbour with one hop reach this node's neighbours with none, so they ask for no hearsay."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", ALL, 0)
    bench.wants(A, Want("veh/c/**", hops=hops))
    bench.wants(B, Want("veh/c/**", hops=8))
    for number in range(50):
        assert bench.accept(B, reading(f"veh/c/{number}", "c", hops=3)) == []
    assert bench.sent(A) == []
    assert bench.dropped() == {(B, "unasked"): 50}
    assert len(bench.machine._table) == 0


def test_hearsay_that_a_neighbour_asked_for_is_passed_on_and_not_delivered() -> None:
    """A node in the middle serves those behind it, whatever it wants itself."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", ALL, 0)
    bench.wants(A, Want("veh/c/**", hops=2))
    assert bench.accept(B, reading("veh/c/x", "c", hops=1)) == []
    assert [one.key for one in bench.sent(A)] == ["veh/c/x"]
    bench.wants(A)
    assert bench.accept(B, reading("veh/c/x", "c", 2, hops=1)) == []
    assert bench.dropped() == {(B, "unasked"): 1}
    assert len(bench.machine._table) == 0


def test_origin_known_by_hearsay_speaks_for_itself_when_it_comes_near() -> None:
    """Whatever sequence others made up before it came, its own counts: at once where nobody asked for hearsay, and
    soon where that was asked for."""
    bench = Bench(B)
    far, _ = bench.machine.subscribe("**", FAR, 0)
    near, _ = bench.machine.subscribe("**", ALL, 0)
    assert bench.accept(B, reading("veh/a/x", "a", 1_000_000, "forged"))
    bench.add(A)
    assert [numbers for numbers, _ in bench.accept(A, reading(sequence=10), reading(sequence=11))] == [(near,)] * 2
    bench.now += limits.MEETING_NS
    assert [numbers for numbers, _ in bench.accept(A, reading(sequence=12))] == [(far, near)]
    assert bench.accept(A, reading(sequence=12)) == []
    assert bench.dropped() == {(A, "stale"): 1}


def test_origin_that_comes_near_does_not_repeat_what_came_by_hearsay() -> None:
    """Readings that waited for its link are late when others were faster. Each subscription gets each once."""
    bench = Bench(B)
    far, _ = bench.machine.subscribe("**", FAR, 0)
    near, _ = bench.machine.subscribe("**", ALL, 0)
    assert [numbers for numbers, _ in bench.accept(B, *(reading(sequence=n) for n in (1, 2, 3)))] == [(far,)] * 3
    bench.add(A)
    assert [numbers for numbers, _ in bench.accept(A, *(reading(sequence=n) for n in (2, 3)))] == [(near,)] * 2
    assert [numbers for numbers, _ in bench.accept(A, reading(sequence=4))] == [(far, near)]
    bench.machine.remove_peer(A)
    assert bench.accept(B, reading(sequence=4)) == [], "it came from its origin"
    assert [numbers for numbers, _ in bench.accept(B, reading(sequence=5))] == [(far,)]
    bench.add(A)
    assert [numbers for numbers, _ in bench.accept(A, reading(sequence=6))] == [(far, near)]


def test_hearsay_is_judged_by_what_any_role_would_permit_its_origin() -> None:
    """Its certificate is not here, so nobody here knows its role."""
    bench = Bench(A)
    bench.machine.subscribe("**", FAR, 0)
    assert bench.accept(A, reading("rsu/far/hazard", "far"))
    assert bench.accept(A, reading("rsu/other/hazard", "far")) == []
    assert bench.dropped() == {(A, "denied"): 1}


def test_hearsay_is_bounded_together_with_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys come from neighbours too."""
    monkeypatch.setattr(limits, "MAX_STREAMS", 50)
    bench = Bench(A)
    bench.machine.subscribe("**", FAR, 0)
    for number in range(120):
        bench.now += limits.MS
        assert bench.accept(A, reading(f"veh/c/{number}", "c"), reading(f"veh/a/{number}", "a"))
    assert len(bench.machine._table) == 50


def test_hearsay_with_a_lifespan_expires_as_other_readings_do() -> None:
    """A late warning is worthless, however many nodes passed it on."""
    bench = Bench(A)
    bench.machine.subscribe("**", FAR, 0)
    bench.now = SECOND
    assert bench.accept(A, reading("veh/c/x", "c", lifespan_ms=100)) == []
    assert bench.accept(A, reading("veh/me/x", "me")) == []
    assert bench.dropped() == {(A, "expired"): 1, (A, "echo"): 1}


def test_hearsay_of_several_readings_delivers_those_that_are_neither_old_nor_expired() -> None:
    """They were signed together and come together. What was delivered before, or has become worthless on the way, is
    dropped by itself."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", FAR, 0)
    one = reading("veh/c/x", "c", 1, hops=1)
    assert bench.accept_signed(A, signed(one))
    brief = [reading("veh/c/x", "c", sequence, hops=1, lifespan_ms=100) for sequence in (2, 3)]
    late = [reading("veh/c/x", "c", sequence, hops=1, lifespan_ms=60_000) for sequence in (4, 5)]
    bench.now = SECOND
    delivered = bench.accept_signed(B, signed(one, *brief, *late))
    assert [got.sequence for _, got in delivered] == [4, 5]
    assert bench.dropped() == {(B, "stale"): 1, (B, "expired"): 2}


def test_stream_whose_origin_may_not_publish_any_more_loses_its_place_and_last_value() -> None:
    """A node that was issued again with another role must not be remembered in the old one."""
    bench = Bench(A)
    role = Role.RSU
    bench.machine.subscribe("**", ALL, 0)
    for sequence, delivered in ((1, 1), (2, 0)):
        got = bench.machine.accept((reading("rsu/a/x", "a", sequence),), A, role, 0, bench.utc, 0)
        assert len(got) == delivered
        role = Role.VEHICLE
        bench.machine.remove_peer(A)
        bench.add(A)
    assert bench.dropped() == {(A, "denied"): 1}
    assert bench.machine.subscribe("**", ALL, 0)[1] == []
    assert len(bench.machine._table) == 0


def test_hearsay_is_watched_only_for_subscriptions_with_hops() -> None:
    """A stream that is known by hearsay when the table is asked must not raise alarms for others."""
    bench = Bench(A)
    far, _ = bench.machine.subscribe("veh/c/*", Quality(hops=1, deadline_ns=SECOND), 0)
    bench.machine.subscribe("veh/d/*", Quality(hops=1, deadline_ns=SECOND), 0)
    bench.machine.subscribe("veh/c/*", Quality(deadline_ns=SECOND), 0)
    bench.accept(A, reading("veh/c/x", "c"))
    bench.now = SECOND
    bench.machine.handle_timer(bench.now)
    assert [event.subscription for event in bench.machine.events()] == [far]
