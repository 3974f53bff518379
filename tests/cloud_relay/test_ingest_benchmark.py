"""The benchmark of ingest, in a short form: a real relay takes signed batches over mutual TLS, and packs them."""

from pathlib import Path

import pytest

pytest.importorskip("zstandard")
pytestmark = pytest.mark.processes


def test_relay_takes_all_batches_and_packs_them_below_the_bar(tmp_path: Path) -> None:
    """What is measured must be what happens: each record on disk, and in a few bytes once it is packed."""
    from benchmarks.ingest import PACKED_BAR_BYTES, measured

    figures = measured(tmp_path, 4, 1, 1)
    assert min(figures.values()) > 0
    assert figures["packed_bytes"] < PACKED_BAR_BYTES < figures["record_bytes"]
