"""The outbox: what was put survives kills, full disks and lost files, or the caller is told."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from meshnode.records import outbox as outbox_module
from meshnode.records.outbox import MAX_GROUP_RECORDS, Outbox
from protocols.base.errors import BoundExceeded, StorageError
from protocols.base.limits import MAX_BATCH_RECORDS, SECOND
from protocols.records.curated import Curated
from protocols.records.ledger import BatchPlan
from protocols.wire.records import Acknowledgement, Fate, Record, RefusedRecord

YEAR_S = 365 * 86_400
_PUTTER = """
import asyncio, sys
from pathlib import Path
from meshnode.records.outbox import Outbox
from protocols.records.curated import Curated

async def main():
    async with Outbox.open(Path(sys.argv[1]), 1_000_000, 2**30) as outbox:
        async def put_all(worker):
            while True:
                for sequence in await outbox.put(*[Curated("r", b"%d" % worker + b"x" * 300)] * 3):
                    print(sequence, flush=True)
        await asyncio.gather(*(put_all(worker) for worker in range(8)))

asyncio.run(main())
"""


def open_outbox(folder: Path, **options: int) -> Outbox:
    return Outbox.open(folder / "outbox.sqlite", **({"max_records": 1000, "max_bytes": 2**24} | options))  # type: ignore[arg-type]


async def next_batch(outbox: Outbox, most: int = MAX_BATCH_RECORDS) -> tuple[BatchPlan, tuple[Record, ...]] | None:
    """What an uplink would send, and has to settle."""
    async with outbox.exclusive():
        plan = outbox.ledger.next_batch(outbox.utc_now(), most)
        return None if plan is None else (plan, await outbox.read(plan.sequences))


async def acknowledge(outbox: Outbox, plan: BatchPlan, answer: Acknowledgement) -> int:
    """As an uplink does it; a disk that is full takes the account later."""
    async with outbox.exclusive():
        ended = outbox.ledger.acknowledged(plan, answer)
        with suppress(StorageError):
            await outbox.save()
        return ended


async def drain(outbox: Outbox) -> list[int]:
    """Acknowledge everything; what a relay would have got, in order."""
    sequences: list[int] = []
    while (batch := await next_batch(outbox)) is not None:
        sequences += batch[0].sequences
        await acknowledge(outbox, batch[0], Acknowledgement(batch[0].sequences))
    return sequences


@pytest.mark.processes
def test_put_acknowledged_records_survive_sigkill(tmp_path: Path) -> None:
    """A record counts from the moment put returned: a crash after that must not take it."""
    path = tmp_path / "outbox.sqlite"
    highest = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", _PUTTER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            printed = [int(process.stdout.readline()) for _ in range(200)]
            process.send_signal(signal.SIGKILL)
            # the last line may be cut: the process died while printing it
            printed += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.wait()
        assert min(printed) > highest, "no sequence is given twice"
        highest = max(printed)

        async def check(printed: list[int] = printed) -> int:
            async with Outbox.open(path, 1_000_000, 2**30) as outbox:
                statistics = outbox.statistics()
                kept = await drain(outbox)
                assert set(printed) <= set(kept)
                assert statistics["issued"] == statistics["pending"] + statistics["delivered"]
                return max(kept)

        highest = asyncio.run(check())


async def test_put_many_at_once_share_transactions_and_keep_their_order(tmp_path: Path) -> None:
    """One flush to disk for each record would limit a node to a few hundred a second."""
    async with open_outbox(tmp_path, max_records=5000) as outbox:
        results = await asyncio.gather(*(outbox.put(Curated("r", b"%d" % n), Curated("s", b"")) for n in range(600)))
        assert [s for pair in results for s in pair] == list(range(1, 1201))
        batch = await next_batch(outbox)
        assert batch is not None
        _, records = batch
        assert len(records) == MAX_BATCH_RECORDS
        assert [bytes(record.reading) for record in records[:4]] == [b"0", b"", b"1", b""]
        assert [record.rule for record in records[:2]] == ["r", "s"]


async def test_outbox_reopened_keeps_account_and_fates(tmp_path: Path) -> None:
    """A restart must neither forget that records were lost nor count them twice."""
    now = 10 * SECOND
    path = tmp_path / "outbox.sqlite"
    async with Outbox.open(path, 4, 2**20, clock=lambda: now, steady=lambda: now) as outbox:
        await outbox.put(Curated("r", b"1", lifespan_ms=1000), Curated("r", b"2"), Curated("r", b"3", priority=0))
        now += 5 * SECOND
        async with outbox.exclusive():
            assert outbox.ledger.expire(outbox.utc_now()) == 1
            await outbox.save()
        await outbox.put(Curated("r", b"4"), Curated("r", b"5"), Curated("r", b"6"))
        batch = await next_batch(outbox, 2)
        assert batch is not None
        assert batch[0].sequences == (2, 4)
        assert batch[0].fates == (Fate(1, 1, "expired"), Fate(3, 3, "evicted"))
        await acknowledge(outbox, batch[0], Acknowledgement((2,), (RefusedRecord(4, "no"),)))
        before = outbox.statistics()
    async with Outbox.open(path, 4, 2**20, clock=lambda: now, steady=lambda: now) as outbox:
        assert outbox.statistics() == before
        assert (before["pending"], before["delivered"], before["expired"], before["evicted"], before["refused"]) == (
            2, 1, 1, 1, 1,
        )  # fmt: skip
        batch = await next_batch(outbox)
        assert batch is not None
        assert (batch[0].sequences, batch[0].fates) == ((5, 6), (Fate(4, 4, "refused"),))


class Clocks:
    """Both clocks of a computer, told by a test."""

    def __init__(self, utc_s: float) -> None:
        self.utc_ns, self.steady_ns = int(utc_s * SECOND), 17

    def pass_s(self, seconds: float, set_s: float = 0) -> None:
        """Time passes, and in the end the clock is set."""
        self.utc_ns += int((seconds + set_s) * SECOND)
        self.steady_ns += int(seconds * SECOND)

    def open(self, folder: Path) -> Outbox:
        return Outbox.open(
            folder / "outbox.sqlite", 100, 2**20, clock=lambda: self.utc_ns, steady=lambda: self.steady_ns
        )


async def pending(outbox: Outbox) -> int:
    """How many records wait after a look for expired ones."""
    await outbox.follow_clock()
    async with outbox.exclusive():
        outbox.ledger.expire(outbox.utc_now())
        return outbox.pending


@pytest.mark.parametrize("step_s", [56 * YEAR_S, 3_600, 2, -2, -3_600, -9 * YEAR_S])
async def test_records_age_by_the_time_that_passes_when_the_clock_is_set(tmp_path: Path, step_s: int) -> None:
    """They expired at once when a board got the time, and waited for years when a clock that was ahead was set back."""
    clocks = Clocks(10 * YEAR_S)
    async with clocks.open(tmp_path) as outbox:
        await outbox.put(Curated("r", b"before", lifespan_ms=60_000), Curated("r", b"for ever"))
        clocks.pass_s(30, step_s)
        assert await pending(outbox) == 2
        await outbox.put(Curated("r", b"after", lifespan_ms=60_000))
        clocks.pass_s(29)
        assert await pending(outbox) == 3
        clocks.pass_s(2)
        assert await pending(outbox) == 2
        clocks.pass_s(30)
        assert await pending(outbox) == 1


async def test_clock_that_is_set_to_the_end_of_all_times_ends_no_record(tmp_path: Path) -> None:
    """Storage holds instants up to 2262."""
    clocks = Clocks(56 * YEAR_S)
    async with clocks.open(tmp_path) as outbox:
        await outbox.put(Curated("r", b"x", lifespan_ms=3_600_000))
        clocks.pass_s(1, 250 * YEAR_S)
        assert await pending(outbox) == 1
        await outbox.put(Curated("r", b"y", lifespan_ms=3_600_000))
        clocks.pass_s(1, -250 * YEAR_S)
        await outbox.put(Curated("r", b"z", lifespan_ms=3_600_000))
        assert await pending(outbox) == 3
        assert outbox.statistics()["failed_saves"] == 0


@pytest.mark.parametrize("step_s", [56 * YEAR_S, -9 * YEAR_S])
@pytest.mark.parametrize("looks", [True, False])
async def test_records_still_have_their_time_left_after_a_restart_when_the_clock_was_set(
    tmp_path: Path, step_s: int, looks: bool
) -> None:
    """Over a restart the clock counts, so the file must say it by the new one. Closing is a look too."""
    clocks = Clocks(10 * YEAR_S)
    async with clocks.open(tmp_path) as outbox:
        await outbox.put(Curated("r", b"x", lifespan_ms=60_000))
        clocks.pass_s(10, step_s)
        if looks:
            await outbox.put(Curated("r", b"y", lifespan_ms=3_600_000))
    clocks.steady_ns = 3  # the computer was started anew
    clocks.utc_ns += 40 * SECOND
    async with clocks.open(tmp_path) as outbox:
        assert await pending(outbox) == 1 + looks
        clocks.pass_s(11)
        assert await pending(outbox) == looks


async def test_disk_that_is_full_when_the_clock_is_set_takes_the_new_times_later(tmp_path: Path) -> None:
    """Until then they are right in memory."""
    clocks = Clocks(10 * YEAR_S)
    async with clocks.open(tmp_path) as outbox:
        await outbox.put(Curated("r", b"x", lifespan_ms=60_000))
        await outbox._file._db.execute("PRAGMA query_only = ON")
        clocks.pass_s(1, 3_600)
        assert await pending(outbox) == 1
        assert outbox.statistics()["failed_saves"] == 1
        await outbox._file._db.execute("PRAGMA query_only = OFF")
        clocks.pass_s(1)
    async with clocks.open(tmp_path) as outbox:
        clocks.pass_s(57)
        assert await pending(outbox) == 1
        clocks.pass_s(2)
        assert await pending(outbox) == 0


async def test_time_that_a_computer_sleeps_or_is_off_counts(tmp_path: Path) -> None:
    """A record is worthless after its lifespan, whether anybody was awake or not."""
    clocks = Clocks(10 * YEAR_S)
    async with clocks.open(tmp_path) as outbox:
        await outbox.put(Curated("r", b"x", lifespan_ms=60_000))
    clocks.utc_ns += 61 * SECOND
    async with clocks.open(tmp_path) as outbox:
        assert await pending(outbox) == 0
    assert outbox_module._steady_ns() >= time.monotonic_ns() - SECOND, "it counts sleep, the monotonic clock does not"


async def test_record_put_by_a_clock_that_was_far_ahead_does_not_wait_for_decades(tmp_path: Path) -> None:
    """The clock was set back while the computer was off; a year is the longest that a record may wait."""
    clocks = Clocks(130 * YEAR_S)
    async with clocks.open(tmp_path) as outbox:
        await outbox.put(Curated("r", b"x", lifespan_ms=60_000))
    clocks.utc_ns = 56 * YEAR_S * SECOND
    async with clocks.open(tmp_path) as outbox:
        assert await pending(outbox) == 1
        clocks.pass_s(367 * 86_400)
        assert await pending(outbox) == 0


async def test_outbox_reopened_smaller_evicts_the_least_valuable(tmp_path: Path) -> None:
    """An operator who lowers the bound expects it to hold at once."""
    async with open_outbox(tmp_path) as outbox:
        await outbox.put(*(Curated("r", b"x", priority=n % 3) for n in range(30)))
    async with open_outbox(tmp_path, max_records=10) as outbox:
        assert outbox.statistics()["evicted"] == 20
        assert await drain(outbox) == list(range(3, 31, 3))
    async with open_outbox(tmp_path, max_records=10) as outbox:
        assert outbox.statistics()["delivered"] == 10


async def test_outbox_reopened_still_knows_whose_readings_its_records_are(tmp_path: Path) -> None:
    """Otherwise a node could wait for a restart, and its flood would count as the node's own records."""
    async with open_outbox(tmp_path, max_records=40) as outbox:
        await outbox.put(*(Curated("r", b"own") for _ in range(10)))
        await outbox.put(*(Curated("r", b"flood", payer="v-9") for _ in range(30)))
    async with open_outbox(tmp_path, max_records=40) as outbox:
        await outbox.put(*(Curated("r", b"own") for _ in range(10)))
        await outbox.put(*(Curated("r", b"flood", payer="v-9") for _ in range(100)))
        assert outbox.statistics()["evicted_of_others"] == outbox.statistics()["evicted"] == 110
        batch = await next_batch(outbox)
        assert batch is not None
        assert sum(bytes(record.reading) == b"own" for record in batch[1]) == 20
        outbox.ledger.abandoned()


async def test_outbox_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """An update of the program must not cost the records that wait."""
    with closing(sqlite3.connect(tmp_path / "outbox.sqlite")) as db:
        db.executescript(
            "CREATE TABLE ledger (one INTEGER PRIMARY KEY CHECK (one = 1), first_sequence INTEGER NOT NULL,"
            " next_sequence INTEGER NOT NULL, delivered INTEGER NOT NULL, expired INTEGER NOT NULL,"
            " evicted INTEGER NOT NULL, refused INTEGER NOT NULL, introduced INTEGER NOT NULL);"
            "CREATE TABLE records (sequence INTEGER PRIMARY KEY, rule TEXT NOT NULL, priority INTEGER NOT NULL,"
            " expires_utc_ns INTEGER NOT NULL, size_bytes INTEGER NOT NULL, reading BLOB NOT NULL);"
            "CREATE TABLE fates (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, state TEXT NOT NULL);"
            "PRAGMA application_id = 0x6D6E6F62; PRAGMA user_version = 1;"
            "INSERT INTO ledger VALUES (1, 1, 3, 0, 0, 0, 0, 1);"
            "INSERT INTO records VALUES (1, 'r', 3, 0, 100, x'01'), (2, 'r', 3, 0, 100, x'02');"
        )
    for _ in range(2):
        async with open_outbox(tmp_path) as outbox:
            assert outbox.pending == 2
            assert {entry.payer for entry in outbox.ledger.entries()} == {""}
    async with open_outbox(tmp_path) as outbox:
        assert await outbox.put(Curated("r", b"3", payer="v-1")) == [3]
        assert await drain(outbox) == [1, 2, 3]


async def test_put_full_disk_is_refused_and_recovers(tmp_path: Path) -> None:
    """A full disk stops new records with a clear error; it loses none, and the node goes on."""
    async with open_outbox(tmp_path) as outbox:
        stored = await outbox.put(*(Curated("r", b"x" * 1000) for _ in range(10)))
        pages = await outbox._file._number("PRAGMA page_count")
        await outbox._file._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StorageError, match="free space"):
            await outbox.put(*(Curated("r", b"y" * 10_000) for _ in range(100)))
        assert outbox.statistics()["failed_puts"] == 100
        assert outbox.statistics()["issued"] == 10
        assert await drain(outbox) == stored, "what waits is delivered all the same"
        await outbox._file._db.execute("PRAGMA max_page_count = 1000000")
        assert await outbox.put(Curated("r", b"z")) == [11]
    async with open_outbox(tmp_path) as outbox:
        assert outbox.statistics()["delivered"] == 10
        assert await drain(outbox) == [11]


_FILLER = """
import asyncio, resource, signal, sys
from pathlib import Path
from meshnode.records.outbox import Outbox
from protocols.base.errors import StorageError
from protocols.records.curated import Curated
from protocols.wire.records import Acknowledgement

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with Outbox.open(Path(sys.argv[1]), 1_000_000, 2**30) as outbox:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
        count = 0
        try:
            while True:
                count += len(await outbox.put(Curated("r", b"x" * 20_000)))
        except StorageError as error:
            assert "free space" in str(error), error
        async with outbox.exclusive():
            plan = outbox.ledger.next_batch(outbox.utc_now())
            assert len(await outbox.read(plan.sequences)) == count
            assert outbox.ledger.acknowledged(plan, Acknowledgement(plan.sequences)) == count
            try:
                await outbox.save()
            except StorageError as error:
                assert "free space" in str(error), error
        assert outbox.pending == 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await outbox.put(Curated("r", b"y")) == [count + 1]
        print(count, outbox.statistics()["failed_saves"])

asyncio.run(main())
"""


@pytest.mark.processes
def test_disk_full_in_the_kernel_acknowledgements_still_count(tmp_path: Path) -> None:
    """The records on a full disk must reach the relay: only that makes room again."""
    path = tmp_path / "outbox.sqlite"
    command = [sys.executable, "-c", _FILLER, str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    count = int(done.stdout.split()[0])
    assert count > 3

    async def check() -> None:
        async with Outbox.open(path, 1000, 2**30) as outbox:
            assert outbox.statistics()["delivered"] == count
            assert outbox.pending == 1

    asyncio.run(check())


@pytest.mark.parametrize("damage", ["garbage", "other program", "lost rows", "newer"])
async def test_open_unusable_file_names_it_and_the_way_out(tmp_path: Path, damage: str) -> None:
    """Whoever finds a node without records at three in the morning needs to know which file, and what to do."""
    path = tmp_path / "outbox.sqlite"
    if damage == "garbage":
        path.write_bytes(os.urandom(8192))
    elif damage == "other program":
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE notes (text)")
    else:
        async with open_outbox(tmp_path) as outbox:
            await outbox.put(Curated("r", b"x"))
        with closing(sqlite3.connect(path)) as db:
            db.executescript("PRAGMA user_version = 9" if damage == "newer" else "DELETE FROM records")
    with pytest.raises(StorageError, match=r"outbox\.sqlite.*(move it away|another file|newer program)"):
        async with open_outbox(tmp_path):
            pass


async def test_open_file_in_use_is_refused(tmp_path: Path) -> None:
    """Two nodes on one outbox would give sequences twice."""
    async with open_outbox(tmp_path):
        with pytest.raises(StorageError, match="another process"):
            async with open_outbox(tmp_path):
                pass


async def test_open_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A wrong state_dir is a message, not a traceback."""
    (tmp_path / "state").write_text("")
    with pytest.raises(StorageError, match="state"):
        async with open_outbox(tmp_path / "state"):
            pass


async def test_put_too_many_at_once_is_refused_and_stores_nothing(tmp_path: Path) -> None:
    """One caller must not hold up the disk for all others."""
    async with open_outbox(tmp_path) as outbox:
        with pytest.raises(BoundExceeded, match="at most"):
            await outbox.put(*[Curated("r", b"x")] * (MAX_GROUP_RECORDS + 1))
        assert outbox.statistics()["issued"] == 0


async def test_shift_moves_what_waits_and_survives_reopening(tmp_path: Path) -> None:
    """After the loss of its file a node goes on where the relay stands, with all that it has put since."""
    async with open_outbox(tmp_path, max_records=3) as outbox:
        await outbox.put(*(Curated("r", b"%d" % n) for n in range(5)))
        async with outbox.exclusive():
            await outbox.shift(100)
            assert outbox.ledger.renumber(101)
        assert await outbox.put(Curated("r", b"5")) == [106]
        before = outbox.statistics()
    async with open_outbox(tmp_path, max_records=3) as outbox:
        assert outbox.statistics() == before
        batch = await next_batch(outbox)
        assert batch is not None
        assert (batch[0].sequences, batch[0].fates) == ((104, 105, 106), (Fate(101, 103, "evicted"),))
        assert [bytes(record.reading) for record in batch[1]] == [b"3", b"4", b"5"]


async def test_shift_that_the_disk_did_not_take_changes_nothing(tmp_path: Path) -> None:
    """Half a renumbering would be two accounts of one node."""
    async with open_outbox(tmp_path) as outbox:
        await outbox.put(Curated("r", b"x"))
        await outbox._file._db.execute("PRAGMA query_only = ON")
        async with outbox.exclusive():
            with pytest.raises(StorageError, match="could not be renumbered"):
                await outbox.shift(100)
        await outbox._file._db.execute("PRAGMA query_only = OFF")
        assert await outbox.put(Curated("r", b"y")) == [2]
        assert await drain(outbox) == [1, 2]


async def test_put_cancelled_while_committing_leaves_a_consistent_outbox(tmp_path: Path) -> None:
    """An application that gives up on a put must not damage the account of everybody else."""
    async with open_outbox(tmp_path) as outbox:
        for round_ in range(30):
            putting = asyncio.create_task(outbox.put(Curated("r", b"x")))
            for _ in range(round_ % 6):
                await asyncio.sleep(0)
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
        (last,) = await outbox.put(Curated("r", b"last"))
        kept = await drain(outbox)
        assert kept == list(range(1, last + 1))


async def test_writer_cancelled_mid_transaction_finds_out_what_happened(tmp_path: Path) -> None:
    """The end of a program cancels every task at any await: the file must stay right either way."""
    for awaits in range(1, 40):
        async with open_outbox(tmp_path) as outbox:
            putting = asyncio.create_task(outbox.put(Curated("r", b"x")))
            for _ in range(awaits):
                await asyncio.sleep(0.0001)
            outbox._writer.cancel()
            await asyncio.gather(outbox._writer, return_exceptions=True)
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
    async with open_outbox(tmp_path) as outbox:
        assert await drain(outbox) == list(range(1, outbox.statistics()["issued"] + 1))
