"""What a relay's configuration says of packing and retention, as the store takes it, and the command that shows what
retention would do."""

import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Protocol

import click
from rich.filesize import decimal

from cloud_relay.config import KeepingConfig, RelayConfig, load_config
from cloud_relay.store.contract import RecordStore
from cloud_relay.store.opening import asyncpg_is_there
from cloud_relay.store.packs.keeper import StoreKeeper
from cloud_relay.store.packs.packing import PackingPolicy
from cloud_relay.store.packs.retention import removals
from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from cloud_relay.store.schema import open_for_reading, storage_error
from cloud_relay.store.sqlite import Store


def retention_policy(keeping: KeepingConfig) -> RetentionPolicy:
    """What is kept."""
    return RetentionPolicy(tuple(RetentionRule(*rule) for rule in keeping.retention), keeping.max_bytes)


class Keeper(Protocol):
    """Keeps a store small in the background."""

    def start(self) -> None:
        """Begin."""
        ...

    def close(self) -> None:
        """End after what is under way. Idempotent."""
        ...

    def statistics(self) -> dict[str, int]:
        """Counts since the start."""
        ...


def keeper_of(config: RelayConfig, store: RecordStore) -> Keeper | None:
    """What packs and deletes in the background; it has not begun. None: there is nothing to do."""
    keeping, policy = config.keeping, retention_policy(config.keeping)
    if isinstance(config.store, PostgresPlace):
        if not policy.deletes:
            return None
        from cloud_relay.store.postgres.keeper import PostgresKeeper

        return PostgresKeeper(config.store, policy)
    if not isinstance(store, Store):
        return None
    return StoreKeeper(
        partial(open_for_reading, config.store), store.maintain,
        PackingPolicy(keeping.pack_after_s, keeping.pack_beyond), policy,
    )  # fmt: skip


@click.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), default="relay.toml", show_default=True,
              help="The relay's configuration.")  # fmt: skip
def retention(config_path: Path) -> None:
    """Show which records retention would delete now. The relay itself deletes, every five minutes."""
    config = load_config(config_path)
    policy = retention_policy(config.keeping)
    if isinstance(config.store, PostgresPlace):
        _foresee_in_postgres(config.store, policy)
    else:
        _foresee_in_packs(config.store, policy)


def _foresee_in_packs(path: Path, policy: RetentionPolicy) -> None:
    total = total_bytes = 0
    with closing(open_for_reading(path)) as db:
        try:
            db.execute("BEGIN")
            for removal in removals(db, policy, time.time_ns()):
                total, total_bytes = total + removal.records, total_bytes + removal.size_bytes
                keys = sorted({key for key, _, _ in removal.streams})
                more = f" and {len(keys) - 3} more keys" if len(keys) > 3 else ""
                click.echo(
                    f"pack {removal.entry.pack}: {removal.records} of {removal.entry.records} records, "
                    f"{decimal(removal.size_bytes)}: {removal.why}: {', '.join(keys[:3])}{more}"
                )
            (rows,) = db.execute("SELECT count(*) FROM records").fetchone()
        except db.DatabaseError as error:
            raise storage_error(path, error) from error
    click.echo(f"{_total(total, total_bytes)}; {rows} records are not packed yet, and are looked at once they are")


def _foresee_in_postgres(place: PostgresPlace, policy: RetentionPolicy) -> None:
    asyncpg_is_there()
    from cloud_relay.store.postgres.foreseeing import STATEMENT_S, doomed
    from cloud_relay.store.postgres.schema import check_version
    from cloud_relay.store.postgres.session import ERRORS, PostgresSession, postgres_error

    total = total_bytes = 0
    with closing(PostgresSession(place, STATEMENT_S, {"default_transaction_read_only": "on"})) as session:
        try:
            session.connect()
            check_version(session)
            with session.transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
                for going in doomed(session, policy, time.time_ns()):
                    total, total_bytes = total + going.records, total_bytes + going.size_bytes
                    ends = "" if going.key is None else f": {going.key}"
                    click.echo(f"{going.records} of {going.of} records, {decimal(going.size_bytes)}: {going.why}{ends}")
        except ERRORS as error:
            raise postgres_error(place, error) from error
    click.echo(_total(total, total_bytes))


def _total(records: int, size_bytes: int) -> str:
    return f"{records} records, about {decimal(size_bytes)}, would be deleted now"
