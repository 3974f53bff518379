"""Prints the reference page of the configuration: ``python -m meshnode.cli.reference``."""

import click

from meshnode.config.reference import reference_page
from meshnode.loading import parts_with, sections_of

if __name__ == "__main__":
    click.echo(reference_page(sections_of(parts_with())), nl=False)
