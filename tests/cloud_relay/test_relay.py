"""The relay: each record once, whoever sends what how often."""

import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import Raw
from msgspec.structs import replace

from cloud_relay.cli import main
from cloud_relay.config import load_config
from cloud_relay.query.selection import Query, parse_box, parse_instant
from cloud_relay.store.schema import open_for_reading
from meshnode.identity import create_mesh, issue
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Address
from protocols.base.errors import ConfigError, LocalProtocolError, StorageError, TransportError
from protocols.base.ids import MeshName, Role, UtcNs
from protocols.base.limits import SECOND
from protocols.base.sequences import MAX_INCARNATION, first_sequence
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RelayFrame, RelayRefusal
from protocols.wire.tensors import tensor_of
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch, given_relay, reading  # noqa: F401 -- a fixture
from tests.tools.stored_fixture import every_record


# --- ingest --------------------------------------------------------------------------------------------------------
def test_ingest_same_batch_again_is_acknowledged_and_stored_once(relay: RelayInProcess) -> None:
    """A node that lost the acknowledgement sends again: that must cost nothing and change nothing."""
    for _ in range(3):
        assert relay.send(batch(1, 2, 3)) == Acknowledgement((1, 2, 3))
    assert relay.send(batch(2, 3, 4)) == Acknowledgement((2, 3, 4))
    assert [record["sequence"] for record in relay.records()] == [4, 3, 2, 1]
    counts = {"stored": 4, "repeated": 8, "conflicts": 0, "failures": 0}
    assert relay.store.statistics() == counts | {
        "batches_gave_way": 0, "batches_waiting": 0, "fates_beyond_bounds": 0, "aggregate_failures": 0,
        "aggregate_unreadable": 0,
    }  # fmt: skip


def test_ingest_same_sequence_with_other_content_is_refused_and_counted(relay: RelayInProcess) -> None:
    """Two nodes with one id, or a forger inside: the first record stays, and the audit says so."""
    relay.send(batch(1, 2))
    answer = relay.send(batch(2, 3, value="other"))
    assert isinstance(answer, Acknowledgement)
    assert answer.stored == (3,)
    assert [refused.sequence for refused in answer.refused] == [2]
    assert relay.records()[1]["value"] == {"number": 2}
    assert relay.account().conflicts == 1
    assert not relay.account().adds_up


def test_ingest_impostor_is_refused_and_nothing_stored(relay: RelayInProcess) -> None:
    """A node must not be able to speak for another, nor a tool or relay for any."""
    for answer in (
        relay.send(batch(1, node="v-2")),
        relay.send(batch(1), role=Role.TOOL),
        relay.send(batch(1), role=Role.RELAY),
    ):
        assert isinstance(answer, RelayRefusal)
        assert answer.code == "identity"
    assert relay.accounts() == []


def test_ingest_other_major_version_is_refused_by_name(relay: RelayInProcess) -> None:
    """A node of the future must learn that the version is the reason, even if nothing else of its batch can be read."""
    answer = relay.send(encode_frame(Batch(MAJOR + 1, 0, "v-1", 1, 1)))
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "version"
    answer = relay.send(bytes((0x92, 64, MAJOR + 1)) + b"\xc0")
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "version"


def test_ingest_truncated_at_every_byte_is_refused_as_malformed(relay: RelayInProcess) -> None:
    """Whatever arrives, the relay answers and goes on."""
    data = encode_frame(batch(1, fates=(Fate(2, 3, "expired"),)))
    for end in range(len(data)):
        answer = relay.send(data[:end])
        assert isinstance(answer, RelayRefusal)
        assert answer.code == "malformed"
    assert relay.accounts() == []


@pytest.mark.parametrize(
    "wrong",
    [
        batch(5, following=5),
        batch(fates=(Fate(3, 9, "expired"),), following=9),
        batch(following=2**63),
        batch(2, 1),
        batch(1, 1),
        batch(fates=(Fate(4, 5, "expired"), Fate(1, 2, "expired"))),
        batch(fates=(Fate(1, 4, "expired"), Fate(4, 5, "evicted"))),
        batch(fates=(Fate(3, 2, "expired"),)),
        Acknowledgement((1,)),
        RelayRefusal("version"),
    ],
)
def test_ingest_batch_that_contradicts_itself_is_refused(relay: RelayInProcess, wrong: RelayFrame) -> None:
    """Otherwise the account of its origin could never add up again."""
    answer = relay.send(wrong)
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "malformed"


@pytest.mark.parametrize(
    "of",
    [
        {"accuracy_m": float("inf")},
        {"key": "veh/*/speed"},
        {"key": "veh/\x1b[2J"},
    ],
)
def test_ingest_record_that_does_not_fit_is_refused_alone(relay: RelayInProcess, of: dict[str, Any]) -> None:
    """One odd record must not hold up the others of its batch for ever."""
    good = batch(1, 3)
    answer = relay.send(Batch(MAJOR, MINOR, "v-1", 1, 4, (good.records[0], *batch(2, **of).records, good.records[1])))
    assert isinstance(answer, Acknowledgement)
    assert answer.stored == (1, 3)
    assert [refused.sequence for refused in answer.refused] == [2]
    account = relay.account()
    assert (account.stored, account.refused, account.adds_up) == (2, 1, True)


def test_ingest_takes_a_node_again_whose_clock_was_wrong(relay: RelayInProcess) -> None:
    """Sequences of a life that began in 2039 had more than 63 bits. Each such record is refused, and no later one."""
    life = 2_180_000_000
    wrong = replace(
        batch(1),
        incarnation=life,
        records=(Record(1, "r", Raw(encode_reading(replace(reading(1), sequence=life << 32)))),),
    )
    answer = relay.send(wrong)
    assert isinstance(answer, Acknowledgement)
    assert [refused.sequence for refused in answer.refused] == [1]
    for number, incarnation in enumerate((life + 1, 1_796_000_000, 4_323_000_000), 2):
        record = Record(number, "r", Raw(encode_reading(replace(reading(1), sequence=first_sequence(incarnation)))))
        right = replace(batch(number), incarnation=incarnation, records=(record,))
        assert relay.send(right) == Acknowledgement((number,))


def test_ingest_batch_whose_incarnation_is_out_of_range_is_refused_by_name(relay: RelayInProcess) -> None:
    """The node keeps its records and asks again rarely; other nodes are not concerned."""
    answer = relay.send(replace(batch(1), incarnation=MAX_INCARNATION + 1))
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "incarnation"
    assert answer.detail.startswith("incarnation out of range")
    assert relay.send(batch(1)) == Acknowledgement((1,))


def test_ingest_full_disk_refuses_and_recovers(relay: RelayInProcess) -> None:
    """A full disk at the relay must cost no record: nothing is acknowledged that is not stored."""
    relay.send(batch(1))
    pages = relay.store._db.execute("PRAGMA page_count").fetchone()[0]
    relay.store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    answer = relay.send(batch(*range(2, 40), value="x" * 5000))
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "storage"
    assert relay.account().issued == 1
    relay.store._db.execute("PRAGMA max_page_count = 1000000")
    assert relay.send(batch(*range(2, 40), value="x" * 5000)) == Acknowledgement(tuple(range(2, 40)))
    assert relay.account().stored == 39


def test_ingest_keeps_the_bytes_of_a_tensor_and_describes_it(relay: RelayInProcess) -> None:
    """A query must be readable, and the original must not be lost to it."""
    value = tensor_of(memoryview(bytes(range(12))).cast("B", (3, 4)))
    encoded = encode_reading(reading(1, value=value))
    relay.send(batch(1, value=value))
    (record,) = relay.records()
    assert record["value"] == {"tensor": {"dtype": "u1", "shape": [3, 4]}}
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("SELECT encoded FROM records").fetchone()[0] == encoded


def test_ingest_node_without_memory_is_told_where_to_go_on(relay: RelayInProcess) -> None:
    """A node whose disk was replaced would otherwise have its records refused as conflicts."""
    relay.send(batch(1, 2, 3))
    assert relay.send(batch(following=1)) == RelayRefusal("sequence", "4")


# --- audit ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stored", "fates", "following", "expected"),
    [
        # first stored, expired, evicted, refused, missing, outstanding and stored after all; then the gaps
        ((1, 2, 3), (), 4, ((3, 0, 0, 0, 0, 0, 0), ())),
        ((1, 2, 3), (), 10, ((3, 0, 0, 0, 0, 6, 0), ())),
        ((3, 7), ((1, 2, "expired"), (4, 6, "evicted")), 8, ((2, 2, 3, 0, 0, 0, 0), ())),
        ((3, 7), ((1, 1, "expired"), (5, 5, "refused")), 8, ((2, 1, 0, 1, 3, 0, 0), ((2, 2), (4, 4), (6, 6)))),
        ((5,), (), 6, ((1, 0, 0, 0, 4, 0, 0), ((1, 4),))),
        ((2, 3), ((1, 3, "evicted"),), 4, ((2, 0, 1, 0, 0, 0, 2), ())),
        ((1,), ((4, 6, "expired"),), 10, ((1, 3, 0, 0, 0, 5, 0), ())),
        ((), ((1, 4, "evicted"),), 5, ((0, 0, 4, 0, 0, 0, 0), ())),
        ((), (), 5, ((0, 0, 0, 0, 0, 4, 0), ())),
        ((1, 10), ((3, 4, "expired"), (5, 7, "evicted")), 11, ((2, 2, 3, 0, 3, 0, 0), ((2, 2), (8, 9)))),
    ],
)
def test_audit_tells_losses_from_what_is_outstanding(
    relay: RelayInProcess, stored: Any, fates: Any, following: int, expected: Any
) -> None:
    """The audit is the only proof that a customer has: it must not cry wolf, nor miss a loss."""
    relay.send(batch(*stored, fates=tuple(Fate(*fate) for fate in fates), following=following))
    account = relay.account()
    counts = (
        account.stored, account.expired, account.evicted, account.refused, account.missing, account.outstanding,
        account.stored_after_all,
    )  # fmt: skip
    assert (counts, account.gaps) == expected
    assert account.adds_up == (not account.missing)
    assert account.issued == sum(counts[:6])


def test_fates_told_in_any_pieces_are_counted_once(relay: RelayInProcess) -> None:
    """A fate is told again, grown, whenever an acknowledgement is lost."""
    random = Random(3)
    truth = ["expired" if i // 7 % 2 else "evicted" for i in range(100)]
    told: set[int] = set()
    for _ in range(60):
        first = random.randrange(100)
        last = first
        while last + 1 < 100 and truth[last + 1] == truth[first] and random.random() < 0.8:
            last += 1
        told.update(range(first, last + 1))
        relay.send(batch(fates=(Fate(first + 1, last + 1, truth[first]),), following=101))  # type: ignore[arg-type]
        account = relay.account()
        assert account.expired == sum(truth[i] == "expired" for i in told)
        assert account.evicted == sum(truth[i] == "evicted" for i in told)


# --- query ---------------------------------------------------------------------------------------------------------
def test_query_filters_select_by_key_origin_time_and_box(relay: RelayInProcess) -> None:
    """Each filter must select exactly what it says, alone and together."""
    relay.send(batch(1, 2, key="veh/v-1/speed"))
    relay.send(batch(3, key="veh/v-1/hazard", latitude_deg=-17.0, longitude_deg=179.5))
    relay.send(batch(4, key="veh", latitude_deg=-17.5, longitude_deg=-179.5))
    relay.send(batch(1, node="r-1", key="rsu/r-1/hazard"), node="r-1", role=Role.RSU)

    def found(**wanted: Any) -> list[tuple[str, int]]:
        return sorted((record["origin"], record["sequence"]) for record in relay.records(**wanted))

    assert found(key="veh/*/speed") == [("v-1", 1), ("v-1", 2)]
    assert found(key="veh/**") == [("v-1", 1), ("v-1", 2), ("v-1", 3), ("v-1", 4)]
    assert found(key="**/hazard") == [("r-1", 1), ("v-1", 3)]
    assert found(key="veh") == [("v-1", 4)]
    assert found(key="veh/*/hazard", origin="r-1") == []
    assert found(origin="r-1") == [("r-1", 1)]
    assert found(since_utc_ns=BASE_NS + 2 * SECOND, until_utc_ns=BASE_NS + 4 * SECOND) == [("v-1", 2), ("v-1", 3)]
    assert found(box=parse_box("-10,179,-20,-179")) == [("v-1", 3), ("v-1", 4)], "a box across the 180th meridian"
    assert found(box=parse_box("48,11,49,12"), origin="v-1") == [("v-1", 1), ("v-1", 2)]
    assert [record["sequence"] for record in relay.records(origin="v-1", limit=2)] == [4, 3]
    record = relay.records(key="veh/*/hazard")[0]
    assert (record["sensor"], record["unit"], record["lineage"]) == ("wheel", "m/s", ["raw", "filtered"])


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("10m", 1_000_000 - 600),
        ("90s", 1_000_000 - 90),
        ("2h", 1_000_000 - 7200),
        ("500000.25", 500_000.25),
        ("1970-01-02", 86_400),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:01Z", 1),
    ],
)
def test_parse_instant_understands_each_form(text: str, expected_s: float) -> None:
    """Whoever looks for a hazard of ten minutes ago shouldn't have to compute."""
    assert parse_instant(text, UtcNs(1_000_000 * SECOND)) == int(expected_s * SECOND)


@pytest.mark.parametrize("text", ["", "yesterday", "10 parsecs", "12:00", "1e9", "-5m"])
def test_parse_instant_of_anything_else_is_refused(text: str) -> None:
    """A misread time gives an empty answer that looks like a true one."""
    with pytest.raises(LocalProtocolError, match="ISO 8601"):
        parse_instant(text, UtcNs(0))


# --- command line --------------------------------------------------------------------------------------------------
def test_cli_query_and_audit_read_a_live_store_in_each_format(relay: RelayInProcess, tmp_path: Path) -> None:
    """Operators look while the relay runs; programs read the same answer."""
    relay.send(batch(1, 2, 4, following=5, value="\x1b[2Jboo"))
    store = ["--store", str(relay.path)]
    run = CliRunner().invoke
    table = run(main, ["query", *store]).output
    assert "veh/v-1/speed" in table
    assert "\x1b" not in table, "a record must not be able to rewrite the terminal"
    records = json.loads(run(main, ["query", *store, "--format", "json", "--limit", "2"]).output)
    assert [record["sequence"] for record in records] == [4, 2]
    assert run(main, ["query", *store, "--format", "json", "--key", "none"]).output == "[]\n"
    lines = run(main, ["query", *store, "--format", "csv"]).output.splitlines()
    assert lines[0].startswith("origin,sequence,rule,key,")
    assert len(lines) == 4
    result = run(main, ["audit", *store, "--json"])
    report = json.loads(result.output)
    assert (result.exit_code, report["adds_up"], report["origins"][0]["gaps"]) == (1, False, [[3, 3]])
    assert "missing 3" in run(main, ["audit", *store]).output
    relay.send(batch(3, following=5, value="\x1b[2Jboo"))
    assert run(main, ["audit", *store]).exit_code == 0


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "--store", "{folder}/none.sqlite"], "does not exist"),
        (["query", "--store", "{folder}/notes.txt"], "not a database"),
        (["audit", "--store", "{folder}/notes.txt"], "not a database"),
        (["query", "--store", "{folder}/none.sqlite", "--since", "yesterday"], "ISO 8601"),
        (["query", "--store", "{folder}/none.sqlite", "--box", "1,2,3"], "lat,lon,lat,lon"),
        (["query", "--store", "{folder}/none.sqlite", "--box", "nan,2,3,4"], "not on earth"),
        (["query", "--store", "{folder}/none.sqlite", "--key", "a//b"], "empty chunk"),
        (["query", "--config", "{folder}/none.toml"], "none.toml"),
        (["run", "--config", "{folder}/notes.txt"], "not valid TOML"),
        (["run", "--config", "{folder}/relay.toml"], "relay-1.crt"),
    ],
)
def test_cli_bad_input_gets_one_line_and_status_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    """A person needs the reason, a script the status; nobody needs a traceback."""
    (tmp_path / "notes.txt").write_text("not a database\n" * 100)
    (tmp_path / "relay.toml").write_text('[relay]\nid = "relay-1"\n')
    command = [sys.executable, "-m", "cloud_relay", *(a.format(folder=tmp_path) for a in arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[relay]\nid = "relay-1"\nprot = 1', "'relay.prot': did you mean 'port'"),
        ('[rely]\nid = "relay-1"', "'rely': did you mean 'relay'"),
        ('[relay]\nid = "relay-1"\nport = "x"', "relay.port is 'x' (str): write a whole number"),
        ('[relay]\nid = "relay-1"\nport = true', "relay.port is 'True' (bool)"),
        ('[relay]\nid = "relay-1"\nport = 70000', "relay.port is 70000: use 0 to 65535"),
        ('[relay]\nid = "Relay 1"', "relay.id"),
        ("[relay]", "relay.id is missing"),
        ("relay = 1", "relay is '1' (int): write a table"),
        ('[relay]\nid = "relay-1"\n[store]\npath = ""', "store.path"),
        ('[relay]\nid = "relay-1"\n[access]\nrules = 1', "access.rules"),
        ('[relay]\nid = "relay-1"\n[access]\nrules = [{ role = "car" }]', "access.rules: Invalid enum value 'car'"),
        (
            '[relay]\nid = "relay-1"\n[access]\nrules = [{ role = "rsu", verb = "publish", keys = "a//b" }]',
            "access.rules",
        ),
    ],
)
def test_config_error_names_file_key_and_value(tmp_path: Path, text: str, said: str) -> None:
    """A misspelt key that is ignored costs a day; one that is named costs a minute."""
    path = tmp_path / "relay.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


# --- a relay process over TLS --------------------------------------------------------------------------------------
@pytest.mark.processes
def test_relay_process_takes_its_own_and_refuses_impostors_over_tls(tmp_path: Path) -> None:
    """The certificate decides who a batch is from, not the batch; SIGTERM ends the relay with status 0."""
    create_mesh(tmp_path / "authority", "demo")
    issue(tmp_path / "authority", Role.RELAY, "relay-1", tmp_path)
    node = issue(tmp_path / "authority", Role.VEHICLE, "v-1", tmp_path / "v")
    create_mesh(tmp_path / "elsewhere", "demo")
    stranger = issue(tmp_path / "elsewhere", Role.VEHICLE, "v-1", tmp_path / "s")
    (tmp_path / "relay.toml").write_text('[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "cloud_relay", "run", "--config", str(tmp_path / "relay.toml"), "--log-level", "error"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        with process.stdout:
            address = Address("127.0.0.1", int(process.stdout.readline().rsplit(":", 1)[1]))
        with closing(open_requester(node.credentials, address, MeshName("demo"))) as requester:
            answer = decode_untrusted_relay_frame(requester.request(encode_frame(batch(1)), 10))
            assert answer == Acknowledgement((1,))
            answer = decode_untrusted_relay_frame(requester.request(encode_frame(batch(1, node="v-2")), 10))
            assert isinstance(answer, RelayRefusal)
            assert answer.code == "identity"
        requester = open_requester(stranger.credentials, address, MeshName("demo"))
        with closing(requester), pytest.raises(TransportError):
            requester.request(encode_frame(batch(2)), 1.5)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    with closing(open_for_reading(tmp_path / "state" / "relay.sqlite")) as db:
        assert [record.fields["sequence"] for record in every_record(db, Query())] == [1]


@pytest.mark.processes
def test_relay_process_wrong_certificate_or_port_in_use_is_told(tmp_path: Path) -> None:
    """The two mistakes of every first installation."""
    create_mesh(tmp_path / "authority", "demo")
    issue(tmp_path / "authority", Role.VEHICLE, "relay-1", tmp_path)
    (tmp_path / "relay.toml").write_text('[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n')
    command = [sys.executable, "-m", "cloud_relay", "run", "--config", str(tmp_path / "relay.toml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--role relay" in done.stderr
    issue(tmp_path / "authority", Role.RELAY, "relay-1", tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "relay.toml").write_text(
            f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = {taken.getsockname()[1]}\n'
        )
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_store_closed_refuses_instead_of_losing(tmp_path: Path) -> None:
    """A batch that arrives while the relay stops must stay with its node."""
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    relay.store.close()
    answer = relay.send(batch(1))
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "storage"
    with pytest.raises(StorageError):
        open_for_reading(tmp_path / "elsewhere.sqlite")


def test_batches_are_stored_although_nobody_can_be_told(
    relay: RelayInProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of those who follow the store, such as a server that ends just now, must not end the one thread that
    writes it."""
    relay.store.at_commit = lambda: [].clear(1)  # type: ignore[call-arg]
    assert relay.send(batch(1)) == Acknowledgement((1,))
    assert relay.send(batch(2)) == Acknowledgement((2,))
    assert "this is a bug of the relay" in caplog.text
