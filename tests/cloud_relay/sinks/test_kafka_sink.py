"""Records to the broker of librdkafka, which is silent for a while."""

import gc
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.tools.eventually import eventually
from tests.tools.sink_fixture import SinkBench, given_quick_pauses
from tests.tools.sink_servers import KafkaBroker

__all__ = ["given_quick_pauses"]
pytestmark = pytest.mark.processes


@pytest.fixture(name="broker")
def given_broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path) as broker:
        yield broker


def table(broker: KafkaBroker, more: str = "") -> str:
    return f'name = "out"\nkind = "kafka"\nurl = "kafka://{broker.address}"\n{more}'


def test_records_arrive_with_ids_in_their_order(broker: KafkaBroker, tmp_path: Path) -> None:
    """A consumer has to know which record a message is, and gets those of one vehicle in order."""
    with closing(SinkBench(tmp_path, table(broker))) as bench:
        bench.store(1, 700)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
    assert (counted["delivered"], counted["failures"]) == (700, 0)
    found = broker.messages("records")
    partition = {message["partition"] for message in found}
    assert len(partition) == 1, "all are of one vehicle"
    assert [json.loads(message["payload"])["id"] for message in found] == [f"v-1/{one}" for one in range(1, 701)]
    headers = found[0]["headers"]
    assert headers[:6] == ["id", "v-1/1", "origin", "v-1", "sequence", "1"]
    assert {message["key"] for message in found} == {"v-1"}


# aiokafka may forget a connection to a silent broker. It is ended, and aiokafka complains of it when it is freed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_broker_that_is_silent_for_a_while_gets_everything(broker: KafkaBroker, tmp_path: Path) -> None:
    """What it had taken and not confirmed may come again, with the same id."""
    with closing(SinkBench(tmp_path, table(broker, 'timeout = "2s"\nmessage_key = "id"'))) as bench:
        bench.store(1, 50)
        port = int(broker.address.rpartition(":")[2])
        with bench.running() as sinks:
            bench.delivered_all(sinks)
            broker.pause()
            bench.store(51, 90)
            eventually(lambda: sinks.statistics()["out"]["failures"] >= 1)
            assert sinks.statistics()["out"]["position"] == 50
            tries = sinks.statistics()["out"]["failures"] + 2
            eventually(lambda: sinks.statistics()["out"]["failures"] >= tries, limit_s=60)
            left = sum(
                connection.raddr[1:] == (port,) for connection in psutil.Process().net_connections() if connection.raddr
            )
            assert left <= 3, "each try must end what it began"
            broker.go_on()
            bench.delivered_all(sinks)
    assert {message["key"] for message in broker.messages("records")} == {f"v-1/{one}" for one in range(1, 91)}
    gc.collect()
