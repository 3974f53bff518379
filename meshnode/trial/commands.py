"""``meshnode trial``: a node that publishes test readings and writes down what it sees."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from meshnode.trial.control import Control

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("config_path", metavar="CONFIG", type=_PATH)
@click.option("--plan", "plan_path", required=True, type=_PATH, help="TOML file of what to publish and subscribe to.")
@click.option("--journal", "journal_path", required=True, type=_PATH, help="File to which what happens is appended.")
@click.option(
    "--hold",
    is_flag=True,
    help="Load everything, print 'holding' and wait for the trial's age in seconds on standard input, which also takes "
    "commands.",
)
def trial(config_path: Path, plan_path: Path, journal_path: Path, hold: bool) -> None:
    """Run the node of CONFIG as 'meshnode run' does, publish test readings and write down what it sees.

    Use it for a field trial: run it on each vehicle, drive, and compare the journals. A plan names key expressions and
    streams:

    \b
        subscribe = ["veh/*/position"]
        [[publish]]
        key = "veh/veh-1/position"
        rate_hz = 10

    The journal has one JSON array per line: what happened, when (nanoseconds of the monotonic clock), and details.
    """  # noqa: D301 - click knows a block that it must not wrap by a real backspace
    from meshnode.trial.clock import WallClock

    clock = WallClock()
    if hold:  # whoever holds the trial may set its clock
        clock.install()
    import asyncio
    from importlib import import_module

    from meshnode.console.process import log_to_stderr, serve
    from meshnode.loading import load
    from meshnode.trial.control import Control
    from meshnode.trial.node import TrialNode
    from meshnode.trial.trial import Journal, Trial, load_plan

    config, plan = load(config_path), load_plan(plan_path)
    log_to_stderr(config.log.level, False)
    if plan.models or plan.infer:
        import_module("numpy")  # 100 ms that would hold up the first seconds of the node
    with Journal(journal_path) as journal:
        node = TrialNode(config, config_path.parent, plan.models)
        age_s = _held(node.id, Control(node, clock, journal.note)) if hold else 0.0
        watched = Trial(node, plan, journal, age_s)
        journal.note("started", node.id, time.process_time_ns())
        asyncio.run(serve(node, watched.begin, watched.end))


def _held(node: str, control: "Control") -> float:
    """Wait for the line that lets the node go, the age of the trial in seconds. The node is told the lines before and
    after it."""
    from meshnode.trial.control import Lines

    click.echo(f"holding {node}")
    lines = Lines(sys.stdin.fileno())
    while (line := lines.next() or b"").startswith(b"["):
        control.obey(line)
    age = line[:40].decode(errors="replace")
    try:
        age_s = float(age)
    except ValueError as error:
        raise click.UsageError(f"--hold waits for the age of the trial in seconds, not for {age!r}") from error
    if not 0 <= age_s < 1e9:
        raise click.UsageError(f"--hold waits for the age of the trial in seconds, not for {age!r}")
    control.listen(lines)
    return age_s
