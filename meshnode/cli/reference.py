"""Prints the reference page of the configuration: ``python -m meshnode.cli.reference``."""

import click

from meshnode.config.reference import reference_page
from meshnode.parts import SECTIONS

if __name__ == "__main__":
    click.echo(reference_page(SECTIONS), nl=False)
