"""What the nodes of a scenario do by themselves: publish readings, ask for inferences, put in entries, move.

Each source begins at a random part of its period, so that a thousand nodes do not publish in the same instant, and then
keeps its period. A node that is down, or has no CPU, does not publish meanwhile, and does not catch up later.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final

from meshnode.sumo.geodesy import Plane
from protocols.base import limits
from protocols.base.errors import BoundExceeded, ModelUnknown
from protocols.readings.publication import checked_publication
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.tensors import NamedTensor, Tensor, tensor_of
from sims.checks.contract import INPUT
from sims.scenario.file import Inference, Spread, Traffic
from sims.virtual.node import SimNode
from sims.world.authors import LIFETIME_S, SPREAD_KIND
from sims.world.world import PLACES_INTERVAL_NS, World

_HOWS: Final = {
    "zeros": Provenance("sim", "1"), "speed": Provenance("sim", "m/s"), "acceleration": Provenance("sim", "m/s2"),
}  # fmt: skip
_ACCELERATED_NS: Final = limits.SECOND
"""Over at least this time the change of a speed is looked at. Traces and ways change speeds at once, at points that are
up to half a second apart."""
_ACCURACY_M: Final = 1.0


class _Source:
    __slots__ = (
        "_speeds", "how", "key", "node", "period_ns", "publication", "recorded", "senses", "traffic", "zeros",
    )  # fmt: skip

    def __init__(self, node: SimNode, traffic: Traffic, recorded: bool) -> None:
        self.node, self.recorded, self.traffic = node, recorded, traffic
        self.how = _HOWS[traffic.value]
        self.senses = traffic.value != "zeros"
        self._speeds: deque[tuple[int, float]] = deque()
        """When it looked at its speed, and what it was: all looks of the last second, and the one before."""
        self.key = f"{'rsu' if node.role == 'rsu' else 'veh'}/{node.name}/{traffic.topic}"
        self.publication = checked_publication(
            self.key, self.how, None, traffic.priority, traffic.lifespan_ms, traffic.hops
        )
        self.zeros = bytes(traffic.size_bytes)
        self.period_ns = int(limits.SECOND / traffic.rate_hz)

    def sensed(self, now: int, speed_mps: float) -> float:
        """The value at a speed: the speed itself, or by how much it has changed in each second since a second ago."""
        if self.traffic.value == "speed":
            return round(speed_mps, 3)
        speeds = self._speeds
        speeds.append((now, speed_mps))
        while len(speeds) > 2 and now - speeds[1][0] >= _ACCELERATED_NS:
            speeds.popleft()
        then_ns, then_mps = speeds[0]
        return round((speed_mps - then_mps) * limits.SECOND / max(now - then_ns, _ACCELERATED_NS), 3)


class _Spot:
    __slots__ = ("looked_ns", "position", "x_m", "y_m")

    def __init__(self) -> None:
        self.position: Position | None = None
        """The position of the node …"""
        self.x_m = self.y_m = 0.0
        self.looked_ns = -1
        """… at the instant at which all nodes were moved last."""


class _Asker:
    __slots__ = ("asked", "inference", "model", "node", "period_ns")

    def __init__(self, node: SimNode, model: str, inference: Inference) -> None:
        self.node, self.model, self.inference = node, model, inference
        self.period_ns = int(limits.SECOND / inference.rate_hz)
        self.asked = 0

    def inputs(self) -> tuple[NamedTensor, ...]:
        """The inputs of the next request. Each row begins with something unique."""
        wanted, size_bytes = self.inference, self.inference.input_bytes
        if wanted.rows == 1:
            return (NamedTensor(INPUT, tensor_of(self._row("", size_bytes))),)
        data = b"".join(self._row(f"{row} ", size_bytes) for row in range(wanted.rows))
        return (NamedTensor(INPUT, Tensor("u1", (wanted.rows, size_bytes), memoryview(data))),)

    def _row(self, number: str, size_bytes: int) -> bytes:
        stamp = f"{self.node.name} {self.node.lives} {self.asked} {number}".encode()[-32:].rjust(32)
        return (stamp + bytes(size_bytes))[:size_bytes]


class Activity:
    """Everything that nodes of a run begin by themselves."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self._driver = world.driver
        self._plane = Plane(*world.scenario.origin)
        self._spots = [_Spot() for _ in world.names]
        self._moved_ns = 0
        self._random = Random(f"{seed}/traffic")
        self.on_published: Callable[[SimNode, str, int], None] | None = None
        """A function that is called for each reading published, with the node, the key and the sequence."""

    def begin(self) -> None:
        """Start everything. It is called once, at the start of the run."""
        scenario, driver, random = self.world.scenario, self._driver, self._random
        for traffic in scenario.traffic:
            for name in scenario.members(traffic.group):
                source = _Source(self.world.node(name), traffic, name in self.world.records)
                driver.push(int(random.random() * source.period_ns), self._publish, source)
        for model, inference in scenario.models.items():
            for name in scenario.members(inference.group):
                asker = _Asker(self.world.node(name), model, inference)
                driver.push(int(random.random() * asker.period_ns), self._ask, asker)
        for spread in scenario.gossip:
            driver.push(int(spread.at_s * limits.SECOND), self._put, spread)
        driver.push(PLACES_INTERVAL_NS, self._move, None)

    def _move(self, _: None) -> None:
        world, now = self.world, self._driver.now
        world.places.advance(now)
        world.links.moved(world.media.moved(now))
        self._moved_ns = now
        self._driver.push(now + PLACES_INTERVAL_NS, self._move, None)

    def _position(self, node: SimNode) -> Position:
        spot = self._spots[node.number]
        position = spot.position
        if position is None or spot.looked_ns != self._moved_ns:
            places, number = self.world.places, node.number
            x_m, y_m = places.xs_m[number], places.ys_m[number]
            if position is None or x_m != spot.x_m or y_m != spot.y_m:
                latitude_deg, longitude_deg = self._plane.degrees(x_m, y_m)
                spot.x_m, spot.y_m = x_m, y_m
                spot.position = position = Position(latitude_deg, longitude_deg, _ACCURACY_M)
            spot.looked_ns = self._moved_ns
        return position

    def _publish(self, source: _Source) -> None:
        node, driver = source.node, self._driver
        driver.push(driver.now + source.period_ns, self._publish, source)
        if not node.running:
            return
        if driver.is_awake(node):
            self._publish_now(source)
        else:
            driver.wait(node, self._publish_now, source)

    def _publish_now(self, source: _Source) -> None:
        world, node = self.world, source.node
        now = self._driver.now
        value = source.sensed(now, world.places.speeds_mps[node.number]) if source.senses else source.zeros
        put = self._driver.publish_at(node, source.publication, value, self._position(node))
        world.note_published(node, source.key, put, now)
        if source.recorded:
            when = EventTime(node.local(now) + node.utc_less_mono_ns, limits.MS)
            traffic = source.traffic
            world.records.consider(node, Reading(
                source.key, node.name, put.sequence, value, self._position(node), when, source.how, traffic.priority,
                traffic.lifespan_ms, traffic.hops,
            ))  # fmt: skip
        if self.on_published is not None:
            self.on_published(node, source.key, put.sequence)

    def _ask(self, asker: _Asker) -> None:
        driver = self._driver
        driver.push(driver.now + asker.period_ns, self._ask, asker)
        if asker.node.running:
            driver.when_awake(asker.node, driver.now, self._ask_now, asker)

    def _ask_now(self, asker: _Asker) -> None:
        node, wanted, now = asker.node, asker.inference, self._driver.now
        asker.asked += 1
        inputs, inference = asker.inputs(), node.engine.inference
        budget_ns = wanted.deadline_ms * limits.MS
        ask = inference.ask if wanted.rows == 1 else inference.ask_batch
        try:
            request = ask(asker.model, inputs, (), budget_ns, True, node.local(now))
        except (BoundExceeded, ModelUnknown) as error:
            self.world.recorder.answered(now, node.name, "", 0, type(error).__name__)
            return
        for hook in self.world.on_asked:
            hook(node.name, request, inputs, now + budget_ns, asker.model)
        self._driver.act(node, lambda engine, now: None)

    def _put(self, spread: Spread) -> None:
        node = self.world.node(spread.author)
        if node.running:
            body = bytes(spread.size_bytes)
            self._driver.act(node, lambda engine, now: engine.gossip.put(SPREAD_KIND, body, LIFETIME_S, now))
