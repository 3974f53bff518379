"""An outbox that is damaged, in use or of another program costs records, never the node; a new one takes its place."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from demo.processes import free_port
from meshnode.links.transport import Requester
from meshnode.records.keeping import MAX_KEPT, OutboxKeeper
from meshnode.records.outbox import Outbox
from meshnode.records.outbox_file import OutboxFile
from meshnode.records.uplink import UplinkDriver
from meshnode.troubles import Troubles
from protocols.base.errors import TransportError
from protocols.base.ids import Incarnation, NodeId
from protocols.records.curated import Curated
from protocols.wire.parcels import encode_reading
from tests.tools.eventually import eventually, until
from tests.tools.node_fixture import RunningNode, meshnode, prepare
from tests.tools.relay_fixture import RelayInProcess, given_relay, reading

__all__ = ["given_relay"]
TABLES = '[[curation]]\nname = "all"\nkeys = "rsu/**"\n'


def curated(number: int, size: int = 10) -> Curated:
    return Curated("r", encode_reading(reading(number, value={"number": number, "more": "x" * size})))


class Way:
    """The way to a relay in this process, which can be closed."""

    def __init__(self, relay: RelayInProcess) -> None:
        self.relay, self.open = relay, True

    def connect(self) -> Requester:
        way = self

        class Direct:
            def request(self, frame: bytes, timeout_s: float) -> bytes:
                if not way.open:
                    raise TransportError("the relay is away")
                from protocols.wire.codec import encode_frame

                return encode_frame(way.relay.send(frame))

            def close(self) -> None:
                pass

        return Direct()  # type: ignore[return-value]

    def uplink(self, outbox: Outbox) -> UplinkDriver:
        return UplinkDriver(outbox, self.connect, NodeId("v-1"), Incarnation(1), Random(1))


def keeper_of(folder: Path, troubles: Troubles, way: Way | None = None) -> OutboxKeeper:
    return OutboxKeeper(folder / "outbox.sqlite", 100_000, 2**28, None if way is None else way.uplink, troubles)


def aside(folder: Path) -> list[str]:
    """The names of damaged outboxes."""
    return sorted(path.name for path in folder.glob("outbox.sqlite.damaged-*") if not path.name.endswith("-wal"))


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8_192))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4_096 * 4_096)


def lost_rows(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DELETE FROM records")


@pytest.mark.parametrize("damage", [garbage, truncated, lost_rows])
async def test_outbox_damaged_between_two_lives_is_moved_aside_and_the_relay_takes_the_new_one(
    relay: RelayInProcess, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Nothing that was acknowledged is lost, no record comes twice, and the file stays for a person to look into."""
    way, troubles = Way(relay), Troubles()
    keeper = keeper_of(tmp_path, troubles, way)
    await keeper.open()
    assert keeper.outbox is not None
    await keeper.outbox.put(*(curated(number) for number in range(1, 6)))
    await until(lambda: keeper.outbox is not None and keeper.outbox.pending == 0, "the relay has them")
    way.open = False
    await keeper.outbox.put(*(curated(number, 3_000) for number in range(6, 11)))
    await keeper.close(0)
    damage(keeper.path)
    content = keeper.path.read_bytes()
    way.open = True
    again = keeper_of(tmp_path, troubles, way)
    await again.open()
    assert again.outbox is not None
    await again.outbox.put(*(curated(number) for number in range(11, 16)))
    await until(lambda: again.outbox is not None and again.outbox.pending == 0, "the relay takes the new ones")
    (name,) = aside(tmp_path)
    assert (tmp_path / name).read_bytes() == content
    (trouble,) = troubles.current()
    assert (trouble.part, trouble.name, trouble.essential) == ("outbox", name, False)
    assert str(tmp_path / name) in trouble.why
    assert again.statistics()["outbox_damaged"] == 1
    (tmp_path / name).unlink()
    await until(lambda: troubles.current() == [], "the trouble ends with the file")
    await again.close(0)
    numbers = [record["value"]["number"] for record in relay.records()]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]
    assert relay.account().adds_up


async def test_outbox_found_damaged_while_it_is_read_is_replaced_without_a_restart(
    relay: RelayInProcess, tmp_path: Path
) -> None:
    """A bad sector shows only when what was on it is needed; the node must not try to read it for ever."""
    way, troubles = Way(relay), Troubles()
    keeper = keeper_of(tmp_path, troubles, way)
    await keeper.open()
    outbox = keeper.outbox
    assert outbox is not None
    await outbox.put(*(curated(number) for number in range(1, 6)))
    await until(lambda: outbox.pending == 0, "the first are delivered")
    way.open = False
    for group in range(20):
        await outbox.put(*(curated(10 + 400 * group + number, 1_000) for number in range(400)))
    size = keeper.path.stat().st_size
    assert size > 4_000_000, "most of it has left the log"
    with keeper.path.open("r+b") as file:
        file.seek(size // 4 // 4_096 * 4_096)
        file.write(os.urandom(size // 2))
    way.open = True
    await until(lambda: keeper.damaged == 1 and keeper.outbox not in (None, outbox), "a new one is in use")
    counted = keeper.statistics()
    assert counted["outbox_left_behind"] > 0
    assert counted["outbox_issued"] == sum(
        counted[f"outbox_{fate}"] for fate in ("pending", "delivered", "expired", "evicted", "refused", "left_behind")
    ), counted
    usable = await keeper.usable()
    assert usable is not None
    await usable.put(*(curated(number) for number in range(9_001, 9_006)))
    await until(lambda: usable.pending == 0, lambda: f"the relay takes the new ones: {keeper.statistics()}")
    assert len(aside(tmp_path)) == 1
    assert (tmp_path / f"{aside(tmp_path)[0]}-wal").exists(), "the log may have what the database has lost"
    delivered = keeper.statistics()["outbox_delivered"]
    await keeper.close(0)
    numbers = [record["value"]["number"] for record in relay.records(limit=100_000)]
    assert len(set(numbers)) == len(numbers), "no record comes twice"
    assert len(numbers) >= delivered, "what is counted as delivered is at the relay"
    assert {1, 5, 9_001, 9_005} <= set(numbers)
    account = relay.account()
    assert (account.missing, account.conflicts) == (counted["outbox_left_behind"], 0), "the audit names what is gone"


async def test_damaged_outboxes_are_bounded_and_the_oldest_goes_aloud(tmp_path: Path) -> None:
    """A disk that damages file after file must not be filled by them, and none may vanish without a word."""
    for number in range(MAX_KEPT):
        old = tmp_path / f"outbox.sqlite.damaged-2026010{number + 1}T000000Z"
        old.write_text(str(number))
        os.utime(old, (number, number))
    garbage(tmp_path / "outbox.sqlite")
    troubles = Troubles()
    keeper = keeper_of(tmp_path, troubles)
    await keeper.open()
    await keeper.close(0)
    assert len(aside(tmp_path)) == MAX_KEPT
    assert "outbox.sqlite.damaged-20260101T000000Z" not in aside(tmp_path)
    (trouble,) = troubles.current()
    assert "outbox.sqlite.damaged-20260101T000000Z, the oldest" in trouble.why
    assert keeper.statistics()["outbox_damaged_removed"] == 1


def in_use(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


def of_another_program(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (text)")
    content = path.read_bytes()
    yield
    assert path.read_bytes() == content, "it is not ours"
    path.unlink()


def of_a_newer_program(path: Path) -> Iterator[None]:
    async def make() -> None:
        async with Outbox.open(path, 10, 1_000):
            pass

    asyncio.run(make())
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    yield
    path.unlink()


def a_folder(path: Path) -> Iterator[None]:
    path.mkdir()
    yield
    path.rmdir()


def counters(node: RunningNode) -> dict[str, Any]:
    statistics: dict[str, Any] = node.get("/v1/node")["statistics"]
    return statistics


@pytest.mark.processes
@pytest.mark.parametrize(
    ("case", "says"),
    [
        (in_use, "another process uses it"),
        (of_another_program, "another program's database"),
        (of_a_newer_program, "has version 9"),
        (a_folder, "check that the folder is writable"),
    ],
)
def test_node_whose_outbox_is_not_to_be_had_runs_without_and_takes_it_up_later(
    tmp_path: Path, case: Callable[[Path], Iterator[None]], says: str
) -> None:
    """Sharing goes on, what can't be kept is counted, and nothing that may be somebody's is moved."""
    config = prepare(tmp_path, "rsu-1", "rsu", f"{TABLES}[http]\nport = {free_port()}\n")
    path = config.parent / "state" / "outbox.sqlite"
    path.parent.mkdir()
    steps = case(path)
    next(steps)
    found = [line for line in meshnode("doctor", config).stdout.splitlines() if line.split()[1] == "outbox"]
    assert [line.split()[0] for line in found] == ["fail"], found
    with RunningNode(config) as node:
        (trouble,) = node.get("/readyz")["troubles"]
        assert (trouble["part"], trouble["name"]) == ("outbox", "")
        assert says in trouble["why"]
        assert node.post("/v1/readings", {"key": "rsu/rsu-1/x", "value": 1})[0] == 200
        eventually(lambda: counters(node)["outbox_not_stored"] == 1, "it is counted")
        assert [(drop["reason"], drop["count"]) for drop in node.get("/v1/drops")] == [("no_outbox", 1)]
        assert any(
            line.startswith("fail") for line in meshnode("doctor", config).stdout.splitlines() if "outbox" in line
        )
        next(steps, None)
        eventually(lambda: node.get("/readyz")["troubles"] == [], "it is taken up")
        assert node.post("/v1/readings", {"key": "rsu/rsu-1/x", "value": 2})[0] == 200
        eventually(lambda: counters(node)["outbox_pending"] == 1, "and keeps records")


def test_looking_at_an_outbox_leaves_no_file_beside_it(tmp_path: Path) -> None:
    """The doctor may run as root. SQLite's files beside the outbox were then root's, and the node could not use its own
    outbox any more."""
    ended, killed = tmp_path / "ended", tmp_path / "killed"
    killed.mkdir()

    async def put() -> None:
        async with Outbox.open(ended / "outbox.sqlite", 10, 2**20) as outbox:
            await outbox.put(curated(1))
            for file in ended.glob("outbox.sqlite*"):  # as a node leaves them that is killed now
                shutil.copy(file, killed)

    asyncio.run(put())
    assert (killed / "outbox.sqlite-wal").stat().st_size > 0
    for folder in (ended, killed):
        before = {file: file.read_bytes() for file in folder.iterdir()}
        OutboxFile(folder / "outbox.sqlite").check()
        assert {file: file.read_bytes() for file in folder.iterdir()} == before


async def test_ledger_of_a_closed_outbox_counts_what_waits_in_it(tmp_path: Path) -> None:
    """A program reads the counters after its node has closed: what waits for the next life is not lost."""
    keeper = keeper_of(tmp_path, Troubles())
    await keeper.open()
    assert keeper.outbox is not None
    await keeper.outbox.put(curated(1), curated(2))
    await keeper.close(0.0)
    counters = keeper.statistics()
    assert (counters["outbox_issued"], counters["outbox_pending"], counters["outbox_delivered"]) == (2, 2, 0)
