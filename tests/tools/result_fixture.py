"""Made-up results: what a recorder is told about a city of 200 nodes in ten minutes, drawn from one seed."""

import math
import os
import signal
from random import Random

from sims.results.recorder import SECOND_NS, Recording
from sims.results.result import Result
from sims.scenario.file import Fault, Group, Lattice, Scenario, Spread, Streets, Traffic

MS_NS = 1_000_000


def city(nodes: int = 200, duration_s: float = 600.0) -> Scenario:
    """A scenario of roadside units on a lattice and vehicles on streets."""
    units = max(1, nodes // 12)
    return Scenario(
        "city", "vehicles and roadside units", duration_s,
        (
            Group("rsu", units, Lattice(300.0), role="rsu", device="rsu"),
            Group("car", nodes - units, Streets(8, 150.0)),
        ),
        traffic=(Traffic("car"),),
        gossip=(Spread(duration_s / 10, "rsu-0"), Spread(duration_s / 2, "car-3")),
        faults=(
            Fault("crash", duration_s * 0.2, duration_s * 0.1, ("car-3",)),
            Fault("partition", duration_s * 0.4, duration_s * 0.15, ("car-1", "car-2"), ("rsu-0",)),
            Fault("slow-node", duration_s * 0.7, 0.0, ("rsu-0",)),
        ),
    )  # fmt: skip


def result_of(
    nodes: int = 200, duration_s: float = 600.0, seed: int = 1, slower: float = 1.0, broken: int = 0
) -> Result:
    """A made-up result. ``slower``: the factor of all times; ``broken``: how many judgements of one check failed."""
    scenario, random = city(nodes, duration_s), Random(seed)
    recording = Recording(scenario)
    names = scenario.names
    units = math.isqrt(sum(name.startswith("rsu") for name in names)) + 1
    places = [
        ((index % units) * 300.0, (index // units) * 300.0) if name.startswith("rsu") else _turn(random)
        for index, name in enumerate(names)
    ]
    speeds = [random.uniform(6, 14) for _ in names]
    for second in range(int(duration_s)):
        now = second * SECOND_NS
        for index, name in enumerate(names):
            x, y = places[index] if name.startswith("rsu") else _on_square(places[index], speeds[index] * second)
            recording.placed(now, name, x, y)
        recording.busy(now, 0.2 + 0.1 * math.sin(second / 40) + random.random() * 0.03)
        _talk(recording, names, now, second, random, slower)
    for index, name in enumerate(names):
        for other in names[index + 1 : index + 9]:
            met = random.lognormvariate(-0.2, 0.5) * slower
            recording.met(int(met * SECOND_NS), name, other, 0)
    for entry in scenario.gossip:
        for name in names:
            later = 0.0 if name == entry.author else random.lognormvariate(1.2, 0.6) * slower
            recording.spread(int((entry.at_s + later) * SECOND_NS), name, entry.author, 1)
    recording.occurred("crash", int(duration_s * 0.2 * SECOND_NS), "car-3", detail="killed without a word")
    recording.occurred("dead", int((duration_s * 0.2 + 0.6) * SECOND_NS), "rsu-0", "car-3")
    recording.occurred("restart", int(duration_s * 0.3 * SECOND_NS), "car-3")
    for number in range(500):
        recording.judge("one_answer_per_request", number >= broken, "car-3 got two answers", number * SECOND_NS)
        recording.judge("membership_converges", True, "", number * SECOND_NS)
    result = recording.result("simulator", seed, float(duration_s), duration_s / 20, "ab" * 32, scenario.faults)
    result.versions = {"meshnode": "0.1.0", "Python": "3.11"}
    result.figures = {"events": 1_234_567.0, "discovery_all_s": 2.1}
    result.drops = {"expired": 120, "neighbour_gone": 34}
    return result


def _turn(random: Random) -> tuple[float, float]:
    return random.randrange(8) * 150.0, random.randrange(8) * 150.0


def _on_square(corner: tuple[float, float], way_m: float) -> tuple[float, float]:
    side, rest = divmod(way_m, 150.0)
    x, y = corner
    match int(side) % 4:
        case 0:
            return x + rest, y
        case 1:
            return x + 150.0, y + rest
        case 2:
            return x + 150.0 - rest, y + 150.0
        case _:
            return x, y + 150.0 - rest


def _talk(recording: Recording, names: list[str], now: int, second: int, random: Random, slower: float) -> None:
    for index, name in enumerate(names):
        key = f"veh/{name}/position"
        recording.published(now, name, key, second)
        for step in range(1, 9):
            listener = names[(index + step) % len(names)]
            distance_m = random.uniform(10, 450)
            came = random.random() < 1 / (1 + math.exp((distance_m - 320) / 32))
            recording.wanted(distance_m, came)
            if came:
                took = int(random.lognormvariate(1.2, 0.4) * MS_NS * slower)
                recording.delivered(now + took, listener, name, key, second, now)
            if second % 5 == 0:
                recording.aware(distance_m, random.random() < 1 / (1 + math.exp((distance_m - 380) / 25)))
                recording.aged(int(random.uniform(5, 150) * MS_NS * slower))
    if second % 2 == 0:
        by = random.choice(names)
        failure = "deadline" if random.random() < 0.05 else ""
        recording.answered(now, names[0], by, int(random.lognormvariate(4, 0.4) * MS_NS * slower), failure)


def run_that_may_kill(scenario: Scenario, seed: int) -> Result:
    """A run that takes no time. With seed 13 it fails, and with seed 666 it kills its process."""
    if seed == 13:
        raise ValueError("an unlucky run")
    if seed == 666:
        os.kill(os.getpid(), signal.SIGKILL)
    result = result_of(12, 5, seed=seed)
    result.scenario = scenario.name
    return result
