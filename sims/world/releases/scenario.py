"""The release of a scenario: who has it first, who lies, who may have none, and how it spread."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

from protocols.access import DEFAULT_RULES, AccessRule, AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.releases.catalogue import Order
from protocols.releases.events import ChunkForged, MetadataRefused, MetadataTaken, ReleaseState
from protocols.releases.machine import Releases
from protocols.releases.rollout.tally import quorums_of
from protocols.releases.settings import ReleaseSettings
from protocols.settings import NodeSettings
from sims.media.media import Media
from sims.results.result import Recorder
from sims.scenario.file import PublishedRelease, Scenario
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.releases.liars import LIES, Lie, LyingReleases
from sims.world.releases.nodes import RelayStore
from sims.world.releases.publisher import Publisher
from sims.world.releases.rollouts import SimRollouts

PATH: Final = "models/plate"
METADATA, FETCHED, SERVING = "release/metadata", "release/fetched", "release/serving"
"""What is followed in the report, as entries of gossip are."""
_LOOK_NS: Final = limits.SECOND

ReleaseEvent = MetadataTaken | MetadataRefused | ChunkForged | ReleaseState


class WorldReleases(SimRollouts):
    """The release of one scenario at all nodes."""

    def __init__(self, scenario: Scenario, release: PublishedRelease, seed: int, recorder: Recorder) -> None:
        names = scenario.names
        drawn = Random(f"{seed}/liars").sample(names, int(release.liars * len(names)))
        self.lies: dict[str, Lie] = {name: LIES[number % len(LIES)] for number, name in enumerate(sorted(drawn))}
        super().__init__(
            Publisher(seed), lambda path, counter: release.failing, [NodeId(name) for name in drawn],
            hidden_ns=int(release.soak_s / 2 * limits.SECOND), machine=self._machine_of,
        )  # fmt: skip
        able = scenario.may_have_release
        self.canaries = frozenset(
            NodeId(name) for name in Random(f"{seed}/canaries").sample(able, min(release.canaries, len(able)))
        )
        self._published_order = Order(
            serial=1, path=PATH, counter=1, canaries=tuple(sorted(self.canaries)), soak_s=int(release.soak_s)
        )
        self.liars_decide = len(self.canaries.intersection(drawn)) >= min(quorums_of(self._published_order))
        """Whether as many of the canaries lie as promote or halt the release."""
        self.release, self._recorder, self._scenario = release, recorder, scenario
        self.access = tuple(
            rule for rule in DEFAULT_RULES if rule.verb != "release" or rule.role.value not in release.forbidden
        )
        if all(rule.verb != "release" for rule in self.access):
            self.access = (*self.access, AccessRule(Role.TOOL, "release", "**"))
        self._seeds = {name for what in release.seeds for name in scenario.members(what)}
        self._with_relay: list[str] = []
        if not release.seeds:
            self._with_relay = [name for group in scenario.groups if group.relay
                                for name in scenario.members(group.name)]  # fmt: skip
        self._reach: dict[str, bool] = {}
        self._media: Media | None = None
        self._published_ns = int(release.published_at_s * limits.SECOND)
        self._fetched: dict[str, int] = {}
        self.is_published = False

    def _machine_of(self, settings: NodeSettings, random: Random) -> Releases:
        access, rollouts = AccessTable(settings.access), self.plan_of(settings)
        lie = self.lies.get(settings.node)
        if lie is None:
            return Releases(settings.node, access, ReleaseSettings(), random, rollouts)
        return LyingReleases(settings.node, access, ReleaseSettings(), random, rollouts, lie)

    def attach(self, driver: SimDriver, media: Media) -> None:
        """Join a driver, and schedule what will happen."""
        self.driver, self._media = driver, media
        self.relay = RelayStore(driver, self.publisher, 0, 0)
        self.relay_ns = lambda node, size_bytes: media.uplink_ns(node.number, size_bytes, driver.now, upward=False)
        driver.push(self._published_ns, self._publish, None)

    def hook(
        self, kept: Sequence[Callable[..., None]], staged: Sequence[Callable[..., None]],
        served: Sequence[Callable[..., None]],
    ) -> None:  # fmt: skip
        """Call these with each chunk that is kept, each release that is staged, and each that begins to serve."""
        chunks = self.publisher.chunks

        def on_kept(node: SimNode, digest: bytes) -> None:
            for hook in kept:
                hook(node.name, digest, self.disk(node.name).chunks[digest], digest in chunks)

        def on_staged(node: SimNode, path: str, counter: int) -> None:
            held = self.disk(node.name).chunks
            is_whole = all(digest in held for digest in self.publisher.parts(path, counter))
            for hook in staged:
                hook(node.name, path, counter, is_whole)

        def on_served(node: SimNode, path: str, counter: int) -> None:
            for hook in served:
                hook(node.name, path, counter, node.name in self.canaries, self.liars_decide)

        self.on_kept, self.on_staged, self.on_served = on_kept, on_staged, on_served

    def _publish(self, _: None) -> None:
        assert self.driver is not None, "it is attached"
        release = self.release
        self.publisher.release(PATH, 1, int(release.size_mib * 1024 * 1024), release.chunk_kib * 1024, order=False)
        self.publisher.order(self._published_order)
        self.publisher.sign()
        self.is_published = True
        for what in (METADATA, FETCHED, SERVING):
            self._recorder.spread(self.driver.now, "publisher", what, 1)
        for name in sorted(self._seeds):
            node = self.driver.nodes[name]  # type: ignore[index]
            if node.running:
                self.seed(node)
        self._look(None)

    def _look(self, _: None) -> None:
        """Tell nodes when they reach the relay, or do not any more."""
        assert self.driver is not None, "it is attached"
        assert self._media is not None, "it is attached"
        assert self.relay is not None, "it is attached"
        for name in self._with_relay:
            node = self.driver.nodes[name]  # type: ignore[index]
            if node.running:
                reaches = self.relay.up and self._media.covered(node.number)
                if reaches != self._reach.get(name, False):
                    self._reach[name] = reaches
                    self.connect(node, reaches)
        if self._with_relay:
            self.driver.push(self.driver.now + _LOOK_NS, self._look, None)

    def begin(self, node: SimNode) -> None:
        """See :class:`SimRollouts`."""
        self._reach.pop(node.name, None)
        if self.is_published and node.name in self._seeds and not self.disk(node.name).bundle:
            self.seed(node)
        else:
            super().begin(node)

    def lose_disk(self, name: str) -> None:
        """The disk of a node is lost."""
        self.disks.pop(name, None)
        self.forget(name)

    def note(self, node: SimNode, event: ReleaseEvent) -> None:
        """Take notes of what the machine of a node reports."""
        assert self.driver is not None, "it is attached"
        now, name = self.driver.now, node.name
        match event:
            case MetadataTaken():
                self._recorder.spread(now, name, METADATA, 1)
            case ReleaseState(state="fetched"):
                self._recorder.spread(now, name, FETCHED, 1)
                self._fetched.setdefault(name, now)
            case ReleaseState(state="serving"):
                self._recorder.spread(now, name, SERVING, 1)
            case ChunkForged():
                self._recorder.occurred("chunk-forged", now, name, event.source)
            case MetadataRefused():
                self._recorder.occurred("metadata-refused", now, name, event.source, event.why)
            case ReleaseState():
                pass

    def figures(self) -> Mapping[str, float]:
        """How it spread. Times count from its publication."""
        assert self.relay is not None, "it is attached"
        times_s = sorted((at_ns - self._published_ns) / limits.SECOND for at_ns in self._fetched.values())
        able = self._scenario.may_have_release
        size_bytes = self.release.size_mib * 1024 * 1024
        figures = {
            "release_relay_egress_files": round(self.relay.egress_bytes / size_bytes, 3),
            "release_fetched_share": round(len(times_s) / max(len(able), 1), 4),
            "release_serving_share": round(len(self.served_now.get((PATH, 1), ())) / max(len(able), 1), 4),
        }
        for share, name in ((0.5, "half"), (0.9, "most"), (0.99, "nearly_all"), (1.0, "all")):
            needed = int(share * len(able) + 0.999)
            if 0 < needed <= len(times_s):
                figures[f"release_{name}_s"] = round(times_s[needed - 1], 3)
        return figures
