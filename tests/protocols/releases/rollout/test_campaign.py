"""Whatever happens in whatever order: too few canaries decide nothing, and all come to the same end.

Five canaries, of which two lie, and two other nodes. Entries are delivered as gossip would: always the newest of
an author, to one node at a time. Nodes restart, cleanly or not; operators pause, resume and pin; metadata
comes late.
"""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from protocols.base.ids import NodeId
from protocols.machine import HeardEntry
from protocols.releases.catalogue import Order
from protocols.releases.rollout.tally import FAILED, HEALTHY, Decision
from protocols.wire.releases import RolloutHealth
from tests.protocols.releases.rollout.fleet import BAD, CANARIES, PATH, SILENCE_S, SOAK_S, Installer, order, said

HONEST, LYING = CANARIES[:3], CANARIES[3:]
OTHERS = ("v-1", "v-2")
ALL = order(1, 1, ())


class Campaign(RuleBasedStateMachine):
    """Release 2 is good or bad, and order 2 rolls it out."""

    @initialize(is_bad=st.booleans(), informed=st.sets(st.sampled_from((*HONEST, *OTHERS))))
    def begin(self, is_bad: bool, informed: set[str]) -> None:
        self.is_bad = is_bad
        self.order = order(2, 2)
        self.nodes = {name: Installer(name) for name in (*HONEST, *OTHERS)}
        for node in self.nodes.values():
            node.learn(ALL)
            node.measures.update({2: BAD} if is_bad else {})
        for name in sorted(informed):
            self.nodes[name].learn(self.order, ALL)
        self.lies: dict[NodeId, HeardEntry] = {}
        self.versions = dict.fromkeys(LYING, 0)
        self.heard: dict[str, dict[str, int]] = {name: {} for name in self.nodes}
        self.was_promoted: set[str] = set()

    def _orders(self) -> tuple[Order, ...]:
        return (self.order, ALL)

    # --- what may happen ---------------------------------------------------------------------------------------------
    @rule(name=st.sampled_from((*HONEST, *OTHERS)))
    def learn(self, name: str) -> None:
        """Newer metadata reaches a node."""
        self.nodes[name].learn(*self._orders())

    @rule(state=st.sampled_from(("running", "running", "paused")))
    def operate(self, state: str) -> None:
        """The operator signs another state of the order."""
        self.order = replace(self.order, state=state)

    @rule(name=st.sampled_from((*HONEST, *OTHERS)), seconds=st.sampled_from((SOAK_S // 10, SOAK_S, SILENCE_S)))
    def wait(self, name: str, seconds: int) -> None:
        """Time passes for one node. Others may be asleep."""
        self.nodes[name].pass_s(seconds)

    @rule(name=st.sampled_from((*HONEST, *OTHERS)), authors=st.sets(st.sampled_from(CANARIES), min_size=1))
    def deliver(self, name: str, authors: set[NodeId]) -> None:
        """The newest entries of some canaries reach a node."""
        for author in sorted(authors):
            self._deliver(name, author)

    def _deliver(self, name: str, author: NodeId) -> None:
        entry = self.nodes[author].entry() if author in HONEST else self.lies.get(author)
        if entry is None or not entry.body or name == author:
            return
        node = self.nodes[name]
        node.rollouts.heard(entry, node.now)
        node.settle()
        known = self.heard[name]
        for verdicts in _verdicts_in(entry.body):
            known[author] = known.get(author, 0) | verdicts

    @rule(author=st.sampled_from(LYING), is_harmful=st.booleans(), other=st.sampled_from((HEALTHY, FAILED, 3, 0)))
    def lie(self, author: NodeId, is_harmful: bool, other: int) -> None:
        """A lying canary says the opposite of what is true, or anything."""
        self.versions[author] += 1
        verdict = (HEALTHY if self.is_bad else FAILED) if is_harmful else other
        self.lies[author] = said(author, verdict, version=self.versions[author])

    @rule(name=st.sampled_from((*HONEST, *OTHERS)), is_clean=st.booleans())
    def restart(self, name: str, is_clean: bool) -> None:
        """A node ends and starts. Unclean ends of canaries that try a release look like its fault, so they are rare."""
        canary = name in HONEST
        self.nodes[name].restart(*self._orders(), is_clean=is_clean or canary)

    @rule(name=st.sampled_from(OTHERS), counter=st.sampled_from((None, 1)))
    def pin(self, name: str, counter: int | None) -> None:
        """The operator of a node holds it back, or no more."""
        self.nodes[name].rollouts.pin(PATH, counter, self.nodes[name].now)
        self.nodes[name].settle()

    # --- what must hold ----------------------------------------------------------------------------------------------
    @invariant()
    def too_few_promote_nothing(self) -> None:
        """Whoever serves release 2 and is no canary has heard three canaries call it healthy."""
        for name in OTHERS if hasattr(self, "nodes") else ():
            node = self.nodes[name]
            healthy = sum(1 for bits in self.heard[name].values() if bits & HEALTHY)
            if node.served == 2 or node.rollouts.decision(2) is Decision.PROMOTED:
                assert healthy >= 3
            if self.is_bad:
                assert node.served == 1, "two liars and no honest canary call it healthy"

    @invariant()
    def too_few_halt_nothing(self) -> None:
        """Whoever concludes a lasting halt has heard three canaries call it failed."""
        for name in (*HONEST, *OTHERS) if hasattr(self, "nodes") else ():
            node = self.nodes[name]
            if node.rollouts.decision(2) is Decision.HALTED:
                known = {**self.heard[name], **({name: node.verdicts(2)} if name in HONEST else {})}
                assert sum(1 for bits in known.values() if bits & FAILED) >= 3
                assert node.served == 1
            if not self.is_bad:
                assert node.rollouts.decision(2) is not Decision.HALTED

    @invariant()
    def timers_rest(self) -> None:
        """A timer that is due in the past would take a whole processor."""
        for node in self.nodes.values() if hasattr(self, "nodes") else ():
            assert node.rollouts.next_timer_at() > node.now

    def teardown(self) -> None:
        """In the end everybody hears everybody, and all serve the same. A liar that first says failed to one canary and
        then healthy to all can have that canary halt alone, which is silent then: so the others halt, too."""
        if not hasattr(self, "nodes"):
            return
        self.order = replace(self.order, state="running")
        for name in OTHERS:
            self.pin(name, None)
        for name in self.nodes:
            self.learn(name)
        for seconds in (SOAK_S, SOAK_S, SOAK_S, SOAK_S, SILENCE_S):
            for node in self.nodes.values():
                node.pass_s(seconds)
            for name in self.nodes:
                self.deliver(name, set(CANARIES))
        self.too_few_promote_nothing()
        self.too_few_halt_nothing()
        served = {name: node.served for name, node in self.nodes.items()}
        assert set(served.values()) == {1 if self.is_bad else 2}, served
        assert {node.rollouts.decision(2).is_halt for node in self.nodes.values()} == {self.is_bad}


def test_canary_that_two_liars_have_halt_alone_stops_the_others_by_its_silence() -> None:
    """Gossip keeps only the newest entry of an author, so the others never hear what that canary has heard."""
    campaign = Campaign()
    campaign.begin(is_bad=True, informed=set())
    campaign.learn("c1")
    campaign.wait("c1", SOAK_S)
    for author in LYING:
        campaign.lie(author, is_harmful=False, other=FAILED)
    campaign.deliver("c2", set(CANARIES))
    for author in LYING:
        campaign.lie(author, is_harmful=True, other=0)
    campaign.teardown()


def _verdicts_in(body: bytes) -> list[int]:
    health = msgspec.msgpack.decode(body, type=RolloutHealth)
    return [one.verdicts for one in health.releases if one.serial == 2]


Campaign.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCampaign = Campaign.TestCase
