"""What a node or a relay keeps is for its owner alone: another user of the computer reads no record and no position."""

import os
import signal
import stat
from contextlib import closing
from pathlib import Path

import pytest

import meshnode
from cloud_relay.store.sqlite import Store
from meshnode.identity.private_files import write_private
from meshnode.identity.state import StateFolder
from protocols.base.errors import StorageError
from tests.tools.mesh_fixture import House
from tests.tools.relay_fixture import RelayProcess


def modes(folder: Path) -> dict[str, int]:
    """The mode of a folder (``.``) and of all files in it, without sockets."""
    found = {".": stat.S_IMODE(folder.stat().st_mode)}
    for path in folder.rglob("*"):
        if not stat.S_ISSOCK(path.stat().st_mode):
            found[str(path.relative_to(folder))] = stat.S_IMODE(path.stat().st_mode)
    return found


def widen(folder: Path) -> None:
    """Give a state folder the modes that programs gave it before."""
    for path in folder.rglob("*"):
        path.chmod(0o644)
    folder.chmod(0o755)


async def test_node_keeps_its_state_for_its_owner_alone(tmp_path: Path) -> None:
    """New folders and files, and those that an older version left behind."""
    house = House(tmp_path)
    path = house.file("veh-1", "[discovery]\nmdns = false\n[[curation]]\nname = 'all'\nkeys = '**'\n")
    for _ in range(2):
        async with meshnode.open(path) as node:
            node.publish("veh/veh-1/x", 1)
            folder = node.config.node.state_dir
            before = modes(folder)
        after = modes(folder)
        for found in (before, after):
            assert found.pop(".") == 0o700
            assert {"lock", "incarnation", "outbox.sqlite"} <= set(found)
            assert set(found.values()) == {0o600}, found
        widen(folder)


async def test_group_may_reach_the_local_socket_and_read_nothing(tmp_path: Path) -> None:
    """[local] mode = "0660" promises that the group may connect, wherever the socket is."""
    house = House(tmp_path)
    async with meshnode.open(house.file("veh-1", "[discovery]\nmdns = false\n[local]\nmode = '0660'\n")) as node:
        found = modes(node.config.node.state_dir)
        assert found.pop(".") == 0o710
        assert set(found.values()) == {0o600}


@pytest.mark.processes
def test_relay_process_keeps_its_state_for_its_owner_alone(tmp_path: Path) -> None:
    """The store has the positions of every vehicle."""
    state = tmp_path / "state"
    relay = RelayProcess(tmp_path)
    for _ in range(2):
        with relay:
            while_running = modes(state)
            assert while_running.pop(".") == 0o700
            assert "relay.sqlite-wal" in while_running
            assert set(while_running.values()) == {0o600}
            relay.process.send_signal(signal.SIGTERM)
            assert relay.process.wait(60) == 0
        widen(state)


def test_store_elsewhere_narrows_its_file_and_not_the_folder(tmp_path: Path) -> None:
    """The folder of [store] path may hold files of others, who must get to them."""
    (tmp_path / "shared").mkdir(mode=0o755)
    with closing(Store(tmp_path / "shared" / "relay.sqlite")):
        found = modes(tmp_path / "shared")
    assert found.pop(".") == 0o755
    assert set(found.values()) == {0o600}


def test_write_private_replaces_a_file_that_all_could_read(tmp_path: Path) -> None:
    """Neither the old mode nor that of a file left by a crash may survive."""
    for name in ("file", "file.new"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(0o644)
    write_private(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert modes(tmp_path) == {".": stat.S_IMODE(tmp_path.stat().st_mode), "file": 0o600}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A wrong owner is the most frequent mistake under systemd."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="state"):
            StateFolder(tmp_path / "state")
    finally:
        tmp_path.chmod(0o700)
