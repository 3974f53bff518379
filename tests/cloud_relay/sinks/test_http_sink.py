"""Records to an HTTP server that fails, refuses one of a thousand, is slow, and is away."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from cloud_relay.sinks import delivering
from demo.processes import free_port
from tests.tools.eventually import eventually
from tests.tools.sink_fixture import SinkBench, given_quick_pauses
from tests.tools.sink_servers import HttpReceiver, given_receiver

__all__ = ["given_quick_pauses", "given_receiver"]


@pytest.fixture(name="bench")
def given_bench(tmp_path: Path, receiver: HttpReceiver) -> Iterator[SinkBench]:
    with closing(SinkBench(tmp_path, table(receiver.url))) as bench:
        yield bench


def table(url: str, more: str = "", name: str = "out") -> str:
    return f'name = "{name}"\nkind = "http"\nurl = "{url}"\n{more}'


def ids(first: int, last: int) -> list[str]:
    return [f"v-1/{number}" for number in range(first, last + 1)]


def test_records_arrive_once_in_order_with_their_context_and_ids(bench: SinkBench, receiver: HttpReceiver) -> None:
    """A receiver has to be able to rely on that when nothing fails."""
    bench.store(1, 600)
    with bench.running() as sinks:
        counted = bench.delivered_all(sinks)
        bench.store(601, 700)
        eventually(lambda: len(receiver.ids()) == 700)
    assert receiver.ids() == ids(1, 700)
    assert (counted["delivered"], counted["refused"], counted["skipped"], counted["failures"]) == (600, 0, 0, 0)
    headers, body = receiver.requests[0]
    record = body["records"][0]
    assert body["sink"] == "out"
    assert (record["origin"], record["sequence"], record["value"]) == ("v-1", 1, {"number": 1})
    assert (record["quality"], record["lineage"], record["latitude_deg"]) == (0.9, ["raw", "filtered"], 48.7)
    assert len({headers["idempotency-key"] for headers, _ in receiver.requests}) == len(receiver.requests)
    assert headers["content-type"] == "application/json"


def test_sink_goes_on_where_it_stopped(bench: SinkBench, receiver: HttpReceiver) -> None:
    """A restart of the relay must neither lose records nor send a year of them again."""
    bench.store(1, 300)
    with bench.running() as sinks:
        bench.delivered_all(sinks)
    bench.store(301, 350)
    with bench.running() as sinks:
        counted = bench.delivered_all(sinks)
    assert receiver.ids() == ids(1, 350)
    assert counted["delivered"] == 350


def test_server_that_fails_gets_the_same_records_again_under_the_same_key(
    bench: SinkBench, receiver: HttpReceiver
) -> None:
    """Nothing is lost by errors of the other side, and it can tell a repetition by the key."""
    bench.store(1, 300)
    statuses = iter((500, 429, 401, 404, 302, 503))
    receiver.status = lambda _: next(statuses, 200)
    with bench.running() as sinks:
        counted = bench.delivered_all(sinks)
    assert receiver.ids() == ids(1, 300)
    assert (counted["failures"], counted["refused"]) == (6, 0)


def test_record_that_is_refused_is_kept_with_its_reason_and_the_rest_arrives(
    bench: SinkBench, receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad record of a thousand must hold up nobody, and must not vanish."""
    bench.store(1, 1000)
    receiver.status = lambda body: 422 if any(one["sequence"] == 617 for one in body["records"]) else 200
    with bench.running() as sinks:
        counted = bench.delivered_all(sinks)
    assert sorted(receiver.ids()) == sorted(set(ids(1, 1000)) - {"v-1/617"})
    assert (counted["delivered"], counted["refused"], counted["failures"]) == (999, 1, 0)
    (line,) = bench.refused().splitlines()
    kept = json.loads(line)
    assert (kept["record"]["id"], kept["number"], kept["record"]["value"]) == ("v-1/617", 617, {"number": 617})
    assert "422" in kept["reason"]
    assert "because of a test" in kept["reason"]
    assert receiver.tries < 40, "halving takes few requests"


def test_server_that_refuses_everything_is_waited_for(
    bench: SinkBench, receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake at the receiver must not empty the whole backlog into the file of refused records."""
    monkeypatch.setattr(delivering, "MAX_REFUSED_IN_A_ROW", 5)
    bench.store(1, 300)
    receiver.status = lambda _: 400
    with bench.running() as sinks:
        eventually(lambda: "one after another" in sinks.statistics()["out"]["error"], str(sinks.statistics()))
        assert sinks.statistics()["out"]["refused"] == 5
        receiver.status = lambda _: 200
        counted = bench.delivered_all(sinks)
    assert counted["refused"] == 5
    assert receiver.ids() == ids(6, 300)


def refusing(*nodes: str) -> Callable[[dict[str, Any]], int]:
    return lambda body: 422 if any(one["origin"] in nodes for one in body["records"]) else 200


def test_node_whose_records_are_all_refused_stops_nobody_else(
    bench: SinkBench, receiver: HttpReceiver, tmp_path: Path
) -> None:
    """One node that sends what a receiver never takes must not decide what others get there."""
    bench.store(1, 300, node="v-bad")
    bench.store(1, 5, node="v-2")
    bench.store(301, 350, node="v-bad")
    receiver.status = refusing("v-bad")
    with bench.running() as sinks:
        eventually(lambda: "v-2/5" in receiver.ids())
        bench.store(6, 10, node="v-2")
        eventually(lambda: sinks.statistics()["out"]["delivered"] == 10, lambda: str(sinks.statistics()))
        counted = bench.delivered_all(sinks)
    assert (counted["delivered"], counted["refused"], counted["refused_by"]) == (10, 350, {"v-bad": 350})
    assert list(dict.fromkeys(receiver.ids())) == [f"v-2/{number}" for number in range(1, 11)]
    told = CliRunner().invoke(main, ["sinks", "--config", str(tmp_path / "relay.toml")])
    assert "out: refused 350 of v-bad, 1-355, the last at" in told.output


def test_sink_waits_for_a_receiver_that_may_be_wrong_until_somebody_else_can_tell(
    bench: SinkBench, receiver: HttpReceiver
) -> None:
    """Where one node alone has sent anything, nobody waits behind it, and it may be the receiver."""
    bench.store(1, 60, node="v-bad")
    receiver.status = refusing("v-bad")
    with bench.running() as sinks:
        eventually(lambda: "other than v-bad" in sinks.statistics()["out"]["error"], str(sinks.statistics()))
        assert sinks.statistics()["out"]["refused"] == 20
        bench.store(1, 1, node="v-2")
        assert bench.delivered_all(sinks)["refused"] == 60
    assert set(receiver.ids()) == {"v-2/1"}


def test_receiver_that_refuses_all_nodes_costs_no_backlog_however_many_there_are(
    bench: SinkBench, receiver: HttpReceiver
) -> None:
    """A column that is missing at the receiver must not set the records of a month aside."""
    for sequence in (1, 2):
        for node in range(40):
            bench.store(sequence, sequence, node=f"v-{node}")
    receiver.status = lambda _: 422
    with bench.running() as sinks:
        eventually(lambda: "records of 21 nodes" in sinks.statistics()["out"]["error"], str(sinks.statistics()))
        receiver.status = lambda _: 200
        counted = bench.delivered_all(sinks)
    assert (counted["refused"], counted["delivered"]) == (20, 60)


def test_server_that_is_away_is_told_without_secrets_of_its_address(tmp_path: Path) -> None:
    """Receivers are restarted, and may be down when the relay starts. Some have a key in their address."""
    port = free_port()
    with closing(SinkBench(tmp_path, table(f"http://127.0.0.1:{port}/records?code=s3cr3t"))) as bench:
        bench.store(1, 20)
        with bench.running() as sinks:
            eventually(lambda: sinks.statistics()["out"]["failures"] >= 2)
            told = sinks.statistics()["out"]
            assert (told["working"], told["backlog"], told["position"]) == (False, 20, 0)
            assert "can't be reached" in told["error"]
            assert "s3cr3t" not in told["error"]


def test_error_that_nobody_expected_is_logged_without_secrets(
    tmp_path: Path, receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A traceback ends with what the library said, and libraries repeat what they were given."""
    monkeypatch.setenv("TEST_TOKEN", "s3cr3t-token")
    with closing(SinkBench(tmp_path, table(receiver.url) + 'token = { env = "TEST_TOKEN" }\n')) as bench:
        bench.store(1, 3)

        def breaks(_: object) -> bytes:
            raise RuntimeError("can't encode Bearer s3cr3t-token")

        monkeypatch.setattr("cloud_relay.sinks.targets.http.sent_form", breaks)
        with bench.running() as sinks:
            told = eventually(lambda: sinks.statistics()["out"]["error"])
    assert told == "RuntimeError: can't encode Bearer ***"
    assert "Traceback" in caplog.text
    assert "in breaks" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_slow_server_holds_up_no_other_sink_and_not_the_end(tmp_path: Path, receiver: HttpReceiver) -> None:
    """Each sink has a receiver of its own to wait for."""
    release = []

    def hang(_: dict[str, Any]) -> int:
        while not release:
            time.sleep(0.01)
        return 200

    with closing(HttpReceiver()) as slow:
        slow.status = hang
        with closing(SinkBench(tmp_path, table(receiver.url), table(slow.url, name="slow"))) as bench:
            bench.store(1, 100)
            with bench.running() as sinks:
                bench.delivered_all(sinks)
                assert sinks.statistics()["slow"]["position"] == 0
            assert receiver.ids() == ids(1, 100)
            release.append(True)
            with bench.running() as sinks:
                bench.delivered_all(sinks, "slow")
            assert set(slow.ids()) == set(ids(1, 100))


def test_silent_server_is_tried_again_after_the_time_out(
    tmp_path: Path, receiver: HttpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that hangs must not be waited for for ever."""
    speaks = threading.Event()

    def hang(_: dict[str, Any]) -> int:
        speaks.wait(60)
        return 200

    receiver.status = hang
    with closing(SinkBench(tmp_path, table(receiver.url, 'timeout = "1s"'))) as bench:
        bench.store(1, 10)
        with bench.running() as sinks:
            eventually(lambda: sinks.statistics()["out"]["failures"] >= 1)
            speaks.set()
            bench.delivered_all(sinks)
    assert "no answer within 1 s" in caplog.text
    assert set(receiver.ids()) == set(ids(1, 10))


def test_sink_gets_what_its_query_selects(
    tmp_path: Path, receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partner gets the hazards and nothing else; what it passes over is no backlog for whoever looks."""
    monkeypatch.setattr(delivering, "SAVE_AFTER_S", 0.0)
    tables = table(receiver.url, 'select = { key = "veh/*/hazard", min_quality = 0.5 }')
    with closing(SinkBench(tmp_path, tables)) as bench:
        bench.store(1, 100)
        bench.store(101, 105, key="veh/v-1/hazard")
        bench.store(106, 200)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
            saved = bench.state_dir / "sinks" / "out.json"
            eventually(lambda: json.loads(saved.read_text())["position"] == 200)
    assert receiver.ids() == ids(101, 105)
    assert (counted["delivered"], counted["position"]) == (5, 200)


def test_sink_that_begins_newest_gets_what_comes(tmp_path: Path, receiver: HttpReceiver) -> None:
    """A live board does not want the last year first."""
    with closing(SinkBench(tmp_path, table(receiver.url, 'begin = "newest"'))) as bench:
        bench.store(1, 50)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
            bench.store(51, 60)
            eventually(lambda: len(receiver.ids()) == 10)
    assert receiver.ids() == ids(51, 60)


def test_sink_too_far_behind_skips_the_oldest_with_a_count_and_a_gap(tmp_path: Path, receiver: HttpReceiver) -> None:
    """Whoever wants news rather than everything must be able to see what is missing."""
    with closing(SinkBench(tmp_path, table(receiver.url, "max_backlog = 100"))) as bench:
        bench.store(1, 1000)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
            bench.store(1001, 1010)
            eventually(lambda: len(receiver.ids()) == 110)
        assert receiver.ids() == ids(901, 1010)
        assert (counted["skipped"], counted["delivered"]) == (900, 100)
        saved = json.loads((bench.state_dir / "sinks" / "out.json").read_text())
        assert [(gap["first"], gap["last"]) for gap in saved["gaps"]] == [(1, 900)]


def test_position_of_another_store_stops_the_sink_and_says_how_to_go_on(
    bench: SinkBench, receiver: HttpReceiver
) -> None:
    """After a copy was restored, a sink that waits for higher numbers would lose records in silence."""
    bench.store(1, 10)
    (bench.state_dir / "sinks").mkdir()
    (bench.state_dir / "sinks" / "out.json").write_text('{"position": 500}')
    with bench.running() as sinks:
        eventually(lambda: "another store" in sinks.statistics()["out"]["error"])
    assert receiver.ids() == []


def test_damaged_progress_stops_one_sink_and_not_the_relay(tmp_path: Path, receiver: HttpReceiver) -> None:
    """A file that can't be read must not be taken for a new sink's, nor keep records of nodes out."""
    with closing(SinkBench(tmp_path, table(receiver.url), table(receiver.url, name="other"))) as bench:
        bench.store(1, 10)
        (bench.state_dir / "sinks").mkdir()
        (bench.state_dir / "sinks" / "out.json").write_text('{"position": -')
        with bench.running() as sinks:
            bench.delivered_all(sinks, "other")
            eventually(lambda: "restore it" in sinks.statistics()["out"]["error"])
            assert not sinks.statistics()["out"]["working"]


def test_token_goes_along_and_is_in_no_message(
    tmp_path: Path, receiver: HttpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that says what it was shown must not put it into our log and status."""
    (tmp_path / "token").write_text("s3cr3t-token\n")
    with closing(SinkBench(tmp_path, table(receiver.url, 'token = { file = "token" }'))) as bench:
        bench.store(1, 10)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
    assert receiver.requests[0][0]["authorization"] == "Bearer s3cr3t-token"
    assert "s3cr3t" not in caplog.text
    assert "s3cr3t" not in repr(bench.settings)
