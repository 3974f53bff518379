"""All media of a scenario in one object: the air, wires between roadside units, the cellular way to the relay, and the
faults on top of them.

Two nodes that share a backbone use its wire for everything, whatever their distance. All others use the air. A wire
loses nothing and is never shared. The cellular way loses nothing either, because its link layer acknowledges (RLC, 3GPP
TS 38.322); it ends where a hole begins.

Faults are kept by pair, and cost one look at a flag while there are none. They hit wires, air and cellular way alike.
"""

import math
from random import Random
from typing import Final

from protocols.base.limits import MS
from sims.media.cells import Cells
from sims.media.contract import RELAY, Places
from sims.media.radio import Air
from sims.media.tcp import (
    CONNECT_ROUND_TRIPS,
    PATIENCE_NS,
    TCP_IP_BYTES,
    TLS_BYTES,
    growth_ns,
    message_stall_ns,
    segments_of,
)
from sims.scenario.file import Backbone, Cellular, Scenario

MOST_LOST: Final = 0.999
"""A stream that loses a larger share of its segments stands still."""
_ETHERNET_BYTES: Final = 18


class Media:
    """All media of a scenario: a :class:`sims.media.contract.Medium`."""

    def __init__(self, scenario: Scenario, places: Places, random: Random, of_uplink: Random | None = None) -> None:
        """``of_uplink``: randomness of the cellular way; None: the same as for the rest."""
        self._places, self._draw = places, random.random
        self.radio = Air(scenario.radio, places, random)
        self._present = places.present[:]
        self._wires = _Wires(scenario, places)
        self._wired = bool(scenario.backbone)
        self._neighbours: dict[int, list[int]] = {}
        self._cellular = _Cellular(scenario.cellular, self.radio.cells, of_uplink or random)
        self._stride = len(places.xs_m) + 1
        self._cuts: dict[int, int] = {}
        self._losses: dict[int, float] = {}
        self._clogs: dict[int, int] = {}
        self._faulty = False

    # --- Links -----------------------------------------------------------------------------------------------------
    def moved(self, now_ns: int) -> list[int]:
        """See :class:`sims.media.contract.Links`. It costs next to nothing when no node moved."""
        touched = self.radio.moved()
        if self._wired and self._present != self._places.present:  # wires make it visible from everywhere
            self._present = self._places.present[:]
            touched = list(range(len(self._present)))
        for node in touched:
            self._neighbours.pop(node, None)
        self._cellular.moved(self.radio.cells.movers)
        return touched

    def neighbours(self, node: int) -> list[int]:
        """See :class:`sims.media.contract.Links`."""
        if not self._wired:
            return self.radio.neighbours(node)
        known = self._neighbours.get(node)
        if known is None:
            known = self._neighbours[node] = sorted({*self.radio.neighbours(node), *self._wires.joined(node)})
        return known

    def multicast_ns(self, sender: int, size_bytes: int, now_ns: int) -> tuple[int, list[int]]:
        """See :class:`sims.media.contract.Links`. Who is wired hears it together with the others."""
        arrival_ns, heard = self.radio.multicast_ns(sender, size_bytes, now_ns)
        if self._wired:
            wired = self._wires.joined(sender)
            if wired:
                wire_ns = self._wires.arrival_ns(sender, wired[0], size_bytes, now_ns)
                arrival_ns = max(arrival_ns, wire_ns)
                heard = sorted({*heard, *wired})
        if self._faulty:
            heard = [node for node in heard if self._passes(sender, node)]
            arrival_ns += max((self._clogs.get(self._key(sender, node), 0) for node in heard), default=0)
        return arrival_ns, heard

    def datagram_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`sims.media.contract.Links`."""
        if self._wired and self._wires.between(sender, receiver) is not None:
            arrival_ns: int | None = self._wires.arrival_ns(sender, receiver, size_bytes, now_ns)
        else:
            arrival_ns = self.radio.datagram_ns(sender, receiver, size_bytes, now_ns)
        return self._packet_ns(sender, receiver, arrival_ns) if self._faulty else arrival_ns

    def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`sims.media.contract.Links`."""
        if self._wired and self._wires.between(sender, receiver) is not None:
            arrival_ns: int | None = self._wires.arrival_ns(sender, receiver, size_bytes, now_ns)
        else:
            arrival_ns = self.radio.frame_ns(sender, receiver, size_bytes, now_ns)
        return self._packet_ns(sender, receiver, arrival_ns) if self._faulty else arrival_ns

    def stream_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`sims.media.contract.Links`."""
        if self._faulty and self._stands_still(sender, receiver):
            return None
        if self._wired and self._wires.between(sender, receiver) is not None:
            arrival_ns: int | None = self._wires.stream_ns(sender, receiver, size_bytes, now_ns)
        else:
            arrival_ns = self.radio.stream_ns(sender, receiver, size_bytes, now_ns)
        return self._late_ns(sender, receiver, size_bytes, arrival_ns, now_ns) if self._faulty else arrival_ns

    def connect_ns(self, sender: int, receiver: int, now_ns: int, *, answers: bool = True) -> int | None:
        """See :class:`sims.media.contract.Links`."""
        if self._faulty and self._stands_still(sender, receiver):
            return None
        if self._wired and self._wires.between(sender, receiver) is not None:
            arrival_ns: int | None = self._wires.connect_ns(sender, receiver, now_ns)
        else:
            arrival_ns = self.radio.connect_ns(sender, receiver, now_ns, answers=answers)
        return self._connected_ns(sender, receiver, arrival_ns, now_ns) if self._faulty else arrival_ns

    def busy_share(self, node: int, now_ns: int) -> float:
        """See :class:`sims.media.contract.Links`."""
        return self.radio.busy_share(node, now_ns)

    # --- Uplink ----------------------------------------------------------------------------------------------------
    def uplink_ns(self, node: int, size_bytes: int, now_ns: int, upward: bool = True) -> int | None:
        """See :class:`sims.media.contract.RelayLinks`."""
        ends = (node, RELAY) if upward else (RELAY, node)
        if self._faulty and self._stands_still(*ends):
            return None
        arrival_ns = self._cellular.stream_ns(node, size_bytes, now_ns, upward)
        return self._late_ns(*ends, size_bytes, arrival_ns, now_ns) if self._faulty else arrival_ns

    def uplink_connect_ns(self, node: int, now_ns: int) -> int | None:
        """See :class:`sims.media.contract.RelayLinks`."""
        if self._faulty and self._stands_still(node, RELAY):
            return None
        arrival_ns = self._cellular.connect_ns(node, now_ns)
        return self._connected_ns(node, RELAY, arrival_ns, now_ns) if self._faulty else arrival_ns

    def covered(self, node: int) -> bool:
        """Whether the link of a node to the relay is open. The relay itself may be down all the same."""
        return self._cellular.covered(node) and not (self._faulty and self._stands_still(node, RELAY))

    # --- Overlay ---------------------------------------------------------------------------------------------------
    def cut(self, sender: int, receiver: int) -> None:
        """See :class:`sims.media.contract.Overlay`."""
        key = self._key(sender, receiver)
        self._cuts[key] = self._cuts.get(key, 0) + 1
        self._faulty = True

    def uncut(self, sender: int, receiver: int) -> None:
        """See :class:`sims.media.contract.Overlay`."""
        key = self._key(sender, receiver)
        count = self._cuts.pop(key, 0) - 1
        if count > 0:
            self._cuts[key] = count
        self._look()

    def lose(self, sender: int, receiver: int, share: float) -> None:
        """See :class:`sims.media.contract.Overlay`."""
        if not 0 <= share <= 1:
            raise ValueError(f"a share of frames to lose is 0 to 1, not {share}")
        self._losses[self._key(sender, receiver)] = share
        if not share:
            del self._losses[self._key(sender, receiver)]
        self._look()

    def clog(self, sender: int, receiver: int, delay_ns: int) -> None:
        """See :class:`sims.media.contract.Overlay`."""
        if delay_ns < 0:
            raise ValueError(f"a clog delays by 0 ns or more, not by {delay_ns}")
        self._clogs[self._key(sender, receiver)] = delay_ns
        if not delay_ns:
            del self._clogs[self._key(sender, receiver)]
        self._look()

    def clear(self) -> None:
        """See :class:`sims.media.contract.Overlay`."""
        self._cuts.clear()
        self._losses.clear()
        self._clogs.clear()
        self._look()

    def _look(self) -> None:
        self._faulty = bool(self._cuts or self._losses or self._clogs)

    def _key(self, sender: int, receiver: int) -> int:
        return sender * self._stride + receiver

    def _passes(self, sender: int, receiver: int) -> bool:
        """Whether one packet gets through the faults."""
        key = self._key(sender, receiver)
        if key in self._cuts:
            return False
        share = self._losses.get(key, 0.0)
        return not share or self._draw() >= share

    def _packet_ns(self, sender: int, receiver: int, arrival_ns: int | None) -> int | None:
        if arrival_ns is None or not self._passes(sender, receiver):
            return None
        return arrival_ns + self._clogs.get(self._key(sender, receiver), 0)

    def _stands_still(self, sender: int, receiver: int) -> bool:
        for key in (self._key(sender, receiver), self._key(receiver, sender)):
            if key in self._cuts or self._losses.get(key, 0.0) > MOST_LOST:
                return True
        return False

    def _late_ns(self, sender: int, receiver: int, size_bytes: int, arrival_ns: int | None, now_ns: int) -> int | None:
        if arrival_ns is None:
            return None
        key, back = self._key(sender, receiver), self._key(receiver, sender)
        arrival_ns += self._clogs.get(key, 0)
        share = self._losses.get(key, 0.0)
        if share:
            round_trip_ns = 2 * (arrival_ns - now_ns) - self._clogs.get(key, 0) + self._clogs.get(back, 0)
            stall_ns = message_stall_ns(segments_of(size_bytes), share, round_trip_ns, self._draw)
            if stall_ns > PATIENCE_NS:
                return None
            arrival_ns += stall_ns
        return arrival_ns

    def _connected_ns(self, sender: int, receiver: int, arrival_ns: int | None, now_ns: int) -> int | None:
        """When a connection is open: each round trip of its handshake meets the faults of both ways."""
        for _ in range(CONNECT_ROUND_TRIPS):
            arrival_ns = self._late_ns(sender, receiver, 0, arrival_ns, now_ns)
            arrival_ns = self._late_ns(receiver, sender, 0, arrival_ns, now_ns)
        return arrival_ns


class _Wires:
    """The backbones. Each direction of each pair is a wire of its own, as on a switch that never drops."""

    def __init__(self, scenario: Scenario, places: Places) -> None:
        self._places = places
        names = scenario.names
        numbers = {name: number for number, name in enumerate(names)}
        self._backbones = scenario.backbone
        self._of: list[list[int]] = [[] for _ in names]
        self._members: list[list[int]] = []
        for number, backbone in enumerate(scenario.backbone):
            members = sorted({numbers[name] for group in backbone.groups for name in scenario.members(group)})
            self._members.append(members)
            for node in members:
                self._of[node].append(number)
        self._free_ns: dict[tuple[int, int], int] = {}

    def joined(self, node: int) -> list[int]:
        """The nodes that are wired to ``node`` and on the map, in order."""
        present = self._places.present
        if not self._of[node] or not present[node]:
            return []
        wired = {member for number in self._of[node] for member in self._members[number] if present[member]}
        return sorted(wired - {node})

    def between(self, sender: int, receiver: int) -> Backbone | None:
        for number in self._of[sender]:
            if number in self._of[receiver]:
                return self._backbones[number]
        return None

    def arrival_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int:
        backbone = self.between(sender, receiver)
        assert backbone is not None
        pair = sender, receiver
        taken_ns = int((size_bytes + _ETHERNET_BYTES) * 8_000 / backbone.bit_rate_mbps)
        self._free_ns[pair] = free_ns = max(self._free_ns.get(pair, 0), now_ns) + taken_ns
        return free_ns + max(int(backbone.latency_ms * MS), 1)

    def stream_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int:
        on_wire_bytes, _ = _on_wire(size_bytes)
        return self.arrival_ns(sender, receiver, on_wire_bytes, now_ns)

    def connect_ns(self, sender: int, receiver: int, now_ns: int) -> int:
        there_ns = self.arrival_ns(sender, receiver, TCP_IP_BYTES, now_ns) - now_ns
        return now_ns + 2 * CONNECT_ROUND_TRIPS * there_ns


class _Cellular:
    """The cellular way to the relay."""

    def __init__(self, cellular: Cellular, places: Cells, random: Random) -> None:
        self._cellular, self._places, self._draw = cellular, places, random.random
        self._latency_ns = int(cellular.latency_ms * MS)
        self._jitter_ns = int(cellular.jitter_ms * MS)
        self._covered: dict[int, bool] = {}
        self._free_ns = {True: [0] * len(places.xs_m), False: [0] * len(places.xs_m)}

    def moved(self, movers: list[int]) -> None:
        for node in movers:
            self._covered.pop(node, None)

    def covered(self, node: int) -> bool:
        known = self._covered.get(node)
        if known is None:
            places = self._places
            x_m, y_m = places.xs_m[node], places.ys_m[node]
            known = self._covered[node] = places.present[node] and not any(
                math.hypot(x_m - hole.x_m, y_m - hole.y_m) <= hole.radius_m for hole in self._cellular.holes
            )
        return known

    def stream_ns(self, node: int, size_bytes: int, now_ns: int, upward: bool) -> int | None:
        if not self.covered(node):
            return None
        on_wire_bytes, segments = _on_wire(size_bytes)
        taken_ns = int(on_wire_bytes * 8_000 / self._cellular.bit_rate_mbps)
        free_ns = self._free_ns[upward]
        free_ns[node] = gone_ns = max(free_ns[node], now_ns) + taken_ns
        round_trip_ns = 2 * self._latency_ns + self._jitter_ns
        gone_ns += growth_ns(segments, taken_ns // segments, round_trip_ns)
        return gone_ns + max(self._latency_ns, 1) + int(self._draw() * self._jitter_ns)

    def connect_ns(self, node: int, now_ns: int) -> int | None:
        if not self.covered(node):
            return None
        jitters = sum(self._draw() for _ in range(2 * CONNECT_ROUND_TRIPS))
        return now_ns + 2 * CONNECT_ROUND_TRIPS * max(self._latency_ns, 1) + int(jitters * self._jitter_ns)


def _on_wire(size_bytes: int) -> tuple[int, int]:
    """The bytes and segments that a stream's message becomes."""
    segments = segments_of(size_bytes)
    return size_bytes + TLS_BYTES + segments * TCP_IP_BYTES, segments
