"""``meshsim check``: says whether scenarios can be run, without running them."""

import click

from sims.errors import SimulationError
from sims.runs.run import Run
from sims.scenario.file import load

_MIB = 1 << 20


@click.command("check")
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
def check_command(scenarios: tuple[str, ...]) -> None:
    """Check scenarios, their traces, and their files of rules as `meshnode rules check` does, without a run.

    The exit status is 2 when one can't be used, with the reason.
    """
    for what in scenarios:
        try:
            scenario = load(what)
            world = Run(scenario, scenario.seed).world
        except SimulationError as error:
            raise click.UsageError(str(error)) from error
        click.echo(f"{scenario.name}: {len(scenario.names)} nodes, {scenario.duration_s:g} s: it can be run")
        for path, needs in world.records.rules.needs.items():
            rules = "1 rule" if needs.rules == 1 else f"{needs.rules} rules"
            memory = f"at most {needs.max_state_bytes / _MIB:.1f} MiB of memory"
            click.echo(f"  {path}: {rules}, {memory}")
