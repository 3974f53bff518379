"""What an outbox takes, and what a record counts there."""

import pytest

from protocols.base.errors import BoundExceeded
from protocols.base.ids import UtcNs
from protocols.base.limits import MAX_RECORD_BYTES, SECOND
from protocols.records.curated import RECORD_OVERHEAD_BYTES, Curated
from protocols.records.ledger import Ledger
from protocols.records.pending import LedgerEntry


@pytest.mark.parametrize(
    "wrong", [{"reading": b"x" * (MAX_RECORD_BYTES + 1)}, {"priority": 8}, {"lifespan_ms": -1}, {"rule": "r" * 201}]
)
def test_curated_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    """One oversize record must not fill the disk or block the uplink."""
    with pytest.raises(BoundExceeded, match="by rule"):
        Curated(**({"rule": "r", "reading": b"x"} | wrong))  # type: ignore[arg-type]


def test_upcoming_records_are_issued_with_the_size_and_the_end_that_storage_wrote() -> None:
    """Storage writes them before the ledger has them; after a crash both must tell the same."""
    ledger, now = Ledger(10, 1_000), UtcNs(7 * SECOND)
    ledger.issue(1, 0, 0, now)
    entries = ledger.upcoming([Curated("rule", b"12345", 6, 2_000), Curated("r", b"", 0)], now)
    assert entries == [
        LedgerEntry(2, 4 + 5 + RECORD_OVERHEAD_BYTES, 6, 9 * SECOND),
        LedgerEntry(3, 1 + RECORD_OVERHEAD_BYTES, 0, 0),
    ]
    assert ledger.statistics()["issued"] == 1
    ledger.issue_all(entries, now)
    assert ledger.entries()[1:] == entries
