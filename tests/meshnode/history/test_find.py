"""Pages of the history against a plain evaluator: a list that is filtered and sorted."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.history import contents, segment
from meshnode.history.merging import Row
from meshnode.history.query import (
    LAST_UTC_NS,
    HistoryQuery,
    page_of_untrusted,
    plain_answer,
    plain_question,
    query_of_untrusted,
    sought,
)
from meshnode.history.segment import KeptReading
from meshnode.history.store import HistoryStore
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.keys import matches
from protocols.base.limits import SECOND
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Reading
from tests.tools.strategies import EXPLORE, EXPRESSIONS, HOW, KEYS

_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Hundreds of small files, none of which has to survive the test."""
NOW = UtcNs(1_700_000_000 * SECOND)
_TIMES = st.integers(0, 8) | st.integers(2**63 - 3, 2**64 - 1)
_LATITUDES = st.sampled_from([-90.0, -1.0, 0.0, 0.5, 1.0, 90.0])
_LONGITUDES = st.sampled_from([-180.0, -179.0, -1.0, 0.0, 1.0, 179.0, 180.0])
_ORIGINS = st.sampled_from(["v1", "v2", "v3"])
_PLACED = st.builds(Position, _LATITUDES, _LONGITUDES, st.just(1.0))
_READINGS = st.builds(
    Reading, KEYS, _ORIGINS, st.integers(0, 9), st.integers(0, 9), _PLACED, st.builds(EventTime, _TIMES, st.just(0)),
    st.just(HOW),
)  # fmt: skip
_BOXES = st.tuples(_LATITUDES, _LONGITUDES, _LATITUDES, _LONGITUDES)


@st.composite
def questions(draw: st.DrawFn) -> HistoryQuery:
    return sought(
        draw(EXPRESSIONS.filter(lambda text: text.split("/").count("**") <= 2) | st.just("**")),
        since=draw(st.none() | _TIMES), until=draw(st.none() | _TIMES), origin=draw(st.none() | _ORIGINS),
        box=draw(st.none() | _BOXES), limit=draw(st.integers(1, 5)), newest_first=draw(st.booleans()), now=NOW,
    )  # fmt: skip


def kept(reading: Reading) -> KeptReading:
    where = reading.where
    placed = min(reading.when.utc_ns, LAST_UTC_NS), where.latitude_deg, where.longitude_deg
    return KeptReading(reading.key, reading.origin, placed, encode_reading(reading))


def answer(readings: list[Reading], query: HistoryQuery) -> list[Reading]:
    """What all pages together must have."""
    found = []
    for number, reading in enumerate(readings):
        utc_ns, where = reading.when.utc_ns, reading.where
        if not matches(query.expression, reading.key) or query.origin not in (None, reading.origin):
            continue
        time_ns = min(utc_ns, LAST_UTC_NS)
        if query.since_ns is not None and time_ns < min(query.since_ns, LAST_UTC_NS):
            continue
        if query.until_ns is not None and query.until_ns <= LAST_UTC_NS and time_ns >= query.until_ns:
            continue
        if (box := query.box) is not None:
            latitude, longitude = where.latitude_deg, where.longitude_deg
            within = box.west_deg <= longitude <= box.east_deg
            if box.west_deg > box.east_deg:
                within = box.west_deg <= longitude or longitude <= box.east_deg
            if not (within and box.south_deg <= latitude <= box.north_deg):
                continue
        found.append((time_ns, number, reading))
    return [reading for _, _, reading in sorted(found, reverse=query.newest_first)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few readings, of which few streams have a summary, and fewer are opened."""
    monkeypatch.setattr(segment, "MAX_ROWS", 6)
    monkeypatch.setattr("meshnode.history.store.MAX_ROWS", 6)
    monkeypatch.setattr(contents, "MAX_STREAMS", 3)
    monkeypatch.setattr(contents, "MAX_OPENED", 4)


def test_neighbour_with_many_wide_streams_does_not_hold_up_a_question_for_a_box(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All streams were opened before the first row was looked at, however long that took."""
    opened: list[int] = []
    stream_rows = segment.SegmentReader._stream_rows

    def counted(reader: segment.SegmentReader, selection: contents.Selection, stream: int) -> Iterator[Row]:
        opened.append(stream)
        return stream_rows(reader, selection, stream)

    monkeypatch.setattr(segment.SegmentReader, "_stream_rows", counted)
    store = HistoryStore(tmp_path, 1 << 28, 16 * SECOND)
    store.open(NOW)
    corners, inside = (Position(-90.0, -180.0, 1.0), Position(90.0, 180.0, 1.0)), Position(48.0, 11.0, 1.0)
    for second in range(2):
        wide = [
            Reading(f"rogue/{number}", "rogue", 1, 1, where, EventTime(number, 0), HOW)
            for number in range(600) for where in corners
        ]  # fmt: skip
        store.append([kept(one) for one in wide], UtcNs(NOW + second * SECOND))
        store.tidy(NOW + (second + 1) * SECOND)
    store.append([kept(Reading("a/b", "v1", 1, 1, inside, EventTime(5, 0), HOW))], UtcNs(NOW + 2 * SECOND))
    store.tidy(NOW + 3 * SECOND)
    page = store.find(sought(box=(47, 10, 49, 12), now=NOW), patience_s=60)
    assert ([one.key for one in page.decoded.readings], page.cursor) == (["a/b"], None)
    assert len(opened) <= contents.MAX_OPENED


def test_neighbour_with_ever_new_keys_leaves_summaries_to_those_that_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readings without one are decoded one by one, so questions for all others took page after page."""
    monkeypatch.setattr(contents, "MAX_STREAMS", 100)
    segment_contents = contents.SegmentContents()

    def named(key: str, origin: str) -> bool:
        stream = segment_contents.stream_of(key, origin)
        if stream is None:
            segment_contents.name(key, origin)
        return stream != contents.OTHERS

    assert [named(f"rogue/{number}", "rogue") for number in range(200)].count(True) == 75
    assert all(named(f"veh/v{number}/speed", f"v{number}") for number in range(25))
    assert named("rogue/0", "rogue"), "it keeps what it has"
    assert not named("veh/v99/speed", "v99"), "and the memory is bounded"


@settings(max_examples=60, derandomize=not EXPLORE)
@given(
    st.lists(st.lists(_READINGS, min_size=1, max_size=4), max_size=8), st.lists(questions(), min_size=1, max_size=6),
    st.booleans(), st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def _pages_are_those_of_the_plain_evaluator(
    groups: list[list[Reading]], asked: list[HistoryQuery], is_restarted: bool, patience_s: float
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="history-", dir=_MEMORY))
    try:
        store = HistoryStore(folder, 1 << 28, 1 << 60)
        store.open(NOW)
        for group in groups:
            store.append([kept(reading) for reading in group], NOW)
        if is_restarted:
            store.close()
            store = HistoryStore(folder, 1 << 28, 1 << 60)
            store.open(NOW)
        readings = [reading for group in groups for reading in group]
        for query in asked:
            found: list[Reading] = []
            cursor = None
            while True:
                question = {**plain_question(query), "cursor": cursor}
                page = store.find(query_of_untrusted(question, NOW), patience_s=patience_s)
                assert len(page.readings) <= query.limit
                found += page_of_untrusted(plain_answer(page)).readings
                cursor = page.cursor
                if cursor is None:
                    break
            assert found == answer(readings, query)
        store.close()
    finally:
        shutil.rmtree(folder)


@pytest.mark.usefixtures("small")
def test_pages_of_any_question_are_those_of_a_plain_evaluator() -> None:
    """Indexes, summaries, merging and paging only make it fast."""
    _pages_are_those_of_the_plain_evaluator()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit 0 is out of range: use 1 to 1000"),
        ({"limit": True}, "limit True"),
        ({"since": -1}, "since -1 is no time"),
        ({"until": True}, "until True is no time"),
        ({"since": 1 << 64}, "is no time"),
        ({"box": (1, 2, 3)}, "is no box"),
        ({"box": (91, 2, 3, 4)}, "is not on earth"),
        ({"box": (float("nan"), 2, 3, 4)}, "is no box"),
        ({"cursor": "x"}, "cursor 'x' is not one that a page had"),
        ({"cursor": "9223372036854775808-1"}, "is not one that a page had"),
        ({"expression": "a//b"}, "empty chunk"),
    ],
)
def test_question_that_makes_no_sense_is_refused_with_the_way_out(options: dict[str, object], said: str) -> None:
    """Whoever mistypes a box must not be told that there was nothing."""
    with pytest.raises(LocalProtocolError) as caught:
        sought(**options, now=NOW)  # type: ignore[arg-type]
    assert said in str(caught.value)


@pytest.mark.parametrize("question", [1, [], {"expresion": "a"}, {"limit": "1"}, {"box": [1, 2]}, {"since_ns": 1.5}])
def test_question_of_an_application_that_is_malformed_is_refused(question: object) -> None:
    """Programs in other languages make their own."""
    with pytest.raises(LocalProtocolError, match="malformed"):
        query_of_untrusted(question, NOW)
