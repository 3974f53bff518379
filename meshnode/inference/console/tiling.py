"""``meshnode infer --tiles``: one large image as tiles, each a piece of a batch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from meshnode.inference.console.batch import Piece, Pieces
from meshnode.inference.console.inputs import GivenInput, array_of
from meshnode.inference.console.pictures import PICTURE_SUFFIXES, as_pixels, as_png, whole_picture
from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from meshnode.inference.tiles import Tiles

_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")


def tile_pieces(given: Sequence[GivenInput], size: str, overlap: int) -> tuple[Pieces, str]:
    """The tiles of the image that one input has, and what is said about them. Each is named after its place:
    ``photo+288+0`` begins 288 pixels from the left. ``size``: ``WIDTHxHEIGHT``.

    :raises click.UsageError: the size is not of that form. :raises InputInvalid: not exactly one input has an image, it
        can't be read, or there are no such tiles of it.
    """
    from meshnode.inference.tiles import tiles

    found = _SIZE.fullmatch(size)
    if found is None:
        raise click.UsageError(f"--tiles {size!r} is not WIDTHxHEIGHT, as in 320x320")
    width, height = map(int, found.groups())
    images = [each for each in given if _is_image(each)]
    if len(images) != 1 or any(len(each.values) != 1 for each in given):
        raise InputInvalid("--tiles needs one image and no other files: give --input NAME=IMAGE, once")
    (image,) = images
    path = image.values[0]
    assert isinstance(path, Path)
    wants = image.wants
    pixels, note = whole_picture(image.name, path, wants.datatype, None if wants.is_encoded else wants.shape)
    cut = tiles(pixels, (height, width), overlap)
    others = {each.name: array_of(each, each.values[0])[0] for each in given if each is not image}
    names = frozenset((image.name,))
    pieces = Pieces(
        _pieces(image, path.stem, cut, others), len(cut), names, names if wants.is_encoded else frozenset(), True
    )  # fmt: skip
    form = "PNG files" if wants.is_encoded else f"{wants.datatype or 'UINT8'} {list(wants.shape or (1, -1, -1, 3))}"
    return pieces, f"input {image.name}: {path.name} {note} becomes {len(cut)} tiles of {width} x {height}, as {form}"


def _is_image(given: GivenInput) -> bool:
    return any(isinstance(each, Path) and each.suffix.lower() in PICTURE_SUFFIXES for each in given.values)


def _pieces(
    given: GivenInput, stem: str, cut: "Tiles", others: "Mapping[str, NDArray[Any]]"
) -> Iterator[Piece]:  # fmt: skip
    wants = given.wants
    for tile, (top, left) in zip(cut.array, cut.offsets.tolist(), strict=True):
        if wants.is_encoded:
            array = as_png(tile)
        else:
            array = as_pixels(given.name, tile, wants.datatype or "UINT8", wants.shape or (1, -1, -1, 3))
        yield Piece(f"{stem}+{left}+{top}", {given.name: array, **others})
