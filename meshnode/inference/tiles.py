"""Tiles of a large image: equal parts that overlap, for a detector that takes small pictures.

Objects at the edge of a tile are whole in the next one if they are no larger than the overlap. Boxes of a tile become
boxes of the image by its offset.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MAX_TILES: Final = 4_096
"""Tiles of one image. A small step would make millions of them."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of one image, row by row from the top left."""

    array: "NDArray[Any]"
    """``[tiles, height, width, …]`` of the type of the image."""
    offsets: "NDArray[Any]"
    """``i8[tiles, 2]``: the row and the column of the image at which each tile begins."""

    def __len__(self) -> int:
        return len(self.offsets)

    def boxes_in_image(self, tile: int, boxes: "ArrayLike") -> "NDArray[Any]":
        """Boxes of a tile as boxes of the image. ``boxes[…, 4]``: left, top, right, bottom, in pixels of the tile."""
        import numpy as np

        top, left = self.offsets[tile]
        moved: NDArray[Any] = np.asarray(boxes) + np.array((left, top, left, top))
        return moved


def tiles(image: "NDArray[Any]", size: tuple[int, int], overlap: int = 0) -> Tiles:
    """Cut an image into tiles that cover it exactly.

    ``image[height, width, …]``. ``size``: height and width of a tile. ``overlap``: pixels that neighbouring tiles have
    in common; those of the last row and the last column have more: they are moved inwards, to end with the image.

    :raises InputInvalid: the image is smaller than a tile, the overlap is not smaller than both sides of it, or there
        would be more than ``MAX_TILES``.
    """
    import numpy as np

    if image.ndim < 2 or not all(1 <= side <= length for side, length in zip(size, image.shape, strict=False)):
        raise InputInvalid(
            f"an image of shape {list(image.shape)} has no tile of {size[0]} x {size[1]} (height x width): give a "
            "larger image, or smaller tiles"
        )
    if not 0 <= overlap < min(size):
        raise InputInvalid(f"an overlap of {overlap} is out of range: use 0 to {min(size) - 1}, less than a tile")
    rows, columns = (_starts(length, side, overlap) for length, side in zip(image.shape, size, strict=False))
    count = len(rows) * len(columns)
    if count > MAX_TILES:
        raise InputInvalid(f"{count} tiles are more than {MAX_TILES}: use larger tiles, or less overlap")
    offsets = np.array([(row, column) for row in rows for column in columns], np.int64)
    array = np.empty((count, *size, *image.shape[2:]), image.dtype)
    for at, (row, column) in enumerate(offsets):
        array[at] = image[row : row + size[0], column : column + size[1]]
    return Tiles(array, offsets)


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis."""
    return [*range(0, length - side, side - overlap), length - side]
