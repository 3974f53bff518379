"""SQLite and PostgreSQL give equal answers to equal batches and questions, whatever they are."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from benchmarks.postgresql import PostgresServer
from cloud_relay.ingest.access import PublishAccess
from cloud_relay.ingest.batches import storable
from cloud_relay.query.aggregating import untrusted_aggregates
from cloud_relay.query.readers.contract import StoreReader
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.searching import records_of_pages
from cloud_relay.query.selection import Query, parse_box
from cloud_relay.store.contract import StorableBatch
from cloud_relay.store.postgres.session import PostgresSession
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role, UtcNs
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Batch, Fate, Record
from tests.tools.postgres_fixture import fresh_place, given_postgres  # noqa: F401 -- a fixture
from tests.tools.relay_fixture import BASE_NS, EVERYTHING, RelayInProcess

pytestmark = pytest.mark.processes

NODES = ("v-1", "v-10", "v-2")
KEYS = ("veh/v-1/speed", "veh/v-1/hazard", "veh/v-2/speed", "veh", "rsu/r+1/(.x/hazard", "rsu/é/hazard")
EXPRESSIONS = (
    "**",
    "veh/**",
    "veh/*/speed",
    "*/*/hazard",
    "rsu/**/hazard",
    "**/hazard",
    "veh",
    "*",
    "rsu/r+1/(.x/hazard",
)
BOXES = ("48,11,49,12", "-18,179,-16,-179", "89,0,90,1", "-90,-180,90,180", "48.699,11.399,48.701,11.401")
PLACES = ((48.7, 11.4), (48.7049, 11.4049), (-17.0, 179.995), (-17.0, -180.0), (90.0, 77.0), (0.0, -0.004))
RULES = ("a", "b\0", "\ue000")
_TABLES = "records, streams, fates, conflicts, origins, receipts, certificates, wrong_receipts, known_ranges"


@pytest.fixture(name="database", scope="module")
def given_database(postgres: PostgresServer) -> Iterator[tuple[RelayInProcess, StoreReader, PostgresSession]]:
    place = fresh_place(postgres)
    relay = RelayInProcess(place)
    session = PostgresSession(place, 10, {})
    session.connect()
    with open_reader(place) as reader:
        yield relay, reader, session
    session.close()
    relay.store.close()


records = st.builds(
    lambda key, value, place, second, rule, quality: (key, value, place, second, rule, quality),
    st.sampled_from(KEYS),
    st.one_of(st.integers(0, 3), st.floats(allow_nan=True), st.text(max_size=3), st.none()),
    st.sampled_from(PLACES), st.integers(0, 5), st.sampled_from(RULES), st.sampled_from((0.2, 0.9)),
)  # fmt: skip


@st.composite
def batches(draw: st.DrawFn) -> StorableBatch:
    """A batch of a node that may have come before, be late, carried, contradict itself or go back."""
    node = draw(st.sampled_from(NODES))
    sequences = sorted(draw(st.sets(st.integers(1, 12), max_size=6)))
    made = []
    for sequence in sequences:
        key, value, (latitude, longitude), second, rule, quality = draw(records)
        reading = Reading(
            key, node, sequence, value, Position(latitude, longitude, 1.0), EventTime(BASE_NS + second, 0),
            Provenance("s\0", "m", quality),
        )  # fmt: skip
        made.append(Record(sequence, rule, Raw(encode_reading(reading))))
    edges = sorted(draw(st.sets(st.integers(1, 14), max_size=4)))
    states = draw(st.lists(st.sampled_from(("expired", "evicted", "refused")), min_size=2, max_size=2))
    fates = tuple(Fate(first, last, state) for first, last, state in zip(edges[::2], edges[1::2], states, strict=False))
    following = draw(st.integers(max([0, *sequences, *edges]) + 1, 15))
    batch = Batch(1, 7, node, draw(st.integers(1, 3)), following, tuple(made), fates)
    peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, NodeId(node))
    found = storable(batch, peer, PublishAccess(EVERYTHING))
    wrong = draw(st.sampled_from(("", "", "", "", "", "wrong receipt, tree: \0")))
    return replace(found, carried=draw(st.booleans()), wrong_receipt=wrong)


queries = st.builds(
    Query, key=st.none() | st.sampled_from(EXPRESSIONS), origin=st.none() | st.sampled_from(NODES),
    rule=st.none() | st.sampled_from(RULES), since_utc_ns=st.none() | st.integers(BASE_NS - 1, BASE_NS + 5),
    until_utc_ns=st.none() | st.integers(BASE_NS, BASE_NS + 6), box=st.none() | st.sampled_from(BOXES).map(parse_box),
    min_quality=st.none() | st.just(0.5), limit=st.integers(1, 40), newest_first=st.booleans(),
)  # fmt: skip


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(batches(), min_size=1, max_size=6), asked=st.lists(queries, min_size=2, max_size=4))
def test_both_stores_give_equal_answers(
    database: tuple[RelayInProcess, StoreReader, PostgresSession], tmp_path_factory: pytest.TempPathFactory,
    sent: list[StorableBatch], asked: list[Query],
) -> None:  # fmt: skip
    """An operator who goes over to PostgreSQL, and the nodes, must not notice."""
    theirs, reader, session = database
    session.execute(f"TRUNCATE {_TABLES}")
    with ExitStack() as closing:
        ours = RelayInProcess(tmp_path_factory.mktemp("equal") / "relay.sqlite")
        closing.callback(ours.store.close)
        for batch in sent:
            answers = [relay.store.submit(batch).result(60) for relay in (ours, theirs)]
            assert answers[0] == answers[1]
        readers = [closing.enter_context(open_reader(ours.path)), reader]
        accounts = [one.audit() for one in readers]
        assert accounts[0] == accounts[1]
        for query in asked:
            found = [list(records_of_pages(one.page, query)) for one in readers]
            assert found[0] == found[1], query
            newest = [one.newest(query).records for one in readers]
            assert newest[0] == newest[1], query
            groups = [one.aggregates(untrusted_aggregates({"by": "key,origin,rule,cell"}, UtcNs(0))) for one in readers]
            assert groups[0] == groups[1]
            arrived = [[record for _, record in one.arrivals(query, 0).records] for one in readers]
            assert arrived[0] == arrived[1], query
