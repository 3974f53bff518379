"""Sizes mean something whether a store is new or full."""

import pytest

from cloud_relay.sizes import shown_size


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (52_300_000, "52.3 MB"), (7_250_000_000, "7.2 GB")],
)
def test_size_is_shown_in_a_unit_of_which_it_has_some(size_bytes: int, shown: str) -> None:
    assert shown_size(size_bytes) == shown
