"""Makes a run of a scenario with a seed, and returns its result.

It builds the world, lets time pass, judges, and counts. The digest covers every event of every node and every delivery.
It does not depend on what is recorded or checked.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence

import sims.checks.inference
import sims.checks.liveness
import sims.checks.records
import sims.checks.releases
import sims.checks.safety
from protocols.base import limits
from sims.checks.contract import overridden
from sims.results.recorder import Recording
from sims.results.result import CheckTally, Result
from sims.runs.sampling import Sampler
from sims.runs.versions import versions
from sims.scenario.file import Scenario
from sims.virtual.capability import Capability
from sims.virtual.pages import LargePages
from sims.virtual.processors import Processors
from sims.world.controls import WorldControls
from sims.world.faults import Faults, end_ns, plan
from sims.world.traffic import Activity
from sims.world.world import World

CHECK_MODULES = (
    sims.checks.safety, sims.checks.inference, sims.checks.releases, sims.checks.records, sims.checks.liveness,
)  # fmt: skip
"""Modules that bring checks. They are imported so that their checks are known by name."""
_STEP_NS = limits.SECOND
_COLLECT_EVERY = 60
"""Steps between two collections of what reference counts do not free: crashed engines, which are few. Each collection
looks through everything there is, which takes half a second for a thousand nodes."""

Progress = Callable[[float, float], None]
"""A function that is called with the virtual seconds and the wall seconds that have passed."""


class Run:
    """One simulation."""

    def __init__(
        self, scenario: Scenario, seed: int, bugs: frozenset[str] = frozenset(),
        processors: Processors | None = None, capabilities: Sequence[Capability] = (),
    ) -> None:  # fmt: skip
        """``processors``: those that all nodes share; None gives each node its own. ``capabilities``: what all nodes
        have beside the capabilities of every node.

        :raises ScenarioError: when the scenario can't be used. :raises TraceError: when its trace can't be used.
        """
        self.scenario, self.seed = scenario, seed
        self.recording = Recording(scenario)
        self.tape = plan(scenario, seed)
        self.world = World(scenario, seed, self.recording, bugs, processors, capabilities)
        self._faults = Faults(self.tape, scenario, WorldControls(self.world), self.recording)
        self._activity = Activity(self.world, seed)
        self._sampler = Sampler(self.world, self.recording)
        self._activity.on_published = self._sampler.published
        self.world.on_deliveries = self._sampler.delivered
        self._pages = LargePages()
        self._wall_s = 0.0
        self._begun = False
        self._steps = 0

    def begin(self) -> None:
        """Schedule everything that will happen by itself."""
        self._begun = True
        self._sampler.begin()
        self._activity.begin()
        self._faults.arm()

    def go(self, progress: Progress | None = None) -> Result:
        """Make the whole run. An interrupt ends it early: the result says so, and holds what was noted until then."""
        interrupted = False
        try:
            self.advance(int(self.scenario.duration_s * limits.SECOND), progress)
        except KeyboardInterrupt:
            interrupted = True
        except BaseException:
            gc.unfreeze()
            raise
        if not interrupted:
            for hook in overridden(self.world.checks, "finished"):
                hook(self.world.now, end_ns(self.tape))
        return self.result(interrupted)

    def advance(self, until_ns: int, progress: Progress | None = None) -> None:
        """Let virtual time pass until ``until_ns``."""
        if not self._begun:
            gc.unfreeze()
            gc.collect()  # free what earlier runs left behind
            self.begin()
        driver = self.world.driver
        began_s, before_s = time.perf_counter(), self._wall_s
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            while driver.now < until_ns:
                driver.run_until(min(driver.now + _STEP_NS, until_ns))
                self._pages.gather()
                self._wall_s = before_s + time.perf_counter() - began_s
                self._steps += 1
                if self._steps % _COLLECT_EVERY == 0:
                    gc.unfreeze()
                    gc.collect()
                if progress is not None:
                    progress(driver.now / limits.SECOND, self._wall_s)
        finally:
            self._wall_s = before_s + time.perf_counter() - began_s
            gc.freeze()  # otherwise the next collection would look through all of it
            if was_enabled:
                gc.enable()

    def result(self, interrupted: bool = False) -> Result:
        """The result of what was noted so far."""
        gc.unfreeze()
        world, driver = self.world, self.world.driver
        result = self.recording.result(
            "simulator", self.seed, driver.now / limits.SECOND, round(self._wall_s, 3), driver.digest(), self.tape
        )
        if interrupted:
            result.valid, result.why_invalid = False, f"interrupted after {result.virtual_s:g} virtual seconds"
        for check in world.checks:
            if check.judges:
                result.checks.setdefault(check.name, CheckTally())
        result.versions = versions()
        result.rules = world.records.outcomes()
        counters: Counter[str] = Counter()
        drops: Counter[str] = Counter()
        for node in driver.numbered:
            counters.update(node.engine.statistics())
            for (_, _, reason), count in node.engine.drops.items():
                drops[reason] += count
        counters.update(world.records.counters())
        if world.places.left_out.rows:
            counters["trace_rows_left_out"] = world.places.left_out.rows
        result.counters.update(sorted(counters.items()))
        result.drops = dict(sorted(drops.items()))
        frames = driver.pipes.frames + driver.casts.heard
        result.figures.update({
            "events": float(driver.events_run),
            "frames": float(frames),
            "factor": result.virtual_s / self._wall_s if self._wall_s else 0.0,
            "wall_us_per_frame": 1e6 * self._wall_s / frames if frames else 0.0,
            "readings_lost": float(world.readings_lost()),
            **world.records.figures(),
            **(world.releases.figures() if world.releases is not None else {}),
        })  # fmt: skip
        return result


def simulate(
    scenario: Scenario, seed: int, bugs: frozenset[str] = frozenset(), progress: Progress | None = None,
    processors: Processors | None = None, capabilities: Sequence[Capability] = (),
) -> Result:  # fmt: skip
    """Make a run. ``bugs``: the names of bugs to plant, see :mod:`sims.world.bugs`. ``processors`` and ``capabilities``
    are those of :class:`Run`.

    :raises ScenarioError: when the scenario can't be used. :raises TraceError: when its trace can't be used.
    """
    return Run(scenario, seed, bugs, processors, capabilities).go(progress)
