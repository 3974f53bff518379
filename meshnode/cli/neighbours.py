"""``meshnode peers`` and ``meshnode watch``: the neighbours of a node, and a live view of it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.console.node_api import NodeApi, chosen_node, on_a_node
from meshnode.console.printing import duration, milliseconds, print_json, printable
from meshnode.inference.console.plans import known_plans, summary

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_STATE_STYLES = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "dim"}
_MAX_DROPS_SHOWN = 8
_MAX_BEHIND_SHOWN = 5
_OF_FULL_LANES = {"frames/s": "frames_per_s", "left out": "left_out"}
_NUMBERS = ("round trip", "MB/s", "silent", "waiting", *_OF_FULL_LANES)


@click.command()
@on_a_node
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def peers(node_config: Path | None, http_address: str | None, as_json: bool) -> None:
    """Show the neighbours of a node, and what it computes together with them. The exit status is 1 when there are
    none."""
    api = chosen_node(node_config, http_address)
    known = api.get("/v1/peers")
    if as_json:
        print_json(known)
    elif known:
        from rich.console import Console

        Console().print(_peer_table(known))
        for line in (*_full_channel(known, api.get("/v1/node")["statistics"]), *summary(known_plans(api))):
            click.echo(line)
    else:
        click.echo("no neighbours", err=True)
    if not known:
        click.get_current_context().exit(1)


@click.command()
@on_a_node
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.2, 60), default=1.0, show_default=True,
              help="Seconds between frames.")  # fmt: skip
def watch(node_config: Path | None, http_address: str | None, once: bool, interval_s: float) -> None:
    """Show a node live: neighbours, round trips, rates, drops, inference, plans of split models. Ctrl-C ends it."""
    from rich.console import Console
    from rich.live import Live

    api = chosen_node(node_config, http_address)
    console = Console()
    frame = _Frame(api)
    if once:
        frame.read()
        time.sleep(min(interval_s, 0.5))  # a rate needs two samples
        console.print(frame.read())
        return
    with Live(frame.read(), console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            time.sleep(interval_s)
            live.update(frame.read(), refresh=True)


class _Frame:
    """One picture of the node, made from two moments because it shows rates."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api
        self._before: tuple[float, dict[str, int]] | None = None

    def read(self) -> "RenderableType":
        """Ask the node and draw a frame. :raises MeshError: when it doesn't answer."""
        from rich.console import Group
        from rich.text import Text

        node, known, drops = (self._api.get(f"/v1/{path}") for path in ("node", "peers", "drops"))
        now_s, counters = time.monotonic(), node["statistics"]
        before_s, before = self._before or (now_s, counters)
        self._before = (now_s, counters)
        passed_s = now_s - before_s

        def rate(name: str) -> str:
            return f"{(counters.get(name, 0) - before.get(name, 0)) / passed_s:.0f}/s" if passed_s > 0 else "-"

        relay = node["relay"]
        head = Text.assemble(
            (f"{node['id']}", "bold"),
            f"  {node['role']} of {node['mesh']}, port {node['port']}, up {duration(node['uptime_s'])}, certificate "
            f"ends in {node['certificate_days_left']:.0f} days, relay "
            + (printable(f"{relay['state']} {relay['detail']}".strip(), 100) if relay else "none"),
        )
        readings = (
            f"readings   published {rate('readings_published')}   accepted {rate('readings_accepted')}   "
            f"delivered {rate('readings_delivered')}   forwarded {rate('readings_forwarded')}"
        )
        inference = (
            f"inference  asked {rate('inference_asked')}   here {counters.get('inference_run_here', 0)}   there "
            f"{counters.get('inference_run_there', 0)}   hedged {counters.get('inference_hedged', 0)}   failed "
            f"{counters.get('inference_failed', 0)}   served {counters.get('inference_served', 0)}"
        )
        records = ""
        if "outbox_issued" in counters:
            records = (
                f"records    {counters['outbox_issued']}   waiting {counters['outbox_pending']}   delivered "
                f"{counters['outbox_delivered']}   expired {counters['outbox_expired']}   evicted "
                f"{counters['outbox_evicted']}   refused {counters['outbox_refused']}"
            )
        at_relay = _at_relay(node, counters)
        carrying = ""
        if "carrying_held" in counters:
            carrying = (
                f"carrying   own records handed over {counters['carrying_handed_over_records']}   batches on their way "
                f"{counters['carrying_on_their_way']}   held for others {counters['carrying_held']}   brought to the "
                f"relay {counters['carrying_uploaded']}"
            )
        told = (readings, inference, at_relay, *summary(known_plans(self._api)), records, carrying)
        lines = "\n".join(filter(None, (*told, *_full_channel(known, counters))))
        return Group(head, Text(lines), _peer_table(known), _drop_table(drops, rate("drops")))


def _at_relay(node: dict[str, Any], counters: dict[str, int]) -> str:
    """What the relay computes for this node; nothing when its configuration allows none."""
    if "relay_computes" not in node:
        return ""
    computes = node["relay_computes"]
    offers = [f"{offer['model']} ({offer['compute_us'] / 1e3:.0f} ms)" for offer in computes["offers"]]
    told = "it is away" if computes["relay"] is None else f"offers {printable(', '.join(offers), 100) or 'nothing'}"
    way = "" if computes["round_trip_ms"] is None else f"   round trip {computes['round_trip_ms']:.1f} ms"
    return (
        f"at relay   computed {counters.get('inference_run_at_relay', 0)}   without a result "
        f"{counters.get('asking_inferences_failed', 0)}   {told}{way}"
    )


def _full_channel(known: list[dict[str, Any]], counters: dict[str, int]) -> list[str]:
    """What a full channel or slow links do to what this node sends, in plain words; nothing while there is room."""
    lines = []
    pace = counters.get("pace_frames_per_s")
    if pace is not None:
        lines.append(
            f"this node keeps a pace of {pace} {'frame' if pace == 1 else 'frames'} a second, because its neighbours "
            "confirm late (a full channel)"
        )
    behind = [peer["node"] for peer in known if peer.get("is_behind")]
    if behind:
        shown = ", ".join(behind[:_MAX_BEHIND_SHOWN])
        more = f" and {len(behind) - _MAX_BEHIND_SHOWN} more" if len(behind) > _MAX_BEHIND_SHOWN else ""
        lines.append(
            f"less can be sent to {shown}{more} than is published: older readings give way to newer ones of their key"
        )
    return lines


def _peer_table(known: list[dict[str, Any]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    columns = ["neighbour", "role", "state", "round trip", "MB/s", "silent", "lanes", "waiting"]
    # Who has room on every link has nothing to read in these two.
    columns += [name for name, field in _OF_FULL_LANES.items() if any(peer.get(field) for peer in known)]
    columns.append("computes")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    for peer in known:
        unmet = peer["state"] == "alive" and not peer["met"]
        offers = ", ".join(f"{offer['model']} ({offer['compute_us'] / 1e3:.0f} ms)" for offer in peer["offers"])
        table.add_row(
            peer["node"],
            peer["role"],
            Text("not met" if unmet else peer["state"], "yellow" if unmet else _STATE_STYLES.get(peer["state"], "")),
            milliseconds(peer["round_trip_ns"]),
            _rate(peer.get("throughput_bytes_per_s", 0.0)),
            f"{peer['silent_ns'] / 1e9:.1f} s",
            ", ".join(peer["lanes"]),
            Text(str(peer["waiting_readings"]), "yellow" if peer.get("is_behind") else ""),
            *(_figure(peer.get(_OF_FULL_LANES[name])) for name in columns if name in _OF_FULL_LANES),
            Text(printable(offers)),
        )
    return table


def _drop_table(drops: list[dict[str, Any]], rate: str) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    if not drops:
        return Text("drops      none")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (f"drops {rate}", "reason", "peer", "key"):
        table.add_column(name, justify="right" if name.startswith("drops") else "left")
    for drop in sorted(drops, key=lambda entry: -entry["count"])[:_MAX_DROPS_SHOWN]:
        table.add_row(str(drop["count"]), drop["reason"], drop["peer"] or "here", Text(printable(drop["key"])))
    return table


def _figure(value: float | None) -> str:
    return f"{value:.0f}" if value else "-"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.1f}" if bytes_per_s else "-"
