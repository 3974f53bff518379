"""Which scenario a command runs: a file or the name of one that ships, with some of its values replaced."""

from typing import Final

import click

from sims.errors import SimulationError
from sims.runs.grid import with_settings
from sims.scenario.file import Scenario, load

SET: Final = click.option(
    "--set", "settings", multiple=True, metavar="PATH=VALUE",
    help="A value in place of the scenario's: groups.car.count=30. May be repeated.",
)  # fmt: skip


def chosen_scenario(name: str, settings: tuple[str, ...]) -> Scenario:
    """The scenario of a command. :raises UsageError: it can't be used, or a setting is wrong."""
    try:
        return with_settings(load(name), settings)
    except SimulationError as error:
        raise click.UsageError(str(error)) from error
