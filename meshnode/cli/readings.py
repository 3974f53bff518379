"""``meshnode pub`` and ``meshnode sub``: publish a reading, and show readings as they come."""

import json
import os
import select
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from meshnode.console.node_api import chosen_node, on_a_node
from meshnode.console.printing import PIPE_CLOSED, print_json
from meshnode.console.readings import reading_line


class _Place(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """``LAT,LON`` or ``LAT,LON,ACCURACY`` in degrees and metres."""

    name = "LAT,LON[,ACCURACY]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:
        """The position as the HTTP API takes it."""
        if isinstance(value, dict):
            return value
        try:
            numbers = [float(part) for part in str(value).split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 3):
            self.fail(
                f"{value!r} is not a position: give latitude and longitude in degrees and the accuracy in metres, "
                "as in 48.766,11.43,5", param, ctx,
            )  # fmt: skip
        return dict(zip(("latitude_deg", "longitude_deg", "accuracy_m"), [*numbers, 10.0][:3], strict=True))


@click.command()
@click.argument("key")
@click.argument("value")
@on_a_node
@click.option("--unit", default="1", help="UCUM symbol, such as m/s.")
@click.option("--sensor", default="command", show_default=True, help="Name of the sensor.")
@click.option("--at", "where", type=_Place(), help="Where it was measured.  [default: the node's position]")
@click.option("--quality", type=click.FloatRange(0, 1), default=1.0, show_default=True)
@click.option("--priority", type=click.IntRange(0, 7), default=3, show_default=True, help="7 is the most urgent.")
@click.option("--lifespan-ms", type=click.IntRange(0), default=0,
              help="Milliseconds until the reading is worthless.  [default: never]")  # fmt: skip
@click.option("--hops", type=click.IntRange(0), default=0, show_default=True, help="How many nodes may forward it.")
@click.option("--text", "as_text", is_flag=True, help="VALUE is text even if it looks like JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pub(key: str, value: str, node_config: Path | None, http_address: str | None, as_text: bool, as_json: bool,
        **context: Any) -> None:  # fmt: skip
    """Publish VALUE on KEY through a running node.

    VALUE is JSON (13.9, true, '{"a": 1}'), or text when it is not. A value that begins with a minus follows '--':
    meshnode pub veh/veh-1/temperature -- -3.5
    """
    api = chosen_node(node_config, http_address)
    body = json.dumps({"key": key, "value": value if as_text else _parsed(value), **context}).encode()
    answer = json.loads(api.exchange("POST", "/v1/readings", body, {"Content-Type": "application/json"})[0])
    if as_json:
        print_json(answer)
    else:
        click.echo(
            f"published {key} as {answer['origin']}: {answer['local']} subscriptions here, {answer['queued']} "
            f"neighbours, {answer['dropped']} dropped"
        )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(_: str) -> Any:
    raise ValueError  # "NaN" is not JSON, so it is text


@click.command()
@click.argument("expression")
@on_a_node
@click.option("--count", type=click.IntRange(0), default=0, help="End after this many readings.  [default: never]")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, 86_400), help="End after this many seconds.")
@click.option("--conflate", is_flag=True, help="Keep only the newest of the readings of a key that wait to be shown.")
@click.option("--every", is_flag=True, help="Have all readings wait for a link that is too slow, not only the newest.")
@click.option("--no-history", is_flag=True, help="Show only new readings, not the last known ones.")
@click.option("--max-rate", "max_rate_hz", type=click.FloatRange(0, 1e6),
              help="Show at most this many readings of a key per second.")  # fmt: skip
@click.option("--hops", type=click.IntRange(0), default=0, show_default=True,
              help="How many times neighbours pass the subscription on to theirs.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with the whole context.")
def sub(
    expression: str, node_config: Path | None, http_address: str | None, count: int, timeout_s: float | None,
    conflate: bool, every: bool, no_history: bool, max_rate_hz: float | None, hops: int, as_json: bool,
) -> None:  # fmt: skip
    """Show readings whose key matches EXPRESSION, such as 'veh/*/speed' or 'rsu/**'.

    The exit status is 1 when --timeout ended it before any reading, or before --count readings, had come.
    """
    if conflate and every:
        raise click.UsageError(
            "--conflate asks for only the newest reading of a key, and --every for all: use one of both"
        )
    query = {"key": expression, "count": count, "hops": hops, "conflate": conflate, "history": not no_history}
    query |= {"every": True} if every else {}  # a node that does not know it must still answer all others
    query |= {name: v for name, v in (("timeout_s", timeout_s), ("max_rate_hz", max_rate_hz)) if v is not None}
    api = chosen_node(node_config, http_address)
    threading.Thread(target=_end_with_reader, daemon=True).start()
    seen = 0
    for entry in api.lines(f"/v1/readings?{urlencode(query)}"):
        if "dropped" in entry:
            click.echo(f"meshnode: too slow: {entry['dropped']} readings dropped so far", err=True)
            continue
        if "not_shown" in entry:
            click.echo(f"meshnode: {entry['not_shown']} readings so far have no form in JSON", err=True)
            continue
        seen += 1
        click.echo(
            json.dumps(entry, ensure_ascii=False) if as_json else reading_line(entry)
        )  # flushes: somebody waits for it
    if seen < max(count, 1):
        click.get_current_context().exit(1)


def _end_with_reader() -> None:
    """End the process once nobody reads its output. Between two readings there is no write that would fail."""
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return
    if any(event & select.POLLERR for _, event in output.poll()):
        os._exit(PIPE_CLOSED)  # nothing is buffered: every line was flushed
