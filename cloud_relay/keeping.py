"""What a relay's configuration says of packing and retention, as the store takes it, and the command that shows what
retention would do."""

import time
from contextlib import closing
from functools import partial
from pathlib import Path

import click

from cloud_relay.config import KeepingConfig, RelayConfig, load_config
from cloud_relay.store.contract import RecordStore
from cloud_relay.store.packs.keeper import StoreKeeper
from cloud_relay.store.packs.packing import PackingPolicy
from cloud_relay.store.packs.retention import removals
from cloud_relay.store.places import sqlite_path
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from cloud_relay.store.schema import open_for_reading, storage_error
from cloud_relay.store.sqlite import Store


def retention_policy(keeping: KeepingConfig) -> RetentionPolicy:
    """What is kept."""
    return RetentionPolicy(tuple(RetentionRule(*rule) for rule in keeping.retention), keeping.max_bytes)


def keeper_of(config: RelayConfig, store: RecordStore) -> StoreKeeper | None:
    """What packs and deletes in the background; it has not begun. None: the store is not SQLite."""
    keeping = config.keeping
    if not isinstance(store, Store) or not isinstance(config.store, Path):
        return None
    return StoreKeeper(
        partial(open_for_reading, config.store), store.maintain,
        PackingPolicy(keeping.pack_after_s, keeping.pack_beyond), retention_policy(keeping),
    )  # fmt: skip


@click.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), default="relay.toml", show_default=True,
              help="The relay's configuration.")  # fmt: skip
def retention(config_path: Path) -> None:
    """Show which packed records retention would delete now. The relay itself deletes, every five minutes."""
    config = load_config(config_path)
    policy, total, total_bytes = retention_policy(config.keeping), 0, 0
    path = sqlite_path(config.store, "retention is")
    with closing(open_for_reading(path)) as db:
        try:
            db.execute("BEGIN")
            for removal in removals(db, policy, time.time_ns()):
                total, total_bytes = total + removal.records, total_bytes + removal.size_bytes
                keys = sorted({key for key, _, _ in removal.streams})
                more = f" and {len(keys) - 3} more keys" if len(keys) > 3 else ""
                click.echo(
                    f"pack {removal.entry.pack}: {removal.records} of {removal.entry.records} records, "
                    f"{removal.size_bytes / 1e6:.1f} MB: {removal.why}: {', '.join(keys[:3])}{more}"
                )
            (rows,) = db.execute("SELECT count(*) FROM records").fetchone()
        except db.DatabaseError as error:
            raise storage_error(path, error) from error
    click.echo(
        f"{total} records, about {total_bytes / 1e6:.1f} MB, would be deleted now; {rows} records are not packed yet, "
        "and are looked at once they are"
    )
