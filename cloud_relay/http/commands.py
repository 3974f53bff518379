"""``cloud-relay token``: make, list and revoke the tokens of the relay's HTTP server."""

import time
from pathlib import Path

import click

from cloud_relay.config import load_config
from cloud_relay.http.tokens import FILE, TokenFile, TokenRole
from cloud_relay.spans import untrusted_span_s
from protocols.base.errors import LocalProtocolError

_CONFIG = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default="relay.toml", show_default=True,
    help="The relay's configuration.",
)  # fmt: skip


@click.group()
def token() -> None:
    """Tokens that programs and people show to the relay's HTTP server ([http] tokens = "required")."""


@token.command()
@_CONFIG
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in TokenRole]), default="viewer", show_default=True,
              help="viewer: records; operator: what the relay has counted, too.")  # fmt: skip
@click.option(
    "--expires", default="90d", show_default=True, help="For how long it is good, as in 12h or 90d, or 'never'."
)
def create(config_path: Path, name: str, role: str, expires: str) -> None:
    """Make a token NAME and print it. Only its hash is kept, so it can't be shown again."""
    now_utc_s = int(time.time())
    expires_utc_s = None if expires == "never" else now_utc_s + _span_s(expires)
    click.echo(_file(config_path).create(name, TokenRole(role), now_utc_s, expires_utc_s))


@token.command(name="list")
@_CONFIG
def list_tokens(config_path: Path) -> None:
    """Show all tokens, but not what they are."""
    now_utc_s = time.time()
    for one in _file(config_path).tokens():
        ends = "never expires" if one.expires_utc_s is None else f"until {_day(one.expires_utc_s)}"
        past = " (EXPIRED)" if one.has_expired(now_utc_s) else ""
        click.echo(f"{one.name:<24} {one.role:<9} {one.id}  made {_day(one.created_utc_s)}, {ends}{past}")


@token.command()
@_CONFIG
@click.argument("name")
def revoke(config_path: Path, name: str) -> None:
    """Take the token NAME, or the one with this id, out. The next request with it is refused."""
    _file(config_path).revoke(name)


def _file(config_path: Path) -> TokenFile:
    return TokenFile(load_config(config_path).state_dir / FILE)


def _span_s(text: str) -> int:
    span_s = untrusted_span_s(text, "hd")
    if span_s is None:
        raise LocalProtocolError(
            f"--expires {text[:40]!r} is no span of time: use hours or days as in 12h or 90d, or 'never'"
        )
    return span_s


def _day(utc_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(utc_s))
