"""``meshsim``: runs many nodes in virtual time and judges what happened.

The beginning of a harness, and honest about it. It covers: N engines in reach of each other, the same delay on every
link, each publishing its position at 10 Hz to all others, some killed without a word and restarted, all chosen by one
seed. It checks that everybody meets, that the dead are noticed in time and the living are not mourned, and that every
reading is delivered once and in order, or counted. Left out: loss, radio, roads, CPU time, scenario files, processes.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import click

from protocols import limits
from protocols.events import NeighbourDead, NeighbourMet
from protocols.ids import NodeId
from protocols.membership import State
from protocols.messages import Reading
from protocols.readings import Quality
from sims.driver import SimDriver, SimNode

MEET_WITHIN_NS = 2_500 * limits.MS
DEAD_WITHIN_NS = 1_500 * limits.MS
_PERIOD_NS = 100 * limits.MS
_DOWN_NS = 3 * limits.SECOND
_SETTLE_NS = limits.SECOND
_SHOWN_FAILURES = 20


@dataclass(slots=True)
class Check:
    """How often a promise was kept."""

    passed: int = 0
    failed: int = 0


@dataclass(slots=True)
class Outage:
    """A node that is killed and comes back."""

    node: str
    killed_ns: int

    @property
    def restarted_ns(self) -> int:
        """When its next life begins."""
        return self.killed_ns + _DOWN_NS


@dataclass(slots=True)
class Report:
    """What a run came to."""

    nodes: int
    seed: int
    virtual_s: float
    wall_s: float = 0.0
    digest: str = ""
    events: int = 0
    outages: list[Outage] = field(default_factory=list)
    met_ms: list[float] = field(default_factory=list)
    detected_ms: list[float] = field(default_factory=list)
    published: int = 0
    delivered: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def judge(self, check: str, kept: bool, detail: str) -> None:
        """Count one case of a promise; the first broken ones are told in words."""
        counted = self.checks.setdefault(check, Check())
        if kept:
            counted.passed += 1
        else:
            counted.failed += 1
            if len(self.failures) < _SHOWN_FAILURES:
                self.failures.append(f"{check}: {detail}")

    @property
    def broken(self) -> bool:
        """Whether any promise was."""
        return any(check.failed for check in self.checks.values())

    def as_json(self) -> str:
        """For programs; times in milliseconds unless the name says otherwise."""
        return json.dumps({
            "nodes": self.nodes, "seed": self.seed, "virtual_s": self.virtual_s, "wall_s": round(self.wall_s, 3),
            "digest": self.digest, "events": self.events,
            "outages": [{"node": o.node, "killed_s": o.killed_ns / limits.SECOND} for o in self.outages],
            "met_ms": _spread(self.met_ms), "detected_ms": _spread(self.detected_ms),
            "published": self.published, "delivered": self.delivered, "drops": self.drops,
            "checks": {name: {"passed": c.passed, "failed": c.failed} for name, c in self.checks.items()},
            "failures": self.failures,
        }, indent=2)  # fmt: skip


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {"median": round(ordered[len(ordered) // 2], 3), "max": round(ordered[-1], 3)}


class Run:
    """One simulation and its book-keeping."""

    def __init__(self, nodes: int, seconds: float, seed: int, kills: int) -> None:
        """``kills`` outages, each of another node, spread over the run by the seed."""
        random = Random(seed)
        self._end_ns = int(seconds * limits.SECOND)
        self._report = Report(nodes, seed, seconds)
        self._sim = SimDriver(seed)
        self._published: Counter[tuple[str, str]] = (
            Counter()
        )  # (publisher, neighbour) that it was queued for or dropped
        self._delivered: Counter[tuple[str, str]] = Counter()
        self._newest: dict[tuple[str, int, str], int] = {}
        names = [f"n{number}" for number in range(nodes)]
        for name in names:
            node = self._sim.add(name)
            node.on_reading = lambda reading, node=node: self._take(node, reading)
            self._sim.subscribe(name, "veh/*/position", Quality(own=False))
        for name in random.sample(names, kills):
            latest_ns = max(self._end_ns - _DOWN_NS - MEET_WITHIN_NS - _SETTLE_NS, MEET_WITHIN_NS)
            self._report.outages.append(Outage(name, random.randint(MEET_WITHIN_NS, latest_ns)))

    def _take(self, node: SimNode, reading: Reading) -> None:
        self._report.delivered += 1
        self._delivered[reading.origin, node.name] += 1
        stream = (node.name, node.lives, reading.origin)
        newest = self._newest.get(stream, -1)
        self._report.judge(
            "readings_once_and_in_order",
            reading.sequence > newest,
            f"{node.name} got {reading.sequence} after {newest}",
        )
        self._newest[stream] = reading.sequence

    def run(self) -> Report:
        """Everything, from the first advert to the verdict."""
        started_s = time.perf_counter()
        sim = self._sim
        sim.meet()
        for outage in self._report.outages:
            sim.at(outage.killed_ns, lambda outage=outage: sim.kill(outage.node))  # type: ignore[misc]
            sim.at(outage.restarted_ns, lambda outage=outage: self._restart(outage.node))  # type: ignore[misc]
        publishing_ends_ns = self._end_ns - _SETTLE_NS
        while sim.now + _PERIOD_NS <= publishing_ends_ns:
            sim.run_for(_PERIOD_NS)
            for node in sim.nodes.values():
                if node.running:
                    self._publish(node)
        sim.run_until(self._end_ns)
        self._judge_meetings()
        self._judge_deaths()
        self._judge_readings()
        self._report.digest, self._report.events = sim.digest(), sim.events_run
        self._report.wall_s = time.perf_counter() - started_s
        return self._report

    def _restart(self, name: str) -> None:
        self._sim.restart(name)
        self._sim.subscribe(name, "veh/*/position", Quality(own=False))
        self._sim.meet()

    def _publish(self, node: SimNode) -> None:
        for neighbour in node.engine.wanted_by("veh/*/position"):
            self._published[node.name, neighbour] += 1
        self._sim.publish(node.name, f"veh/{node.name}/position", [48.77, 11.42, node.lives])
        self._report.published += 1

    # --- the verdict -----------------------------------------------------------------------------------------------
    def _judge_meetings(self) -> None:
        """Everybody meets everybody in time, at the start and after every restart; and knows them at the end."""
        sim, report = self._sim, self._report
        began = [(0, name, other) for name in sim.nodes for other in sim.nodes if name != other]
        for outage in report.outages:
            back = NodeId(outage.node)
            for other in sim.nodes:
                if other != back and not self._away(other, outage.restarted_ns, MEET_WITHIN_NS):
                    began += [(outage.restarted_ns, back, other), (outage.restarted_ns, other, back)]
        for since_ns, name, other in began:
            if since_ns + MEET_WITHIN_NS > self._end_ns:
                continue
            met_ns = (
                at for at, event in sim.nodes[name].events
                if type(event) is NeighbourMet and event.node == other and at >= since_ns
            )  # fmt: skip
            took_ns = next(met_ns, self._end_ns) - since_ns
            report.met_ms.append(took_ns / limits.MS)
            report.judge("met_in_time", took_ns <= MEET_WITHIN_NS, f"{name} met {other} after {took_ns / 1e9:.3f} s")
        for node in sim.nodes.values():
            known = {view.node for view in node.engine.peers(sim.now) if view.met and view.state is State.ALIVE}
            for peer in sim.nodes.values():
                if node is not peer and node.running and peer.running:
                    report.judge("known_at_the_end", peer.name in known, f"{node.name} does not know {peer.name}")

    def _away(self, name: str, since_ns: int, duration_ns: int) -> bool:
        """Whether a node was down at some time of an interval."""
        return any(
            outage.node == name and outage.killed_ns < since_ns + duration_ns and since_ns < outage.restarted_ns
            for outage in self._report.outages
        )

    def _judge_deaths(self) -> None:
        """Every death is noticed by everybody who was there, in time, and nobody else is declared dead."""
        sim, report = self._sim, self._report
        for node in sim.nodes.values():
            deaths = [(at, event.node) for at, event in node.events if type(event) is NeighbourDead]
            for at, dead in deaths:
                report.judge(
                    "no_false_death", self._away(dead, at, 1), f"{node.name} mourned {dead} at {at / 1e9:.3f} s"
                )
            for outage in report.outages:
                if outage.node == node.name or self._away(
                    node.name, outage.killed_ns - MEET_WITHIN_NS, 2 * MEET_WITHIN_NS
                ):
                    continue
                noticed = (at for at, dead in deaths if dead == outage.node and at >= outage.killed_ns)
                took_ns = next(noticed, self._end_ns) - outage.killed_ns
                report.detected_ms.append(took_ns / limits.MS)
                detail = f"{node.name} noticed the end of {outage.node} after {took_ns / 1e9:.3f} s"
                report.judge("death_noticed_in_time", took_ns <= DEAD_WITHIN_NS, detail)

    def _judge_readings(self) -> None:
        """Between two nodes that both lived through: what was wanted was delivered, or counted as dropped."""
        sim, report = self._sim, self._report
        drops: Counter[str] = Counter()
        between: Counter[tuple[str, str]] = Counter()
        for node in sim.nodes.values():
            for (peer, key, reason), count in node.engine.drops.items():
                drops[reason] += count
                publisher = key.split("/")[1] if "/" in key else ""
                between[publisher, node.name if publisher != node.name else peer] += count
        report.drops = dict(sorted(drops.items()))
        killed = {outage.node for outage in report.outages}
        for (publisher, neighbour), wanted in self._published.items():
            if publisher not in killed and neighbour not in killed:
                got = self._delivered[publisher, neighbour] + between[publisher, neighbour]
                detail = f"of {wanted} from {publisher} to {neighbour} {got} were delivered or counted"
                report.judge("readings_delivered_or_counted", got == wanted, detail)


def _show(report: Report) -> None:
    click.echo(
        f"{report.nodes} nodes, {report.virtual_s:g} s of virtual time in {report.wall_s:.2f} s, seed {report.seed}"
    )
    for title, values in (("met after", report.met_ms), ("death noticed after", report.detected_ms)):
        spread = _spread(values)
        if spread is not None:
            click.echo(f"{title}: median {spread['median']:g} ms, at most {spread['max']:g} ms, {len(values)} cases")
    click.echo(f"readings: {report.published} published, {report.delivered} delivered")
    click.echo("drops: " + (", ".join(f"{count} {reason}" for reason, count in report.drops.items()) or "none"))
    for name, check in report.checks.items():
        click.echo(f"{'FAILED' if check.failed else 'kept  '} {name}: {check.passed} of {check.passed + check.failed}")
    for failure in report.failures:
        click.echo(f"  {failure}", err=True)
    click.echo(f"digest {report.digest}")


@click.group()
def main() -> None:
    """Simulate a mesh in virtual time: one seed, one history."""


@main.command()
@click.option("--nodes", default=6, show_default=True, type=click.IntRange(2, limits.MAX_NEIGHBOURS + 1))
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(5, 86_400), help="Of virtual time.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Names the whole history.")
@click.option(
    "--kill", "kills", default=1, show_default=True, type=click.IntRange(0), help="Nodes to kill and restart."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run(nodes: int, seconds: float, seed: int, kills: int, as_json: bool) -> None:
    """Let nodes meet, publish at 10 Hz and suffer; exit 1 when a promise was broken."""
    if kills >= nodes:
        raise click.BadParameter(f"{kills} of {nodes} nodes: leave at least one alive to notice", param_hint="--kill")
    if kills and seconds < 12:
        raise click.BadParameter(
            f"{seconds:g} s are too short for an outage of 3 s: use 12 or more", param_hint="--seconds"
        )
    report = Run(nodes, seconds, seed, kills).run()
    if as_json:
        click.echo(report.as_json())
    else:
        _show(report)
    if report.broken:
        raise SystemExit(1)
