"""Prints the reference pages that are made from declarations: ``python -m meshnode.cli.reference [manifest]``."""

from typing import Final, Literal

import click

from meshnode.config.reference import described_table, reference_page
from meshnode.loading import parts_with, sections_of
from meshnode.models.manifest import DeclaredInput, DeclaredOutput, Fallback, Golden, Manifest, SplitRules
from meshnode.models.preprocessing import Preprocessing

_OPENING: Final = """\
# Manifests of models

<!-- Made from the declarations by `python -m meshnode.cli.reference manifest`; edit those. -->

A model `plate.onnx` may have a manifest, `plate.toml`, beside it. It is read with the model. A manifest with mistakes,
or one that describes another model, keeps the model out, and the message names file, key and value. How to write one is
told in [describe a model](../howto/describe-a-model.md).
"""
_TABLES: Final = (
    ("## Keys without a table", Manifest), ("## `[[inputs]]`", DeclaredInput), ("## `[[outputs]]`", DeclaredOutput),
    ("## `[preprocessing.<input>]`", Preprocessing), ("## `[[golden]]`", Golden), ("## `[fallback]`", Fallback),
    ("## `[split]`", SplitRules),
)  # fmt: skip
_CLOSING: Final = """\
## Digest

Nodes ask one another for a model by its digest, and those that share it must compute the same. So it covers `inputs`,
`outputs` and `preprocessing`, and nothing else of a manifest: a better description, a label or a golden vector leaves
it as it is. The digest is the SHA-256 of

1. the 32 bytes of the digest that the model has [without a manifest](configuration.md), and
2. a JSON text with the keys `inputs`, `outputs` and `preprocessing`: for each an object by name of the input or output,
   and in it an object with the keys of its table and their values. Keys whose value is the default are left out, and so
   is what is empty then. Keys are sorted, there are no spaces, and values of the type *number* have a decimal point.

When there is nothing in 2, the digest is that of 1. `GET /v1/models` tells it.
"""


def manifest_page() -> str:
    """The page about manifests, as Markdown."""
    return "\n".join([_OPENING, *(described_table(heading, rows) for heading, rows in _TABLES), _CLOSING])


@click.command()
@click.argument("page", type=click.Choice(["configuration", "manifest"]), default="configuration")
def main(page: Literal["configuration", "manifest"]) -> None:
    """Print a page."""
    click.echo(reference_page(sections_of(parts_with())) if page == "configuration" else manifest_page(), nl=False)


if __name__ == "__main__":
    main()
