"""What the HTTP API and the commands show of releases."""

from typing import TYPE_CHECKING, Any

from meshnode.releases.install.journal import FACTORY

if TYPE_CHECKING:
    from meshnode.releases.active import ActiveReleases


def release_view(active: "ActiveReleases") -> dict[str, Any]:
    """Metadata, paths and orders as this node sees them now."""
    catalogue = active.trust.current()
    followed = {each.path: each for each in active.followed()}
    wanted = active.wanted()
    progress = [each for each in active.performer.progress() if (each["path"], each["counter"]) in wanted]
    paths = []
    for path, serving in active.serving().items():
        state, known = active.installer.journal.of(path), followed.get(path)
        paths.append({
            "path": path,
            "serving": serving,
            "previous": [counter for counter in state.previous if counter != FACTORY],
            "installed": [
                {"counter": each.counter, "digest": each.digest, "files": each.files} for each in state.installed
            ],
            "listed": sorted(each.counter for each in catalogue.releases if each.path == path) if catalogue else [],
            "pinned": None if known is None else known.pinned,
            "orders": [] if known is None else [
                {"serial": serial, "counter": counter, "decision": decision, "count": count, "step": step}
                for serial, counter, decision, count, step in known.orders
            ],
            "fetching": [each for each in progress if each["path"] == path],
            "measures": active.performer.measures(path),
        })  # fmt: skip
    return {
        "metadata": None if catalogue is None else {
            "root_version": catalogue.root_version,
            "timestamp_version": catalogue.timestamp_version,
            "is_expired": catalogue.is_expired,
        },
        "relay": "" if active.relay is None else active.relay.state,
        "store": {"bytes": active.store.size_bytes, "max_bytes": active.store.max_bytes},
        "paths": paths,
    }  # fmt: skip
