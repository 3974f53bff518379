"""Windows that are saved: what comes after a restart is what would have come without it, and nothing comes twice."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.records.windows.kinds import CountWindow, SessionWindow, TimeWindow, Window
from protocols.records.windows.rule import WindowRule, by_key
from protocols.records.windows.saving import SavedState, WindowTally
from tests.protocols.records.windows.evaluator import Came
from tests.protocols.records.windows.test_windows import ALL, BOOT_NS, UTC_NS, reading, rule, run, streams, timers
from tests.tools.strategies import MODEST

WINDOWS: Sequence[Window] = (
    TimeWindow(4 * SECOND, 4 * SECOND), TimeWindow(4 * SECOND, SECOND, 500 * MS), SessionWindow(2 * SECOND, 9 * SECOND),
    CountWindow(4, 2),
)  # fmt: skip


class Disk:
    """Rows as a store keeps them."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def save(self, subject: WindowRule) -> None:
        while rows := subject.changed(3):
            for name, data in rows:
                if data is None:
                    self.rows.pop(name, None)
                else:
                    self.rows[name] = data
        assert not subject.has_changed

    def restore(self, subject: WindowRule, utc_ns: int, derived_ns: int, clean: bool) -> None:
        now = MonotonicNs(utc_ns - UTC_NS + BOOT_NS)
        subject.restore(self.rows.values(), SavedState(derived_ns, clean), now, UtcNs(utc_ns))


def made(window: Window) -> tuple[WindowRule, WindowTally]:
    subject, tally = rule(window, ALL, partition=by_key, max_partitions=9), WindowTally()
    subject.share(tally)
    subject.track(True)
    return subject, tally


def summary(derived: Any) -> tuple[Any, ...]:
    return derived.key, derived.value, derived.where, derived.when, derived.how


@MODEST
@given(streams(), st.sampled_from(WINDOWS), st.integers(0, 25))
def test_restart_between_any_two_readings_changes_nothing(came: list[Came], window: Window, at: int) -> None:
    came = list({one.reading.sequence: one for one in came}.values())  # what was seen is not saved
    came.sort(key=lambda one: one.utc_ns)
    expected = run(made(window)[0], came)
    (before, tally), (after, _), disk = made(window), made(window), Disk()
    derived: list[Any] = []
    for one in came[:at]:
        derived += timers(before, one.utc_ns - UTC_NS)
        derived += before.receive(one.reading, False, MonotonicNs(one.utc_ns - UTC_NS + BOOT_NS), UtcNs(one.utc_ns))
    utc_ns = came[at - 1].utc_ns if 0 < at <= len(came) else came[-1].utc_ns if at else UTC_NS
    derived += timers(before, utc_ns - UTC_NS)
    disk.save(before)
    disk.restore(after, utc_ns, tally.derived_ns, clean=True)
    derived += run(after, came[at:])
    assert sorted(map(repr, map(summary, derived))) == sorted(map(repr, map(summary, expected)))


@MODEST
@given(
    streams(in_order=True), st.sampled_from(WINDOWS), st.integers(1, 25), st.integers(0, 9_000), st.integers(0, 9),
    st.integers(0, 9),
)  # fmt: skip
def test_kill_at_any_moment_counts_no_reading_twice_and_accounts_for_those_that_were_saved(
    came: list[Came], window: Window, at: int, save_ms: int, away_s: int, idle_s: int
) -> None:
    """However long ago they were saved: those that were derived since are given up, and no other is."""
    if isinstance(window, TimeWindow) and window.panes > 1:
        window = WINDOWS[0]  # a reading counts in several windows of a sliding one
    at = min(at, len(came))
    kill_ns = came[at - 1].utc_ns
    (before, tally), (after, tally_after), disk = made(window), made(window), Disk()
    derived: list[Any] = []
    is_saved = False
    for one in came[:at]:
        if not is_saved and one.utc_ns > kill_ns - save_ms * MS:
            derived += timers(before, kill_ns - save_ms * MS - UTC_NS)
            disk.save(before)
            is_saved = True
        derived += timers(before, one.utc_ns - UTC_NS)
        derived += before.receive(one.reading, False, MonotonicNs(one.utc_ns - UTC_NS + BOOT_NS), UtcNs(one.utc_ns))
    back_ns = kill_ns + away_s * SECOND
    derived += timers(before, kill_ns + idle_s * SECOND - UTC_NS)
    held = tally.held
    assert tally.held + tally.gone == before.counters().get("taken", 0)
    back_ns += idle_s * SECOND
    disk.restore(after, back_ns, tally.derived_ns, clean=False)
    lost = held - tally_after.held
    assert lost >= 0
    rest = [Came(one.reading, max(one.utc_ns, back_ns)) for one in came[at:]]
    derived += run(after, rest)
    taken = before.counters().get("taken", 0) + after.counters().get("taken", 0)
    counted = sum(one.value["count"] for one in derived)
    if isinstance(window, CountWindow):
        assert counted <= 2 * taken  # each reading is in two windows at most
        return
    assert counted + lost == taken
    ends = [(one.key, one.value["end_ns"]) for one in derived]
    assert len(set(ends)) == len(ends)


def test_sketches_survive() -> None:
    """Of many readings only sketches are kept."""
    window = TimeWindow(10 * SECOND, 10 * SECOND)
    disk = Disk()
    first, second = (rule(window, ("p50", "distinct", "count")) for _ in range(2))
    first.track(True)
    for number in range(3_000):
        now = MonotonicNs(BOOT_NS + number)
        first.receive(reading(number, number, sequence=number), False, now, UtcNs(UTC_NS + number))
    disk.save(first)
    disk.restore(second, UTC_NS + 3_000, 0, clean=True)
    (derived,) = timers(second, NEVER // 2)
    assert derived.value["count"] == 3_000
    assert abs(derived.value["p50"] - 1_500) < 60
    assert abs(derived.value["distinct"] - 3_000) < 100


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", b"\x94\x01\x02\x03\x04"])
def test_damaged_row_is_told(data: bytes) -> None:
    subject, _ = made(WINDOWS[0])
    with pytest.raises(LocalProtocolError, match="can't be read"):
        subject.restore([data], SavedState(0, True), MonotonicNs(0), UtcNs(UTC_NS))
