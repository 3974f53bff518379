"""``meshnode gossip``: the signed entries that a node holds, and from whom it has them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.console.node_api import chosen_node, on_a_node
from meshnode.console.printing import duration, print_json, printable

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@on_a_node
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gossip(node_config: Path | None, http_address: str | None, as_json: bool) -> None:
    """Show the signed entries that a node holds: its own, and those that spread to it from node to node.

    The exit status is 1 when there are none.
    """
    entries = chosen_node(node_config, http_address).get("/v1/gossip")
    if as_json:
        print_json(entries)
    elif entries:
        from rich.console import Console

        Console().print(_entry_table(entries))
    else:
        click.echo("no entries", err=True)
    if not entries:
        click.get_current_context().exit(1)


def _entry_table(entries: list[dict[str, Any]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("author", "kind", "version", "age", "from", "size", "says"):
        table.add_column(name, justify="right" if name in ("version", "age", "size") else "left")
    for entry in entries:
        table.add_row(
            entry["author"],
            Text(printable(entry["kind"])),
            str(entry["version"]),
            duration(entry["age_s"]),
            "itself" if entry["from"] == entry["author"] else entry["from"],
            f"{entry['size_bytes']} B",
            Text(_says(entry["address"])),
        )
    return table


def _says(address: dict[str, Any] | None) -> str:
    if address is None:
        return ""
    hosts = (f"[{host}]" if ":" in host else host for host in address["hosts"])
    inboxes = ", ".join(f"{host}:{address['port']}" for host in hosts) or "no address"
    computes = f", computes {', '.join(address['capabilities'])}" if address["capabilities"] else ""
    return printable(f"{address['role']} at {inboxes}{computes}", 100)
