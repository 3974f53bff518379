"""Pages of records as Arrow, for who asks for it."""

import json
import math
import sys
from typing import Any

import pyarrow as pa
import pytest

from tests.tools.relay_fixture import batch
from tests.tools.relay_http_fixture import RelayWeb, given_web  # noqa: F401 -- a fixture

ARROW = "application/vnd.apache.arrow.stream"


def arrow_page(web: RelayWeb, path: str = "/v1/records", **query: Any) -> tuple[pa.Table, dict[str, str]]:
    answer = web.get(path, headers={"accept": ARROW}, **query)
    assert (answer.status, answer.headers["content-type"]) == (200, ARROW), answer
    return pa.ipc.open_stream(answer.body).read_all(), answer.headers


def test_pages_in_arrow_have_what_json_has_with_types(web: RelayWeb) -> None:
    """A notebook follows the cursor, in the header or in the metadata, and gets columns with units."""
    web.relay.send(batch(*range(1, 8), value=math.inf))
    found: list[int] = []
    query: dict[str, Any] = {"limit": 3, "order": "oldest"}
    while True:
        table, headers = arrow_page(web, **query)
        found += table["sequence"].to_pylist()
        assert table["value_number"].to_pylist() == [math.inf] * table.num_rows
        assert table.schema.field("accuracy_m").metadata[b"unit"] == b"m"
        cursor = json.loads(table.schema.metadata[b"meshnode"])["cursor"]
        assert (cursor is not None) == ("link" in headers)
        if cursor is None:
            break
        query["cursor"] = cursor
    assert found == list(range(1, 8))
    newest, _ = arrow_page(web, "/v1/newest")
    assert newest["sequence"].to_pylist() == [7]
    assert arrow_page(web, key="none/**")[0].num_rows == 0


@pytest.mark.parametrize("path", ["/v1/records", "/v1/newest"])
def test_question_that_nothing_can_answer_is_an_empty_table(web: RelayWeb, path: str) -> None:
    """Who takes Arrow only can't read a note in JSON."""
    web.relay.send(batch(1))
    assert arrow_page(web, path, key="veh/\u2028")[0].num_rows == 0


def test_either_form_has_an_entity_tag_of_its_own(web: RelayWeb) -> None:
    """A cache between must not give Arrow to who asked for JSON."""
    web.relay.send(batch(1, value=1.5))
    as_arrow = web.get("/v1/records", headers={"accept": ARROW})
    as_json = web.get("/v1/records")
    assert as_arrow.headers["etag"] != as_json.headers["etag"]
    assert "accept" in as_json.headers["vary"].replace(",", " ").split()
    again = web.get("/v1/records", headers={"accept": ARROW, "if-none-match": as_arrow.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    ("accept", "is_arrow"),
    [
        (ARROW, True), (f"{ARROW};q=0.5, */*;q=0.1", True), (f"{ARROW}, application/json", True), (ARROW.upper(), True),
        ("application/json;q=0, */*", True), ("", False), ("*/*", False), ("application/json", False),
        (f"{ARROW};q=0.1, application/json", False), (f"{ARROW};q=x, */*", False), ("application/*;q=0.3", False),
        (f"{ARROW};q=0", None), (f"{ARROW};q=x", None), (";;,,;q=", None), ("text/html", None),
    ],
)  # fmt: skip
def test_form_is_what_the_client_wants_most(web: RelayWeb, accept: str, is_arrow: bool | None) -> None:
    """JSON is what everybody gets who does not ask for something else, and nobody who does not take it."""
    answer = web.get("/v1/records", headers={"accept": accept})
    kind = "application/problem+json" if is_arrow is None else ARROW if is_arrow else "application/json"
    assert (answer.status, answer.headers["content-type"]) == (406 if is_arrow is None else 200, kind)


def test_relay_without_the_library_says_so(web: RelayWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on with JSON."""
    web.relay.send(batch(1, value=1.5))
    monkeypatch.setitem(sys.modules, "cloud_relay.export.arrow", None)
    answer = web.get("/v1/records", headers={"accept": ARROW})
    assert answer.status == 406
    assert "ask for application/json" in answer.json["detail"]
    assert web.found() == [1]
