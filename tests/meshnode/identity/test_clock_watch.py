"""A running node whose clock leaves the time of its certificate says so, and takes it back."""

from datetime import UTC, datetime, timedelta

import pytest

from meshnode.identity import clock_watch
from meshnode.identity.clock_watch import ClockWatch
from meshnode.troubles import Troubles
from tests.tools.eventually import until
from tests.tools.mesh_fixture import Open, given_house, given_opened  # noqa: F401 -- fixtures

BEGINS = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENDS = BEGINS + timedelta(days=30)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), "before 2026-03-01 12:00 UTC"),
        (BEGINS - timedelta(hours=1), "before 2026-03-01 12:00 UTC"),
        (ENDS + timedelta(hours=1), "after 2026-03-31 12:00 UTC"),
        (datetime(2107, 1, 1, tzinfo=UTC), "set the clock if it is ahead"),
    ],
)
def test_clock_that_leaves_the_time_of_the_certificate_is_a_trouble_until_it_is_back(now: datetime, why: str) -> None:
    """No new link comes about meanwhile, and nothing else would say why."""
    troubles = Troubles()
    watch = ClockWatch(BEGINS, lambda: ENDS, troubles)
    watch.check(BEGINS)
    assert not troubles.current()
    for minute in range(3):
        watch.check(now + timedelta(minutes=minute))
    (trouble,) = troubles.current()
    assert (trouble.part, trouble.essential, troubles.reported) == ("clock", True, 1)
    assert why in trouble.why
    watch.check(ENDS - timedelta(hours=1))
    assert not troubles.current()


async def test_node_whose_certificate_ends_while_it_runs_says_so_until_it_is_renewed(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The date is that of the certificate in use, not of the one with which the node was opened."""
    monkeypatch.setattr(clock_watch, "CHECK_S", 0.02)
    node = await opened("ends-1")
    right = node.certificate_ends
    node.certificate_ends = datetime.now(UTC) - timedelta(days=1)
    await until(lambda: [trouble.part for trouble in node.troubles.current()] == ["clock"], "it is told")
    node.certificate_ends = right
    await until(lambda: not node.troubles.current(), "it is over")
