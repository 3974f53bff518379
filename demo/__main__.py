"""``python -m demo``: runs the demonstration, prints its summary, writes ``build/demo.json``.

Exit status: 0 every promise was kept, 1 a promise was broken, 2 it could not be run, 3 the machine was too slow for a
timing while everything else that was promised about the mesh was kept.
"""

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.conductor import View, play_all
from demo.processes import free_port
from demo.promises import Outcome
from demo.repeat import repeat, run_as_process
from demo.stage import compile_packages, write_files
from demo.traffic import WINDOW_S
from demo.verdict import Verdict
from protocols.base.errors import MeshError

if TYPE_CHECKING:
    from rich.console import Console

STATUS = {Outcome.KEPT: 0, Outcome.BROKEN: 1, Outcome.TOO_SLOW: 3}
COULD_NOT_RUN = 2


def main() -> int:
    """Run the demonstration once, or as often as ``--times`` says. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="A mesh of six nodes on this host, with accidents."
    )
    parser.add_argument("--no-relay", action="store_true", help="run without a relay: records stay on disk")
    parser.add_argument("--mixed", action="store_true", help="run every second node on the link engine nng")
    parser.add_argument("--out", type=Path, default=Path("build/demo.json"), help="the summary (default: %(default)s)")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="run it N times in a row and count outcomes")
    parser.add_argument("--beside-load", type=int, default=0, metavar="N",
                        help="with --times: run the last N beside programs that keep every processor busy")  # fmt: skip
    options = parser.parse_args()
    if not 1 <= options.times <= 1_000 or not 0 <= options.beside_load <= options.times:
        parser.error("--times lies between 1 and 1000, --beside-load between 0 and --times")
    flags = ["--no-relay"] * options.no_relay + ["--mixed"] * options.mixed
    try:
        if options.times > 1 or options.beside_load:
            return repeat(options.times, options.beside_load, partial(run_as_process, flags, options.out))
        return once(options.no_relay, options.mixed, options.out)
    except KeyboardInterrupt:
        print("interrupted; everything was stopped", file=sys.stderr)
        return COULD_NOT_RUN


def once(no_relay: bool, mixed: bool, out: Path) -> int:
    """Run the demonstration once. Returns the exit status."""
    # The folder is not under build/, because a long path of a socket or a slow shared folder would disturb the run.
    folder = Path(tempfile.mkdtemp(prefix="meshnode-demo-"))
    try:
        compile_packages()
        relay_port = None if no_relay else free_port()
        write_files(folder, relay_port, mixed)
        verdict = Verdict(*play_all(folder, relay_port, View("a mesh on this host")))
    except MeshError as error:
        print(f"the demonstration could not be run: {error}\nlogs are under {folder}", file=sys.stderr)
        return COULD_NOT_RUN
    summary = verdict.summary()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(summary, indent=1))
    show(summary)
    print(f"\nsummary: {out}")
    match outcome := verdict.outcome():
        case Outcome.KEPT:
            shutil.rmtree(folder, ignore_errors=True)
        case Outcome.TOO_SLOW:
            shutil.rmtree(folder, ignore_errors=True)
            print("This machine was too slow for a timing. What was promised about the mesh was kept.", file=sys.stderr)
        case Outcome.BROKEN:
            print(f"A promise was broken. Logs and reports are under {folder}", file=sys.stderr)
    return STATUS[outcome]


def show(summary: dict[str, Any]) -> None:
    """Print the summary for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    machine = summary["machine"]
    console.print(
        f"\n[bold]Machine[/]: {machine['processors']} processors; other programs used {machine['others_share']:.0%} of "
        f"them; a process that only wanted to wake up waited {machine['probe_latest_s']:.2f} s at most; "
        f"a bare interpreter starts in {machine['bare_interpreter_start_s']:.3f} s of processor time"
    )
    started = sorted(seconds for lives in summary["start_up_s"].values() for seconds in lives)
    if started:
        console.print(
            f"[bold]Start[/]: from process start to ready line median {started[len(started) // 2]:.2f} s, "
            f"slowest {started[-1]:.2f} s"
        )
    met_s = summary["met_after_ready_s"]
    if met_s is None:
        console.print("Nobody met")
    else:
        console.print(
            f"[bold]Who met whom[/]: the last pair {f'{met_s:.2f} s after' if met_s > 0 else 'before'} both were ready"
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
            median_ms = summary["inference_median_ms"].get(
                f"{name} on {where}"
            )  # frames without an answer took no time
            table.add_row(name, where, str(count), "" if median_ms is None else f"{median_ms:.0f} ms")
    console.print(table)
    show_stages(console, summary["private"])
    show_shards(console, summary["batch"])
    table = Table(title="Curated records")
    for column in ("node", "issued", "delivered", "wait", "expired, evicted, refused", "at the relay"):
        table.add_column(column)
    for row in summary["records"]:
        table.add_row(*(str(row[key]) for key in ("node", "issued", "delivered", "pending", "lost", "at_relay")))
    console.print(table)
    if summary["traffic"]:
        fastest = max(summary["traffic"], key=lambda each: each["mean"])
        latitude_deg, longitude_deg, accuracy_m = fastest["where"]
        console.print(
            f"[bold]Traffic[/]: {len(summary['traffic'])} summaries of {WINDOW_S} s at the relay; the fastest by "
            f"{fastest['node']}: {fastest['count']} speeds, mean {fastest['mean']:.1f}, 95th percentile "
            f"{fastest['p95']:.1f} km/h, within {accuracy_m:.0f} m of {latitude_deg:.4f}, {longitude_deg:.4f}"
        )
    colours = {Outcome.KEPT: "green", Outcome.TOO_SLOW: "yellow", Outcome.BROKEN: "red"}
    for promise in summary["promises"]:
        word = promise["outcome"].upper() if promise["outcome"] != Outcome.KEPT else "kept"
        console.print(f"  [{colours[promise['outcome']]}]{word:8}[/] {promise['name']}: {promise['seen']}")


def show_stages(console: "Console", private: dict[str, Any]) -> None:
    """Print who computed which stage of the private model, and how that compares with the vehicle alone."""
    from rich.table import Table

    table = Table(
        title=f"A model of {private['vehicle']} whose pictures stay there (it emulates a processor that is "
        f"{private['emulated_slowdown']:g} x slower)"
    )
    for column in ("stage", "computed by", "answers", "median"):
        table.add_column(column)
    if private["alone_ms"] is not None:
        table.add_row("whole, alone", private["vehicle"], "", f"{private['alone_ms']:.0f} ms")
    for stage in private["stages"]:
        table.add_row(str(stage["stage"]), stage["node"], str(stage["answers"]), f"{stage['median_ms']:.0f} ms")
    if private["in_parts_ms"] is not None:
        table.add_row("in parts", "", str(private["answers_in_parts"]), f"{private['in_parts_ms']:.0f} ms")
    console.print(table)
    if private["deadline_ms"] is not None:
        console.print(
            f"  Their deadline was {private['deadline_ms']} ms, three quarters of what the vehicle needs alone."
        )


def show_shards(console: "Console", batch: dict[str, Any]) -> None:
    """Print who computed how many tiles, and how that compares with the vehicle alone."""
    shares = ", ".join(f"{node} {count}" for node, count in batch["tiles_by_node"].items())
    if batch["took_ms"] is None:
        console.print("[bold]Tiles[/]: no batch was shared")
        return
    vehicle, took_ms = batch["vehicle"], batch["took_ms"]
    alone = f"; alone it takes {vehicle} about {batch['alone_ms']:.0f} ms" if batch["alone_ms"] else ""
    console.print(
        f"[bold]Tiles[/]: {vehicle} had {batch['tiles']} tiles of a picture looked at in {took_ms:.0f} ms "
        f"({shares}){alone}"
    )


if __name__ == "__main__":
    sys.exit(main())
