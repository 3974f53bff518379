"""A relay whose database is damaged does not start, says so, and leaves the only copy alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnode.identity import create_mesh, issue
from protocols.base.ids import Role
from tests.tools.node_fixture import environment
from tests.tools.relay_fixture import RelayInProcess, batch

pytestmark = pytest.mark.processes


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(16_384))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4_096 * 4_096)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(os.urandom(path.stat().st_size - 4_096))


@pytest.mark.parametrize("damage", [garbage, truncated, overwritten])
def test_relay_with_a_damaged_store_refuses_to_start_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The store is the only copy of what nodes have deleted by now: a person decides what happens to it."""
    create_mesh(tmp_path / "authority", "demo")
    issue(tmp_path / "authority", Role.RELAY, "relay-1", tmp_path)
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "store.sqlite"
    relay = RelayInProcess(path)
    for first in range(1, 400, 100):
        relay.send(batch(*range(first, first + 100)))
    relay.store.close()
    damage(path)
    content = path.read_bytes()
    config = tmp_path / "relay.toml"
    config.write_text(f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[store]\npath = "{path}"\n')
    ran = subprocess.run(
        [sys.executable, "-m", "cloud_relay", "run", "--config", str(config)],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert str(path) in ran.stderr
    assert "restore a copy" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir() if "damaged" in file.name] == []
