"""Tiles of an image: they cover it exactly, and boxes come back to where they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.inference.tiles import tiles
from protocols.base.errors import InputInvalid


@given(
    height=st.integers(1, 60), width=st.integers(1, 60), side=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    overlap=st.integers(0, 59), data=st.data(),
)  # fmt: skip
def test_tiles_of_any_image_cover_it_and_hold_what_is_there(
    height: int, width: int, side: tuple[int, int], overlap: int, data: st.DataObject
) -> None:
    """No pixel is left out or invented, whatever the sizes are."""
    size = min(side[0], height), min(side[1], width)
    overlap = min(overlap, min(size) - 1)
    image = np.arange(height * width * 3).reshape(height, width, 3)
    cut = tiles(image, size, overlap)
    assert cut.array.shape == (len(cut), *size, 3)
    rebuilt = np.full_like(image, -1)
    for tile, (row, column) in zip(cut.array, cut.offsets, strict=True):
        rebuilt[row : row + size[0], column : column + size[1]] = tile
    assert np.array_equal(rebuilt, image)
    at = data.draw(st.integers(0, len(cut) - 1))
    box = (0, 0, size[1], size[0])
    left, top, right, bottom = cut.boxes_in_image(at, box)
    assert np.array_equal(image[top:bottom, left:right], cut.array[at])


def test_last_tiles_are_moved_inwards_and_others_overlap_as_told() -> None:
    """So that every tile has the size that the model takes, without padding."""
    cut = tiles(np.zeros((10, 25)), (10, 10), 2)
    assert [tuple(offset) for offset in cut.offsets] == [(0, 0), (0, 8), (0, 15)]
    cut = tiles(np.zeros((20, 10)), (10, 10), 0)
    assert [tuple(offset) for offset in cut.offsets] == [(0, 0), (10, 0)]
    boxes = cut.boxes_in_image(1, [[1.5, 2.0, 3.0, 4.0], [0, 0, 10, 10]])
    assert boxes.tolist() == [[1.5, 12.0, 3.0, 14.0], [0, 10, 10, 20]]


@pytest.mark.parametrize(("shape", "size", "overlap", "message"), [
    ((9, 20), (10, 10), 0, r"shape \[9, 20\] has no tile of 10 x 10"),
    ((9,), (3, 3), 0, "has no tile"),
    ((20, 20), (0, 3), 0, "has no tile"),
    ((20, 20), (5, 9), 5, "use 0 to 4"),
    ((20, 20), (5, 9), -1, "use 0 to 4"),
    ((200, 200), (10, 10), 9, "36481 tiles are more than 4096"),
])  # fmt: skip
def test_tiles_that_are_impossible_are_refused_with_the_way_out(
    shape: tuple[int, ...], size: tuple[int, int], overlap: int, message: str
) -> None:
    """The message names the values."""
    with pytest.raises(InputInvalid, match=message):
        tiles(np.zeros(shape, np.uint8), size, overlap)
