"""``meshnode history``: show readings of the last hours, from a running node or from the folder of one that is not."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click

from meshnode.console.node_api import chosen_node, on_a_node
from meshnode.console.printing import printable
from meshnode.console.readings import reading_line

_PAGE: Final = 1_000


@click.command()
@click.argument("expression")
@on_a_node
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False),
              help="Read the state folder of a node that does not run.")  # fmt: skip
@click.option("--config", "config_path", type=click.Path(path_type=Path, dir_okay=False), metavar="CONFIG.toml",
              help="Read the state folder that this configuration names, of a node that does not run.")  # fmt: skip
@click.option("--since", help="Time of sensing, inclusive: ISO 8601, seconds since 1970, or an age as in 10m.")
@click.option("--until", help="Time of sensing, exclusive, in the form of --since.")
@click.option("--origin", help="The node that published the readings.")
@click.option("--box", help="lat,lon,lat,lon: two opposite corners, the western longitude first.")
@click.option("--limit", type=click.IntRange(1, 10_000_000), default=100, show_default=True,
              help="Show at most this many readings.")  # fmt: skip
@click.option("--oldest-first", is_flag=True, help="Begin with the oldest reading.  [default: with the newest]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with the whole context.")
def history(
    expression: str, node_config: Path | None, http_address: str | None, state_dir: Path | None,
    config_path: Path | None, since: str | None, until: str | None, origin: str | None, box: str | None, limit: int,
    oldest_first: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show readings of the last hours whose key matches EXPRESSION, such as 'veh/*/speed' or 'rsu/**'.

    They come from a running node with a table [history]; with --state-dir or --config, from the disk of one that does
    not run. The exit status is 1 when there are none.
    """
    if sum(one is not None for one in (node_config, http_address, state_dir, config_path)) > 1:
        raise click.UsageError("--node, --http, --state-dir and --config each name a node: give one of them")
    query = {
        "key": expression, "since": since, "until": until, "origin": origin, "box": box,
        "newest_first": str(not oldest_first).lower(),
    }  # fmt: skip
    given = {name: value for name, value in query.items() if value is not None}
    if state_dir is not None or config_path is not None:
        entries = _on_disk(_folder(state_dir, config_path), given, limit)
    else:
        entries = _of_node(node_config, http_address, given, limit)
    shown = 0
    for entry in entries:
        shown += 1
        click.echo(json.dumps(entry, ensure_ascii=False) if as_json else reading_line(entry, with_date=True))
    if not shown:
        click.get_current_context().exit(1)


def _of_node(
    node_config: Path | None, http_address: str | None, query: dict[str, str], limit: int
) -> Iterator[dict[str, Any]]:
    api, cursor = chosen_node(node_config, http_address), None
    while limit:
        asked = query | {"limit": str(min(limit, _PAGE))} | ({} if cursor is None else {"cursor": cursor})
        page = api.get(f"/v1/history?{urlencode(asked)}")
        yield from _shown(page)
        limit -= len(page["readings"])
        cursor = page["cursor"]
        if cursor is None:
            return


def _on_disk(folder: Path, query: dict[str, str], limit: int) -> Iterator[dict[str, Any]]:
    from meshnode.history.offline import stored_history
    from meshnode.history.query import parse_box, parse_instant, sought
    from meshnode.history.routes import page_form
    from protocols.base.ids import UtcNs

    now, cursor = UtcNs(time.time_ns()), None
    with stored_history(folder) as store:
        for told in store.foreign:
            click.echo(f"meshnode: {printable(told, 500)}", err=True)
        while limit:
            asked = sought(
                query["key"],
                origin=query.get("origin"),
                since=parse_instant("since", query["since"], now) if "since" in query else None,
                until=parse_instant("until", query["until"], now) if "until" in query else None,
                box=parse_box(query["box"]) if "box" in query else None,
                limit=min(limit, _PAGE),
                newest_first=query["newest_first"] == "true",
                cursor=cursor,
                now=now,
            )
            page = page_form(store.find(asked))
            yield from _shown(page)
            limit -= len(page["readings"])
            cursor = page["cursor"]
            if cursor is None:
                return


def _shown(page: dict[str, Any]) -> list[dict[str, Any]]:
    if page["not_shown"]:
        click.echo(f"meshnode: {page['not_shown']} readings have no form in JSON", err=True)
    readings: list[dict[str, Any]] = page["readings"]
    return readings


def _folder(state_dir: Path | None, config_path: Path | None) -> Path:
    """The folder of the history."""
    from meshnode.history.offline import FOLDER

    if state_dir is None:
        from meshnode.config.loading import read_section
        from meshnode.config.sections import NodeSection

        assert config_path is not None, "one of both is given"
        state_dir = read_section(config_path, NodeSection).state_dir
    return state_dir / FOLDER
