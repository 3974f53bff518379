"""Readings for tests of patterns, and what drives a pattern with them."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.records.curation import Pattern, ReadingDerived
from protocols.records.deriving.output import Output
from protocols.records.deriving.sources import Source
from protocols.records.patterns.nearness import Nearness
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from tests.protocols.records.patterns.evaluator import Came, Id

UTC_NS = 1_700_000_000 * SECOND
BOOT_NS = 77 * SECOND
"""The clock that never steps shows this when it is ``UTC_NS``."""
ME = NodeId("me")
OUTPUT = Output("veh/{node}/p/{partition}", "1")
KEYS = ("veh/a/x", "veh/b/x")
NEARNESSES = st.builds(
    Nearness, st.sampled_from([500 * MS, 2 * SECOND, 5 * SECOND]), st.sampled_from([0, 500 * MS, 2 * SECOND]),
    st.sampled_from([None, 150.0]), st.booleans(),
)  # fmt: skip


def place(east_m: float, accuracy_m: float = 2.0) -> Position:
    """A place so far to the east on the equator."""
    return Position(0.0, east_m / 111_195.08, accuracy_m)


def reading(
    at_ms: int, value: Any = 0, key: str = KEYS[0], origin: str = "a", sequence: int = 1, uncertainty_ms: int = 0,
    where: Position | None = None, lineage: tuple[str, ...] = (), quality: float = 1.0,
) -> Reading:  # fmt: skip
    """A reading that was sensed ``at_ms`` after ``UTC_NS``."""
    how = Provenance("wheel", "m/s", quality, lineage=lineage)
    when = EventTime(UTC_NS + at_ms * MS, uncertainty_ms * MS)
    return Reading(key, origin, sequence, value, where or place(0), when, how)


def came(one: Reading, at_ms: int | None = None) -> Came:
    """A reading that came ``at_ms`` after ``UTC_NS``; None: when it was sensed."""
    return Came(one, one.when.utc_ns if at_ms is None else UTC_NS + at_ms * MS)


def is_first(one: Reading) -> bool:
    """Of the values 0 to 2."""
    return one.value in (0, 2)


def is_then(one: Reading) -> bool:
    """Of the values 0 to 2; 2 is both."""
    return one.value in (1, 2)


FIRST = Source("veh/*/x", "any", where=is_first)
THEN = Source("veh/*/x", "any", where=is_then)


@st.composite
def streams(draw: Any, max_size: int = 25) -> list[Came]:
    """Readings of two keys and three nodes that come early, late, doubled and out of order."""
    found, now_ms = [], 10_000
    for sequence in range(draw(st.integers(1, max_size))):
        now_ms += draw(st.integers(0, 4)) * 250
        delay_ms = draw(st.sampled_from([0, 0, 0, 250, 1_000, 3_000, 9_000, -500, -2_500, -3_000]))
        one = reading(
            now_ms - delay_ms, draw(st.integers(0, 2)), draw(st.sampled_from(KEYS)), draw(st.sampled_from("abc")),
            sequence, draw(st.sampled_from([0, 0, 200, 600])), place(draw(st.integers(0, 3)) * 100.0),
        )  # fmt: skip
        found.append(came(one, now_ms))
        if draw(st.integers(0, 9)) == 9:
            again = draw(st.sampled_from(found)).reading
            found.append(came(again, now_ms))
    return found


def run(subject: Pattern, stream: Sequence[Came], is_own: bool = False) -> list[tuple[ReadingDerived, int]]:
    """All that is derived and when, with every timer called when it is due."""
    derived: list[tuple[Any, int]] = []
    for one in stream:
        derived += timers(subject, one.utc_ns)
        now = MonotonicNs(one.utc_ns - UTC_NS + BOOT_NS)
        derived += [(found, one.utc_ns) for found in subject.receive(one.reading, is_own, now, UtcNs(one.utc_ns))]
    return derived + timers(subject, NEVER)


def timers(subject: Pattern, until_utc_ns: int) -> list[tuple[Any, int]]:
    """What timers derive until then."""
    derived: list[tuple[Any, int]] = []
    while subject.next_timer_at() <= min(until_utc_ns - UTC_NS + BOOT_NS, NEVER - 1):
        now = MonotonicNs(subject.next_timer_at())
        derived += [(found, now - BOOT_NS + UTC_NS) for found in subject.handle_timer(now)]
    return derived


def named(described: dict[str, Any]) -> Id:
    """Which reading a derived value names."""
    return described["origin"], described["key"], described["sequence"]


def of_key(stream: Sequence[Came], key: str) -> list[Came]:
    """What came of one key."""
    return [one for one in stream if one.reading.key == key]


def all_counted(subject: Any, stream: Sequence[Came]) -> bool:
    """Whether each reading was either taken or left out for a reason."""
    reasons = ("taken", "late", "future", "doubled", "filtered", "unfit", "failed", "unit_mismatch")
    counts = subject.counters()
    return sum(counts.get(name, 0) for name in reasons) == len(stream)
