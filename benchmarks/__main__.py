"""``python -m benchmarks``: measure, print a table, write ``build/bench.json``."""

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks import report
from benchmarks.contender import OURS, PEERS
from benchmarks.measures import RUNS
from benchmarks.schedule import Plan, carry_out

QUICK_BUDGET_S = 38.0
"""The budget of ``--quick``. It leaves 7 of the promised 45 seconds for closing and for a busy machine."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :func:`benchmarks.report.status`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within 45 seconds")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a promised bar is missed")
    parser.add_argument("--only", action="append", choices=RUNS, help="make only this run (may be repeated)")
    parser.add_argument("--against", action="append", choices=PEERS, help="measure only this peer (may be repeated)")
    parser.add_argument("--without-ours", action="store_true", help="measure the peers alone")
    parser.add_argument("--generations", type=int, help="times that all processes are started (default 3, quick: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each measure per generation (default 3)")
    parser.add_argument("--pace", type=float, help="length of the runs (default 1.5, quick: 0.7)")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), help="default: build/bench.json")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or (options.generations or 1) < 1 or not 0 < (options.pace or 1.0) <= 20:
        parser.error("--rounds and --generations start at 1, --pace lies above 0 and up to 20")
    peers = tuple(peer for peer in PEERS if peer in (options.against or PEERS))
    plan = Plan(
        contenders=peers if options.without_ours else (OURS, *peers),
        runs=tuple(run for run in RUNS if run in (options.only or RUNS)),
        generations=options.generations or (1 if options.quick else 3),
        rounds=options.rounds,
        pace=options.pace or (0.7 if options.quick else 1.5),
        **({"budget_s": QUICK_BUDGET_S} if options.quick else {}),
    )
    # A request to end must pass through the clean-up of the children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin_s = time.monotonic()
    try:
        outcome = carry_out(plan, lambda text: print(f"{time.monotonic() - begin_s:5.1f} s  {text}", file=sys.stderr))
    except KeyboardInterrupt:
        return 130
    report.write(outcome, options.out)
    print(report.table(outcome))
    print(f"{time.monotonic() - begin_s:.1f} s; {options.out} written")
    missed = report.missed_bars(outcome) if options.check else []
    for sentence in missed:
        print(f"MISSED {sentence}")
    return report.status(outcome, missed)


if __name__ == "__main__":
    sys.exit(main())
