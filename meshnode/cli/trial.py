"""``meshnode trial``: a node that publishes test readings and writes down what it sees."""

import sys
import time
from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("config_path", metavar="CONFIG", type=_PATH)
@click.option("--plan", "plan_path", required=True, type=_PATH, help="What to publish and to subscribe to, TOML.")
@click.option("--journal", "journal_path", required=True, type=_PATH, help="File to append what happens to.")
@click.option(
    "--hold", is_flag=True, help="Load everything, say 'holding', and wait for the trial's age on standard input."
)
def trial(config_path: Path, plan_path: Path, journal_path: Path, hold: bool) -> None:
    r"""Run the node of CONFIG as 'meshnode run' does, publish test readings and write down what it sees.

    For a field trial: put it on each vehicle, drive, and compare the journals. A plan names key expressions and
    streams:

    \b
        subscribe = ["veh/*/position"]
        [[publish]]
        key = "veh/veh-1/position"
        rate_hz = 10

    The journal has one JSON array a line: what, the instant in nanoseconds of the monotonic clock, and the rest.
    """
    import asyncio

    from meshnode.cli.run import log_to_stderr, serve
    from meshnode.config import load
    from meshnode.node import Node
    from meshnode.trial import Journal, Trial, load_plan

    config, plan = load(config_path), load_plan(plan_path)
    log_to_stderr(config.log.level, False)
    with Journal(journal_path) as journal:
        node = Node(config, config_path.parent)
        age_s = _held(node.id) if hold else 0.0
        watched = Trial(node, plan, journal, age_s)
        journal.note("started", node.id, time.process_time_ns())
        asyncio.run(serve(node, watched.begin, watched.end))


def _held(node: str) -> float:
    """Wait for the line that lets the node go: the age of the trial in seconds."""
    click.echo(f"holding {node}")
    line = sys.stdin.readline()
    try:
        age_s = float(line)
    except ValueError as error:
        raise click.UsageError(f"--hold waits for the age of the trial in seconds, not for {line[:40]!r}") from error
    if not 0 <= age_s < 1e9:
        raise click.UsageError(f"--hold waits for the age of the trial in seconds, not for {line[:40]!r}")
    return age_s
