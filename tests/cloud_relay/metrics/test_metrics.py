"""What the relay tells Prometheus: it parses, adds up, stays small whoever sends, and is what the reference says."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from cloud_relay.metrics.counted import MAX_NAMES, CountedParts
from cloud_relay.metrics.histograms import MAX_SERIES, LabelledHistogram
from cloud_relay.metrics.page import RelayMetrics
from cloud_relay.metrics.requests import measured
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.wire.codec import encode_frame
from tests.tools.relay_fixture import RelayInProcess, RelayProcess, batch
from tests.tools.relay_http_fixture import RelayWeb, asked, given_web

__all__ = ["given_web"]
REFERENCE: Final = Path(__file__).resolve().parents[3] / "docs/reference/relay-http.md"
ROW: Final = re.compile(r"^\| (`cloud_relay[^|]*) \| (\w+) \|([^|]*)\|", re.MULTILINE)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(name="scraped", scope="module")
def given_scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The page of a relay process that took a batch twice and refused one, as text and as OpenMetrics."""
    folder = tmp_path_factory.mktemp("relay")
    (folder / "relay.toml").write_text(
        '[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[http]\nport = 0\n'
        '[[sink]]\nname = "down"\nkind = "http"\nurl = "http://127.0.0.1:9/"\n'
    )
    with RelayProcess(folder) as relay, relay.requester() as requester:
        for sent in (batch(1, 2), batch(1, 2), batch(3, node="v-2")):
            requester.request(encode_frame(sent), 20)
        requester.request(b"\xc1", 20)
        port = urlsplit(relay.http_url or "").port
        assert port is not None
        asked(port, "/v1/records")
        asked(port, "/nobody/knows/this")
        plain = asked(port, "/metrics")
        open_form = asked(port, "/metrics", {"accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"})
        assert plain.headers["content-type"].startswith("text/plain")
        assert open_form.headers["content-type"].startswith("application/openmetrics-text")
        yield plain.body.decode(), open_form.body.decode()


@pytest.mark.processes
def test_page_tells_what_nodes_and_programs_did(scraped: tuple[str, str]) -> None:
    """An alarm on any of these has to go off when it should."""
    found = samples(scraped[0])
    for name, labels, value in (
        ("cloud_relay_stored_total", {}, 2),
        ("cloud_relay_repeated_total", {}, 2),
        ("cloud_relay_refusals_total", {"what": "identity"}, 1),
        ("cloud_relay_refusals_total", {"what": "malformed"}, 1),
        ("cloud_relay_connections", {"role": "vehicle"}, 1),
        ("cloud_relay_connections", {"role": "relay"}, 0),
        ("cloud_relay_request_seconds_count", {"frame": "Batch", "answer": "Acknowledgement"}, 2),
        ("cloud_relay_request_seconds_count", {"frame": "Batch", "answer": "RelayRefusal"}, 1),
        ("cloud_relay_request_seconds_count", {"frame": "unknown", "answer": "RelayRefusal"}, 1),
        ("cloud_relay_commit_seconds_count", {"done": "yes"}, 2),
        ("cloud_relay_http_request_seconds_count", {"path": "/v1/records", "status": "200"}, 1),
        ("cloud_relay_http_request_seconds_count", {"path": "other", "status": "404"}, 1),
        ("cloud_relay_store_records", {}, 2),
        ("cloud_relay_store_origins", {}, 1),
        ("cloud_relay_store_readable", {}, 1),
        ("cloud_relay_batches_waiting", {}, 0),
        ("cloud_relay_http_streams", {}, 0),
        ("cloud_relay_releases_now", {"what": "orders_running"}, 0),
        ("cloud_relay_sinks_total", {"part": "down", "what": "delivered"}, 0),
        ("cloud_relay_keeping_total", {"what": "deleted"}, 0),
        ("cloud_relay_aggregate_failures_total", {}, 0),
    ):
        assert found[name, tuple(sorted(labels.items()))] == value, name
    assert found["cloud_relay_sinks_now", (("part", "down"), ("what", "working"))] in (0, 1), (
        "it may not have tried yet"
    )
    assert found["cloud_relay_sinks_now", (("part", "down"), ("what", "delivering"))] == 1, "it may change hands"
    about = next(dict(labels) for name, labels in found if name == "cloud_relay_info")
    assert (about["relay"], about["mesh"]) == ("relay-1", "demo")
    assert found["process_resident_memory_bytes", ()] > 0


@pytest.mark.processes
def test_open_metrics_say_the_same(scraped: tuple[str, str]) -> None:
    """Prometheus prefers that form."""
    plain = {family.name for family in text_string_to_metric_families(scraped[0])}
    others = {family.name for family in openmetrics_families(scraped[1])}
    assert {name.removesuffix("_info") for name in plain} == {name.removesuffix("_info") for name in others}


@pytest.mark.processes
def test_reference_lists_the_families_that_there_are(scraped: tuple[str, str]) -> None:
    """Who writes an alarm reads the table."""
    families: list[Metric] = list(openmetrics_families(scraped[1]))
    there = {
        (family.name, family.type, ", ".join(sorted(labels)))
        for family in families
        if not family.name.startswith("process_")
        for labels in [{label for sample in family.samples for label in sample.labels} - {"le"}]
        if family.type != "info"
    }
    listed = {
        (name, kind, ", ".join(sorted(re.findall(r"`(\w+)`", labels))))
        for names, kind, labels in ROW.findall(REFERENCE.read_text("utf-8"))
        for name in re.findall(r"`(\w+)`", names)
        if kind != "info"
    }
    assert there == listed


def test_series_stay_few_under_ten_thousand_origins(tmp_path: Path) -> None:
    """A metric with a series for each vehicle takes down whoever stores it."""
    metrics = RelayMetrics()
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    with closing(relay.store):
        relay.store.at_end = lambda took_s, done: metrics.commits.observe(took_s, "yes" if done else "no")
        metrics.statistics = lambda: {**relay.store.statistics(), "refusals": relay.ingest.statistics()}
        answer = measured(relay.ingest.answer, metrics.requests)

        def send(number: int) -> None:
            peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, NodeId(f"v-{number}"))
            sent = batch(1, node=peer.node, key=f"veh/v-{number}/speed") if number % 100 == 0 else batch(node="other")
            answer(peer, encode_frame(sent))

        send(0)
        few = len(samples(metrics.page("")[0].decode()))
        for number in range(1, 10_000):
            send(number)
        many = samples(metrics.page("")[0].decode())
    refused = next(value for (name, labels), value in many.items() if name == "cloud_relay_refusals_total" and labels)
    assert refused == 9_900
    assert len(many) <= few + 40, "one more histogram, and one more counter"


def test_store_counts_what_is_in_packs_and_not_what_retention_deleted(web: RelayWeb) -> None:
    """A graph of the records of a store must not fall to nothing each night."""
    pytest.importorskip("zstandard")

    def told() -> list[float]:
        found = samples(web.get("/metrics").body.decode())
        return [found[f"cloud_relay_store_{name}", ()] for name in ("records", "streams", "origins")]

    web.relay.send(batch(*range(1, 21)))
    web.relay.send(batch(*range(21, 31), key="veh/v-1/debug/x"))
    assert told() == [30, 2, 1]
    web.relay.pack(8)
    web.relay.send(batch(31))
    assert told() == [31, 2, 1]
    web.relay.retain(RetentionPolicy((RetentionRule("veh/*/debug/**", 60.0), RetentionRule("**", None))), 61.0)
    assert told() == [21, 1, 1]


def test_labels_that_others_choose_are_bounded_and_never_decrease() -> None:
    """A sum of which a part moves from one series to another would look like a restart."""
    latencies, parts = LabelledHistogram("x_seconds", "X.", "path"), CountedParts()
    for number in range(3 * MAX_SERIES):
        latencies.observe(0.01, f"/{number}")
    (family,) = latencies.collect()
    counts = [sample for sample in family.samples if sample.name.endswith("_count")]
    assert (len(counts), sum(sample.value for sample in counts)) == (MAX_SERIES + 1, 3 * MAX_SERIES)
    told: dict[str, Any] = {"sinks": {f"s-{n}": {"sent": 1, "backlog": 2, "url": "x"} for n in range(3 * MAX_NAMES)}}
    for _ in range(2):
        sent, backlog = parts.families(told)
        assert [len(each.samples) for each in (sent, backlog)] == [MAX_NAMES + 1] * 2
        assert sum(sample.value for sample in sent.samples) == 3 * MAX_NAMES
    assert (sent.name, sent.type, backlog.type) == ("cloud_relay_sinks", "counter", "gauge")


def test_metrics_answer_while_the_store_can_not_be_read(web: RelayWeb) -> None:
    """That is when somebody looks at them."""
    web.relay.path.rename(web.relay.path.with_suffix(".gone"))
    found = samples(web.get("/metrics").body.decode())
    assert found["cloud_relay_store_readable", ()] == 0
    assert ("cloud_relay_store_records", ()) not in found
