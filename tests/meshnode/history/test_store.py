"""The history on disk: bounds hold, and kills, damage, foreign files and full disks cost readings, not the node."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meshnode.history.keeping import HistoryKeeper
from meshnode.history.offline import stored_history
from meshnode.history.query import sought
from meshnode.history.segment import KeptReading
from meshnode.history.store import HistoryStore
from meshnode.troubles import Troubles
from protocols.base.errors import StorageError
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND
from protocols.wire.parcels import encode_alone, encode_reading
from protocols.wire.readings import EventTime, Reading
from tests.tools.eventually import eventually
from tests.tools.node_fixture import environment
from tests.tools.strategies import reading

MIB = 1024 * 1024
NOW = UtcNs(time.time_ns())


def kept(number: int, size: int = 10, key: str = "veh/a/x") -> KeptReading:
    one = reading(key, value=bytes([number % 256]) * size, sequence=number, when=EventTime(NOW + number, 0))
    return KeptReading(key, "a", (NOW + number, 48.0, 11.0), encode_reading(one))


@pytest.fixture(name="memory")
def given_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder on a fast disk, if there is one, for much that need not survive."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def opened(folder: Path, *, keep_ns: int = 3_600 * SECOND, max_bytes: int = 16 * MIB, now: int = NOW) -> HistoryStore:
    store = HistoryStore(folder / "history", max_bytes, keep_ns)
    store.open(now)
    return store


def sequences(store: HistoryStore, *, limit: int = 1_000, oldest: bool = True) -> list[int]:
    """The sequences of one page, and of all that follow it."""
    found: list[int] = []
    cursor = None
    while True:
        page = store.find(sought(limit=limit, newest_first=not oldest, cursor=cursor, now=NOW))
        found += [one.sequence for one in page.decoded.readings]
        cursor = page.cursor
        if cursor is None:
            return found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings are written soon after they came."""
    monkeypatch.setattr("meshnode.history.keeping.GATHER_S", 0.05)


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "history").iterdir())


# --- bounds ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "count", "group"), [(100, 66_000, 6_000), (250_000, 90, 7)])
def test_files_under_a_flood_stay_within_their_bytes_and_the_newest_readings_are_there(
    memory: Path, size: int, count: int, group: int
) -> None:
    """The disk of a vehicle is shared; what is measured is what its files take, at every moment between two groups."""
    store, most, rows = opened(memory), 0, 0
    for first in range(0, count, group):
        store.append([kept(number, size) for number in range(first, first + group)], NOW)
        most = max(most, on_disk(memory))
        rows = max(rows, store.rows)
    assert most <= 16 * MIB
    assert on_disk(memory) > 12 * MIB, "the space is used"
    assert store.rows < rows or store.rows < count, "some have gone"
    there = store.find(sought(limit=20, now=NOW)).decoded.readings
    last = (count + group - 1) // group * group - 1
    assert [one.sequence for one in there] == list(range(last, last - 20, -1))[: len(there)]
    store.close()


def test_readings_older_than_they_may_be_go_also_when_nothing_comes_and_the_clock_is_set_back(memory: Path) -> None:
    """Who reads that readings go after a minute must be able to rely on it."""
    store = opened(memory, keep_ns=160 * SECOND)
    for second in range(0, 320, 4):
        store.append([kept(second)], NOW + second * SECOND)
        store.tidy(NOW + second * SECOND)
    left = sequences(store)
    assert left[-1] == 316
    assert 316 - 160 <= left[0] <= 316 - 150 + 4
    store.tidy(NOW)  # set back by five minutes: what is there counts from now on
    assert sequences(store) == left
    store.tidy(NOW + 161 * SECOND)
    assert sequences(store) == []
    assert store.rows == 0
    store.close()
    store = opened(memory, now=NOW + 400 * SECOND)
    store.append([kept(7)], NOW + 400 * SECOND)
    assert sequences(store) == [7]
    store.close()


@pytest.mark.usefixtures("hasty")
def test_history_of_a_computer_that_starts_in_1970_outlasts_the_setting_of_its_clock(tmp_path: Path) -> None:
    """Many have no clock that runs on without power: all that was kept was removed at each start."""
    store = opened(tmp_path)
    store.append([kept(1)], NOW)
    store.close()
    clock = [1_000 * SECOND]
    store = HistoryStore(tmp_path / "history", 16 * MIB, 3_600 * SECOND)
    keeper = HistoryKeeper(store, ["**"], 0, Troubles(), _ignore, clock=lambda: clock[0])
    keeper.start()
    keeper.consider(reading(sequence=2, when=EventTime(NOW + 2, 0)))
    eventually(lambda: keeper.statistics()["history_stored"] == 1, "it is stored in 1970")
    clock[0] = NOW + 60 * SECOND
    keeper.consider(reading(sequence=3, when=EventTime(NOW + 3, 0)))
    eventually(lambda: keeper.statistics()["history_stored"] == 2, "it is stored after the clock was set")
    assert sequences(store) == [1, 2, 3]
    keeper.close()
    store = opened(tmp_path, now=NOW + 120 * SECOND)
    assert sequences(store) == [1, 2, 3]
    store.tidy(NOW + 3_700 * SECOND)
    assert sequences(store) == [], "and no reading is kept for longer than before"
    store.close()


@pytest.mark.parametrize("step_s", [-7_200, 86_400])
def test_readings_are_as_old_as_they_were_when_the_clock_is_set(tmp_path: Path, step_s: int) -> None:
    """An hour is an hour, whatever somebody does to the clock."""
    store = opened(tmp_path)
    store.append([kept(1)], NOW)
    store.clock_was_set(step_s * SECOND)
    for _ in range(2):  # the next life finds it as old
        store.tidy(NOW + (step_s + 3_500) * SECOND)
        assert sequences(store) == [1]
        store.close()
        store = opened(tmp_path, now=NOW + (step_s + 3_500) * SECOND)
    store.tidy(NOW + (step_s + 3_601) * SECOND)
    assert sequences(store) == []
    store.close()


def test_history_that_is_opened_again_goes_on_and_no_other_process_may_use_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append([kept(1)], NOW)
    with pytest.raises(StorageError, match="in use by another process"):
        opened(tmp_path)
    with pytest.raises(StorageError, match="in use by another process"), stored_history(tmp_path / "history"):
        pass
    store.close()
    store = opened(tmp_path)
    store.append([kept(2)], NOW)
    store.close()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "history").iterdir()}
    with stored_history(tmp_path / "history") as looked:
        assert sequences(looked) == [1, 2]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "history").iterdir()} == before
    assert {oct(path.stat().st_mode)[-3:] for path in (tmp_path / "history").iterdir()} == {"600"}
    with pytest.raises(StorageError, match="there is no history"), stored_history(tmp_path / "nowhere"):
        pass


# --- damage ----------------------------------------------------------------------------------------------------------
def test_segment_whose_sealing_was_cut_short_gets_no_more_readings(tmp_path: Path) -> None:
    """Its summaries are written already, so what was appended after a kill was not found by later lives."""
    store = opened(tmp_path)
    store.append([kept(0)], NOW)
    (segment,) = (tmp_path / "history").glob("*.sqlite")
    with closing(sqlite3.connect(segment)) as somebody:
        somebody.execute("BEGIN")
        somebody.execute("SELECT count(*) FROM heads").fetchone()
        store.tidy(NOW + 300 * SECOND)  # it is sealed, but its log, which somebody reads, can't be removed
        shutil.copytree(tmp_path, tmp_path / "killed")
    store.close()
    store = opened(tmp_path / "killed")
    store.append([kept(1, key="veh/a/new"), kept(2)], NOW)
    store.close()
    store = opened(tmp_path / "killed")
    assert sequences(store) == [0, 1, 2]
    for asked in (sought("veh/a/new", now=NOW), sought("veh/a/x", since=NOW + 1, now=NOW)):
        assert len(store.find(asked).readings) == 1


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8_192))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4_096 * 4_096)


def no_streams(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript("DELETE FROM streams")


@pytest.mark.parametrize("damage", [garbage, truncated, no_streams])
def test_damaged_segment_is_moved_aside_and_the_others_answer(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A bad sector must not cost the hours that lie elsewhere."""
    store = opened(tmp_path, keep_ns=16 * SECOND)
    for number in range(3):
        store.append([kept(100 * number + more, 50) for more in range(100)], NOW + number * SECOND)
    store.close()
    first, second, third = sorted((tmp_path / "history").glob("*.sqlite"))
    damage(second)
    store = opened(tmp_path, keep_ns=16 * SECOND)
    asked = [number for number in sequences(store) if not 100 <= number < 200]
    assert asked == [*range(100), *range(200, 300)]
    assert len(store.damaged) == 1
    ((path, _),) = store.damaged
    assert path.exists()
    assert path.name.startswith(f"{second.name}.damaged-")
    assert sequences(store) == asked
    store.append([kept(300)], NOW + 3 * SECOND)
    assert sequences(store) == [*asked, 300]
    store.close()
    assert first.exists()
    assert third.exists()


def test_foreign_and_unfinished_files_are_left_alone_or_begun_anew(tmp_path: Path) -> None:
    """Somebody else's database is not ours to move."""
    store = opened(tmp_path)
    store.append([kept(1)], NOW)
    store.close()
    foreign = tmp_path / "history" / "00000007.sqlite"
    with closing(sqlite3.connect(foreign)) as database:
        database.executescript("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
    content = foreign.read_bytes()
    (tmp_path / "history" / "00000008.sqlite").touch()  # killed while it was made
    troubles = Troubles()
    keeper = HistoryKeeper(HistoryStore(tmp_path / "history", 16 * MIB, 3_600 * SECOND), ["**"], 0, troubles, _ignore)
    keeper.start()
    assert "another program's" in troubles.current()[0].why
    assert keeper.store.rows == 1
    keeper.close()
    assert foreign.read_bytes() == content
    assert not (tmp_path / "history" / "00000008.sqlite").exists()


def _ignore(key: str, reason: str) -> None:
    pass


# --- kills and full disks --------------------------------------------------------------------------------------------
_WRITER = """
import resource, signal, sys, time
from pathlib import Path
from meshnode.history import keeping
from meshnode.history.keeping import HistoryKeeper
from meshnode.history.store import HistoryStore
from meshnode.troubles import Troubles
from protocols.base.limits import SECOND
from tests.tools.strategies import reading

keeping.GATHER_S = 0.05
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = HistoryStore(Path(sys.argv[1]), 16 << 20, 3_600 * SECOND)
drops, troubles = [], Troubles()
keeper = HistoryKeeper(store, ["**"], 0, troubles, lambda key, reason: drops.append(reason))
keeper.start()
"""
_FLOOD = (
    _WRITER
    + """
number = 0
while True:
    for _ in range(50):
        number += 1
        keeper.consider(reading(f"veh/a/{number % 7}", value="x" * 2_000, sequence=number))
    if keeper.statistics()["history_stored"]:
        print(number, flush=True)
    time.sleep(0.002)
"""
)


@pytest.mark.processes
def test_node_killed_while_it_writes_finds_whole_rows_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL comes in the middle of a transaction, of sealing, of removing."""
    folder, last = tmp_path / "history", 0
    for kill in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", _FLOOD, str(folder)], env=environment(), stdout=subprocess.PIPE, text=True
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.17 * kill)  # where it is hit differs
            process.send_signal(signal.SIGKILL)
        with stored_history(folder) as store:
            assert not store.foreign, store.foreign
            pages = sequences(store)
            assert len(pages) == store.rows > last
            last = min(store.rows, 2_000)
    store = opened(tmp_path)
    store.append([kept(1)], NOW)
    assert not store.damaged, "what was begun and never finished is no damage"
    store.close()
    for path in folder.glob("*.sqlite"):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            heads = database.execute("SELECT number FROM heads ORDER BY number").fetchall()
            assert heads == database.execute("SELECT number FROM bodies ORDER BY number").fetchall()


_FILLED = (
    _WRITER
    + """
import json
def waited(condition):
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s, (keeper.statistics(), troubles.current())
        time.sleep(0.01)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
keeper.consider(reading(sequence=1, value="first"))
waited(lambda: keeper.statistics()["history_stored"] == 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
for number in range(2, 12):
    keeper.consider(reading(sequence=number, value="x" * 60_000))
waited(lambda: troubles.current())
why = troubles.current()[0].why
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
keeper.consider(reading(sequence=100, value="last"))
waited(lambda: not troubles.current())
keeper.close()
print(json.dumps({"why": why, "drops": drops, "statistics": dict(keeper.statistics())}))
"""
)


@pytest.mark.processes
def test_disk_that_is_full_is_a_trouble_until_it_has_room_again(tmp_path: Path) -> None:
    """The kernel says no in the middle of a transaction; what was there before can be asked for."""
    folder = tmp_path / "history"
    done = subprocess.run(
        [sys.executable, "-c", _FILLED, str(folder)],
        env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "free space on that disk" in told["why"]
    assert told["drops"] == ["history_failed"] * told["statistics"]["history_failed"]
    assert told["drops"]
    with stored_history(folder) as store:
        left = sequences(store)
    assert left[0] == 1
    assert left[-1] == 100
    assert len(left) + len(told["drops"]) == 12


# --- on its way to the disk ------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("hasty")
def test_readings_that_the_disk_is_too_slow_for_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that is not kept must not be gone silently, and must not hold up who published it."""
    monkeypatch.setattr("meshnode.history.keeping.MAX_WAITING", 100)
    drops: list[tuple[str, str]] = []
    store = HistoryStore(tmp_path / "history", 16 * MIB, 3_600 * SECOND)
    keeper = HistoryKeeper(store, ["veh/**"], 0, Troubles(), lambda key, reason: drops.append((key, reason)))
    for number in range(150):  # before its thread runs
        keeper.consider(reading(sequence=number))
        keeper.consider(reading("rsu/b/x", sequence=number))
    assert drops == [("veh/a/x", "history_behind")] * 50
    keeper.start()
    eventually(lambda: keeper.statistics()["history_stored"] == 100, "those that had room are stored")
    too_large = reading(value=b"x" * (store.max_reading_bytes + 1))
    keeper.consider(too_large, encode_alone(too_large))
    keeper.consider(reading(value=[object()]))
    eventually(lambda: keeper.statistics()["history_too_large"] == 2, "those that can't be kept are counted")
    keeper.close()
    assert drops[50:] == [("veh/a/x", "history_too_large")] * 2
    shutil.rmtree(tmp_path / "history")


@pytest.mark.usefixtures("hasty")
def test_neighbour_that_floods_the_way_to_the_disk_loses_its_own_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a disk was slow, what one neighbour sent in a second kept everything else out of the history."""
    monkeypatch.setattr("meshnode.history.keeping.MAX_WAITING", 100)
    drops: Counter[str] = Counter()
    store = HistoryStore(tmp_path / "history", 16 * MIB, 3_600 * SECOND)
    keeper = HistoryKeeper(store, ["**"], 0, Troubles(), lambda key, reason: drops.update([key]))
    for number in range(200):  # before its thread runs
        keeper.consider(reading("veh/rogue/x", "rogue", number))
        if number >= 180:
            keeper.consider(reading("veh/b/x", "b", number))
    assert drops == {"veh/rogue/x": 120}
    keeper.start()
    eventually(lambda: keeper.statistics()["history_stored"] == 100, "all that waited are stored")
    kept_sequences = [one.sequence for one in store.find(sought(origin="rogue", now=NOW)).decoded.readings]
    keeper.close()
    assert sorted(kept_sequences) == list(range(120, 200)), "the newest"


@pytest.mark.usefixtures("hasty")
def test_readings_come_at_most_as_often_as_is_wanted_for_each_key_of_each_origin(tmp_path: Path) -> None:
    """The rest of a fast stream is left out on purpose, so it is no drop."""
    store = HistoryStore(tmp_path / "history", 16 * MIB, 3_600 * SECOND)
    keeper = HistoryKeeper(store, ["**"], 3_600 * SECOND, Troubles(), _ignore)
    keeper.start()
    value = [1, 2]
    for number in range(5):
        for origin, key in (("a", "x/y"), ("b", "x/y"), ("a", "x/z")):
            keeper.consider(reading(key, origin, number, value))
    value.append(3)  # the application goes on with it
    eventually(lambda: keeper.statistics()["history_stored"] == 3, "one of each is stored")
    found: list[Reading] = list(store.find(sought(now=NOW)).decoded.readings)
    keeper.close()
    assert sorted((one.origin, one.key, one.sequence, tuple(one.value)) for one in found) == [
        ("a", "x/y", 0, (1, 2)), ("a", "x/z", 0, (1, 2)), ("b", "x/y", 0, (1, 2)),
    ]  # fmt: skip
