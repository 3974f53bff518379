"""``cloud-relay sinks``: how far each sink has come, and moving one that stands."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import structs

from cloud_relay.config import RelayConfig, load_config
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.sinks.progress import FOLDER, SinkProgress, locked_folder
from cloud_relay.sinks.settings import SinkSettings, sinks_of
from cloud_relay.sinks.stores.contract import SinkStore
from cloud_relay.sinks.stores.opening import sink_store
from protocols.base.errors import LocalProtocolError

_CONFIG = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default="relay.toml", show_default=True,
    help="The relay's configuration.",
)  # fmt: skip
_SHOWN = ("name", "kind", "position", "backlog", "delivered", "refused", "skipped", "deleted", "failures", "state")


@click.group(invoke_without_command=True)
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def sinks(context: click.Context, config_path: Path, as_json: bool) -> None:
    """Show how far each sink has come; the relay may be running."""
    context.obj = config_path
    if context.invoked_subcommand is not None:
        return
    config = load_config(config_path)
    configured = sinks_of(config)
    with open_reader(config.store) as reader:
        newest = reader.newest_number()
    told = [_told(config, settings, newest) for settings in configured]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"newest": newest, "sinks": told})).decode())
    elif not told:
        click.echo(f"{config_path} has no table [[sink]]")
    else:
        _print(told)


@sinks.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="The relay's configuration.")
@click.argument("name")
@click.argument("to", metavar="oldest|newest|NUMBER")
@click.pass_obj
def move(given: Path, config_path: Path | None, name: str, to: str) -> None:
    """Let the sink NAME go on after the record NUMBER, before all (oldest) or after all (newest). No relay that has the
    sink may be running. What is skipped is noted as a gap, and what is before the old position is sent once more."""
    config = load_config(config_path or given)
    settings = next((settings for settings in sinks_of(config) if settings.name == name), None)
    if settings is None:
        raise LocalProtocolError(f"{config.path} has no sink {name[:70]!r}: 'cloud-relay sinks' shows them")
    with closing(_store_of(config, settings)) as store:
        newest = store.newest()
        position = _number(to, newest)
        with locked_folder(config.state_dir / FOLDER):
            if not store.take():
                raise LocalProtocolError(f"another relay delivers {name}: stop all relays that have this sink first")
            before = store.load() or SinkProgress(0)
            if position > before.position:
                skipped = store.between(before.position, position)
                store.save(before.skipping_to(position, skipped, int(time.time())))
            else:
                store.save(structs.replace(before, position=position, under_way=None))
    click.echo(f"{name} goes on after record {position} of {newest}")


def _number(text: str, newest: int) -> int:
    if text in ("oldest", "newest"):
        return 0 if text == "oldest" else newest
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= newest):
        raise LocalProtocolError(f"{text[:40]!r} is no place: use oldest, newest or a number up to {newest}")
    return int(text)


def _store_of(config: RelayConfig, settings: SinkSettings) -> SinkStore:
    return sink_store(config.store, settings, config.state_dir / FOLDER)


def _told(config: RelayConfig, settings: SinkSettings, newest: int) -> dict[str, Any]:
    with closing(_store_of(config, settings)) as store:
        known = store.load() or SinkProgress(newest if settings.begins_newest else 0)
        behind = store.behind(known.position)
    return {"name": settings.name, "kind": settings.kind.value, "backlog": behind} | {
        field: getattr(known, field) for field in SinkProgress.__struct_fields__
    }


def _print(told: list[dict[str, Any]]) -> None:
    rows = [list(_SHOWN)]
    for sink in told:
        state = "fails" if sink["error"] else "works" if sink["position"] or sink["delivered"] else "new"
        rows.append([str((sink | {"state": state})[field]) for field in _SHOWN])
    widths = [max(len(row[at]) for row in rows) for at in range(len(_SHOWN))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for sink in told:
        if sink["error"]:
            click.echo(f"{sink['name']}: since {_time(sink['failed_utc_s'])}: {sink['error']}")
        for node in sink["refused_by"][-10:]:
            click.echo(
                f"{sink['name']}: refused {node.records} of {node.origin}, {node.first}-{node.last}, the last at "
                f"{_time(node.utc_s)}: {node.reason}"
            )
        for gap in sink["gaps"][-10:]:
            what = "skipped" if gap.deleted is None else f"retention had deleted {gap.deleted} of"
            click.echo(f"{sink['name']}: {what} {gap.first}-{gap.last} at {_time(gap.utc_s)}")


def _time(utc_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(utc_s))
