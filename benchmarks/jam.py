"""``python -m benchmarks.jam``: what a channel still carries from which more is asked than it gives.

It plays the scenario ``jam`` in virtual time with several numbers of vehicles: twelve, which want about what the
channel has, and eighteen and thirty, which want more; a crowd of sixty that meets within half a minute; and thirty of
which eighteen drive on, so that the others get all of the channel again. The bars are wide: they are missed when
something of what keeps a full channel useful does not work, not when it works a little worse.

It is simulated, so the figures are the same on every machine. It prints a table, writes ``build/jam.json``, and ends
with status 1 with ``--check`` when a bar is missed. It takes a minute; the tests play ``SHORT``.
"""

import sys
from dataclasses import asdict, dataclass
from math import inf
from typing import Final

from msgspec.structs import replace

from benchmarks import command
from sims.runs.run import Run
from sims.scenario.file import Checks, Fault, Scenario, load

_CHECKS: Final = Checks(("no_neighbour_older_than_lifetime", "queues_within_bounds"))
_LAST_S: Final = 5


@dataclass(frozen=True)
class Bars:
    """What is promised. Nobody may be given up, whatever they are."""

    useful_per_s: float = 0.0
    """The least number of useful readings a second, from when the last vehicle has come …"""
    last_useful_per_s: float = 0.0
    """… and in the last five seconds."""
    age_p50_ms: float | None = None
    age_p95_ms: float | None = None
    urgent_p95_ms: float | None = None
    met: int = 0
    """How often one vehicle met another."""


@dataclass(frozen=True)
class Jam:
    """A jam, and what is promised of it."""

    vehicles: int
    duration_s: float
    stagger_s: float
    """From when one vehicle comes until the next."""
    bars: Bars
    remaining: int = 0
    """How many vehicles stay when the others drive on; 0: all …"""
    thins_out_s: float = 0.0
    """… and when that is."""


@dataclass(frozen=True)
class Jammed:
    """What became of a jam. The age or latency of what never came is infinite."""

    offered_per_s: float
    useful_per_s: float
    last_useful_per_s: float
    age_p50_ms: float
    age_p95_ms: float
    urgent_p50_ms: float
    urgent_p95_ms: float
    urgent_p99_ms: float
    met: int
    deaths: int
    """How often one vehicle gave up another that was there."""
    dials_failed: int
    broken: list[str]


LONG: Final = {
    "twelve": Jam(12, 40.0, 0.5, Bars(900, 0, 200, 500, 400)),
    "eighteen": Jam(18, 40.0, 0.5, Bars(900, 0, 400, 1_500, 400)),
    "thirty": Jam(30, 40.0, 0.5, Bars(800, 0, 1_200, 2_500, 400)),
    "crowd": Jam(60, 45.0, 0.5, Bars(useful_per_s=750, met=2_000)),
    "thinned": Jam(30, 55.0, 0.5, Bars(last_useful_per_s=830), remaining=12, thins_out_s=35.0),
}
"""All that is promised."""
SHORT: Final = {
    "eighteen": Jam(18, 15.0, 0.2, Bars(800, 0, 400, 1_500, 400)),
    "crowd": Jam(40, 16.0, 0.1, Bars(useful_per_s=600, met=900)),
    "thinned": Jam(18, 24.0, 0.2, Bars(last_useful_per_s=727), remaining=10, thins_out_s=10.0),
}
"""As much of it as shows in seconds whether pace, windows, patience and the limit of dials work. The vehicles come
faster, so that fewer of them are a crowd. The ten that remain want 909 readings a second."""


def play(jam: Jam, seed: int = 1, multicast: bool = False) -> Jammed:
    """Simulate a jam."""
    scenario: Scenario = load("jam")
    (group,) = scenario.groups
    group = replace(group, count=jam.vehicles, stagger_s=jam.stagger_s, multicast=multicast)
    gone = tuple(f"{group.name}-{number}" for number in range(jam.remaining, jam.vehicles)) if jam.remaining else ()
    faults = (Fault("crash", jam.thins_out_s, 0.0, gone),) if gone else ()
    run = Run(replace(scenario, groups=(group,), duration_s=jam.duration_s, faults=faults, checks=_CHECKS), seed)
    useful: list[int] = []
    result = run.go(lambda _virtual_s, _wall_s: useful.append(run.recording.goodput.useful))
    assert result.offered_per_s is not None
    assert result.useful_per_s is not None
    age, urgent = result.age.quantiles, result.urgent.quantiles
    return Jammed(
        offered_per_s=result.offered_per_s,
        useful_per_s=result.useful_per_s,
        last_useful_per_s=(useful[-1] - useful[-1 - _LAST_S]) / _LAST_S,
        age_p50_ms=age.get("p50", inf),
        age_p95_ms=age.get("p95", inf),
        urgent_p50_ms=urgent.get("p50", inf),
        urgent_p95_ms=urgent.get("p95", inf),
        urgent_p99_ms=urgent.get("p99", inf),
        met=sum(result.meetings),
        deaths=max(0, result.counters["deaths"] - len(gone) * jam.remaining),
        dials_failed=result.counters["dials_failed"],
        broken=result.broken,
    )


def missed(jam: Jam, found: Jammed) -> list[str]:
    """The bars that were missed, in words."""
    bars = jam.bars
    sentences = [f"the check {name} failed" for name in found.broken]
    for what, at_least, is_so in (
        ("useful readings a second", bars.useful_per_s, found.useful_per_s),
        ("useful readings a second in the end", bars.last_useful_per_s, found.last_useful_per_s),
        ("meetings", bars.met, found.met),
    ):
        if is_so < at_least:
            sentences.append(f"{is_so:,.0f} {what}, and {at_least:,.0f} are promised")
    for what, at_most, is_so in (
        ("age p50", bars.age_p50_ms, found.age_p50_ms),
        ("age p95", bars.age_p95_ms, found.age_p95_ms),
        ("hazards p95", bars.urgent_p95_ms, found.urgent_p95_ms),
    ):
        if at_most is not None and is_so > at_most:
            sentences.append(f"{what} {is_so:,.0f} ms, and {at_most:,.0f} are promised")
    if found.deaths:
        sentences.append(f"{found.deaths} neighbours were given up that were there")
    if found.dials_failed and not jam.remaining:
        sentences.append(f"{found.dials_failed} dials failed")
    return sentences


def main() -> int:
    """The command."""
    parser = command.parser("jam", __doc__, "a bar is missed")
    parser.add_argument("--only", choices=list(LONG), action="append", help="may be repeated; default: all")
    parser.add_argument("--short", action="store_true", help="what the tests play, in ten seconds")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--multicast", action="store_true", help="one frame for all who listen; the bars are the same")
    options = parser.parse_args()
    jams = SHORT if options.short else LONG
    figures, faults = {}, []
    print("jam        vehicles  offered  useful  at the end    age p50, p95      hazards p50, p99    met  given up")
    for name in [name for name in jams if not options.only or name in options.only]:
        found = play(jams[name], options.seed, options.multicast)
        figures[name] = asdict(found)
        print(
            f"{name:<10}{jams[name].vehicles:>9}{found.offered_per_s:>9,.0f}{found.useful_per_s:>8,.0f}"
            f"{found.last_useful_per_s:>12,.0f}{found.age_p50_ms:>10,.0f},{found.age_p95_ms:>7,.0f} ms"
            f"{found.urgent_p50_ms:>9,.0f},{found.urgent_p99_ms:>6,.0f} ms{found.met:>10,}{found.deaths:>10}",
            flush=True,
        )
        faults += [f"{name}: {sentence}" for sentence in missed(jams[name], found)]
    return command.finish(options, figures, faults)


if __name__ == "__main__":
    sys.exit(main())
