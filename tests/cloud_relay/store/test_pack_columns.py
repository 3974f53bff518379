"""Columns of numbers come out of a pack as they went in, bit by bit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_relay.store.packs.columns import (
    floats_packed,
    floats_unpacked,
    integers_packed,
    integers_unpacked,
    short_columns_unpacked,
)

np = pytest.importorskip("numpy")
pytest.importorskip("zstandard")


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_integers_come_back_whatever_their_differences_are(values: list[int]) -> None:
    """Differences of 64-bit integers have 65 bits: they wrap, and have to wrap back."""
    assert integers_unpacked(integers_packed(np.array(values, np.int64))).tolist() == values


@given(st.lists(st.floats(), max_size=40))
def test_numbers_come_back_bit_by_bit(values: list[float]) -> None:
    """Readings come back in their own bytes only if minus zero does, and each NaN."""
    packed = floats_packed(np.array(values, np.float64))
    assert floats_unpacked(packed).tobytes() == np.array(values, np.float64).tobytes()


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 9), st.floats()), max_size=40))
def test_columns_come_back_together(rows: list[tuple[int, int, float]]) -> None:
    """Those of a body are unpacked at once."""
    large, small, numbers = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    integers, floats = short_columns_unpacked(
        [integers_packed(np.array(column, np.int64)) for column in (large, small)],
        [floats_packed(np.array(numbers, np.float64))],
    )
    assert [column.tolist() for column in integers] == [large, small]
    assert [column.tobytes() for column in floats] == [np.array(numbers, np.float64).tobytes()]
