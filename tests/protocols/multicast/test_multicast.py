"""Casting nodes without a network: what neighbours, strangers and insiders can do with datagrams.

The seals are the real ones of :mod:`meshnode.multicast.sealing`.
"""

from collections.abc import Callable

from meshnode.multicast.sealing import DatagramSealing
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.multicast.machine import Multicast
from protocols.multicast.seal import DatagramSeal
from protocols.multicast.sending import CastFrame, key_statement
from protocols.wire.multicast.datagrams import datagram_statement, encode_body, encode_head, nonce_of, untrusted_head
from protocols.wire.multicast.frames import Heard, SenderKey
from protocols.wire.parcels import encode_alone
from tests.tools.strategies import NOW_UTC_NS, reading

MS, SECOND = limits.MS, limits.SECOND
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


class Counting:
    """A real seal that counts what is costly."""

    def __init__(self) -> None:
        self.opened = self.checked = 0
        self.real = DatagramSealing().seal()

    def seal(self) -> DatagramSeal:
        def opened(secret: bytes, nonce: bytes, datagram: bytes) -> object:
            self.opened += 1
            return self.real.open(secret, nonce, datagram)

        def checked(public: bytes, statement: bytes, signature: bytes) -> bool:
            self.checked += 1
            return self.real.has_signed(public, statement, signature)

        return DatagramSeal(self.real.new_key, self.real.digest, self.real.close, opened, checked)  # type: ignore[arg-type]


class Air:
    """Some nodes that are neighbours. Links lose nothing, and a test decides who hears which datagram."""

    def __init__(self, *nodes: NodeId) -> None:
        self.now = SECOND
        self.seals = {node: Counting() for node in nodes}
        self.machines = {node: Multicast(node, self.seals[node].seal()) for node in nodes}
        self.said: list[tuple[NodeId, NodeId, object]] = []
        self.repaired: list[tuple[NodeId, NodeId, CastFrame]] = []
        """Who sent what again, and to whom."""
        for node, machine in self.machines.items():
            for other in nodes:
                if other != node:
                    machine.neighbour_met(other, Role.VEHICLE, self.now)
        self.links()

    def links(self) -> None:
        """Carry what the machines say on their links until they say nothing more."""
        while any(machine.has_news() for machine in self.machines.values()):
            for node, machine in self.machines.items():
                machine.audience_changed()
                self.repaired.extend((node, to, frame) for to, frame in machine.repairs())
                for to, frame in machine.messages():
                    assert to is not None
                    self.said.append((node, to, frame))
                    if to in self.machines:
                        self.machines[to].receive(frame, node, Role.VEHICLE, self.now)

    def cast(self, node: NodeId, value: int = 1, priority: int = 3, key: str = "veh/a/x", **more: object) -> bytes:
        frame = encode_alone(reading(key=key, origin=node, sequence=value, value=value, priority=priority, **more))
        datagram = self.machines[node].sealed(frame, self.now, NOW_UTC_NS + self.now)
        assert datagram is not None
        return datagram

    def beacon(self, node: NodeId) -> bytes:
        self.machines[node].beacon_is_due = True
        datagram = self.machines[node].sealed(None, self.now, NOW_UTC_NS)
        assert datagram is not None
        return datagram

    def hear(self, node: NodeId, datagram: bytes, host: str = "192.0.2.1") -> tuple[NodeId, bytes, bool] | None:
        opened = self.machines[node].open_untrusted(datagram, host, self.now)
        self.links()
        return opened

    def pass_time(self, ns: int, cast: Callable[[], None] | None = None) -> None:
        """Let time pass in steps of 50 ms; ``cast`` is called in each."""
        end = self.now + ns
        while self.now < end:
            self.now += 50 * MS
            for machine in self.machines.values():
                if machine.next_timer_at() <= self.now:
                    machine.handle_timer(self.now)
            if cast is not None:
                cast()
            self.links()

    def counter(self, node: NodeId, name: str) -> int:
        return self.machines[node].counters()[name]


def all_hear(made: Air) -> None:
    """Everybody hears a beacon of everybody."""
    for node in made.machines:
        datagram = made.beacon(node)
        for other in made.machines:
            if other != node:
                assert made.hear(other, datagram) == (node, b"", True)


def insiders_datagram(made: Air, victim: NodeId, insider: NodeId, counter: int) -> bytes:
    """What an insider makes who holds the key of a victim: closed well, and signed by itself."""
    handed = next(
        frame for node, to, frame in made.said if (node, to) == (victim, insider) and type(frame) is SenderKey
    )
    real, frame = made.seals[insider].real, encode_alone(reading(origin=victim, value="forged"))
    head = encode_head(handed.key, counter)
    signature = real.new_key().sign(datagram_statement(head, 0, False, frame))
    return head + real.close(handed.secret, nonce_of(counter), head, encode_body(0, False, signature, frame))


# --- neighbours ------------------------------------------------------------------------------------------------------
def test_neighbour_that_hears_a_beacon_becomes_a_listener() -> None:
    """Nobody is taken for a listener who has not said so: it would get nothing at all."""
    made = Air(A, B, C)
    datagram = made.beacon(A)
    assert made.machines[A].listeners == frozenset()
    made.hear(B, datagram)
    assert made.machines[A].listeners == {B}
    assert made.machines[A].holders == {B: Role.VEHICLE, C: Role.VEHICLE}


def test_frame_is_opened_by_all_who_hold_the_key() -> None:
    """One datagram, two receivers, the same reading."""
    made = Air(A, B, C)
    datagram = made.cast(A)
    assert len(datagram) <= len(encode_alone(reading())) + 13 + 16 + 6 + limits.MAX_SIGNATURE_BYTES + 8
    for node in (B, C):
        opened = made.hear(node, datagram)
        assert opened is not None
        assert opened[0] == A


def test_urgent_frame_that_was_missed_is_sent_on_the_link_once() -> None:
    """A hazard must not be lost with a datagram. An ordinary reading is replaced by the next one."""
    made = Air(A, B, C)
    all_hear(made)
    for value in range(1, 4):
        made.hear(B, made.cast(A, value))
    made.cast(A, 4)  # nobody hears these two
    made.cast(A, 5, priority=7)
    made.hear(B, made.beacon(A))
    made.hear(B, made.beacon(A))
    (repair,) = made.repaired
    assert repair[:2] == (A, B)
    assert repair[2].priority == 7


def test_beacon_follows_an_urgent_frame_soon() -> None:
    """Otherwise the loss of the last hazard would show with the next reading only, which may take seconds."""
    made = Air(A, B, C)
    all_hear(made)
    made.cast(A, priority=7)
    assert made.machines[A].next_timer_at() <= made.now + 30 * MS


def test_listener_that_hears_nothing_says_so_and_gets_what_it_missed() -> None:
    """An access point that stops to pass multicast must not make a node blind."""
    made = Air(A, B, C)
    all_hear(made)
    made.cast(A, 1, key="veh/a/pose")
    made.cast(A, 2, priority=7, key="veh/a/hazard")

    def cast() -> None:
        made.cast(A, made.now, key="veh/a/pose")

    made.pass_time(1_500 * MS, cast)
    assert B not in made.machines[A].listeners
    assert {repair[2].keys[0] for repair in made.repaired if repair[1] == B} == {"veh/a/pose", "veh/a/hazard"}
    made.pass_time(3_000 * MS)
    made.hear(B, made.beacon(A))
    assert B in made.machines[A].listeners


def test_listener_that_hears_less_than_half_is_served_on_its_link() -> None:
    """Two of three positions lost is worse than a turn on the link."""
    made = Air(A, B, C)
    all_hear(made)
    for value in range(200):
        datagram = made.cast(A, value)
        made.now += 100 * MS
        if value % 3 == 0:
            made.hear(B, datagram)
        if B not in made.machines[A].listeners:
            break
        made.machines[B].handle_timer(made.now)
        made.links()
    assert B not in made.machines[A].listeners


def test_last_frame_of_a_stream_that_stops_is_cast_again() -> None:
    """A car that has stopped must not seem to drive for whoever lost its last reading."""
    made = Air(A, B, C)
    all_hear(made)
    for value in range(1, 6):
        made.cast(A, value)
        made.now += 100 * MS
    frames = []

    def cast() -> None:
        datagram = made.beacon(A)
        made.hear(C, datagram)
        opened = made.hear(B, datagram)
        assert opened is not None
        frames.extend([opened[1]] if opened[1] else [])

    made.pass_time(1_500 * MS, cast)
    assert frames == [encode_alone(reading(key="veh/a/x", origin=A, sequence=5, value=5, priority=3))]


def test_key_is_replaced_without_losing_a_datagram_and_not_for_those_who_left() -> None:
    """Whoever held the key once must not read for ever."""
    made = Air(A, B, C)
    all_hear(made)
    made.machines[A].neighbour_gone(C, made.now)
    made.pass_time(595 * SECOND)
    made.hear(B, made.beacon(A))
    lost = []

    def cast() -> None:
        for node, other in ((A, B), (B, A)):
            if made.hear(other, made.cast(node, made.now)) is None:
                lost.append(node)

    first = untrusted_head(made.beacon(A))
    made.said.clear()
    made.pass_time(20 * SECOND, cast)
    last = untrusted_head(made.beacon(A))
    assert first is not None
    assert last is not None
    assert first.key != last.key
    assert lost == []
    assert [to for node, to, frame in made.said if node == A and type(frame) is SenderKey] == [B]


# --- strangers -------------------------------------------------------------------------------------------------------
def test_datagram_of_a_stranger_is_dropped_without_being_opened() -> None:
    """Anybody within range can send anything."""
    made = Air(A, B)
    for datagram in (b"", b"x" * 40, b"\x01" + b"k" * 100, made.beacon(A)[:20], made.beacon(A) + b"x" * 1_400):
        assert made.hear(B, datagram) is None
    assert made.seals[B].opened == 0
    assert made.counter(B, "strangers") == 5


def test_stranger_that_copies_a_key_id_costs_a_bounded_number_of_openings() -> None:
    """The id of a key is on the air. What begins with it has to be opened to know that it is no good."""
    made = Air(A, B)
    good = made.beacon(A)
    for counter in range(10, 5_010):
        head = encode_head(good[1:9], counter)
        assert made.hear(B, head + b"x" * 60, host="192.0.2.66") is None
    assert made.seals[B].opened == limits.MAX_BROKEN_DATAGRAMS_BURST
    assert made.hear(B, made.beacon(A), host="192.0.2.1") is not None


def test_datagram_is_believed_once_and_not_from_before_the_key() -> None:
    """A stranger can record and repeat."""
    made = Air(A, B)
    before = made.beacon(A)
    machine = made.machines[C] = Multicast(C, DatagramSealing().seal())
    made.machines[A].neighbour_met(C, Role.VEHICLE, made.now)
    made.links()
    assert machine.open_untrusted(before, "", made.now) is None
    datagram = made.cast(A)
    assert made.hear(B, datagram) is not None
    assert made.hear(B, datagram) is None
    assert made.counter(B, "replayed") == 1


def test_datagram_that_was_held_back_proves_no_life() -> None:
    """Otherwise who jams and repeats could keep a dead neighbour alive."""
    made = Air(A, B)
    older, newer = made.beacon(A), made.beacon(A)
    assert made.hear(B, newer) == (A, b"", True)
    assert made.hear(B, older) == (A, b"", False)


# --- insiders --------------------------------------------------------------------------------------------------------
def test_insider_that_forges_is_found_out_at_a_bounded_price() -> None:
    """It holds the key of its victim, as all neighbours do, but can't sign for it."""
    made = Air(A, B, C)
    all_hear(made)
    before = made.seals[B].checked
    for counter in range(100, 1_100):
        assert made.hear(B, insiders_datagram(made, A, C, counter)) is None
    assert made.seals[B].checked - before == limits.MAX_FORGED_DATAGRAMS_BURST
    made.pass_time(1_500 * MS)  # A is not heard meanwhile, and served on the link
    assert B not in made.machines[A].listeners
    made.pass_time(3_000 * MS)
    assert made.hear(B, made.cast(A)) is not None


def test_insider_that_hands_out_key_after_key_gets_no_more_checks() -> None:
    """Each check of a signature that is no good costs 60 µs, and a key costs the insider next to nothing."""
    made = Air(A, B)
    seal = made.seals[B].real
    for number in range(20):
        own = seal.new_key()
        key_id = seal.digest(key_statement(B, own.secret, own.public))[: limits.DATAGRAM_KEY_ID_BYTES]
        made.machines[A].receive(SenderKey(key_id, own.secret, own.public, 0, 0), B, Role.VEHICLE, made.now)
        for counter in range(limits.MAX_FORGED_DATAGRAMS_BURST):
            head = encode_head(key_id, counter)
            body = encode_body(0, False, b"no signature", b"")
            made.hear(A, head + seal.close(own.secret, nonce_of(counter), head, body), f"192.0.2.{number}")
    assert made.seals[A].checked <= 2 * limits.MAX_FORGED_DATAGRAMS_BURST


def test_forged_datagram_does_not_use_up_the_counter() -> None:
    """Otherwise an insider that is quick could shut out the genuine one."""
    made = Air(A, B, C)
    all_hear(made)
    assert made.hear(B, insiders_datagram(made, A, C, 1)) is None
    assert made.hear(B, made.cast(A)) is not None


def test_insider_can_not_hand_out_a_key_under_the_id_of_another() -> None:
    """Datagrams of the victim would be checked with the insider's key, and fail."""
    made = Air(A, B, C)
    genuine = next(frame for node, to, frame in made.said if (node, to) == (A, C) and type(frame) is SenderKey)
    made.machines[B].neighbour_gone(A, made.now)
    made.machines[B].receive(genuine, C, Role.VEHICLE, made.now)
    made.machines[B].receive(genuine, A, Role.VEHICLE, made.now)
    opened = made.hear(B, made.beacon(A))
    assert opened is not None
    assert opened[0] == A


def test_insider_that_floods_is_checked_at_its_own_rate() -> None:
    """Each of its datagrams is signed well, and costs 70 µs."""
    made = Air(A, B, C)
    for _ in range(2_000):
        made.hear(B, made.beacon(A))
    assert made.seals[B].checked == limits.MAX_DATAGRAMS_BURST
    assert made.hear(B, made.beacon(C)) is not None


def test_insider_that_claims_losses_gets_a_bounded_number_of_repairs() -> None:
    """Each repair is a frame on the channel."""
    made = Air(A, B, C)
    all_hear(made)
    for _ in range(50):
        made.cast(A, priority=7)
    key = untrusted_head(made.beacon(A))
    assert key is not None
    for _ in range(100):
        made.machines[A].receive(Heard(key.key, True, 50, tuple(range(35, 51))), B, Role.VEHICLE, made.now)
        made.machines[A].receive(Heard(key.key, False, 0), B, Role.VEHICLE, made.now)
    assert len(made.machines[A].repairs()) <= limits.MAX_DATAGRAM_REPAIRS_BURST


def test_insider_that_claims_to_hear_harms_only_itself() -> None:
    """The others are served as they said."""
    made = Air(A, B, C)
    key = untrusted_head(made.beacon(A))
    assert key is not None
    made.machines[A].receive(Heard(key.key, True, 0), B, Role.VEHICLE, made.now)
    made.machines[A].receive(Heard(b"8 bytes.", True, 0), C, Role.VEHICLE, made.now)
    made.machines[A].receive(Heard(key.key, True, 0), NodeId("nobody"), Role.VEHICLE, made.now)
    assert made.machines[A].listeners == {B}


def test_node_that_did_not_run_is_not_deaf() -> None:
    """After a stall of its own it has heard nothing, and nobody is to blame."""
    made = Air(A, B)
    all_hear(made)
    made.now += 5 * SECOND
    made.machines[B].handle_timer(made.now)
    made.links()
    assert B in made.machines[A].listeners
