"""``meshnode models``: the releases at a node, and how they come there without a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.console.node_api import NodeAbsent, chosen_node, on_a_node
from meshnode.console.printing import print_json, printable
from protocols.base.errors import ConfigError, LocalProtocolError, StorageError

if TYPE_CHECKING:
    from rich.table import Table

    from meshnode.releases.console.history import ReleaseHistory

_CONFIG = click.argument("config", type=click.Path(path_type=Path, dir_okay=False, exists=True))
_FOLDER = "releases"


@click.group()
def models() -> None:
    """Look at the releases of models and rules at a node, bring them there on a stick, and go back to older ones."""


# --- a running node --------------------------------------------------------------------------------------------------
@models.command("list")
@on_a_node
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Show what is fetched, with rate and time left, until it is there.")
def list_(node_config: Path | None, http_address: str | None, as_json: bool, watch: bool) -> None:
    """Show which release of each model serves, what is listed and installed, and how rollouts get on.

    The exit status is 1 when the node takes no releases.
    """
    api = chosen_node(node_config, http_address)
    if watch:
        from meshnode.releases.console.progress import watch_fetching

        watch_fetching(lambda: api.get("/v1/releases"))
    view = api.get("/v1/releases")
    if as_json:
        print_json(view)
    elif not view:
        click.echo("this node takes no releases: add [releases] to its configuration", err=True)
    else:
        _show(view)
    if not view:
        click.get_current_context().exit(1)


def _show(view: dict[str, Any]) -> None:
    from rich.console import Console

    metadata = view["metadata"]
    if metadata is None:
        click.echo("no metadata of releases has come yet")
    else:
        expired = ", which has expired: nothing new is installed" if metadata["is_expired"] else ""
        click.echo(f"metadata {metadata['timestamp_version']} of root {metadata['root_version']}{expired}")
    if view["relay"]:
        click.echo(f"relay: {printable(view['relay'], 200)}")
    store = view["store"]
    click.echo(f"{store['bytes'] / 2**20:.1f} of {store['max_bytes'] / 2**20:.0f} MiB of the disk are taken")
    Console().print(_table(view["paths"]))


def _table(paths: list[dict[str, Any]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("path", "serves", "before", "installed", "listed", "rollout"):
        table.add_column(name)
    for path in paths:
        orders = "; ".join(
            f"{order['serial']}: {order['counter']} {order['decision']} ({order['count']}), here {order['step'] or '-'}"
            for order in path["orders"]
        )
        pinned = "" if path["pinned"] is None else f", pinned to {path['pinned']}"
        table.add_row(
            Text(printable(path["path"])),
            (str(path["serving"]) if path["serving"] else "own file") + pinned,
            ", ".join(map(str, path["previous"])) or "-",
            ", ".join(str(each["counter"]) for each in path["installed"]) or "-",
            ", ".join(map(str, path["listed"])) or "-",
            Text(printable(orders, 200) or "-"),
        )
    return table


@models.command()
@click.argument("model")
@click.option("--to", "counter", type=click.IntRange(min=0), metavar="COUNTER",
              help="The release; 0: what the node's own file names.  [default: the one before]")  # fmt: skip
@click.option("--follow-orders", is_flag=True, help="Serve again what orders say.")
@on_a_node
def rollback(
    model: str, counter: int | None, follow_orders: bool, node_config: Path | None, http_address: str | None
) -> None:
    """Have a running node serve an older release of MODEL, or of rules/NAME, whatever orders say, until
    --follow-orders."""
    if follow_orders and counter is not None:
        raise click.UsageError("--to and --follow-orders exclude one another: give one of them")
    api = chosen_node(node_config, http_address)
    path = model if "/" in model else f"models/{model}"
    known = {each["path"]: each for each in api.get("/v1/releases").get("paths", ())}
    if path not in known:
        names = ", ".join(sorted(known)) or "none"
        raise LocalProtocolError(f"the node takes no releases of {path!r}: it knows {names}")
    if not follow_orders and counter is None:
        counter = next(iter(known[path]["previous"]), 0)
    api.exchange(
        "POST", "/v1/releases/pin", _json({"path": path, "counter": counter}), {"Content-Type": "application/json"}
    )
    if follow_orders:
        click.echo(f"{path} follows orders again")
    else:
        click.echo(f"{path} goes back to {'the own file' if counter == 0 else f'release {counter}'}")


def _json(content: dict[str, Any]) -> bytes:
    import json

    return json.dumps(content).encode()


# --- the disk of a node ----------------------------------------------------------------------------------------------
def _releases_of(config: Path) -> Path:
    """The folder of releases of a node, from its configuration."""
    from meshnode.config.loading import read_section
    from meshnode.config.sections import NodeSection
    from meshnode.releases.section import ReleasesSection

    read_section(config, ReleasesSection)
    return read_section(config, NodeSection).state_dir / _FOLDER


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from meshnode.releases.console.progress import progress

    with progress(what, total) as done:
        yield done


@models.command("import")
@_CONFIG
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--http", "http_address", metavar="HOST:PORT", help="The node's HTTP address, if CONFIG names port 0.")
def import_(config: Path, source: Path, http_address: str | None) -> None:
    """Bring releases from SOURCE to the node of CONFIG: a folder or a tar file, as export writes it, or the folder in
    which a relay publishes.

    The node checks the signatures and takes the releases in at once if it runs, or else when it starts. Nothing is
    believed because it came this way.
    """
    from meshnode.releases.store.incoming import put_in
    from meshnode.releases.store.stick import size_on

    folder = _releases_of(config)
    with _progress("import", size_on(source)) as done:
        count = put_in(source, folder, done)
    try:
        chosen_node(None if http_address else config, http_address).exchange("POST", "/v1/releases/imported", b"")
        click.echo(f"{count} chunks brought to the running node, which takes them in now")
    except (NodeAbsent, ConfigError):
        click.echo(f"{count} chunks brought; the node takes them in when it starts")


@models.command("export")
@_CONFIG
@click.argument("target", type=click.Path(path_type=Path))
def export(config: Path, target: Path) -> None:
    """Write the metadata and all chunks of releases that the node of CONFIG holds to TARGET, a folder or a .tar file,
    for nodes without a network."""
    from meshnode.releases.store.chunks import ChunkStore
    from meshnode.releases.store.disk import ReadOnlyDisk
    from meshnode.releases.store.incoming import contents_in, targets_in
    from meshnode.releases.store.stick import BUNDLE, stick

    folder = _releases_of(config)
    try:
        bundle = (folder / BUNDLE).read_bytes()
    except OSError as error:
        raise StorageError(f"{folder} holds no metadata of releases ({error.strerror}): nothing came yet") from error
    store = ChunkStore(folder, 0, ReadOnlyDisk())
    store.open()
    wanted: dict[bytes, None] = dict.fromkeys(targets_in(bundle))
    for content in contents_in(bundle, store.get):
        index = bytes.fromhex(content.index)
        opened = store.open_content(index, content.size_bytes, content.chunk_bytes)
        if opened is not None:
            wanted |= dict.fromkeys((index, *opened.digests))
    sizes = {digest: size for digest, size in store.held().items() if digest in wanted}
    with _progress("export", len(bundle) + sum(sizes.values())) as done, stick(target) as out:
        out.write(BUNDLE, bundle)
        done(len(bundle))
        for digest in sizes:
            data = store.get(digest)
            if data is not None:
                out.write(digest.hex(), data)
                done(len(data))
    click.echo(f"{len(sizes)} of {len(wanted)} chunks written to {target}")


@models.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", default="", metavar="MODEL", help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also draw the timeline.")
def history(sources: tuple[Path, ...], model: str, as_json: bool, svg: Path | None) -> None:
    """Show when releases got how far, out of the audit logs of nodes: their configurations, or copies of their
    audit.jsonl, each named after its node.

    With several, the timeline shows how a rollout went through a fleet. Nodes may run meanwhile, or be gone.
    """
    from dataclasses import asdict

    from meshnode.releases.console.history import about, together

    histories = about([_history(source) for source in sources], model)
    steps = list(together(histories))
    if svg is not None and steps:
        from meshnode.releases.console.timeline import timeline

        try:
            svg.write_text(timeline(histories), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{svg} can't be written ({error.strerror}): choose another file") from error
    if as_json:
        print_json([asdict(step) for step in steps])
    else:
        for step in steps:
            click.echo(step)
    if not steps:
        click.echo(f"nothing has happened to {model or 'releases'} there", err=True)
    for each in histories:
        if each.unread:
            click.echo(f"{each.node}: {each.unread} lines can't be read: 'meshnode models verify' tells more", err=True)


def _history(source: Path) -> "ReleaseHistory":
    from meshnode.config.loading import read_section
    from meshnode.config.sections import NodeSection
    from meshnode.releases.audit import AUDIT_FILE
    from meshnode.releases.console.history import read_history

    if source.suffix != ".toml":
        if not source.exists():
            raise ConfigError(f"there is no {source}: name the configuration of a node, or a copy of its {AUDIT_FILE}")
        return read_history(source.stem, source)
    return read_history(read_section(source, NodeSection).id, _releases_of(source) / AUDIT_FILE)


@models.command()
@_CONFIG
def verify(config: Path) -> None:
    """Check everything that the node of CONFIG holds of releases: each chunk, the files of installed releases, and the
    chain of the audit log.

    The exit status is 1 when anything is damaged.
    """
    from meshnode.releases.console.verifying import verified

    folder = _releases_of(config)
    faults = 0
    for fault in verified(folder, _progress):
        faults += not fault.is_fine
        click.echo(f"{'ok  ' if fault.is_fine else 'FAIL'}  {fault.what}")
    if faults:
        click.get_current_context().exit(1)
