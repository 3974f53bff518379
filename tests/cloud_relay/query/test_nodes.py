"""Questions of nodes at the relay: within the table of access, within bounds, and never at the cost of batches."""

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_relay.query import nodes
from cloud_relay.query.nodes import BURST, MAX_AT_ONCE, NodeQuestions
from cloud_relay.query.readers import sqlite
from cloud_relay.query.readers.sqlite import SqliteReaders
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from protocols.access import AccessRule, AccessTable
from protocols.base.ids import MeshName, PeerIdentity, Role, node_id
from protocols.base.limits import MAX_EXCHANGE_BYTES, SECOND
from protocols.wire.asking.frames import AskedBox, RecordsAsked, RecordsTold
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.parcels import decode_untrusted_reading
from protocols.wire.records import RelayRefusal
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch, given_relay
from tests.tools.strategies import RELAY_FRAMES

__all__ = ["given_relay"]
TABLE = AccessTable((AccessRule(Role.VEHICLE, "subscribe", "veh/*/speed"), AccessRule(Role.TOOL, "subscribe", "**")))
NOW_NS = BASE_NS + 100 * SECOND


class Asker:
    """A relay that answers, and nodes that ask it."""

    def __init__(self, relay: RelayInProcess) -> None:
        self.relay = relay
        self.questions = NodeQuestions(SqliteReaders(relay.path), TABLE, lambda: NOW_NS)

    def raw(self, data: bytes, node: str = "v-7", role: Role = Role.VEHICLE) -> bytes:
        return self.questions.answer(PeerIdentity(MeshName("demo"), role, node_id(node)), data)

    def ask(self, node: str = "v-7", role: Role = Role.VEHICLE, **of: Any) -> Frame:
        fields = {
            "expression": "veh/*/speed", "newest": False, "since_utc_ns": 0, "max_age_ms": 0, "box": None, "limit": 100,
            "cursor": "",
        }  # fmt: skip
        return decode_untrusted_relay_frame(self.raw(encode_frame(RecordsAsked(**fields | of)), node, role))

    def told(self, **of: Any) -> tuple[list[int], str]:
        answer = self.ask(**of)
        assert isinstance(answer, RecordsTold), answer
        return [decode_untrusted_reading(bytes(each.reading)).sequence for each in answer.records], answer.cursor

    def refused(self, **of: Any) -> str:
        answer = self.ask(**of)
        assert isinstance(answer, RelayRefusal), answer
        return answer.code


@pytest.fixture(name="asker")
def given_asker(relay: RelayInProcess) -> Asker:
    relay.send(batch(*range(1, 6)))
    relay.send(batch(6, key="veh/v-1/hazard"))
    return Asker(relay)


def test_readings_come_in_the_bytes_of_their_node(asker: Asker) -> None:
    """What is decoded and encoded on the way may lose what a newer node had added."""
    (record,) = batch(3).records
    answer = asker.ask(since_utc_ns=BASE_NS + 3 * SECOND, limit=100)
    assert isinstance(answer, RecordsTold)
    assert bytes(answer.records[-1].reading) == bytes(record.reading)
    assert (answer.records[-1].node, answer.records[-1].rule, answer.now_utc_ns) == ("v-1", "r", NOW_NS)


def test_questions_select_by_place_time_and_page(asker: Asker) -> None:
    """As everywhere; an age counts by the clock of the relay."""
    assert asker.told() == ([5, 4, 3, 2, 1], "")
    assert asker.told(box=AskedBox(0, 0, 1, 1)) == ([], "")
    assert asker.told(max_age_ms=97_000) == ([5, 4, 3], "")
    assert asker.told(max_age_ms=2**63) == asker.told(since_utc_ns=1) == ([5, 4, 3, 2, 1], "")
    found, cursor = asker.told(limit=2)
    assert found == [5, 4]
    assert asker.told(limit=100, cursor=cursor) == ([3, 2, 1], "")
    assert asker.told(expression="**", newest=True, role=Role.TOOL, limit=1) == ([6], "veh/v-1/hazard")
    assert asker.told(expression="**", newest=True, role=Role.TOOL, cursor="veh/v-1/hazard") == ([5], "")


@pytest.mark.parametrize("pack_records", [2, 4, 100])
def test_answers_are_the_same_from_packs(asker: Asker, pack_records: int) -> None:
    """A vehicle that asks for yesterday is told what the relay has packed since, in the same bytes."""
    pytest.importorskip("zstandard")
    questions: list[dict[str, Any]] = [
        {}, {"limit": 2}, {"since_utc_ns": BASE_NS + 3 * SECOND}, {"max_age_ms": 97_000}, {"box": AskedBox(0, 0, 1, 1)},
        {"newest": True}, {"expression": "**", "newest": True, "role": Role.TOOL, "limit": 1},
        {"expression": "**", "role": Role.TOOL, "cursor": asker.ask(limit=3).cursor},  # type: ignore[attr-defined]
    ]  # fmt: skip
    before = [asker.ask(node=f"v-{number}", **of) for number, of in enumerate(questions)]
    assert all(isinstance(answer, RecordsTold) for answer in before)
    assert asker.relay.pack(pack_records, 2) == min(2, -(-6 // pack_records))
    assert [asker.ask(node=f"v-{number}", **of) for number, of in enumerate(questions)] == before
    assert asker.questions.statistics()["failed"] == 0


def test_questions_go_on_with_what_retention_left(asker: Asker) -> None:
    """A page of which a record was deleted is followed by the next one."""
    pytest.importorskip("zstandard")
    found, cursor = asker.told(limit=2)
    asker.relay.pack()
    rules = (RetentionRule("veh/*/hazard", 60.0), RetentionRule("**", None))
    assert asker.relay.retain(RetentionPolicy(rules), 61.0) == 1
    assert asker.told(expression="**", newest=True, role=Role.TOOL) == ([5], "")
    assert (found, asker.told(cursor=cursor)) == ([5, 4], ([3, 2, 1], ""))
    assert asker.relay.retain(RetentionPolicy((RetentionRule("**", 60.0),)), 61.0) == 5
    assert asker.told(cursor=cursor) == asker.told() == asker.told(newest=True) == ([], "")


@pytest.mark.parametrize(
    ("of", "code"),
    [
        ({"expression": "**"}, "access"),
        ({"expression": "veh/v-1/hazard"}, "access"),
        ({"role": Role.RSU}, "access"),
        ({"role": Role.RELAY}, "identity"),
        ({"expression": "a//b"}, "malformed"),
        ({"cursor": "x"}, "malformed"),
        ({"cursor": "a//b", "newest": True}, "malformed"),
        ({"box": AskedBox(2, 0, 1, 1)}, "malformed"),
    ],
    ids=["all", "key", "rsu", "relay", "expression", "cursor", "key cursor", "box"],
)
def test_what_the_table_does_not_allow_or_nobody_means_is_refused(asker: Asker, of: dict[str, Any], code: str) -> None:
    """A node learns nothing of what it may not have, not even that it is there."""
    assert asker.refused(**of) == code
    assert asker.questions.statistics()["records"] == 0


def test_page_ends_by_bytes_and_goes_on_behind_its_last_record(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer has to fit the exchange, and none of its records may be left out."""
    monkeypatch.setattr(nodes, "MAX_TOLD_BYTES", 300)
    for newest, role in ((False, Role.VEHICLE), (True, Role.TOOL)):
        expression, found, cursor = "veh/*/speed" if not newest else "**", list[int](), ""
        for _ in range(9):
            more, cursor = asker.told(cursor=cursor, role=role, newest=newest, expression=expression)
            found += more
            assert len(more) <= 2
            if not cursor:
                break
        assert found == ([6, 5] if newest else [5, 4, 3, 2, 1])


def test_largest_records_fit_an_exchange(asker: Asker) -> None:
    """Else a relay would hold what nobody can ever ask for."""
    for number in range(10, 14):
        asker.relay.send(batch(number, value=b"x" * 250_000))
    found, cursor = list[int](), ""
    while not found or cursor:
        answer = asker.ask(cursor=cursor)
        assert isinstance(answer, RecordsTold)
        assert len(encode_frame(answer)) <= MAX_EXCHANGE_BYTES
        found += [decode_untrusted_reading(bytes(each.reading)).sequence for each in answer.records]
        cursor = answer.cursor
    assert found == [13, 12, 11, 10, 5, 4, 3, 2, 1]


def test_node_that_asks_without_end_is_told_to_wait_and_others_are_not(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vehicle with a fault in its program must not take the relay from all others."""
    monkeypatch.setattr(nodes.time, "monotonic_ns", lambda: 5 * SECOND)
    codes = [type(asker.ask()) for _ in range(BURST + 5)]
    assert codes[0] is RecordsTold
    assert codes[-1] is RelayRefusal
    assert asker.refused() == "busy"
    assert asker.told(node="v-8")[0] == [5, 4, 3, 2, 1]
    monkeypatch.setattr(nodes.time, "monotonic_ns", lambda: 65 * SECOND)
    assert asker.told()[0] == [5, 4, 3, 2, 1]
    monkeypatch.setattr(nodes, "MAX_NODES", 3)
    for number in range(10):
        asker.told(node=f"v-{number}")
    assert len(asker.questions._allowances) == 3


def test_question_that_costs_much_takes_more_of_the_allowance(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a question costs is not seen in its bytes."""
    monkeypatch.setattr(nodes.time, "monotonic_ns", lambda: 5 * SECOND)
    clock = iter(range(0, 10**12, 200_000_000))  # each question takes 200 ms of a processor
    monkeypatch.setattr(nodes.time, "thread_time_ns", lambda: next(clock))
    answered = sum(isinstance(asker.ask(), RecordsTold) for _ in range(BURST))
    assert answered == 4


def test_few_questions_are_looked_for_at_once(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that look are those that take batches."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: Any) -> Any:
        begun.release()
        assert go_on.wait(30)
        raise RuntimeError("it is over")

    monkeypatch.setattr(sqlite, "find_page", slow)
    threads = [threading.Thread(target=asker.ask, kwargs={"node": f"v-{n}"}) for n in range(MAX_AT_ONCE)]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=30)
    assert asker.refused(node="v-9") == "busy"
    go_on.set()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert asker.told()[0] == [5, 4, 3, 2, 1]
    assert asker.questions.statistics() == {"asked": 4, "records": 5, "refused": 0, "busy": 1, "failed": 2}


def test_store_that_can_not_be_read_is_told_without_names_of_files(asker: Asker, tmp_path: Path) -> None:
    """Paths of the relay are for its log."""
    asker.relay.path.rename(tmp_path / "gone")
    answer = asker.ask()
    assert answer == RelayRefusal("storage", "the relay can't read its store now")
    (tmp_path / "gone").rename(asker.relay.path)
    assert asker.told()[0] == [5, 4, 3, 2, 1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | RELAY_FRAMES[RecordsAsked].map(encode_frame))
def test_whatever_comes_is_answered(asker: Asker, data: bytes) -> None:
    """A handler that raised would leave its node without an answer."""
    answer = decode_untrusted_relay_frame(asker.raw(data, role=Role.TOOL))
    assert isinstance(answer, RecordsTold | RelayRefusal)
    assert not isinstance(answer, RelayRefusal) or answer.code in ("malformed", "busy"), answer


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1])
def test_times_beyond_those_of_the_store_are_answered(asker: Asker, number: int) -> None:
    """The wire has one bit more than SQLite."""
    assert asker.told(since_utc_ns=number) == asker.told(since_utc_ns=number, newest=True) == ([], "")
    assert asker.told(max_age_ms=number)[0] == [5, 4, 3, 2, 1]
    assert asker.refused(cursor=f"{number + 1}.1.v") == "malformed"


def test_relay_without_records_answers(tmp_path: Path) -> None:
    """The first vehicle of a fleet may ask, too."""
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    with closing(relay.store):
        assert Asker(relay).told() == ([], "")
