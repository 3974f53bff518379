"""What may not leave is nowhere in the outbox of a running node."""

import sqlite3
import stat
import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import Raw

import meshnode
from meshnode.records.egress import drawing
from meshnode.records.egress.secret import NAME, pseudonym_key
from meshnode.records.recording import Recorder
from meshnode.records.running import RunningRecords
from protocols.access import AccessTable
from protocols.base.errors import StorageError
from protocols.base.limits import SECOND
from protocols.records.egress.gate import WithPictures
from protocols.records.egress.rules import EgressRule
from protocols.records.pending import OWN
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import decode_untrusted_record, encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement, Batch, Record
from protocols.wire.tensors import Tensor
from tests.meshnode.records.egress.test_pictures import PLATE, decoded, picture
from tests.tools.eventually import eventually, until
from tests.tools.mesh_fixture import House, dropped
from tests.tools.relay_fixture import RelayInProcess
from tests.tools.strategies import reading

VIN = "WVWZZZ1JZ3W386752"
NEIGHBOUR = "wvwzzz1jz3w386753"
HOME = Position(48.76612345, 11.42981234, 3.0, 370.0, 12.0)
RULES = "[discovery]\nmdns = false\n[[curation]]\nname = 'all'\nkeys = '**'\nsource = 'any'\n"
POLICY = """
[[egress]]
name = "seen"
keys = "veh/**/seen"
fields = ["count", "picture"]
cell_m = 500
time_s = 60
pseudonym = "day"
cover = [[0.0, 0.5, 1.0, 1.0]]
"""


def recorder_of(node: meshnode.Node) -> Recorder:
    recorder = node.part(RunningRecords)._recorder
    assert recorder is not None
    return recorder


async def kept(node: meshnode.Node, count: int) -> list[Reading]:
    """What waits in the outbox, once ``count`` records do."""
    recorder = recorder_of(node)
    outbox = recorder.outbox
    assert outbox is not None
    await until(lambda: outbox.pending == count, f"{count} wait, not {outbox.pending}: {node.drops()}")
    async with outbox.exclusive():
        return [decode_untrusted_record(one) for one in await outbox.read(tuple(range(1, count + 1)))]


def is_near(value: float, degrees: float) -> bool:
    """Within 10 m to the north, and less to the east."""
    return abs(value - degrees) < 0.00009


def found(folder: Path, readings: Sequence[Reading]) -> set[str]:
    """Which of the planted secrets are in files of a state folder, or in the readings in them."""
    files = [file for file in sorted(folder.iterdir()) if file.name.startswith("outbox.sqlite")]
    assert any(file.name.endswith("-wal") for file in files)
    content = b"".join(file.read_bytes() for file in files)
    hits = {name for name, text in (("plate", PLATE), ("VIN", VIN.encode()), ("neighbour", NEIGHBOUR.encode()))
            if text.lower() in content.lower() or any(text.decode() in str(one) for one in readings)}  # fmt: skip
    numbers = [number for (number,) in (struct.unpack_from(">d", content, at) for at in range(len(content) - 7))]
    latitudes = any(is_near(number, HOME.latitude_deg) for number in numbers)
    longitudes = any(is_near(number, HOME.longitude_deg) for number in numbers)
    if (latitudes and longitudes) or any(
        is_near(one.where.latitude_deg, HOME.latitude_deg) and is_near(one.where.longitude_deg, HOME.longitude_deg)
        for one in readings
    ):
        hits.add("home")
    return hits


@pytest.mark.parametrize("has_policy", [True, False])
async def test_planted_secrets_are_in_the_outbox_only_without_a_policy(tmp_path: Path, has_policy: bool) -> None:
    """The same search finds all of them when nothing keeps them back, so it would find them."""
    path = House(tmp_path).file("veh-1", RULES + (POLICY if has_policy else ""))
    async with meshnode.open(path) as node:
        value = {"count": 3, "plate": PLATE.decode(), "picture": picture("JPEG")}
        node.publish(f"veh/veh-1/{VIN}/seen", value, unit="1", sensor=f"camera {VIN}", where=HOME)
        how = Provenance(NEIGHBOUR, "1", lineage=(VIN,))
        recorder_of(node).consider(reading(f"veh/{NEIGHBOUR}/seen", NEIGHBOUR, value={"count": 1}, how=how, where=HOME))
        node.publish("veh/veh-1/plate", PLATE.decode(), where=HOME)
        readings = await kept(node, 2 if has_policy else 3)
        secrets = {"plate", "VIN", "neighbour", "home"}
        assert found(path.parent / "state", readings) == (set() if has_policy else secrets)
        if has_policy:
            by_count = {one.value["count"]: one for one in readings}
            assert (sorted(by_count[3].value), by_count[1].value) == (["count", "picture"], {"count": 1})
            assert by_count[3].key.startswith(f"veh/{by_count[3].origin}/")
            assert by_count[1].key == f"veh/{by_count[1].origin}/seen"
            counters = node.statistics()
            assert (counters["egress_released"], counters["egress_kept_back"], counters["egress_unmatched"]) == (
                2,
                1,
                1,
            )
            assert (counters["egress_rule_seen_released"], counters["egress_rule_seen_kept_back"]) == (2, 0)
            assert counters["outbox_not_stored"] == 0
            assert dict(node.drops()) == {("", "veh/veh-1/plate", "egress_kept_back"): 1}
        else:
            assert not any(name.startswith("egress") for name in node.statistics())


async def test_neighbour_that_claims_many_days_pays_for_all_of_its_records(tmp_path: Path) -> None:
    """It had another pseudonym on each day, and so as many shares of the outbox as it claimed days."""
    async with meshnode.open(House(tmp_path).file("veh-1", RULES + POLICY)) as node:
        for day in range(5):
            when = EventTime(day * 86_400 * SECOND, 0)
            recorder_of(node).consider(
                reading(f"veh/{NEIGHBOUR}/{day}/seen", NEIGHBOUR, value={"count": day}, when=when)
            )
        origins = {one.origin for one in await kept(node, 5)}
        outbox = recorder_of(node).outbox
        assert outbox is not None
        payers = {entry.payer for entry in outbox.ledger.entries()}
        assert (len(origins), len(payers)) == (5, 1)
        assert NEIGHBOUR not in payers


async def test_reading_that_the_policy_does_not_change_is_recorded_in_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy must not make each reading be encoded twice."""
    policy = (
        "[[egress]]\nname = 'enough'\nkeys = 'veh/*/summary'\nmin_count = 2\nfields = ['count', 'mean']\n"
        "[[egress]]\nname = 'rest'\nkeys = '**'\n"
    )

    def again(reading: Reading) -> bytes:
        raise AssertionError(f"{reading.key} was encoded before")

    async with meshnode.open(House(tmp_path).file("veh-1", RULES + policy)) as node:
        with monkeypatch.context() as patched:
            patched.setattr("meshnode.records.recording.encode_reading", again)
            node.publish("veh/veh-1/x", array("f", [1.0, 2.0]))
            node.publish("veh/veh-1/summary", {"count": 2, "mean": 13.9})
        node.publish("veh/veh-1/summary", {"count": 1, "mean": 13.9})
        node.publish("veh/veh-1/summary", {"count": 2, "mean": 13.9, "last": 13.8})
        assert [one.value for one in (await kept(node, 3))[1:]] == [{"count": 2, "mean": 13.9}] * 2
        assert node.statistics()["egress_rule_enough_kept_back"] == dropped(node, "egress_kept_back") == 1


async def test_picture_of_a_sensor_leaves_as_it_was_drawn_anew(tmp_path: Path) -> None:
    """Sensors publish arrays, alone and in maps; what is no picture stays."""
    policy = "[[egress]]\nname = 'pictures'\nkeys = '**'\ncover = [[0.0, 0.0, 1.0, 1.0]]\n"
    async with meshnode.open(House(tmp_path).file("veh-1", RULES + policy)) as node:
        encoded = np.frombuffer(picture("JPEG"), np.uint8)
        node.publish("veh/veh-1/picture", encoded)
        node.publish("veh/veh-1/pictures", {"left": encoded, "right": picture("PNG")})
        node.publish("veh/veh-1/raw", np.zeros((4, 4, 3), np.uint8))
        node.publish("veh/veh-1/number", 3)
        readings = {one.key: one.value for one in await kept(node, 3)}
        await until(lambda: dropped(node, "egress_kept_back") == 1, "the raw one stays")
        alone, both = readings["veh/veh-1/picture"], readings["veh/veh-1/pictures"]
        assert isinstance(alone, Tensor)
        for content in (bytes(alone.data), bytes(both["left"].data), both["right"]):
            assert decoded(content).convert("L").getextrema()[1] < 20
        assert readings["veh/veh-1/number"] == 3


async def test_picture_leaves_with_what_was_found_in_it_covered_or_not_at_all(tmp_path: Path) -> None:
    """Where a plate is, the camera says beside its picture, inside of whatever others make of it."""
    policy = "[[egress]]\nname = 'seen'\nkeys = '**'\nfields = ['of.picture', 'of.found']\ncover_field = 'found'\n"
    async with meshnode.open(House(tmp_path).file("veh-1", RULES + policy)) as node:
        box = {"left": 0, "top": 0, "right": 64, "bottom": 32}
        seen = {"picture": picture("JPEG"), "found": [box], "vin": VIN}
        node.publish("veh/veh-1/seen", {"of": [seen, {"vin": VIN}]})
        node.publish("veh/veh-1/unseen", {"of": [{"picture": picture("JPEG")}]})
        (left,) = await kept(node, 1)
        ((one,),) = left.value.values()
        assert (one["found"], sorted(one)) == ([box], ["found", "picture"])
        assert decoded(one["picture"]).convert("L").getextrema()[1] < 20
        await until(lambda: dropped(node, "egress_kept_back") == 1, "nobody looked at the other one")


async def test_pictures_that_come_too_fast_are_counted_and_numbers_do_not_wait_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the sensor goes on at once, and a neighbour can't take all places."""
    go_on = threading.Event()
    draw = drawing.redrawn_picture

    def slow(content: bytes, *boxes: Any) -> bytes:
        go_on.wait(30)
        return draw(content, *boxes)

    monkeypatch.setattr(drawing, "redrawn_picture", slow)
    policy = "[[egress]]\nname = 'pictures'\nkeys = '**'\nstrip_pictures = true\n"
    path = House(tmp_path).file("veh-1", RULES + policy)
    async with meshnode.open(path) as node:
        for number in range(30):
            recorder_of(node).consider(reading("rsu/rsu-1/picture", "rsu-1", number, picture("PNG")))
        behind = dropped(node, "egress_behind")
        assert 30 - behind in (drawing.MAX_WAITING // 2, drawing.MAX_WAITING // 2 + 1), "one may be under way"
        node.publish("veh/veh-1/picture", picture("PNG"))
        node.publish("veh/veh-1/number", 3)
        assert dropped(node, "egress_behind") == behind
        (first,) = await kept(node, 1)
        assert first.value == 3
        go_on.set()
        await kept(node, 1 + 30 - behind + 1)
        assert node.statistics()["outbox_not_stored"] == behind


async def test_pictures_that_wait_when_a_node_closes_become_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody closed the thread that draws: what waited there was neither recorded nor counted."""
    draw = drawing.redrawn_picture
    begun, go_on = threading.Event(), threading.Event()

    def slow(content: bytes, *boxes: Any) -> bytes:
        begun.set()
        go_on.wait(30)
        return draw(content, *boxes)

    monkeypatch.setattr(drawing, "redrawn_picture", slow)
    policy = "[[egress]]\nname = 'pictures'\nkeys = '**'\nstrip_pictures = true\n"
    async with meshnode.open(House(tmp_path).file("veh-1", RULES + policy)) as node:
        for _ in range(3):
            node.publish("veh/veh-1/picture", picture("PNG"))
        assert begun.wait(30)
        path = node.config.node.state_dir / "outbox.sqlite"
        go_on.set()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM records").fetchone() == (3,)
    assert "egress" not in {thread.name for thread in threading.enumerate()}


async def test_closing_node_finishes_pictures_or_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that is neither recorded nor counted would be lost unseen."""
    go_on, begun = threading.Event(), threading.Event()

    def slow(content: bytes, *boxes: Any) -> bytes:
        begun.set()
        go_on.wait(30)
        return content

    monkeypatch.setattr(drawing, "redrawn_picture", slow)
    pictures, outcomes = drawing.PictureDrawing(), []
    note: Callable[[object], None] = outcomes.append
    given = WithPictures(EgressRule("pictures", "**", strip_pictures=True), reading(value=b"picture"), 7)
    assert all(pictures.draw(given, OWN, note, list) for _ in range(3))
    assert begun.wait(30)
    closing = threading.Thread(target=pictures.close, args=(0.0,))
    closing.start()
    await until(lambda: len(outcomes) == 2, "those that have not begun are given up")
    assert outcomes == [None, None]
    assert not pictures.draw(given, OWN, note, list)
    go_on.set()
    closing.join(30)
    assert outcomes == [None, None, given.reading]


def test_neighbour_that_floods_the_drawing_of_pictures_gives_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One took all places of neighbours, and no picture of others ever left."""
    go_on, begun = threading.Event(), threading.Event()

    def slow(content: bytes, *boxes: Any) -> bytes:
        begun.set()
        go_on.wait(30)
        return content

    monkeypatch.setattr(drawing, "redrawn_picture", slow)
    pictures = drawing.PictureDrawing()
    rule = EgressRule("r", "**", strip_pictures=True)
    outcomes: list[tuple[str, int]] = []

    def draw(origin: str, number: int, size_bytes: int = 1) -> bool:
        given = WithPictures(rule, reading(value=b"picture"), size_bytes)
        return pictures.draw(
            given, origin, lambda _: outcomes.append((origin, number)), lambda: outcomes.append((origin, -number))
        )

    assert draw("rogue", 0)
    assert begun.wait(30)
    half = drawing.MAX_WAITING // 2
    assert [draw("rogue", number) for number in range(1, half + 3)] == [True] * half + [False] * 2
    assert [draw("b", number) for number in range(1, 7)] == [True] * 4 + [False] * 2
    assert outcomes == [("rogue", -8), ("rogue", -7), ("rogue", -6), ("rogue", -5)], "the newest"
    assert not draw("c", 1, drawing.MAX_WAITING_BYTES // 2 + 1), "nobody gives way to what has no room at all"
    assert len(outcomes) == 4
    assert draw(OWN, 1)
    go_on.set()
    pictures.close(30)
    first, second = ([(origin, number) for number in range(1, 5)] for origin in ("rogue", "b"))
    assert [outcome for outcome in outcomes[4:] if outcome != (OWN, 1)] == [("rogue", 0), *first, *second]
    assert (OWN, 1) in outcomes


def test_pictures_of_neighbours_rest_after_one_and_own_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neighbour kept a core busy for as long as it sent pictures that take long to encode."""
    go_on = threading.Event()

    def busy(content: bytes, cover: Any) -> bytes:
        go_on.wait(30)
        sum(range(10_000))
        return content

    monkeypatch.setattr(drawing, "redrawn_picture", busy)
    monkeypatch.setattr(drawing, "_REST", 10**9)
    pictures, order = drawing.PictureDrawing(), list[str]()
    given = WithPictures(EgressRule("r", "**", strip_pictures=True), reading(value=b"picture"), 7)
    for payer in ("rsu-1", "rsu-2", OWN, OWN):
        assert pictures.draw(given, payer, lambda _, payer=payer: order.append(payer), list)  # type: ignore[misc]
    go_on.set()
    eventually(lambda: len(order) == 3, "all but one are drawn")
    assert order == ["rsu-1", OWN, OWN]
    pictures.close(30)
    assert order[3:] == ["rsu-2"], "a node that closes does not wait for it"


def test_key_of_pseudonyms_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    """With another key after each start, one vehicle would be several in a day."""
    key = pseudonym_key(tmp_path / "state")
    path = tmp_path / "state" / NAME
    assert (len(key), path.read_bytes()) == (32, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert pseudonym_key(tmp_path / "state") == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    assert pseudonym_key(tmp_path / "state") not in (key, b"short")
    assert path.with_name(f"{NAME}.unusable").read_bytes() == b"short"


async def test_node_that_can_not_keep_its_key_does_not_let_records_leave_without(tmp_path: Path) -> None:
    """The message says what is wrong with which file."""
    path = House(tmp_path).file("veh-1", RULES + POLICY)
    (path.parent / "state" / NAME).mkdir(parents=True)
    with pytest.raises(StorageError, match=NAME):
        async with meshnode.open(path):
            pass


async def test_pseudonyms_outlast_a_restart(tmp_path: Path) -> None:
    """Within its period."""
    path, names = House(tmp_path).file("veh-1", RULES + POLICY), []
    at_ns = reading().when.utc_ns
    for count in (1, 2):
        async with meshnode.open(path) as node:
            node.publish("veh/veh-1/seen", {"count": 1}, where=HOME, time_ns=at_ns)
            names.append((await kept(node, count))[-1].origin)
    assert names[0] == names[1] != "veh-1"


async def test_relay_takes_records_under_pseudonyms(tmp_path: Path) -> None:
    """It refuses keys on which their origin may not publish, and the built-in table names the origin in the key."""
    relay = RelayInProcess(tmp_path / "relay.sqlite", AccessTable())
    async with meshnode.open(House(tmp_path).file("veh-1", RULES + POLICY)) as node:
        node.publish("veh/veh-1/seen", {"count": 1, "plate": PLATE.decode()}, where=HOME)
        recorder_of(node).consider(reading("veh/veh-2/seen", "veh-2", value={"count": 2}, where=HOME))
        left = await kept(node, 2)
    records = tuple(Record(number, "all", Raw(encode_reading(one))) for number, one in enumerate(left, 1))
    assert relay.send(Batch(MAJOR, MINOR, "veh-1", 1, 3, records), "veh-1") == Acknowledgement((1, 2))
    assert [(row["key"], row["value"]) for row in relay.records()] == [(one.key, one.value) for one in left]
    relay.store.close()
