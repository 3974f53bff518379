"""The ``cloud-relay`` command. Exit status: 0 done, 1 the audit does not add up or the proof does not hold, 2 bad
input or an unusable file."""

import csv
import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec

from cloud_relay.config import load_config
from cloud_relay.datasets.commands import dataset
from cloud_relay.export.aggregates import aggregates
from cloud_relay.export.commands import export, filter_options
from cloud_relay.http.commands import token
from cloud_relay.keeping import retention
from cloud_relay.learning.applying.commands import infer
from cloud_relay.learning.commands import runs_group, train_command
from cloud_relay.query.audit import OriginAccount
from cloud_relay.query.proofs import ProvenRecord, proven
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.searching import COLUMNS, parsed_fields, records_of_pages
from cloud_relay.query.selection import untrusted_query
from cloud_relay.releases.commands.release import release
from cloud_relay.releases.commands.rollout import rollout
from cloud_relay.sinks.commands import sinks
from cloud_relay.store.places import StorePlace, store_place
from meshnode.identity.signatures import read_authority
from protocols.base.errors import MeshError, ReceiptWrong
from protocols.base.ids import UtcNs
from protocols.records.receipts.proof import MAX_PROOF_BYTES

_CONFIG = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default="relay.toml", show_default=True,
    help="The relay's configuration.",
)  # fmt: skip
_STORE = click.option(
    "--store", "store_path", help="Path or URL of the store; no configuration is read then.", metavar="PATH|URL"
)
_SHOWN = ("origin", "sequence", "key", "value", "unit", "event_utc_ns", "latitude_deg", "longitude_deg", "rule")
_MAX_CELL_CHARS = 40


class _Failure(click.ClickException):
    """An error that is told as one line on standard error, with status 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"cloud-relay: {self.message}", file=file or sys.stderr)


class _Group(click.Group):
    """Turns our errors, whichever command raised them, into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MeshError as error:
            raise _Failure(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="meshnode", prog_name="cloud-relay")
def main() -> None:
    """Take curated records from nodes, keep each exactly once, and give them back."""


@main.command()
@_CONFIG
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def run(config_path: Path, log_level: str) -> None:
    """Run the relay until SIGTERM or Ctrl-C; batches under way are finished first."""
    from cloud_relay.server import serve

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = load_config(config_path)
    http = config.http

    def answers(port: int) -> None:
        assert http is not None
        host = f"[{http.host}]" if ":" in http.host else http.host
        click.echo(f"{config.node} answers on {'https' if http.tls else 'http'}://{host}:{port}")

    serve(config, lambda port: click.echo(f"{config.node} ready on {config.host}:{port}"), answers)


@main.command()
@_CONFIG
@_STORE
@filter_options
@click.option("--order", type=click.Choice(["newest", "oldest"]), default="newest", show_default=True,
              help="Which time of sensing comes first.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 10_000_000), default=100, show_default=True,
              help="Show at most this many records.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def query(config_path: Path, store_path: str | None, limit: int, form: str, **given: str | None) -> None:
    """Show stored records, newest event first; the relay may be running."""
    texts = {name: value for name, value in given.items() if value is not None}
    wanted = replace(untrusted_query(texts, UtcNs(time.time_ns())), limit=limit)
    path = _store_of(config_path, store_path)
    with open_reader(path) as reader:
        found = map(parsed_fields, records_of_pages(reader.page, wanted))
        {"table": _print_table, "json": _print_json, "csv": _print_csv}[form](found)


@main.command(name="audit")
@_CONFIG
@_STORE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit_command(config_path: Path, store_path: str | None, as_json: bool) -> None:
    """Check that the account of every node adds up. The exit status is 1 when it does not."""
    path = _store_of(config_path, store_path)
    with open_reader(path) as reader:
        accounts = reader.audit()
    adds_up = all(account.adds_up for account in accounts)
    if as_json:
        origins = [msgspec.to_builtins(account) | {"adds_up": account.adds_up} for account in accounts]
        click.echo(msgspec.json.format(msgspec.json.encode({"adds_up": adds_up, "origins": origins})).decode())
    else:
        _print_audit(accounts, adds_up)
    if not adds_up:
        sys.exit(1)


@main.command()
@_CONFIG
@_STORE
@click.argument("node")
@click.argument("sequence", type=click.IntRange(1, 2**63 - 1))
@click.option("--out", type=click.Path(path_type=Path), help="Write the proof to this file; default: print it.")
def prove(config_path: Path, store_path: str | None, node: str, sequence: int, out: Path | None) -> None:
    """Write what proves that NODE signed its record SEQUENCE, for somebody who does not have this store."""
    path = _store_of(config_path, store_path)
    with open_reader(path) as reader:
        proof = reader.proof(node, sequence)
    if out is None:
        click.echo(proof.decode(), nl=False)
        return
    try:
        out.write_bytes(proof)
    except OSError as error:
        raise _Failure(f"{out} can't be written ({error.strerror}): name another file") from error


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--authority", type=click.Path(path_type=Path), default="authority.crt", show_default=True,
              help="The certificate of the mesh's authority.")  # fmt: skip
def verify(file: Path, authority: Path) -> None:
    """Check a proof that 'prove' wrote, with nothing but the certificate of the mesh's authority. The exit status is 1
    when it does not hold."""
    anchor = read_authority(authority)
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_PROOF_BYTES + 1)
    except OSError as error:
        raise _Failure(f"{file} can't be read ({error.strerror}): name a proof") from error
    try:
        shown = _told(proven(data, anchor))
    except ReceiptWrong as error:
        click.echo(f"NOT proven: the step '{error.step}' failed: {_printable(str(error))}")
        sys.exit(1)
    for name, value in shown.items():
        click.echo(f"{name:<13}{_printable(value)}")


main.add_command(release)
main.add_command(rollout)
main.add_command(token)
main.add_command(export)
main.add_command(sinks)
main.add_command(dataset)
main.add_command(aggregates)
main.add_command(retention)
main.add_command(infer)
main.add_command(train_command)
main.add_command(runs_group)


def _store_of(config_path: Path, store_path: str | None) -> StorePlace:
    return store_place(store_path) if store_path is not None else load_config(config_path).store


def _print_audit(accounts: list[OriginAccount], adds_up: bool) -> None:
    fields = ("origin", "issued", "stored", "deleted", "with_receipt", "expired", "evicted", "refused", "outstanding",
              "missing", "conflicts")  # fmt: skip
    _print_columns(fields, ([str(getattr(account, field)) for field in fields] for account in accounts))
    for account in accounts:
        if account.gaps:
            listed = ", ".join(f"{first}-{last}" if first != last else f"{first}" for first, last in account.gaps[:10])
            more = ", …" if len(account.gaps) > 10 else ""
            click.echo(f"{account.origin}: missing {listed}{more}")
        if account.deleted:
            click.echo(f"{account.origin}: {account.deleted} records were stored, and deleted since by retention")
        if account.conflicts:
            click.echo(
                f"{account.origin}: {account.conflicts} sequences came with two contents; do two nodes use this id?"
            )
        if account.wrong_receipts:
            click.echo(
                f"{account.origin}: {account.wrong_receipts} batches were refused, the last one because of a "
                f"{_printable(account.why_wrong)}"
            )
    click.echo("the ledger adds up" if adds_up else "the ledger does NOT add up")


def _told(proof: ProvenRecord) -> dict[str, str]:
    """What a person is told of a record that was proven."""
    author, receipt, reading = proof.author, proof.receipt, proof.reading
    begins, ends = (_shown_time(ns) for ns in (author.not_before_utc_ns, author.not_after_utc_ns))
    return {
        "proven": f"{author.role} {author.node} of mesh {author.mesh} signed this record",
        "sequence": f"{proof.record.sequence}, signed together with all {receipt.records} from {receipt.first} to "
                    f"{receipt.last} in life {receipt.incarnation}",
        "rule": proof.record.rule,
        "key": f"{reading.key}, sensed by {reading.origin}",
        "time": f"{_shown_time(reading.when.utc_ns)} ± {reading.when.uncertainty_ns / 1e9:g} s",
        "place": f"{reading.where.latitude_deg:g}, {reading.where.longitude_deg:g} ± {reading.where.accuracy_m:g} m",
        "policy": receipt.policy.hex() or "none",
        "certificate": f"{author.certificate_id.hex()}, valid from {begins} to {ends}",
    }  # fmt: skip


def _print_table(records: Iterable[dict[str, Any]]) -> None:
    _print_columns(_SHOWN, ([_cell(field, record[field]) for field in _SHOWN] for record in records))


def _print_columns(header: Iterable[str], rows: Iterable[list[str]]) -> None:
    lines = [list(header), *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(field: str, value: Any) -> str:
    if field == "event_utc_ns":
        return _shown_time(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = _printable(text[: _MAX_CELL_CHARS + 1])
    return text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"


def _shown_time(utc_ns: int) -> str:
    seconds, rest_ns = divmod(utc_ns, 1_000_000_000)
    try:
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_ns // 1_000_000:03}Z"
    except (OverflowError, ValueError, OSError):
        return f"{utc_ns} ns"


def _printable(text: str) -> str:
    """Texts come from nodes, and a control character could rewrite the terminal of whoever looks."""
    return "".join(character if character.isprintable() else "�" for character in text)


def _print_json(records: Iterable[dict[str, Any]]) -> None:
    separator = "["
    for record in records:
        click.echo(separator + msgspec.json.encode(record).decode(), nl=False)
        separator = ",\n "
    click.echo("]" if separator != "[" else "[]")


def _print_csv(records: Iterable[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerow(
            msgspec.json.encode(record[name]).decode() if name in ("value", "lineage") else record[name]
            for name in COLUMNS
        )


if __name__ == "__main__":
    main()
