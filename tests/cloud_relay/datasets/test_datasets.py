"""Saved datasets: a version has the same records for ever, whatever the relay stores, repeats or loses meanwhile."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from msgspec import Raw

from cloud_relay.cli import main
from cloud_relay.datasets.members import Member, MemberList
from cloud_relay.store.schema import open_for_reading, open_for_writing
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime
from protocols.wire.records import Batch, Record
from tests.cloud_relay.export.test_places import faults_of_geoparquet
from tests.tools.dataset_fixture import run, shown, tried
from tests.tools.export_fixture import VALUES, sent
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch, given_relay, reading  # noqa: F401 -- a fixture

FORMATS = ("parquet", "csv", "arrow", "arrows")


def deleted(relay: RelayInProcess, *sequences: int) -> None:
    """As retention, or somebody with a shell, would do it."""
    with closing(open_for_writing(relay.path)) as db:
        for sequence in sequences:
            db.execute("DELETE FROM records WHERE sequence = ?", (sequence,))


# --- the same for ever -----------------------------------------------------------------------------------------------
def test_version_stays_while_records_come_in(relay: RelayInProcess, tmp_path: Path) -> None:
    """Late ones in the middle of its times, newer ones, and the same ones again."""
    relay.send(batch(*range(10, 20), value=1.5))
    run(relay, "create", "speeds", "--key", "veh/**")
    run(relay, "export", "speeds@1", str(tmp_path / "before.parquet"))
    for numbers in (range(10, 20), range(1, 10), range(20, 30)):
        relay.send(batch(*numbers, value=1.5, following=30))
    relay.send(batch(5, value=2.5, node="v-2"), "v-2")
    run(relay, "export", "speeds@1", str(tmp_path / "after.parquet"))
    assert (tmp_path / "before.parquet").read_bytes() == (tmp_path / "after.parquet").read_bytes()
    done = run(relay, "create", "speeds")
    assert done.output.startswith("speeds@2: 30 records, sha256:")
    assert shown(relay, "speeds@1")["records"] == 10
    assert shown(relay, "speeds")["records"] == 30
    assert "has all 10 records of speeds@1" in run(relay, "verify", "speeds@1").output
    assert "the same as version 2" in run(relay, "create", "speeds", "--key", "veh/**").output


def test_version_made_under_load_is_exactly_what_its_list_says(
    relay: RelayInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay stores on while the list is written, late records before its place and newer ones behind its end."""
    for first in range(10_000, 13_000, 250):
        relay.send(batch(*range(first, first + 250), value=1.5, following=30_000))
    sending = iter([*range(9_000, 9_990, 10), *range(20_000, 20_990, 10)])
    add = MemberList.add

    def added(members: MemberList, member: Member) -> None:
        add(members, member)
        if member.sequence % 20 == 0 and (first := next(sending, None)) is not None:
            relay.send(batch(*range(first, first + 10), value=1.5, following=30_000))

    monkeypatch.setattr(MemberList, "add", added)
    run(relay, "create", "x")
    found = shown(relay, "x")
    assert found["extent"]["last_utc_ns"] == BASE_NS + 12_999 * 10**9
    assert found["records"] >= 3_000
    assert f"has all {found['records']} records" in run(relay, "verify", "x").output
    run(relay, "export", "x", str(tmp_path / "x.csv"))
    assert f"has all {found['records']} records" in run(relay, "verify", "x", str(tmp_path / "x.csv")).output


def test_version_has_ages_and_filters_as_they_were(relay: RelayInProcess) -> None:
    """`since=7d` means seven days before the version was made, and not before it is exported."""
    now_ns = BASE_NS + 10**9
    relay.send(batch(*range(1, 11), value=1.0))
    run(relay, "create", "some", "--since", f"{now_ns // 10**9 + 2}", "--until", f"{now_ns // 10**9 + 6}")
    found = shown(relay, "some")
    assert found["records"] == 4
    assert found["extent"]["first_utc_ns"] == BASE_NS + 3 * 10**9
    assert found["until_utc_ns"] == BASE_NS + 6 * 10**9 + 1
    run(relay, "create", "aged", "--since", "1d")
    assert shown(relay, "aged")["records"] == 0
    assert "has all 0 records" in run(relay, "verify", "aged").output


PLACES = ((48.7, 11.4), (66.0, 179.995), (66.0, -179.995), (66.0, 180.0), (90.0, 5.0), (-90.0, -180.0), (0.0, 0.0))


@pytest.mark.parametrize(
    ("question", "places"),
    [
        ([], range(7)),
        (["--box", "65.99,179.99,66.01,-179.99"], (1, 2, 3)),  # cells of the store, on either side of 180°
        (["--box", "60,170,70,-170"], (1, 2, 3)),  # along time
        (["--box", "80,-180,90,180"], (4,)),
        (["--box", "-90,0,90,90"], (0, 4, 5, 6)),
        (["--key", "veh/v-1/p1"], (1,)),  # one stream of the store
        (["--key", "veh/*/*", "--origin", "v-1"], range(7)),
        (["--rule", "r", "--min-quality", "0.9"], range(7)),
    ],
)
def test_version_of_any_question_stays_whichever_way_the_store_finds_it(
    relay: RelayInProcess, tmp_path: Path, question: list[str], places: Sequence[int]
) -> None:
    """Time, streams and cells of the store give one order, across 180° and at the poles, or records would seem lost."""

    def send(first: int, rounds: int) -> None:
        for number in range(rounds):
            for place, (latitude, longitude) in enumerate(PLACES):
                sequence = first + number * len(PLACES) + place
                where = {"latitude_deg": latitude, "longitude_deg": longitude}
                relay.send(batch(sequence, value=1.5, key=f"veh/v-1/p{place}", following=500, **where))

    send(100, 6)
    run(relay, "create", "x", *question)
    send(1, 4)
    send(200, 4)
    assert shown(relay, "x")["records"] == 6 * len(places)
    run(relay, "verify", "x")
    run(relay, "export", "x", str(tmp_path / "x.parquet"))
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert {row["key"] for row in rows} == {f"veh/v-1/p{place}" for place in places}
    assert [row["sequence"] for row in rows] == sorted(row["sequence"] for row in rows)
    run(relay, "verify", "x", str(tmp_path / "x.parquet"))
    assert faults_of_geoparquet(tmp_path / "x.parquet") == []


def test_version_has_records_of_the_last_nanosecond(relay: RelayInProcess, tmp_path: Path) -> None:
    """A clock may be set to anything; what the store holds, a version has."""
    far = msgspec.structs.replace(reading(1), when=EventTime(2**63 - 1, 0))
    relay.send(Batch(MAJOR, MINOR, "v-1", 1, 2, (Record(1, "r", Raw(encode_reading(far))),)))
    assert run(relay, "create", "far").output.startswith("far@1: 1 records")
    run(relay, "export", "far", str(tmp_path / "far.parquet"))
    run(relay, "verify", "far", str(tmp_path / "far.parquet"))
    assert f"{2**63 - 1} ns" in run(relay, "show", "far").output or "2262-04-11" in run(relay, "show", "far").output


@pytest.mark.parametrize("form", FORMATS)
def test_export_of_every_kind_of_value_is_the_version(relay: RelayInProcess, tmp_path: Path, form: str) -> None:
    """NaN, infinities, tensors, deep values: the file alone leads to the digest, and twice to the same bytes."""
    sent(relay)
    run(relay, "create", "all")
    files = [tmp_path / f"{name}.{form}" for name in ("one", "two")]
    for file in files:
        run(relay, "export", "all", str(file))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert f"has all {len(VALUES)} records of all@1" in run(relay, "verify", "all", str(files[0])).output
    done = CliRunner().invoke(main, ["dataset", "digest", str(files[0])])
    assert done.output == f"{shown(relay, 'all')['digest']}  {len(VALUES)} records\n"


def test_digest_knows_nothing_of_row_groups_and_can_be_recomputed_by_others(
    relay: RelayInProcess, tmp_path: Path
) -> None:
    """By the definition in the reference, with a MessagePack that is not ours."""
    sent(relay)
    run(relay, "create", "all")
    digests = set()
    for span in ("1h", "30d"):
        file = tmp_path / f"{span}.parquet"
        run(relay, "export", "--row-group", span, "all", str(file))
        whole = hashlib.sha256(b"meshnode dataset 1\n")
        for row in pq.read_table(file).to_pylist():
            named = [row[name] for name in ("origin", "sequence", "rule", "received_utc_ns", "has_receipt", "reading")]
            whole.update(hashlib.sha256(msgpack.packb(named)).digest())
        digests.add(f"sha256:{whole.hexdigest()}")
    assert digests == {shown(relay, "all")["digest"]}
    assert pq.read_metadata(tmp_path / "1h.parquet").num_row_groups == len(VALUES)
    assert pq.read_metadata(tmp_path / "30d.parquet").num_row_groups == 1


def test_digest_is_what_it_was(relay: RelayInProcess) -> None:
    """A change of the definition would make liars of all cards that were ever given away."""
    sent(relay)
    run(relay, "create", "all")
    golden = "sha256:f9b1c5622849c89394b387de9010858f80282008bbefe63f667592ecf893f206"
    assert shown(relay, "all")["digest"] == golden


# --- verifying -------------------------------------------------------------------------------------------------------
def test_missing_and_changed_records_are_named(relay: RelayInProcess, tmp_path: Path) -> None:
    """What retention removed is said, and an export that could not be whole does not begin to look whole."""
    relay.send(batch(*range(1, 11), value=1.5))
    run(relay, "create", "speeds")
    run(relay, "export", "speeds", str(tmp_path / "kept.parquet"))
    deleted(relay, 3, 10)
    with closing(open_for_writing(relay.path)) as db:
        db.execute("UPDATE records SET rule = 'other' WHERE sequence = 5")
    done = tried(relay, "verify", "speeds")
    assert done.exit_code == 1
    assert f"2 missing: v-1 3 of {BASE_NS + 3 * 10**9}, v-1 10 of" in done.output
    assert f"1 changed: v-1 5 of {BASE_NS + 5 * 10**9}" in done.output
    found = json.loads(tried(relay, "verify", "--json", "speeds").stdout)
    assert (found["records"], found["missing"]["count"], found["is_equal"]) == (7, 2, False)
    done = tried(relay, "export", "speeds", str(tmp_path / "new.parquet"))
    assert done.exit_code == 2
    assert "does not have record 3 of v-1" in done.output
    assert "'cloud-relay dataset verify speeds@1'" in done.output
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith((".", "new"))) == []
    assert "has all 10 records" in run(relay, "verify", "speeds", str(tmp_path / "kept.parquet")).output


@pytest.mark.parametrize(
    ("column", "value"),
    [("value_number", 9.0), ("quality", 0.1), ("rule", "x"), ("received_utc_ns", 5), ("has_receipt", True),
     ("reading", b"\x00"), ("geometry", bytes(21)), ("lineage", ["x"]), ("latitude_deg", -0.0), ("sequence", 99),
     ("event_utc_ns", 5), ("sensor", "x")],
)  # fmt: skip
def test_no_column_of_a_file_can_be_changed_unseen(
    relay: RelayInProcess, tmp_path: Path, column: str, value: Any
) -> None:
    """Not even those that are there for convenience: somebody computes with them."""
    relay.send(batch(*range(1, 6), value=1.5))
    run(relay, "create", "speeds")
    run(relay, "export", "speeds", str(tmp_path / "s.parquet"))
    table = pq.read_table(tmp_path / "s.parquet")
    rows = table.to_pylist()
    rows[2][column] = value
    pq.write_table(table.from_pylist(rows, table.schema), tmp_path / "changed.parquet")
    done = tried(relay, "verify", "speeds", str(tmp_path / "changed.parquet"))
    assert done.exit_code == 1
    assert "is NOT speeds@1: it has 4 of 5 records" in done.output
    pq.write_table(table, tmp_path / "same.parquet")
    run(relay, "verify", "speeds", str(tmp_path / "same.parquet"))


def test_file_with_fewer_more_or_other_rows_is_not_the_version(relay: RelayInProcess, tmp_path: Path) -> None:
    """Each is told apart."""
    relay.send(batch(*range(1, 6), value=1.5))
    run(relay, "create", "speeds")
    file = tmp_path / "s.parquet"
    run(relay, "export", "speeds", str(file))
    table = pq.read_table(file)
    for rows, said in (
        (table.slice(1), "1 missing: v-1 1 of"),
        (table.slice(0, 4), "1 missing: v-1 5 of"),
        (table.take([0, 1, 2, 2, 3, 4]), "1 of no member: v-1 3 of"),
        (table.take([1, 0, 2, 3, 4]), "1 of no member: v-1 1 of"),
        (table.slice(0, 0), "5 missing"),
    ):
        pq.write_table(rows, tmp_path / "other.parquet")
        done = tried(relay, "verify", "speeds", str(tmp_path / "other.parquet"))
        assert (done.exit_code, said in done.output) == (1, True), done.output
    pq.write_table(table.take([1, 0]), tmp_path / "other.parquet")
    done = CliRunner().invoke(main, ["dataset", "digest", str(tmp_path / "other.parquet")])
    assert (done.exit_code, "not in the order of time" in done.output) == (2, True)
    pq.write_table(table.drop_columns(["reading"]), tmp_path / "other.parquet")
    done = tried(relay, "verify", "speeds", str(tmp_path / "other.parquet"))
    assert (done.exit_code, "no column 'reading'" in done.output) == (2, True)


def test_receipt_that_comes_later_changes_no_version(relay: RelayInProcess, tmp_path: Path) -> None:
    """`has_receipt` is what it was: a node may send the receipt with a repetition."""
    relay.send(batch(1, 2, value=1.5))
    run(relay, "create", "speeds")
    with closing(open_for_writing(relay.path)) as db:
        db.execute("INSERT INTO receipted VALUES ('v-1', 1, 1, 0)")
    with closing(open_for_reading(relay.path)):
        assert [row["has_receipt"] for row in relay.records(limit=10)] == [False, True]
    run(relay, "verify", "speeds")
    run(relay, "export", "speeds", str(tmp_path / "s.parquet"))
    assert pq.read_table(tmp_path / "s.parquet")["has_receipt"].to_pylist() == [False, False]
    run(relay, "verify", "speeds", str(tmp_path / "s.parquet"))


# --- cards -----------------------------------------------------------------------------------------------------------
def test_card_tells_people_and_programs_what_the_file_is(relay: RelayInProcess, tmp_path: Path) -> None:
    """A file that was found years later explains itself, and hostile names of nodes spoil no table."""
    sent(relay)
    file = tmp_path / "s.csv"
    run(relay, "create", "Speeds", "--licence", "CC-BY-4.0", "--notes", "Wet roads | <b>only</b>\nsecond line",
        "--min-quality", "0.1")  # fmt: skip
    run(relay, "export", "Speeds", str(file))
    package = json.loads((tmp_path / "s.csv.card.json").read_bytes())
    assert (package["name"], package["licenses"]) == ("speeds-1", [{"name": "CC-BY-4.0"}])
    (resource,) = package["resources"]
    assert resource["hash"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert resource["bytes"] == file.stat().st_size
    header = file.read_text("utf-8").splitlines()[0].split(",")
    assert [column["name"] for column in resource["schema"]["fields"]] == header
    fields = {column["name"]: column for column in resource["schema"]["fields"]}
    assert fields["accuracy_m"]["unit"] == "m"
    about = package["meshnode"]
    assert about["lineage"]["named"] == {"fil,tered": about["records"], "raw": about["records"]}
    assert about["keys"]["veh/v-1/k1"]["units"] == ["m/s"]
    assert about["origins"] == {"named": {"v-1": about["records"]}, "others": 0}
    assert about["question"] == {"min_quality": "0.1"}
    card = (tmp_path / "s.csv.card.md").read_text("utf-8")
    assert "Wet roads \\| \\<b\\>only\\</b\\>" in card
    assert "| `veh/v-1/k1` |" in card
    assert package["id"] in card
    for line in card.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (3, 4, 5), line


def test_next_version_keeps_licence_and_notes(relay: RelayInProcess) -> None:
    """A timer that makes the next version each week does not know them, and must not drop them."""
    relay.send(batch(1, value=1.5))
    run(relay, "create", "speeds", "--licence", "CC0-1.0", "--notes", "wet")
    run(relay, "create", "speeds")
    assert (shown(relay, "speeds@2")["licence"], shown(relay, "speeds@2")["notes"]) == ("CC0-1.0", "wet")
    run(relay, "create", "speeds", "--notes", "")
    assert (shown(relay, "speeds@3")["licence"], shown(relay, "speeds@3")["notes"]) == ("CC0-1.0", "")


def test_metadata_of_an_exported_version_says_which_it_is(relay: RelayInProcess, tmp_path: Path) -> None:
    """When it was exported is not in it, or no two exports would be equal."""
    relay.send(batch(1, value=1.5))
    run(relay, "create", "speeds")
    run(relay, "export", "speeds", str(tmp_path / "s.parquet"))
    about = msgspec.json.decode(pq.read_metadata(tmp_path / "s.parquet").metadata[b"meshnode"])
    assert (about["dataset"], about["version"], about["records"]) == ("speeds", 1, 1)
    assert about["digest"] == shown(relay, "speeds")["digest"]
    assert not any("made" in name for name in about)
