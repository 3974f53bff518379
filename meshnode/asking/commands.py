"""``meshnode query``: show readings of elsewhere, which a running node asks its relay for."""

import json
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click

from meshnode.console.node_api import chosen_node, on_a_node
from meshnode.console.printing import printable
from meshnode.console.readings import reading_line

PATIENCE_S: Final = 20.0
"""The node waits ten seconds for its relay. It has to have the time to say that the relay is away."""
_PAGE: Final = 100


@click.command()
@click.argument("expression")
@on_a_node
@click.option("--newest", is_flag=True, help="Only the newest reading of each key.  [default: all, newest first]")
@click.option("--since", help="Time of sensing, inclusive: ISO 8601, seconds since 1970, or an age as in 10m.")
@click.option("--box", help="lat,lon,lat,lon: two opposite corners, the western longitude first.")
@click.option("--near", help="lat,lon: a place; with --radius-m.")
@click.option("--radius-m", type=float, help="How far from there, in metres.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True,
              help="Show at most this many readings.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with the whole context.")
def query(
    expression: str, node_config: Path | None, http_address: str | None, newest: bool, since: str | None,
    box: str | None, near: str | None, radius_m: float | None, limit: int, as_json: bool,
) -> None:  # fmt: skip
    """Ask the relay of a running node for readings whose key matches EXPRESSION, wherever they were sensed.

    Each comes with its age by the clock of the relay. The exit status is 1 when there are none.
    """
    asked = {
        "key": expression, "newest": "true" if newest else None, "since": since, "box": box, "near": near,
        "radius_m": radius_m,
    }  # fmt: skip
    given = {name: str(value) for name, value in asked.items() if value is not None}
    api, cursor, shown = chosen_node(node_config, http_address), None, 0
    while limit:
        paged = given | {"limit": str(min(limit, _PAGE))} | ({} if cursor is None else {"cursor": cursor})
        page = api.get(f"/v1/query?{urlencode(paged)}", PATIENCE_S)
        if page["not_shown"]:
            click.echo(f"meshnode: {page['not_shown']} readings have no form in JSON", err=True)
        for entry in page["readings"]:
            click.echo(json.dumps(entry, ensure_ascii=False) if as_json else _line(entry))
        shown += len(page["readings"])
        limit -= len(page["readings"])
        cursor = page["cursor"]
        if cursor is None:
            break
    if not shown:
        click.get_current_context().exit(1)


def _line(entry: dict[str, Any]) -> str:
    age = f"{entry['age_s']:.1f} s ± {entry['age_uncertainty_s']:.3g} s old"
    return f"{reading_line(entry, with_date=True)}  {age}, by {printable(entry['sent_by'])}"
