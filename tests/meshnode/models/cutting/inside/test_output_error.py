"""How much an output differs, as the manifest counts it."""

import numpy as np
import pytest

from meshnode.models.cutting.inside.equality import output_error

INFINITE = float("inf")


@pytest.mark.parametrize(
    ("given", "expected", "error"),
    [
        (np.array([1.0, 4.0], "f4"), np.array([1.0, 4.0], "f4"), 0.0),
        (np.array([1.0, 3.0], "f4"), np.array([1.0, 4.0], "f4"), 0.25),
        (np.array([0.0, np.nan], "f4"), np.array([0.0, np.nan], "f4"), 0.0),
        (np.array([0.0, 1.0], "f4"), np.array([0.0, np.nan], "f4"), INFINITE),
        (np.array([np.inf], "f4"), np.array([-np.inf], "f4"), INFINITE),
        (np.array([np.nan], "f4"), np.array([1.0], "f4"), INFINITE),
        (np.array([1e-9], "f4"), np.array([0.0], "f4"), INFINITE),
        (np.array([3, 4, 5, 6]), np.array([3, 4, 5, 7]), 0.25),
        (np.array([], "f4"), np.array([], "f4"), 0.0),
    ],
)
def test_error_is_a_part_of_the_largest_value(
    given: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
    expected: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
    error: float,
) -> None:
    """A NaN that was not there before must never pass for a small error."""
    assert output_error(given, expected) == error
