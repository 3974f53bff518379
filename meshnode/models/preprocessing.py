"""From an encoded picture to the tensor of a model: the steps that a manifest declares.

The steps, in this order: decode and turn upright (:mod:`meshnode.models.pictures`), convert to the colours, resize,
pad, and map each of the 256 values of a channel to ``(value × scale − mean) / std``.

Invariant: equal bytes and equal steps give equal bits with the same build of Pillow, whose decoder and filters are
used. What is done here differs nowhere: the mapping is a table, computed in double precision and rounded once to the
type of the model, and sizes are whole numbers.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta

from meshnode.config.parsing import Problem, Section, shown
from meshnode.models.pictures import DEFAULT_MAX_PIXELS, decoded_untrusted
from protocols.base.errors import ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

MAX_TARGET_SIDE: Final = 4_096
"""Pixels: the tensor of such a square takes 200 MB as float32."""

_Side = Annotated[int, Meta(ge=1, le=MAX_TARGET_SIDE)]
_Level = Annotated[int, Meta(ge=0, le=255)]


class Preprocessing(Section, frozen=True, kw_only=True):
    """How the node that computes makes the tensor of this input from a JPEG or PNG. The input is then the encoded
    picture, `u1[?]`; the tensor has the type that the model takes. Lists with one number for each channel are in the
    order of `colours`."""

    width: Annotated[_Side, Meta(description="Columns of the tensor.")]
    height: Annotated[_Side, Meta(description="Rows of the tensor.")]
    fit: Annotated[
        Literal["stretch", "letterbox", "centre-crop"],
        Meta(
            description="How a picture of another shape fits: each side is scaled by itself; the whole picture is "
            "scaled and centred on a ground of `fill`; or its middle is cut out."
        ),
    ] = "stretch"
    fill: Annotated[
        tuple[_Level, ...],
        Meta(
            description="The ground of `letterbox`, 0 to 255 for each channel, before `scale`, `mean` and `std`.",
            extra={"default": "0 for each"},
        ),
    ] = ()
    shorter_side: Annotated[
        _Side | None,
        Meta(
            description="The length to which `centre-crop` scales the shorter side before it cuts: 256 where 224 are "
            "cut out of 256.",
            extra={"default": "as much as fits is cut out"},
        ),
    ] = None
    resampling: Annotated[
        Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"],
        Meta(description="Pillow's filter of this name."),
    ] = "bilinear"
    colours: Annotated[
        Literal["rgb", "bgr", "grey"],
        Meta(description="The channels and their order; grey is 0.299 R + 0.587 G + 0.114 B."),
    ] = "rgb"
    scale: Annotated[
        float, Meta(description="Each value from 0 to 255 is multiplied by it first: 0.00392156862745098 is 1/255.")
    ] = 1.0
    mean: Annotated[
        tuple[float, ...],
        Meta(description="Then it is subtracted, one number for each channel.", extra={"default": "0 for each"}),
    ] = ()
    std: Annotated[
        tuple[float, ...],
        Meta(description="Then it divides, one number for each channel.", extra={"default": "1 for each"}),
    ] = ()
    layout: Annotated[
        Literal["nchw", "nhwc"], Meta(description="Whether channels are planes, or stand together in each pixel.")
    ] = "nchw"
    max_pixels: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000_000,
            description="Pictures of more pixels are refused before they are decoded. Decoding takes up to 16 bytes of "
            "memory a pixel.",
        ),
    ] = DEFAULT_MAX_PIXELS

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.colours == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the tensor."""
        if self.layout == "nchw":
            return 1, self.channels, self.height, self.width
        return 1, self.height, self.width, self.channels

    def conflicts(self) -> Iterator[Problem]:
        """Lists of another length than the channels, and keys that this ``fit`` does not use."""
        for key in ("fill", "mean", "std"):
            numbers = getattr(self, key)
            if numbers and len(numbers) != self.channels:
                text = f"has {len(numbers)} numbers: give {self.channels}, one for each channel of {self.colours!r}"
                yield Problem(key, shown(list(numbers)), text)
        if 0 in self.std:
            yield Problem("std", shown(list(self.std)), "has a zero, which nothing can be divided by: use 1")
        if self.fill and self.fit != "letterbox":
            yield Problem("fill", shown(list(self.fill)), "is only for fit = 'letterbox': remove it")
        if self.shorter_side is not None and self.fit != "centre-crop":
            yield Problem("shorter_side", shown(self.shorter_side), "is only for fit = 'centre-crop': remove it")
        elif self.shorter_side is not None and self.shorter_side < max(self.width, self.height):
            text = f"is less than what is cut out: use at least {max(self.width, self.height)}"
            yield Problem("shorter_side", shown(self.shorter_side), text)


def prepared(content: bytes, steps: Preprocessing, dtype: str) -> "NDArray[Any]":
    """The tensor of a picture: ``dtype`` (of the wire: ``f4``), of the shape ``steps.shape``.

    :raises InputInvalid: ``content`` is no picture, or exceeds a bound. :raises ModelInvalid: as :func:`value_table`.
    """
    import numpy as np

    table = value_table(steps, dtype)
    picture, mode = decoded_untrusted(content, steps.max_pixels), "L" if steps.channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    pixels = np.asarray(_fitted(picture, steps)).reshape(steps.height, steps.width, steps.channels)
    tensor = np.empty(steps.shape, dtype)
    planes = tensor[0] if steps.layout == "nchw" else np.moveaxis(tensor[0], 2, 0)
    for channel, plane in enumerate(planes):
        source = pixels[:, :, steps.channels - 1 - channel if steps.colours == "bgr" else channel]
        if plane.flags.c_contiguous:
            np.take(table[channel], source, out=plane, mode="clip")  # by far the fastest; every index is in range
        else:
            plane[:] = table[channel][source]
    return tensor


@lru_cache(maxsize=64)
def value_table(steps: Preprocessing, dtype: str) -> "NDArray[Any]":
    """What each value of a channel becomes: ``dtype[channels, 256]``.

    :raises ModelInvalid: ``dtype`` can't hold one of them; names the value.
    """
    import numpy as np

    mean = np.array(steps.mean or (0.0,) * steps.channels)[:, None]
    std = np.array(steps.std or (1.0,) * steps.channels)[:, None]
    with np.errstate(all="ignore"):
        exact = (np.arange(256.0) * steps.scale - mean) / std
        table: NDArray[Any] = exact.astype(dtype)
        wrong = ~np.isfinite(table) if dtype.startswith("f") else table != exact
    if wrong.any():
        channel, value = np.argwhere(wrong)[0].tolist()
        raise ModelInvalid(
            f"{value} of channel {channel} becomes {exact[channel, value]:g}, which {dtype} can't hold: correct scale, "
            "mean and std"
        )
    table.flags.writeable = False
    return table


def example(steps: Preprocessing) -> bytes:
    """A grey JPEG of the size of the tensor, to measure a model with."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (steps.width, steps.height), (127, 127, 127)).save(file, "JPEG")
    return file.getvalue()


def _fitted(picture: "Image", steps: Preprocessing) -> "Image":
    """The picture in the size of the tensor, with its channels in the order of Pillow."""
    from PIL import Image

    resampling = Image.Resampling[steps.resampling.upper()]
    target, (width, height) = (steps.width, steps.height), picture.size
    if steps.fit == "stretch":
        return picture.resize(target, resampling)
    if steps.fit == "centre-crop":
        return picture.resize(target, resampling, box=_middle(width, height, steps))
    # The side that limits the scale fills the target; the other one is rounded.
    if width * steps.height >= height * steps.width:
        inner = steps.width, max(1, (2 * height * steps.width + width) // (2 * width))
    else:
        inner = max(1, (2 * width * steps.height + height) // (2 * height)), steps.height
    fill = steps.fill or (0,) * steps.channels
    ground = Image.new(picture.mode, target, fill[::-1] if steps.colours == "bgr" else fill)
    ground.paste(picture.resize(inner, resampling), ((target[0] - inner[0]) // 2, (target[1] - inner[1]) // 2))
    return ground


def _middle(width: int, height: int, steps: Preprocessing) -> tuple[float, float, float, float]:
    """The part of the picture that is cut out, in pixels of the picture: left, top, right, bottom."""
    if steps.shorter_side is not None:
        a_pixel = min(width, height) / steps.shorter_side
    else:
        a_pixel = min(width / steps.width, height / steps.height)
    across, down = min(float(width), steps.width * a_pixel), min(float(height), steps.height * a_pixel)
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, min(float(width), left + across), min(float(height), top + down)
