"""``python -m benchmarks.rules [--check] [--json]``: what rules of curation cost for each reading.

Twenty rules, of which each reading matches two: one with a filter, another value and a sliding window, and one with a
filter, a window and percentiles. The others are asked for no more than whether they consider the key. The curator is
that of a node; readings come as fast as it takes them, and processor time is counted. A thousand readings share a
second of their own time, so that windows close as they do at that rate.

- ``reading_us``: what a reading costs with all twenty rules, derived readings included;
- ``match_us``: half of what it costs more than with two of the rules removed that match;
- ``miss_us``: an eighteenth of what eighteen rules cost that don't match.

With ``--partitions`` it also fills 100,000 partitions and compares the memory with the bound of the rule.
"""

import argparse
import gc
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from meshnode.records.rules.compiling import Rule, rules_of_file
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import SECOND
from protocols.records.curation import Curator
from protocols.wire.readings import EventTime, Position, Provenance, Reading

RATE_HZ: Final = 10_000
BARS: Final = {"reading_us": 50.0, "match_us": 15.0, "miss_us": 0.5}
"""Half a core at ``RATE_HZ``; the others are those of the issue that built rules."""
_UTC_NS: Final = 1_700_000_000 * SECOND
_VEHICLES: Final = 50
_MATCHING: Final = """
[[rule]]
name = "sliding"
keys = "veh/*/speed"
unit = "m/s"
where = "value >= 0.0 && quality > 0.5"
value = "value * 3.6"
by = "origin"
window = { size_s = 10, every_s = 2 }
compute = ["count", "min", "max", "mean"]
source = "any"
output = { key = "rsu/{node}/sliding/{partition}", unit = "km/h" }

[[rule]]
name = "tumbling"
keys = "veh/**"
where = "value < 100.0"
source = "any"
window = { size_s = 1 }
compute = ["count", "p50", "p95"]
output = { key = "rsu/{node}/tumbling", unit = "m/s" }
"""
_OTHER: Final = """
[[rule]]
name = "other-{number}"
keys = "rsu/*/kind-{number}"
where = "value > 1.0"
source = "any"
window = {{ size_s = 1 }}
compute = ["mean"]
output = {{ key = "rsu/{{node}}/other-{number}", unit = "1" }}
"""
_PARTITIONED: Final = """
[[rule]]
name = "partitioned"
keys = "veh/*/speed"
source = "any"
by = "origin"
max_partitions = 100_000
window = { size_s = 3600, late_s = 0 }
compute = ["count", "mean"]
output = { key = "rsu/{node}/p/{partition}", unit = "m/s" }
"""


def compiled(text: str) -> list[Rule]:
    """The rules of a text."""
    with tempfile.TemporaryDirectory(prefix="mesh-rules-") as folder:
        path = Path(folder) / "rules.toml"
        path.write_text(text)
        return rules_of_file(path, NodeId("rsu-1"))


def readings(count: int) -> list[Reading]:
    """``count`` readings of fifty vehicles, a thousand a second of their own time."""
    how, where = Provenance("wheel", "m/s"), Position(48.7, 11.4, 2.0)
    return [
        Reading(
            f"veh/v{number % _VEHICLES}/speed", f"v{number % _VEHICLES}", number + 1, float(number % 40), where,
            EventTime(_UTC_NS + number * 1_000_000, 1_000_000), how,
        )
        for number in range(count)
    ]  # fmt: skip


def cost_us(rules: list[Rule], given: list[Reading]) -> float:
    """Processor time for each reading."""
    curator, took_ns = Curator((), rules), 0
    for warm in (True, False):
        batch = given[:2_000] if warm else given[2_000:]
        gc.collect()
        before_ns = time.process_time_ns()
        for reading in batch:
            utc_ns = reading.when.utc_ns
            now = MonotonicNs(utc_ns - _UTC_NS + SECOND)
            if curator.next_timer_at() <= now:
                curator.handle_timer(now)
            curator.receive(reading, False, now, UtcNs(utc_ns))
        took_ns = time.process_time_ns() - before_ns
    return took_ns / 1e3 / (len(given) - 2_000)


def measured(count: int) -> dict[str, float]:
    """All figures, the least of three rounds each."""
    given = readings(count)
    others = "".join(_OTHER.format(number=number) for number in range(18))
    least = {name: min(cost_us(compiled(text) if text else [], given) for _ in range(3))
             for name, text in (("none", ""), ("others", others), ("all", _MATCHING + others))}  # fmt: skip
    return {
        "reading_us": least["all"],
        "match_us": (least["all"] - least["others"]) / 2,
        "miss_us": max(0.0, least["others"] - least["none"]) / 18,
        "share_of_a_core": least["all"] * RATE_HZ / 1e6,
    }


def partitions_mib() -> dict[str, float]:
    """The memory that 100,000 open windows take, and the bound that the rule was compiled with."""
    (rule,) = compiled(_PARTITIONED)
    how, where = Provenance("wheel", "m/s"), Position(48.7, 11.4, 2.0)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(100_000):
        origin = f"v{number:06d}"
        reading = Reading(f"veh/{origin}/speed", origin, 1, 1.0, where, EventTime(_UTC_NS, 0), how)
        rule.receive(reading, False, MonotonicNs(SECOND), UtcNs(_UTC_NS))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"partitions_mib": taken / 1024, "partitions_bound_mib": rule.max_state_bytes / (1 << 20)}


def main() -> int:
    """Measure, print and judge. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules", description=__doc__.splitlines()[0])
    parser.add_argument("--readings", type=int, default=50_000, metavar="N", help="how many readings (default: 50,000)")
    parser.add_argument("--partitions", action="store_true", help="also fill 100,000 partitions")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a bar is missed")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    figures = measured(options.readings) | (partitions_mib() if options.partitions else {})
    missed = [name for name, bar in BARS.items() if figures[name] > bar]
    if options.partitions and figures["partitions_mib"] > figures["partitions_bound_mib"]:
        missed.append("partitions_mib")
    if options.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            bar = f"   (at most {BARS[name]:g})" if name in BARS else ""
            print(f"{name:22} {figure:8.2f}{bar}{'   MISSED' if name in missed else ''}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
