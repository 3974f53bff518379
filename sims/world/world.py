"""The world of a run: the nodes of a scenario with their clocks, devices, traffic and models.

Faults act on it (:class:`sims.world.controls.WorldControls`), checks look at it
(:class:`sims.checks.contract.WorldView`), and the driver reports to it (:class:`sims.virtual.simulation.Observer`).
Names are turned into numbers and back here and nowhere else.

Each part has a ``Random`` of its own, made from the seed and the name of the part, so that leaving out one part does
not change what the others draw.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import msgspec

from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.ids import MeshName, NodeId, Role
from protocols.base.keys import matches
from protocols.engine import Engine
from protocols.gossip.events import EntryAccepted
from protocols.gossip.settings import GossipSettings
from protocols.inference.events import Answered
from protocols.membership.events import NeighbourMet
from protocols.membership.neighbour import Neighbour
from protocols.membership.settings import MembershipSettings
from protocols.multicast.seal import DatagramSeal
from protocols.peers import PeerView
from protocols.readings.events import Put
from protocols.readings.quality import Quality
from protocols.records.ledger import Ledger
from protocols.settings import NodeSettings
from protocols.wire.inference import InferRequest
from sims.checks.contract import Check, KnownEntry, make_checks, overridden
from sims.media.media import Media
from sims.results.result import PIPELINE, SHARDS, Recorder
from sims.roads.mobility import places
from sims.scenario.devices import DEVICES
from sims.scenario.file import Group, Scenario
from sims.virtual.arrivals import Arrival
from sims.virtual.capability import Capability
from sims.virtual.discovery import Discovery
from sims.virtual.driver import SimDriver
from sims.virtual.frames import readings_in
from sims.virtual.inbox import all_of
from sims.virtual.node import MESH, Pipe, SimNode
from sims.virtual.processors import Processors
from sims.world import bugs
from sims.world.authors import Authors
from sims.world.compute import Worker
from sims.world.links import WorldLinks
from sims.world.models import Model, StageFiles, models_of, private_models
from sims.world.records.records import Records
from sims.world.releases.scenario import ReleaseEvent, WorldReleases
from sims.world.stages import Stages, stage_effects

PLACES_INTERVAL_NS: Final = 200 * limits.MS
"""How often nodes are moved. In this time a vehicle on a motorway drives seven metres."""
MOST_ADDRESSES: Final = 200
"""In a larger mesh nodes don't spread their addresses; only what the scenario puts in spreads. A thousand addresses
at a thousand nodes are a million entries, all of them in the first seconds. They would drown what the scenario is
about."""
_GOSSIP: Final = GossipSettings(checks_at_once=limits.MAX_ENTRIES_PER_FRAME)
"""A signature costs nothing here. A real node checks one, lets readings pass, and goes on a millisecond later."""


class World:
    """The world of one run."""

    def __init__(
        self, scenario: Scenario, seed: int, recorder: Recorder, planted: frozenset[str],
        processors: Processors | None = None, capabilities: Sequence[Capability] = (),
    ) -> None:  # fmt: skip
        """:raises ScenarioError: when a check is not known. :raises TraceError: when a trace can't be used."""
        self.scenario, self.settings, self._seed = scenario, MembershipSettings(), seed
        self.names: Sequence[str] = scenario.names
        self.mesh: MeshName = MESH
        self.places = places(scenario, Random(f"{seed}/places"))
        self.media = Media(scenario, self.places, Random(f"{seed}/links"), Random(f"{seed}/uplink"))
        self.stages: dict[int, Stages] = {}
        """Of the nodes that split models or run stages, by number."""
        self.releases: WorldReleases | None = None
        if scenario.releases is not None:
            self.releases = WorldReleases(scenario, scenario.releases, seed, recorder)
            capabilities = (*capabilities, self.releases.capability)
        if any(asked.cuts for asked in scenario.inference):
            capabilities = (*capabilities, stage_effects(self.stages))
        self.driver = SimDriver(
            seed, links=self.media, observer=self, adjust=self._adjust, processors=processors, capabilities=capabilities
        )
        if self.releases is not None:
            self.releases.attach(self.driver, self.media)
        self.discovery = Discovery(self.driver, self.media, Random(f"{seed}/discovery"))
        self.authors = Authors(self.driver, Random(f"{seed}/gossip"))
        self.recorder, self._planted = recorder, planted
        self.workers: dict[int, Worker] = {}
        self.near_since_ns: dict[tuple[int, int], int] = {}
        """Since when pairs, the smaller number first, are in good range of one another."""
        self._nodes: dict[str, SimNode] = {}
        self._wants: list[list[tuple[str, int]]] = []
        """By node: the key expressions that it subscribes to, and over how many hops."""
        self.slowed_nodes: set[int] = set()
        """Numbers of the nodes from which a fault takes CPU."""
        self.lost_with_nodes = 0
        """Readings that waited in queues of engines when their processes crashed."""
        self.records = Records(
            scenario, self.driver, self.media, recorder, Random(f"{seed}/records"), self._plant, self.note_published
        )
        self._peers: dict[str, Sequence[PeerView]] = {}
        self._peers_ns = -1
        self._make_nodes(seed)
        self.links = WorldLinks(scenario, self.media, self.driver.pipes)
        self.checks: list[Check] = make_checks(scenario.checks.names, self, recorder)
        self._on_started = overridden(self.checks, "started")
        self.on_crashing = overridden(self.checks, "crashing")
        self._on_frame_accepted = overridden(self.checks, "frame_accepted")
        self.on_published = overridden(self.checks, "published")
        self._on_delivered = overridden(self.checks, "delivered")
        self._on_event = overridden(self.checks, "event")
        self.on_asked = overridden(self.checks, "asked")
        self._on_answered = overridden(self.checks, "answered")
        self._on_request_sent = overridden(self.checks, "request_sent")
        self.records.hook(overridden(self.checks, "record_stored"))
        if self._on_request_sent:
            self.driver.decoder.on_request = self._request_sent
        self._on_authored = overridden(self.checks, "authored")
        self._on_entry = overridden(self.checks, "entry")
        if self.releases is not None:
            hooks = (overridden(self.checks, name) for name in ("chunk_kept", "release_staged", "release_served"))
            self.releases.hook(*hooks)
        self.on_deliveries: Callable[[SimNode, Sequence[Arrival]], None] | None = None
        """A function that is called with the arrivals at a node, to sample them."""

    # --- building --------------------------------------------------------------------------------------------------
    def _make_nodes(self, seed: int) -> None:
        clocks = Random(f"{seed}/clocks")
        models = models_of(self.scenario)
        files = StageFiles(models)
        for group in self.scenario.groups:
            wants = [
                (f"{'rsu' if source.role == 'rsu' else 'veh'}/*/{traffic.topic}", traffic.hops)
                for traffic in self.scenario.traffic
                for source in self.scenario.groups
                if source.name == traffic.group and (not traffic.to or group.name in traffic.to)
            ]
            for number in range(group.count):
                self._make_node(group, number, list(dict.fromkeys(wants)), clocks)
                self._make_worker(self.driver.numbered[-1], group, models, files)

    def _make_worker(self, node: SimNode, group: Group, models: Sequence[Model], files: StageFiles) -> None:
        pairs = list(zip(models, self.scenario.inference, strict=True))
        served = [model for model, asked in pairs if not asked.offered_by or group.name in asked.offered_by]
        device = DEVICES[group.device]
        if served or group.accept_stages:
            worker = self.workers[node.number] = Worker(self.driver, node, served, device.factor)
            node.compute = worker.perform
            owned = tuple(model for model, asked in pairs if model.goal is not None and asked.group == group.name)
            if owned or group.accept_stages or private_models(models):
                self.stages[node.number] = Stages(
                    self.driver, node, worker, device, files, owned=owned, private=private_models(models),
                    accepts=group.accept_stages,
                )  # fmt: skip

    def _make_node(self, group: Group, number: int, wants: list[tuple[str, int]], clocks: Random) -> None:
        name = f"{group.name}-{number}"
        skew_ns = int(clocks.gauss(0, group.clock_skew_ms) * limits.MS)
        drift_ppb = int(clocks.gauss(0, group.clock_drift_ppm) * 1_000)
        up_since_ns = clocks.randrange(10_000_000) * limits.MS
        node = self.driver.prepare(name, Role(group.role))
        node.set_clocks(up_since_ns, skew_ns, drift_ppb)
        device = DEVICES[group.device]
        shared = self.driver.processors
        slowness = 1.0 if shared is None else shared.slowness
        node.device_frame_ns = int(device.frame_ns * slowness)
        node.device_handshake_ns = int(device.handshake_ns * slowness)
        node.slow(1)
        node.prompt = bool(self.records.expressions(name))
        node.attentive = shared is not None or node.prompt
        self._nodes[name] = node
        self._wants.append(wants)
        start_ns = int((group.start_s + number * group.stagger_s) * limits.SECOND)
        self.driver.push(start_ns, self.driver.start, node)

    def _plant(self, part: bugs.Spoilt) -> None:
        bugs.plant(part, self._planted)

    def _adjust(self, settings: NodeSettings) -> NodeSettings:
        return msgspec.structs.replace(
            settings, seal=self.authors.seal(settings.node), gossip=_GOSSIP,
            reading_seal=self.authors.reading_seal(settings.node),
            access=settings.access if self.releases is None else self.releases.access,
            datagram_seal=self._datagram_seal(settings),
        )  # fmt: skip

    def _datagram_seal(self, settings: NodeSettings) -> DatagramSeal | None:
        """How a node seals datagrams to all its neighbours; None: it sends none."""
        group = settings.node.rpartition("-")[0]
        if not any(each.name == group and each.multicast for each in self.scenario.groups):
            return None
        return self.driver.casts.seal(Random(f"{self._seed}/multicast/{settings.node}/{settings.incarnation}"))

    # --- what happens: Observer ------------------------------------------------------------------------------------
    def life_began(self, node: SimNode) -> None:
        """See :class:`sims.virtual.simulation.Observer`."""
        bugs.plant(node.engine, self._planted)
        for hook in self._on_started:
            hook(node.name)
        for expression, hops in self._wants[node.number]:
            self.driver.subscribe(node.name, expression, Quality(own=False, hops=hops))
        worker = self.workers.get(node.number)
        if worker is not None:
            worker.begin()
        stages = self.stages.get(node.number)
        if stages is not None:
            stages.begin()
        self.discovery.begin(node)
        self.records.begin(node)
        for expression in self.records.expressions(node.name):
            self.driver.subscribe(node.name, expression, Quality(own=False))
        if self.releases is not None:
            self.releases.begin(node)
        if len(self.names) <= MOST_ADDRESSES:
            self.authors.say_address(node)

    def delivered(self, node: SimNode, arrivals: Sequence[Arrival]) -> None:
        """See :class:`sims.virtual.simulation.Observer`."""
        for hook in self._on_delivered:
            hook(node.name, arrivals)
        if node.prompt:
            self.records.hear(node, arrivals)
        if self.on_deliveries is not None:
            self.on_deliveries(node, arrivals)

    def event(self, node: SimNode, event: Event) -> None:
        """See :class:`sims.virtual.simulation.Observer`."""
        now, name = self.driver.now, node.name
        kind = type(event)
        if kind is NeighbourMet:
            other = self._nodes.get(event.node)  # type: ignore[attr-defined]
            if other is not None:
                self.recorder.met(now, name, other.name, min(self.there_since_ns(node, other), now))
        elif kind is EntryAccepted:
            self._entry(node, event)  # type: ignore[arg-type]
        elif kind is Answered:
            winner = event.winner  # type: ignore[attr-defined]
            parts = event.parts  # type: ignore[attr-defined]
            by = "" if winner is None else "here" if winner.node == name else str(winner.node)
            if parts and winner is not None:
                if parts[0].kind == "stage":
                    by = PIPELINE
                elif any(part.node != name for part in parts):
                    by = SHARDS
                self.recorder.divided(name, event.model, parts)  # type: ignore[attr-defined]
            self.recorder.answered(now, name, by, event.took_ns, event.failure)  # type: ignore[attr-defined]
            for hook in self._on_answered:
                hook(name, event)
        elif self.releases is not None and isinstance(event, ReleaseEvent):
            self.releases.note(node, event)
        for hook in self._on_event:
            hook(name, event)

    def _request_sent(self, sender: str, request: InferRequest) -> None:
        for hook in self._on_request_sent:
            hook(sender, request.model, request.inputs)

    def note_published(self, node: SimNode, key: str, put: Put, now: int) -> None:
        """A node published a reading. The recorder and the checks are told."""
        self.recorder.published(now, node.name, key, put.sequence)
        for hook in self.on_published:
            hook(node.name, key, put)

    def there_since_ns(self, one: SimNode, other: SimNode) -> int:
        """Since when two nodes have both been running, and in good range of one another."""
        pair = min(one.number, other.number), max(one.number, other.number)
        return max(self.near_since_ns.get(pair, 0), one.started_ns, other.started_ns)

    def wants(self, number: int, key: str) -> bool:
        """Whether a node subscribes to a key."""
        for expression, _ in self._wants[number]:  # noqa: SIM110  compiled, a generator is slow
            if matches(expression, key):
                return True
        return False

    def _entry(self, node: SimNode, event: EntryAccepted) -> None:
        view = KnownEntry(
            event.author, event.kind, event.version,
            self.authors.taken(node.name, (event.author, event.kind), event.version),
        )  # fmt: skip
        if event.source == node.name:
            for hook in self._on_authored:
                hook(node.name, view)
        for hook in self._on_entry:
            hook(node.name, view)
        self.recorder.spread(self.driver.now, node.name, f"{event.author}/{event.kind}", event.version)

    def frame_accepted(self, node: SimNode, pipe: Pipe) -> None:
        """See :class:`sims.virtual.simulation.Observer`."""
        for hook in self._on_frame_accepted:
            hook(node.name, pipe.identity, pipe.verified)

    # --- what checks look at ---------------------------------------------------------------------------------------
    @property
    def now(self) -> int:
        """Virtual nanoseconds since the start of the run."""
        return self.driver.now

    def node(self, name: str) -> SimNode:
        """A node by its name."""
        return self._nodes[name]

    def running(self, name: str) -> bool:
        """See :class:`sims.checks.contract.WorldView`."""
        return self._nodes[name].running

    def since(self, name: str) -> int:
        """See :class:`sims.checks.contract.WorldView`."""
        return self._nodes[name].started_ns

    def engine(self, name: str) -> Engine:
        """See :class:`sims.checks.contract.WorldView`."""
        return self._nodes[name].engine

    def peers(self, name: str) -> Sequence[PeerView]:
        """See :class:`sims.checks.contract.WorldView`."""
        if self._peers_ns != self.driver.now:
            self._peers_ns = self.driver.now
            self._peers.clear()
        peers = self._peers.get(name)
        if peers is None:  # several checks ask at the same instant
            node = self._nodes[name]
            self.driver.look(node)
            peers = self._peers[name] = node.engine.peers(node.local(self.driver.now))
        return peers

    def neighbours(self, name: str) -> Sequence[Neighbour]:
        """See :class:`sims.checks.contract.WorldView`."""
        node = self._nodes[name]
        self.driver.look(node)
        return list(node.engine.membership.neighbours.values())

    def in_range(self, name: str) -> Sequence[str]:
        """See :class:`sims.checks.contract.WorldView`."""
        return self.links.near_names(self._nodes[name].number)

    def near(self, number: int) -> list[int]:
        """As :meth:`in_range`, by numbers. It is the same list as long as they stay the same. The caller must not
        change it."""
        return self.links.near(number)

    def heard_ns(self, name: str, other: str) -> int | None:
        """See :class:`sims.checks.contract.WorldView`."""
        at_ns = self._nodes[name].heard_ns(NodeId(other))
        return None if at_ns < 0 else at_ns

    def slowed(self, name: str) -> bool:
        """See :class:`sims.checks.contract.WorldView`."""
        return self._nodes[name].number in self.slowed_nodes

    def entries(self, name: str) -> Sequence[KnownEntry]:
        """See :class:`sims.checks.contract.WorldView`."""
        node = self._nodes[name]
        return [
            KnownEntry(entry.author, entry.kind, entry.version, "")
            for entry in node.engine.gossip.entries(node.local(self.driver.now))
        ]

    def ledger(self, name: str) -> Ledger | None:
        """See :class:`sims.checks.contract.WorldView`."""
        return self.records.ledger(name)

    def stored(self, name: str) -> Sequence[int]:
        """See :class:`sims.checks.contract.WorldView`."""
        return self.records.stored(name)

    def records_complaints(self, name: str) -> Sequence[str]:
        """See :class:`sims.checks.contract.WorldView`."""
        return self.records.complaints(name)

    def waiting_since_ns(self, name: str) -> int | None:
        """See :class:`sims.checks.contract.WorldView`."""
        return self.records.waiting_since_ns(name)

    def covered(self, name: str) -> bool:
        """See :class:`sims.checks.contract.WorldView`."""
        return self.media.covered(self._nodes[name].number)

    def readings_under_way(self) -> int:
        """See :class:`sims.checks.contract.WorldView`."""
        waiting = self.driver.casts.readings_under_way
        for node in self.driver.numbered:
            if not node.running:
                continue
            if node.engine.datagrams is not None:
                audience = node.engine.datagrams.audience
                waiting += audience.lane.waiting_readings * len(audience.listeners)
            waiting += sum(view.waiting_readings for view in node.engine.peers(node.local(self.now)))
            waiting += readings_in([coming.frame for coming in all_of(node)])
            for pipe in node.inbound.values():
                waiting += readings_in(pipe.held)
            for pipe in node.dialled.values():
                if not pipe.hears:  # its sender does not know yet that the far end is closed
                    waiting += readings_in(pipe.held)
        return waiting

    def readings_lost(self) -> int:
        """See :class:`sims.checks.contract.WorldView`."""
        return self.driver.pipes.readings_lost + self.driver.casts.readings_lost + self.lost_with_nodes
