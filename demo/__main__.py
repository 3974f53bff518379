"""``python -m demo``: runs the demonstration, prints its summary, writes ``build/demo.json``.

Exit status: 0 every promise kept, 1 one was broken, 2 it could not be run.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo.conductor import View, free_port, play_all
from demo.stage import write_files
from demo.verdict import Verdict
from protocols.base.errors import MeshError


def main() -> int:
    """Run it once."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="A mesh of six nodes on this host, with accidents."
    )
    parser.add_argument("--no-relay", action="store_true", help="run without a relay: records stay on disk")
    parser.add_argument("--mixed", action="store_true", help="run every second node on the link engine nng")
    parser.add_argument("--out", type=Path, default=Path("build/demo.json"), help="the summary (default: %(default)s)")
    options = parser.parse_args()
    # Not under build/: a path to a socket or a slow shared folder must not decide how the demonstration goes.
    folder = Path(tempfile.mkdtemp(prefix="meshnode-demo-"))
    try:
        relay_port = None if options.no_relay else free_port()
        write_files(folder, relay_port, options.mixed)
        conductor, met = play_all(folder, relay_port, View("a mesh on this host"))
        summary = Verdict(conductor, met).summary()
    except MeshError as error:
        print(f"the demonstration could not be run: {error}\nlogs are under {folder}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; everything was stopped", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=1))
    show(summary)
    print(f"\nsummary: {options.out}")
    if summary["kept"]:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    print(f"A promise was broken. Logs and reports are under {folder}", file=sys.stderr)
    return 1


def show(summary: dict[str, Any]) -> None:
    """For people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    took_s = summary["met_after_last_start_s"]
    console.print(
        f"\n[bold]Who met whom[/]: everybody {took_s:.2f} s after the last start" if took_s else "\nNobody met"
    )
    meetings = sorted(line["took_ms"] for line in summary["meetings"])
    if meetings:
        console.print(
            f"  {len(meetings)} meetings, from first sign to both directions open: "
            f"median {meetings[len(meetings) // 2]:.0f} ms, slowest {meetings[-1]:.0f} ms"
        )
    for name, seconds in sorted(summary["death_noticed_s"].items()):
        console.print(f"  {name} knew after {seconds:.2f} s that rsu-2 was dead")
    latency = summary["latency_us"]
    if summary["readings_received"]:
        console.print(
            f"[bold]Readings[/]: {summary['readings_received']} received; from sensing to callback "
            f"p50 {latency['p50']:.0f} us, p90 {latency['p90']:.0f} us, p99 {latency['p99']:.0f} us"
        )
    console.print(f"[bold]Dropped[/]: {summary['drops'] or 'nothing'}")
    table = Table(
        title=f"Where frames were computed (slow vehicles emulate {summary['emulated_slowdown']:g} x slower processors)"
    )
    for column in ("vehicle", "computed by", "frames", "median"):
        table.add_column(column)
    for name, counts in summary["inference_ran_on"].items():
        for where, count in sorted(counts.items()):
            table.add_row(name, where, str(count), f"{summary['inference_median_ms'][f'{name} on {where}']:.0f} ms")
    console.print(table)
    table = Table(title="Curated records")
    for column in ("node", "issued", "delivered", "wait", "expired, evicted, refused", "at the relay"):
        table.add_column(column)
    for row in summary["records"]:
        table.add_row(*(str(row[key]) for key in ("node", "issued", "delivered", "pending", "lost", "at_relay")))
    console.print(table)
    for promise in summary["promises"]:
        console.print(
            f"  {'[green]kept  [/]' if promise['kept'] else '[red]BROKEN[/]'} {promise['name']}: {promise['seen']}"
        )


if __name__ == "__main__":
    sys.exit(main())
