"""Image files, decoded for models that take pixels. A model that takes encoded images gets the file as it is.

Decoded pictures are turned upright, converted to the colours of the input and resized to its sides, without regard to
their proportions. That is all: a model with other preparations needs them in a ``.npy`` file, or encoded.
"""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.inference.console.arrays import read_file
from meshnode.models.pictures import of_eight_bits
from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

PICTURE_SUFFIXES: Final = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))
MAX_PIXELS: Final = 40_000_000
"""The most pixels of one picture, 120 MB decoded. A small file can claim far more."""


def from_picture(
    name: str, path: Path, datatype: str | None, shape: tuple[int, ...] | None
) -> "tuple[NDArray[Any], str]":
    """The picture as the input takes it, and what was done to it.

    It fits inputs of type UINT8, or of FP32 with values from 0 to 1, and of shape ``[1, C, H, W]``, ``[1, H, W, C]`` or
    either without the batch, where C is 3, or 1 for grey. Unknown: UINT8 ``[1, H, W, 3]``.

    :raises InputInvalid: the input is another one, or the file is not a picture.
    """
    import numpy as np
    from PIL import Image

    datatype, shape = datatype or "UINT8", shape or (1, -1, -1, 3)
    height, width, colours, _ = _axes_of(name, datatype, shape)
    picture, done = _decoded(name, path, colours)
    size = (width if width > 0 else picture.width, height if height > 0 else picture.height)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        done.append(f"resized to {size[0]} x {size[1]}")
    if datatype == "FP32":
        done.append("scaled to values from 0 to 1")
    array = as_pixels(name, np.asarray(picture).reshape(size[1], size[0], colours), datatype, shape)
    return array, f"({', '.join(done)}) becomes {datatype} {[*array.shape]}"


def whole_picture(
    name: str, path: Path, datatype: str | None, shape: tuple[int, ...] | None
) -> "tuple[NDArray[Any], str]":
    """The picture in its own size, ``u1[height, width, colours]``, in the colours that the input takes (three if it
    takes encoded pictures), and what was done to it. :raises InputInvalid: as :func:`from_picture`."""
    import numpy as np

    colours = 3 if shape is None or len(shape) < 3 else _axes_of(name, datatype or "UINT8", shape)[2]
    picture, done = _decoded(name, path, colours)
    return np.asarray(picture).reshape(picture.height, picture.width, colours), f"({', '.join(done)})"


def as_pixels(
    name: str, pixels: "NDArray[Any]", datatype: str, shape: tuple[int, ...]
) -> "NDArray[Any]":  # fmt: skip
    """What the input takes, of ``u1[height, width, colours]``. :raises InputInvalid: as :func:`from_picture`."""
    import numpy as np

    *_, is_planar = _axes_of(name, datatype, shape)
    array: NDArray[Any] = pixels.astype("f4") / np.float32(255) if datatype == "FP32" else pixels
    if is_planar:
        array = array.transpose(2, 0, 1)
    return array[None] if len(shape) == 4 else array


def as_png(pixels: "NDArray[Any]") -> "NDArray[Any]":
    """The bytes of a PNG of ``u1[height, width, colours]``, as ``u1[n]``."""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, "PNG", compress_level=1)
    return np.frombuffer(file.getvalue(), np.uint8)


def _decoded(name: str, path: Path, colours: int) -> "tuple[Image, list[str]]":
    """The picture in its colours, and what was done to it."""
    picture, turned = _opened(name, path)
    mode = "RGB" if colours == 3 else "L"
    done = [f"{picture.width} x {picture.height} pixels", *(["turned upright"] if turned else []), f"decoded to {mode}"]
    return picture.convert(mode), done


def _axes_of(name: str, datatype: str, shape: tuple[int, ...]) -> tuple[int, int, int, bool]:
    axes = _axes(shape)
    if datatype not in ("UINT8", "FP32") or axes is None:
        raise InputInvalid(
            f"input {name!r} takes {datatype} {list(shape)}, and a picture can only become UINT8 or FP32 with three "
            "colours or grey: prepare it yourself and give a .npy file"
        )
    return axes


def _axes(shape: tuple[int, ...]) -> tuple[int, int, int, bool] | None:
    """Height, width, colours, and whether each colour is a plane; None: no picture has that shape."""
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] not in (1, -1)):
        return None
    first, second, third = shape[-3:]
    for colours in (3, 1):
        if first == colours:
            return second, third, colours, True
        if third == colours:
            return first, second, colours, False
    return None


def _opened(name: str, path: Path) -> "tuple[Image, bool]":
    """The picture, upright and with 8 bits a colour, and whether it had to be turned."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = io.BytesIO(read_file(name, path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is smaller
            with Image.open(content) as picture:
                if picture.width * picture.height <= MAX_PIXELS:
                    picture.load()
                    upright = ImageOps.exif_transpose(picture)
                    return of_eight_bits(upright), picture.getexif().get(_ORIENTATION, 1) != 1
                claimed = f"{picture.width} x {picture.height} pixels"
    except UnidentifiedImageError as error:
        raise InputInvalid(f"input {name!r}: {path} is not an image that can be read: convert it to PNG") from error
    except Exception as error:  # Pillow's decoders raise whatever they like
        raise InputInvalid(f"input {name!r}: {path} can't be read as an image ({error}): copy it again") from error
    raise InputInvalid(f"input {name!r}: {path} has {claimed}, more than {MAX_PIXELS}: scale it down")


_ORIENTATION: Final = 0x0112
"""The EXIF tag that says how a camera was held."""
