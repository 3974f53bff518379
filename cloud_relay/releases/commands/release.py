"""``cloud-relay release``: what is published, and the keys that vouch for it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cloud_relay.releases.commands.opening import (
    changed,
    locked,
    needing_library,
    places,
    progress_of,
    published,
    published_last,
    signing,
)
from protocols.base.errors import ReleaseInvalid

if TYPE_CHECKING:
    from cloud_relay.releases.repository import ReleaseRepository
    from protocols.releases.catalogue import Description

_ROOT_KEYS = click.option(
    "--root-key", "root_keys", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A key of root; may be repeated.",
)  # fmt: skip
_COUNTER = click.IntRange(1, 2**31 - 1)


@click.group()
def release() -> None:
    """Publish models and rules to all nodes, and take them back. Needs meshnode[releases], and meshnode[rules]."""


@release.command()
@places
@_ROOT_KEYS
@click.option("--threshold", type=click.IntRange(2, 16), default=2, show_default=True,
              help="Keys of root that have to sign a new root.")  # fmt: skip
@click.option("--root-days", type=click.IntRange(1, 3_650), default=730, show_default=True, help="Life of a root.")
@click.option("--targets-days", type=click.IntRange(1, 3_650), default=365, show_default=True,
              help="Life of the lists of releases and orders.")  # fmt: skip
@click.option("--online-days", type=click.IntRange(1, 365), default=30, show_default=True,
              help="Life of snapshot and timestamp: so long nodes install what is new without the relay.")  # fmt: skip
def init(
    config_path: Path, folder: Path | None, root_keys: tuple[Path, ...], threshold: int, root_days: int,
    targets_days: int, online_days: int,
) -> None:  # fmt: skip
    """Make a repository. Its root needs at least two keys, which 'release key make' makes; keep them elsewhere."""
    with locked(config_path, folder) as repository:
        from securesystemslib.signer import CryptoSigner

        from cloud_relay.releases.commands.opening import root_signers
        from cloud_relay.releases.repository import PUBLISHER_ROLE, TOP_ROLES, Lifetimes
        from cloud_relay.releases.shown import BUNDLE_FILE, ORDERS_ROLE

        if (repository.folder / BUNDLE_FILE).exists():
            raise ReleaseInvalid(f"there is a repository in {repository.folder}: name another folder")
        if len(root_keys) < threshold:
            raise ReleaseInvalid(
                f"root needs {threshold} keys and was given {len(root_keys)}: make them with 'cloud-relay release key "
                "make FILE', and name each with --root-key"
            )
        signers = root_signers(root_keys)
        repository.state.lifetimes = Lifetimes(root_days, targets_days, online_days)
        keys = {role: CryptoSigner.generate_ed25519() for role in (*TOP_ROLES, ORDERS_ROLE, PUBLISHER_ROLE)}
        repository.create(signers, threshold, keys)  # before any file is written: it refuses keys of root given twice
        for role, signer in keys.items():
            repository.keep_key(role, signer)
        published(repository)
        click.echo(f"nodes need {repository.folder / 'metadata' / '1.root.json'} as the root of their releases")
        click.echo("now take the keys of root away from this computer")


@release.command()
@signing
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["models", "rules"]), default="models", show_default=True,
              help="What FILE is.")  # fmt: skip
@click.option("--name", help="The name of the model or of the rules; default: that of the file.")
@click.option("--counter", type=_COUNTER, help="The number of the release; default: one more than the last.")
@click.option(
    "--breaks-signature", is_flag=True, help="Declare that its inputs or outputs differ from the last release."
)
@click.option("--deltas", type=click.IntRange(0, 16), default=1, show_default=True,
              help="From how many earlier releases it can be reached by a delta.")  # fmt: skip
@click.option("--changelog", default="", help="What has changed.")
@click.option("--runtime", default="", help="The least version of ONNX Runtime, as in 1.17.")
@click.option("--cases", multiple=True, type=click.Path(path_type=Path), metavar="CASES",
              help="Cases that rules have to pass; may be repeated. Default: NAME-cases.toml beside them.")  # fmt: skip
def publish(
    config_path: Path, folder: Path | None, keys: tuple[Path, ...], file: Path, kind: str, name: str | None,
    counter: int | None, breaks_signature: bool, deltas: int, changelog: str, runtime: str, cases: tuple[Path, ...],
) -> None:  # fmt: skip
    """Publish FILE: a model, which is an ONNX file or a folder with one, with its manifest, golden vectors and weights;
    or with --kind rules a file of rules."""
    if kind == "rules":
        if breaks_signature or runtime:
            raise click.UsageError("--breaks-signature and --runtime are about models: leave them out for rules")
        _publish_rules(config_path, folder, keys, file, name, counter, changelog, cases)
        return
    if cases:
        raise click.UsageError("--cases is about rules: leave it out for a model, whose golden vectors are beside it")
    with changed(config_path, folder, keys) as repository:
        from cloud_relay.releases.linting import source_of
        from cloud_relay.releases.publishing import publish as publish_release

        source = source_of(file)
        if not source.manifest.golden:
            click.echo("it has no golden vectors: nodes can't find out whether it computes what it should", err=True)
        with progress_of(sum(file.stat().st_size for file in source.files)) as progress:
            made = publish_release(
                repository, file, name=name, counter=counter, breaks_signature=breaks_signature, deltas=deltas,
                changelog=changelog, runtime=runtime, progress=progress,
            )  # fmt: skip
        click.echo(f"{made.path} {made.counter}: {len(made.files)} files, {made.size_bytes} bytes")
        for delta in made.deltas:
            share = delta.content.size_bytes / next(f.content.size_bytes for f in made.files if f.name == delta.name)
            click.echo(f"delta of {delta.name} ({delta.method}): {delta.content.size_bytes} bytes, {share:.1%}")


def _publish_rules(
    config_path: Path, folder: Path | None, keys: tuple[Path, ...], file: Path, name: str | None, counter: int | None,
    changelog: str, cases: tuple[Path, ...],
) -> None:  # fmt: skip
    with changed(config_path, folder, keys) as repository:
        from cloud_relay.releases.publishing import publish_rules
        from cloud_relay.releases.rule_linting import cases_beside

        cases = cases or cases_beside(file)
        if not cases:
            click.echo("it has no cases: nobody has tried whether the rules derive what they should", err=True)
        made = publish_rules(repository, file, cases, name=name, counter=counter, changelog=changelog)
        click.echo(f"{made.path} {made.counter}: {made.size_bytes} bytes")


@release.command()
@signing
@click.argument("name")
@click.argument("counter", type=_COUNTER)
@click.option("--from", "earlier", type=_COUNTER, required=True, help="The release that nodes have.")
def delta(
    config_path: Path, folder: Path | None, keys: tuple[Path, ...], name: str, counter: int, earlier: int
) -> None:
    """Offer a shorter way to release COUNTER of the model NAME, for nodes that have an earlier one."""
    with changed(config_path, folder, keys) as repository:
        from cloud_relay.releases.publishing import description_of, list_release, path_of, with_deltas

        before = description_of(repository, path_of(name), counter)
        after = with_deltas(repository, before, earlier)
        if after == before:
            raise ReleaseInvalid(f"no delta from release {earlier} is worth it: it would be as large as the file")
        list_release(repository, after)
        for each in after.deltas[len(before.deltas) :]:
            click.echo(f"delta of {each.name} ({each.method}): {each.content.size_bytes} bytes")


@release.command(name="list")
@places
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(config_path: Path, folder: Path | None, as_json: bool) -> None:
    """Show what is published. The exit status is 1 when the description of a release is damaged."""
    repository = published_last(config_path, folder)

    from cloud_relay.releases.publishing import description_of, listed_releases

    releases, damaged = [], 0
    for path, counter in listed_releases(repository):
        try:
            releases.append(description_of(repository, path, counter))
        except ReleaseInvalid as error:
            damaged += 1
            click.echo(str(error), err=True)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(releases)).decode())
    else:
        _show_releases(repository, releases, damaged)
    if damaged:
        raise SystemExit(1)


def _show_releases(repository: "ReleaseRepository", releases: "list[Description]", damaged: int) -> None:
    for each in releases:
        bases = f", {len(each.deltas)} deltas" if each.deltas else ""
        breaks = ", breaks the signature" if each.breaks_signature else ""
        click.echo(f"{each.path} {each.counter}: {each.size_bytes} bytes in {len(each.files)} files{bases}{breaks}"
                   f"{', ' + each.licence if each.licence else ''}")  # fmt: skip
    if not releases and not damaged:
        click.echo("nothing is published: 'cloud-relay release publish MODEL.onnx'")
    click.echo(f"timestamp {repository.timestamp.version} until {repository.timestamp.expires:%Y-%m-%d %H:%M} UTC")


@release.command()
@signing
@click.argument("name")
@click.argument("counter", type=_COUNTER)
def revoke(config_path: Path, folder: Path | None, keys: tuple[Path, ...], name: str, counter: int) -> None:
    """Take release COUNTER of NAME out, a model or rules/NAME. No node installs it any more, and its orders are
    aborted."""
    with changed(config_path, folder, keys) as repository:
        from cloud_relay.releases.ordering import change, orders_in
        from cloud_relay.releases.publishing import path_of
        from cloud_relay.releases.publishing import revoke as revoke_release

        path = path_of(name)
        for order in orders_in(repository):
            if (order.path, order.counter) == (path, counter) and order.state != "aborted":
                click.echo(f"order {change(repository, order, 'aborted').serial} is aborted")
        revoke_release(repository, path, counter)


@release.command()
@signing
@click.option("--targets", is_flag=True, help="Sign the lists of releases and orders anew too.")
def refresh(config_path: Path, folder: Path | None, keys: tuple[Path, ...], targets: bool) -> None:
    """Sign timestamp and snapshot for another lifetime. A running relay does this itself if it has the keys."""
    with changed(config_path, folder, keys) as repository:
        repository.refresh(repository.lists() if targets else ())


@release.command()
@signing
@click.argument("role")
@_ROOT_KEYS
@click.option("--add-key", "added", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="For root: a new key; may be repeated.")  # fmt: skip
@click.option("--drop-key", "dropped", multiple=True, metavar="ID",
              help="For root: the beginning of the id of a key that is trusted no more; may be repeated.")  # fmt: skip
def rotate(
    config_path: Path, folder: Path | None, keys: tuple[Path, ...], role: str, root_keys: tuple[Path, ...],
    added: tuple[Path, ...], dropped: tuple[str, ...],
) -> None:  # fmt: skip
    """Give ROLE (timestamp, snapshot, targets, root, a publisher) another key. The old one signs nothing any more."""
    with changed(config_path, folder, keys) as repository:
        from cloud_relay.releases.commands.opening import root_signers
        from cloud_relay.releases.rotating import change_root_keys, rotate_key

        signers = root_signers(root_keys)
        if role == "root":
            change_root_keys(repository, signers, root_signers(added), dropped)
        else:
            rotate_key(repository, role, signers)


@release.command()
@signing
@click.argument("name")
@click.option("--model", "models", multiple=True, help="A name of a model, or a pattern; may be repeated.")
@click.option("--rules", multiple=True, help="A name of rules, or a pattern, as in '*'; may be repeated.")
def delegate(
    config_path: Path, folder: Path | None, keys: tuple[Path, ...], name: str, models: tuple[str, ...],
    rules: tuple[str, ...],
) -> None:  # fmt: skip
    """Let the publisher NAME, and nobody else, publish models, or rules. Its key is made in the repository."""
    if bool(models) == bool(rules):
        raise click.UsageError("a publisher releases one kind: give --model or --rules")
    with changed(config_path, folder, keys) as repository:
        from cloud_relay.releases.rotating import add_publisher

        click.echo(f"key: {add_publisher(repository, name, models or rules, 'models' if models else 'rules')}")


@release.command()
@signing
@click.argument("name")
def undelegate(config_path: Path, folder: Path | None, keys: tuple[Path, ...], name: str) -> None:
    """Let the publisher NAME publish no more, and take its releases out."""
    with changed(config_path, folder, keys) as repository:
        repository.undelegate(name)


@release.group()
def key() -> None:
    """Make and show keys."""


@key.command(name="make")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase, with which the file is encrypted.")
def make(path: Path, passphrase: bool) -> None:
    """Make a key in the file PATH."""
    with needing_library():
        from cloud_relay.releases.signing import make_key
    text = click.prompt("passphrase", hide_input=True, confirmation_prompt=True) if passphrase else ""
    click.echo(f"{path}: {make_key(path, text.encode()).public_key.keyid}")


@key.command(name="list")
@places
def key_list(config_path: Path, folder: Path | None) -> None:
    """Show the keys of every role, and until when what they have signed is good."""
    repository = published_last(config_path, folder)
    for signed in (repository.root, repository.targets, repository.snapshot, repository.timestamp):
        held = repository.root.roles[signed.type]
        _show_role(signed.type, signed.version, signed.expires, held.threshold, held.keyids, "")
    for role, delegation in repository.roles().items():
        targets = repository.delegated(role)
        _show_role(role, targets.version, targets.expires, delegation.threshold, delegation.keyids,
                   f" for {', '.join(delegation.paths or ())}")  # fmt: skip


def _show_role(role: str, version: int, ends: datetime, threshold: int, keyids: list[str], what: str) -> None:
    left = (ends - datetime.now(UTC)).days
    click.echo(
        f"{role} {version}{what}: until {ends:%Y-%m-%d} ({left} days), {threshold} of "
        f"{', '.join(keyid[:16] for keyid in keyids)}"
    )
