"""A store and one sink that delivers from it. Import ``given_quick_pauses`` where sinks have to try again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud_relay.config import load_config
from cloud_relay.sinks import delivering
from cloud_relay.sinks.progress import FOLDER
from cloud_relay.sinks.running import Sinks
from cloud_relay.sinks.settings import SinkSettings, sinks_of
from cloud_relay.store.places import StorePlace
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import RelayInProcess, batch


@pytest.fixture(autouse=True, name="quick_pauses")
def given_quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that was away is tried again at once, so that no test waits for a minute."""
    monkeypatch.setattr(delivering, "LOOK_S", 0.02)
    monkeypatch.setattr(delivering, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(delivering, "LONGEST_PAUSE_S", 0.2)


def settings_from(folder: Path, *tables: str) -> list[SinkSettings]:
    """What tables of a configuration in ``folder`` say."""
    path = folder / "relay.toml"
    path.write_text(
        '[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n' + "".join(f"[[sink]]\n{table}\n" for table in tables)
    )
    return sinks_of(load_config(path))


class SinkBench:
    """A store with records, and the sinks of some tables, which can be started and stopped."""

    def __init__(self, folder: Path, *tables: str, place: StorePlace | None = None) -> None:
        """``place``: where the store is; default: SQLite in the state folder."""
        self.folder, self.state_dir = folder, folder / "state"
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.relay = RelayInProcess(place or self.state_dir / "relay.sqlite")
        self.settings = settings_from(folder, *tables)

    def store(self, first: int, last: int, **of: Any) -> None:
        """Have records with these sequences stored."""
        for begin in range(first, last + 1, 200):
            numbers = range(begin, min(begin + 200, last + 1))
            self.relay.send(batch(*numbers, **of), of.get("node", "v-1"))

    @contextmanager
    def running(self) -> Iterator[Sinks]:
        """While they deliver."""
        sinks = Sinks(self.settings, self.relay.path, self.state_dir)
        try:
            yield sinks
        finally:
            sinks.close()

    def delivered_all(self, sinks: Sinks, name: str = "out") -> dict[str, Any]:
        """Wait until a sink owes nothing. Returns what it has counted."""

        def abreast() -> dict[str, Any] | None:
            told = sinks.statistics()[name]
            return told if told["working"] and told["backlog"] == 0 and told["position"] > 0 else None

        return eventually(abreast, lambda: f"it owes nothing: {sinks.statistics()}", 60)  # type: ignore[return-value]

    def refused(self, name: str = "out") -> str:
        """The file of refused records."""
        return (self.state_dir / FOLDER / f"{name}.refused.jsonl").read_text("utf-8")

    def close(self) -> None:
        """Close the store."""
        self.relay.store.close()
