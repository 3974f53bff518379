"""``cloud-relay rollout``: which release the nodes are to serve."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click
import msgspec

from cloud_relay.releases.commands.opening import changed, places, published_last, signing
from cloud_relay.spans import untrusted_span_s
from protocols.base.errors import InvalidName, ReleaseInvalid
from protocols.base.ids import NodeId, Role, node_id

if TYPE_CHECKING:
    from protocols.releases.catalogue import Order

_SECONDS: Final = re.compile(r"[0-9]{1,9}")


class _Duration(click.ParamType[int]):
    """A duration in seconds, as in ``90``, ``10m``, ``2h`` or ``1d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        span_s = int(text) if _SECONDS.fullmatch(text) else untrusted_span_s(text)
        if span_s is None:
            self.fail(f"{value!r} is no duration: write seconds, or a number with s, m, h or d as in 10m", param, ctx)
        return span_s


_NAME = click.argument("name")
_SERIAL = click.option("--serial", type=int, help="The serial of the order; default: the newest one for NAME.")


@click.group()
def rollout() -> None:
    """Order which release of a model, or of rules (rules/NAME), the nodes serve. Needs meshnode[releases]."""


@rollout.command()
@signing
@_NAME
@click.argument("counter", type=click.IntRange(1, 2**31 - 1))
@click.option("--role", "roles", multiple=True, type=click.Choice([role.value for role in Role]),
              help="Only nodes of this role; may be repeated.")  # fmt: skip
@click.option(
    "--label", "labels", multiple=True, help="Only nodes with this label, as in city=ingolstadt; may be repeated."
)
@click.option("--node", "nodes", multiple=True, help="Only this node; may be repeated.")
@click.option("--share", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Only this part of them.")
@click.option(
    "--canary", "canaries", multiple=True, help="A node that serves it first; may be repeated. None: all at once."
)
@click.option("--promote-quorum", type=int, help="Healthy canaries that promote it; default: more than half.")
@click.option(
    "--halt-quorum", type=int, help="Failed or silent canaries that halt it; default: what hinders promotion."
)
@click.option("--soak", "soak_s", type=_Duration(), default="10m", show_default=True,
              help="How long a canary serves it before it reports.")  # fmt: skip
@click.option("--silence", "silence_s", type=_Duration(), default="1d", show_default=True,
              help="After this long a canary that has not reported counts as failed.")  # fmt: skip
@click.option("--max-errors", type=click.FloatRange(0, 1), default=0.01, show_default=True,
              help="The largest share of runs that may fail at a canary.")  # fmt: skip
@click.option("--max-latency", type=click.FloatRange(0), default=1.5, show_default=True,
              help="The largest p95 as a multiple of that of the release before; 0: any.")  # fmt: skip
@click.option("--min-agreement", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="The least share of live inputs on which it agrees with the release before.")  # fmt: skip
@click.option("--min-runs", type=click.IntRange(0, 1_000_000), default=0, show_default=True,
              help="Live runs that a canary must have had.")  # fmt: skip
def start(
    config_path: Path, folder: Path | None, keys: tuple[Path, ...], name: str, counter: int, roles: tuple[str, ...],
    labels: tuple[str, ...], nodes: tuple[str, ...], share: float, canaries: tuple[str, ...],
    promote_quorum: int | None, halt_quorum: int | None, soak_s: int, silence_s: int, max_errors: float,
    max_latency: float, min_agreement: float, min_runs: int,
) -> None:  # fmt: skip
    """Have nodes serve release COUNTER of NAME, a model or rules/NAME, the canaries first."""
    with changed(config_path, folder, keys) as repository:
        from cloud_relay.releases.ordering import start as start_order
        from cloud_relay.releases.publishing import path_of
        from protocols.releases.catalogue import Cohort, Gates

        order = start_order(
            repository, path_of(name), counter,
            cohort=Cohort(roles=tuple(map(Role, roles)), labels=labels, nodes=_ids("--node", nodes), share=share),
            canaries=_ids("--canary", canaries), promote_quorum=promote_quorum, halt_quorum=halt_quorum,
            soak_s=soak_s, silence_s=silence_s,
            gates=Gates(
                max_errors=max_errors, max_latency=max_latency, min_agreement=min_agreement, min_runs=min_runs
            ),
        )  # fmt: skip
        _show(order)


@rollout.command()
@places
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(config_path: Path, folder: Path | None, as_json: bool) -> None:
    """Show the orders that are in force. How far the nodes are, any of them tells: 'meshnode models list'."""
    repository = published_last(config_path, folder)

    from cloud_relay.releases.ordering import orders_in

    orders = orders_in(repository)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(orders)).decode())
        return
    for order in orders:
        _show(order)
    if not orders:
        click.echo("no orders: 'cloud-relay rollout start NAME COUNTER'")


@rollout.command()
@signing
@click.argument("serial", type=click.IntRange(1))
def remove(config_path: Path, folder: Path | None, keys: tuple[Path, ...], serial: int) -> None:
    """Take the order SERIAL out, which a damaged disk has changed. Nodes then follow the order before it."""
    with changed(config_path, folder, keys) as repository:
        from cloud_relay.releases.ordering import remove_damaged

        remove_damaged(repository, serial)


def _changing(name: str, state: Literal["running", "paused", "aborted", "promoted"], text: str) -> None:
    """Add a command that gives the order for a model another state."""

    def command(config_path: Path, folder: Path | None, keys: tuple[Path, ...], name: str, serial: int | None) -> None:
        with changed(config_path, folder, keys) as repository:
            from cloud_relay.releases.ordering import change, order_for
            from cloud_relay.releases.publishing import path_of

            _show(change(repository, order_for(repository, path_of(name), serial), state))

    command.__doc__ = text
    rollout.command(name=name)(signing(_NAME(_SERIAL(command))))


_changing("pause", "paused", "Have nodes go no further with the order for NAME; who serves it goes on.")
_changing("resume", "running", "Have nodes go on with the order for NAME after a pause.")
_changing("abort", "aborted", "Have nodes that serve what was ordered for NAME go back.")
_changing("promote", "promoted", "Have nodes serve what was ordered for NAME without waiting for canaries.")


def _ids(option: str, names: tuple[str, ...]) -> tuple[NodeId, ...]:
    try:
        return tuple(map(node_id, names))
    except InvalidName as error:
        raise ReleaseInvalid(f"{option}: {error}") from error


def _show(order: "Order") -> None:
    cohort = order.cohort
    told = [
        *(role.value for role in cohort.roles), *cohort.labels, *cohort.nodes,
        *([f"{cohort.share:.0%}"] if cohort.share < 1 else []),
    ]  # fmt: skip
    click.echo(
        f"order {order.serial}: {order.path} {order.counter}, {order.state}, for {', '.join(told) or 'all nodes'}"
    )
    if order.canaries:
        click.echo(
            f"  canaries {', '.join(order.canaries)}: {order.promote_quorum} healthy promote, {order.halt_quorum} "
            f"failed or silent halt; soak {order.soak_s} s, silence {order.silence_s} s"
        )
