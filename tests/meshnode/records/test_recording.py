"""From readings to records on a running node: who is asked, once each, and what is derived."""

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.records.recording import Recorder
from meshnode.records.running import RunningRecords
from meshnode.troubles import Troubles
from protocols.base.errors import ValueUnsupported
from protocols.base.ids import Incarnation, MeshName, MonotonicNs, UtcNs
from protocols.base.limits import MS
from protocols.base.time import NEVER
from protocols.records.curation import CurationOutput, ReadingDerived, RecordChosen
from protocols.wire.parcels import decode_untrusted_record, encode_reading
from protocols.wire.readings import Reading
from protocols.wire.tensors import tensor_of
from tests.tools.mesh_fixture import House, until
from tests.tools.strategies import reading

RULES = """
[[curation]]
name = "hazards"
keys = "rsu/*/hazard"
source = "any"

[[curation]]
name = "all of the roadside"
keys = "rsu/**"
source = "any"

[[curation]]
name = "own"
keys = "veh/**"
"""


async def test_reading_that_several_rules_match_becomes_one_record(tmp_path: Path) -> None:
    """The first rule that matches decides alone; a neighbour's hazard once became a record for each rule."""
    house = House(tmp_path)
    async with meshnode.open(house.file("veh-1", f"[discovery]\nmdns = false\n{RULES}")) as vehicle:
        seeds = f'[discovery]\nmdns = false\nseeds = ["127.0.0.1:{vehicle.port}"]\n'
        async with meshnode.open(house.file("rsu-1", seeds, role="rsu")) as rsu:
            await rsu.wait_for_peers(1)
            await until(
                lambda: rsu.publish("rsu/rsu-1/ready", 0).queued, "the vehicle asks for the roadside's readings"
            )
            heard = vehicle.subscribe("rsu/**")
            for number in range(1, 4):
                rsu.publish("rsu/rsu-1/hazard", number)
                rsu.publish("rsu/rsu-1/light", number)
            vehicle.publish("veh/veh-1/speed", 13.9)
            while (came := await heard.next(30)).key != "rsu/rsu-1/light" or came.value != 3:
                pass
            issued = 1 + 1 + 3 + 3
            await until(lambda: vehicle.statistics()["outbox_issued"] >= issued, f"{vehicle.statistics()}")
        assert vehicle.statistics()["outbox_issued"] == issued
        assert vehicle.statistics()["outbox_not_stored"] == 0


class Silence:
    """Says that a key was silent for 50 ms, and keeps what came last."""

    name, expressions = "silence", ("rsu/*/light",)

    record_lifespan_ms = None
    recording = None

    def __init__(self) -> None:
        self._last: Reading | None = None
        self._due_ns = NEVER

    def predicted(self, *_: Any) -> Sequence[CurationOutput]:
        return ()

    def counters(self) -> dict[str, int]:
        return {}

    def considers(self, key: str, is_own: bool) -> bool:
        return not is_own

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        self._last, self._due_ns = reading, now + 50 * MS
        return ()

    def handle_timer(self, now: MonotonicNs) -> Sequence[CurationOutput]:
        last, self._due_ns = self._last, NEVER
        assert last is not None
        return (
            RecordChosen("silence", last, 5, 0),
            ReadingDerived("silence", f"{last.key}/silent", True, last.where, last.when, last.how),
        )

    def next_timer_at(self) -> int:
        return self._due_ns


async def test_pattern_of_absence_is_asked_when_its_time_has_come(tmp_path: Path) -> None:
    """That nothing came is known by the clock alone: no reading may have to come for it to be told."""
    published: list[tuple[str, Any, tuple[str, ...]]] = []
    dropped: list[tuple[str, str]] = []
    troubles = Troubles()

    def publish(derived: ReadingDerived) -> None:
        published.append((derived.key, derived.value, derived.how.lineage))
        if len(published) == 2:
            raise ValueUnsupported("not twice")

    recorder = Recorder(
        House(tmp_path).config("veh-1"), MeshName("test"), Incarnation(1),
        lambda key, reason: dropped.append((key, reason)), publish, [Silence()], troubles,
    )  # fmt: skip
    await recorder.open()
    try:
        light = reading("rsu/rsu-1/light", "rsu-1")
        recorder.consider(light)
        await until(lambda: recorder.outbox.pending == 1, "the record waits")
        assert published == [("rsu/rsu-1/light/silent", True, ("silence",))]
        recorder.consider(light)
        await until(lambda: dropped and troubles.current(), "a reading that can't be published is counted and told")
        assert dropped == [("rsu/rsu-1/light/silent", "not_derived")]
        (trouble,) = troubles.current()
        assert (trouble.part, trouble.name, "not twice" in trouble.why) == ("rule", "silence", True)
        recorder.consider(light)
        await until(lambda: not troubles.current(), "the next one is published")
    finally:
        await recorder.close(0.0)


async def test_node_that_invents_keys_costs_only_its_own_records(tmp_path: Path) -> None:
    """Rules with source "any" record what neighbours send; one of them once pushed out the records of all others."""
    house = House(tmp_path)
    path = house.file(
        "veh-1", "[discovery]\nmdns = false\n[outbox]\nmax_records = 1000\n[[curation]]\nname = 'all'\nkeys = '**'\n"
        "source = 'any'\n",
    )  # fmt: skip
    async with meshnode.open(path) as node:
        recorder = node.part(RunningRecords)._recorder
        assert recorder is not None
        for number in range(200):
            recorder.consider(reading(f"veh/veh-1/{number}", "veh-1"))
            recorder.consider(reading(f"rsu/rsu-1/{number % 50}", "rsu-1"))
        for number in range(20_000):  # one thread gives the outbox no chance to take any: the queue is tested too
            recorder.consider(reading(f"rsu/rsu-9/{number}", "rsu-9"))
        await until(lambda: recorder.stored + recorder.not_stored == 20_400, "all that was kept is on disk")
        async with recorder.outbox.exclusive():
            payers = Counter(entry.payer for entry in recorder.outbox.ledger.entries())
        assert (payers[""], payers["rsu-1"]) == (200, 200)
        assert payers.total() == 1_000
        assert recorder.not_stored > 15_000


async def test_own_reading_is_recorded_in_the_bytes_that_were_encoded_for_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding a picture twice costs the sensor's thread twice as much."""
    house = House(tmp_path)
    path = house.file("veh-1", "[discovery]\nmdns = false\n[[curation]]\nname = 'all'\nkeys = '**'\n")

    def again(reading: Reading) -> bytes:
        raise AssertionError(f"{reading.key} was encoded before")

    async with meshnode.open(path) as node:
        values = [13.9, {"a": [1, b"x"]}, array("f", [1.0, 2.0])]
        with monkeypatch.context() as patched:
            patched.setattr("meshnode.records.recording.encode_reading", again)
            for value in values:
                node.publish("veh/veh-1/x", value)
        node.publisher("veh/veh-1/y").put_many([1, 2])
        recorder = node.part(RunningRecords)._recorder
        assert recorder is not None
        await until(lambda: recorder.outbox.pending == 5, "all wait")
        async with recorder.outbox.exclusive():
            records = await recorder.outbox.read((1, 2, 3, 4, 5))
        kept = [decode_untrusted_record(record) for record in records]
        assert [bytes(record.reading) for record in records] == [encode_reading(one) for one in kept]
        assert [one.value for one in kept] == [13.9, {"a": [1, b"x"]}, tensor_of(values[2]), 1, 2]
