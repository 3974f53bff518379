"""A camera made of pictures: every file of a folder, or one picture in many variations.

Options: ``folder`` or ``image`` (default: the street scene with a number plate that comes with the package); ``vary``
(variations per picture: cropped, shifted, scaled, brighter or darker; 0 shows it as it is) and ``seed`` for them;
``rate_hz``; ``loop``; ``model`` (name of a model that is given every frame) with ``preprocess`` (``plate``, or ``rgb``
for ``uint8[1, height, width, 3]``), ``send`` (``tensor``, or ``jpeg`` for the encoded frame, which the model's manifest
says how to prepare), ``input`` (its name), ``side`` (pixels, of the plate detector) and ``budget_ms``.

A picture is turned upright as its EXIF orientation says before anything else is done to it. Grey of 16 bits is scaled
to 8 bits. A picture that can't be read is skipped and counted. The driver ends when none of them can be read.

The value of a reading is small: which picture and what was done to it. The frame itself goes to the model only.
Key: ``<prefix>/camera``; what the plate detector finds appears as ``<prefix>/plates``, in pixels of the picture.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, Self

from meshnode.models.pictures import of_eight_bits
from meshnode.sensors.camera.given import PictureModel
from meshnode.sensors.contract import DriverContext, InferenceSample, Sample
from meshnode.sensors.options import Options
from protocols.base.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

DEFAULT_PICTURE: Final = Path(__file__).parent / "data" / "street_plate.png"
SENSOR: Final = "camera"
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
MAX_PICTURES: Final = 100_000
MAX_PIXELS: Final = 40_000_000
"""The most pixels of one picture, 120 MB decoded. A small file can claim far more."""

_SMALLEST_CROP: Final = 0.9
"""The smallest share of each side that a variation keeps, so that the middle stays in the picture."""
_BRIGHTNESS: Final = (0.8, 1.2)


@dataclass(frozen=True, slots=True)
class _Variation:
    """The part of a picture that is shown, as shares of its sides, and its brightness."""

    left: float = 0.0
    top: float = 0.0
    size: float = 1.0
    brightness: float = 1.0

    @classmethod
    def drawn(cls, random: Random) -> Self:
        size = random.uniform(_SMALLEST_CROP, 1.0)
        return cls(random.uniform(0, 1 - size), random.uniform(0, 1 - size), size, random.uniform(*_BRIGHTNESS))

    def corners(self, width: int, height: int) -> tuple[float, float, float, float]:
        left, top = self.left * width, self.top * height
        return left, top, left + self.size * width, top + self.size * height


class ImageFolder:
    """Shows pictures at a steady rate."""

    def __init__(
        self,
        prefix: str,
        pictures: list[Path],
        random: Random,
        rate_hz: float = 1.0,
        vary: int = 0,
        loop: bool = True,
        model: PictureModel | None = None,
        skipped: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._prefix = prefix
        self._pictures = pictures
        self._random = random
        self._rate_hz = rate_hz
        self._vary = vary
        self._loop = loop
        self._model = model
        self._skipped = skipped

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. :raises ConfigError: one is wrong, or there is no picture."""
        read = Options("images", options)
        both = read.has("folder") and read.has("image")
        pictures = _pictures(read, context.folder)
        rate_hz = read.number("rate_hz", 1.0, 0.001, 240.0)
        vary = read.integer("vary", 0, 0, 1_000_000)
        seed = read.integer("seed", 0, 0, 2**63 - 1) if read.has("seed") else None
        loop = read.flag("loop", True)
        model = PictureModel.read(read)
        read.finish()
        if both:
            raise ConfigError("sensor driver 'images': both 'folder' and 'image' are given: keep one of them")
        random = context.random if seed is None else Random(seed)
        return cls(context.prefix, pictures, random, rate_hz, vary, loop, model, context.skipped)

    def samples(self) -> Generator[Sample, None, None]:
        """One sample per frame. :raises ConfigError: no file is a picture; names the first."""
        frame = 0
        while True:
            shown, fault = 0, None
            for path in self._pictures:
                try:
                    picture = _opened(path)
                except ConfigError as error:
                    if len(self._pictures) == 1:
                        raise
                    fault = fault or error
                    self._skipped(str(error))
                    continue
                shown += 1
                for _ in range(self._vary or 1):
                    variation = _Variation.drawn(self._random) if self._vary else _Variation()
                    yield self._sample(frame, path, picture, variation)
                    frame += 1
            if fault is not None and not shown:
                raise fault
            if not self._loop:
                return

    def _sample(self, frame: int, path: Path, picture: "Image", variation: _Variation) -> Sample:
        corners = variation.corners(picture.width, picture.height)
        value = {
            "frame": frame,
            "picture": path.name[:100],
            "width": picture.width,
            "height": picture.height,
            "crop": [round(corner, 1) for corner in corners],
            "brightness": round(variation.brightness, 3),
        }
        infer = self._asked(_shown(picture, variation), corners) if self._model is not None else None
        return Sample(frame / self._rate_hz, f"{self._prefix}/camera", value, sensor=SENSOR, priority=2, infer=infer)

    def _asked(self, rgb: "NDArray[Any]", corners: tuple[float, float, float, float]) -> InferenceSample:
        assert self._model is not None
        height, width, _ = rgb.shape
        return self._model.asked(self._model.inputs(rgb), (width, height), corners, f"{self._prefix}/plates")


def _pictures(read: Options, folder: Path) -> list[Path]:
    if not read.has("folder"):
        return [read.file("image", folder, DEFAULT_PICTURE)]
    directory = read.directory("folder", folder, folder)
    try:
        found = sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise read.absent("folder", f"it can't be listed ({error.strerror})") from error
    if not 1 <= len(found) <= MAX_PICTURES:
        raise read.absent(
            "folder", f"it has {len(found)} pictures ({' '.join(sorted(SUFFIXES))}): put 1 to {MAX_PICTURES} there"
        )
    return found


def _opened(path: Path) -> "Image":
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height <= MAX_PIXELS:
                return of_eight_bits(ImageOps.exif_transpose(picture)).convert("RGB")
            claimed = f"{picture.width} x {picture.height} pixels"
    except UnidentifiedImageError as error:
        raise ConfigError(f"picture {path} is not a picture that can be read: remove or convert it") from error
    except Exception as error:  # Decoders of damaged pictures raise anything.
        raise ConfigError(f"picture {path} can't be read ({error}): it may be cut off, copy it again") from error
    raise ConfigError(f"picture {path} has {claimed}, more than {MAX_PIXELS}: scale it down")


def _shown(picture: "Image", variation: _Variation) -> "NDArray[Any]":
    import numpy as np
    from PIL import Image, ImageEnhance

    if variation != _Variation():
        box = variation.corners(picture.width, picture.height)
        picture = picture.resize(picture.size, Image.Resampling.BILINEAR, box=box)
        picture = ImageEnhance.Brightness(picture).enhance(variation.brightness)
    return np.asarray(picture)
