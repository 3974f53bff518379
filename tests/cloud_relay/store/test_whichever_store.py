"""What stands on the contract of stores works whichever store is behind it: questions of vehicles, metrics, charts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_relay.query.nodes import MAX_AT_ONCE, NodeQuestions
from cloud_relay.query.readers.opening import open_readers
from cloud_relay.store.places import StorePlace
from protocols.access import AccessRule, AccessTable
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.base.limits import SECOND
from protocols.wire.asking.frames import RecordsAsked, RecordsTold
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.parcels import decode_untrusted_reading
from tests.tools.postgres_fixture import given_place, given_postgres  # noqa: F401 -- fixtures
from tests.tools.relay_fixture import BASE_NS, batch
from tests.tools.relay_http_fixture import RelayWeb

pytestmark = pytest.mark.processes
TABLE = AccessTable((AccessRule(Role.VEHICLE, "subscribe", "veh/*/speed"),))


@pytest.fixture(name="web")
def given_web(place: StorePlace, tmp_path: Path) -> Iterator[RelayWeb]:
    web = RelayWeb(tmp_path, place=place)
    yield web
    web.close()


def test_vehicle_that_asks_gets_readings_page_by_page(web: RelayWeb, place: StorePlace) -> None:
    """Which store the relay has must make no difference to a vehicle."""
    web.relay.send(batch(1, 2, 3))
    web.relay.send(batch(4, key="veh/v-1/hazard"))
    readers = open_readers(place, MAX_AT_ONCE)
    questions = NodeQuestions(readers, TABLE, lambda: BASE_NS + 100 * SECOND)
    peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, NodeId("v-7"))

    def told(*, newest: bool, limit: int, cursor: str = "") -> tuple[list[int], str]:
        asked = RecordsAsked("veh/*/speed", newest, 0, 0, None, limit, cursor)
        answer = decode_untrusted_relay_frame(questions.answer(peer, encode_frame(asked)))
        assert isinstance(answer, RecordsTold), answer
        return [decode_untrusted_reading(bytes(each.reading)).sequence for each in answer.records], answer.cursor

    first, cursor = told(newest=False, limit=2)
    assert (first, told(newest=False, limit=2, cursor=cursor)) == ([3, 2], ([1], ""))
    assert told(newest=True, limit=9) == ([3], "")
    readers.close()


def test_metrics_and_charts_tell_what_the_store_has(web: RelayWeb) -> None:
    """Dashboards show stores of both kinds alike."""
    web.relay.send(batch(1, 2, 3))
    told = web.get("/metrics").body.decode()
    assert "cloud_relay_store_readable 1.0" in told
    assert "cloud_relay_store_records 3.0" in told
    assert "cloud_relay_store_origins 1.0" in told
    (size,) = [line.split()[1] for line in told.splitlines() if line.startswith("cloud_relay_store_size_bytes ")]
    assert float(size) > 4_096
    charted = web.get("/v1/series", since="2020-01-01T00:00:00Z", points=1).json["series"]
    assert [(each["key"], sum(point["records"] for point in each["points"])) for each in charted] == [
        ("veh/v-1/speed", 3)
    ]
