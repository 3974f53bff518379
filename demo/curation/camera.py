"""The pictures of a vehicle's camera: a street scene with a number plate, in variations, with metadata that tell more.

A camera writes into each picture where it was taken. This one was never told that it drives, and writes where it was
mounted: at the home of its vehicle.
"""

import io
from random import Random
from typing import TYPE_CHECKING, Any, Final

from demo.curation.stage import PLATE_SHOWN, SIDE, Vehicle
from meshnode.models import plate
from meshnode.sensors.images import DEFAULT_PICTURE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

VARIATIONS: Final = 16
RATE_HZ: Final = 10.0
_SMALLEST_CROP: Final = 0.92
_QUALITY: Final = 90
_DESCRIPTION, _SERIAL_NUMBER, _GPS, _EXIF = 0x010E, 0xA431, 0x8825, 0x8769


def pictures(vehicle: Vehicle) -> list[bytes]:
    """The pictures of one lap, as JPEG."""
    from PIL import Image, ImageEnhance

    random, shown = Random(vehicle.name), []
    with Image.open(DEFAULT_PICTURE) as opened:
        scene = opened.convert("RGB")
    for _ in range(VARIATIONS):
        size = random.uniform(_SMALLEST_CROP, 1.0)
        left, top = random.uniform(0, 1 - size) * scene.width, random.uniform(0, 1 - size) * scene.height
        box = (left, top, left + size * scene.width, top + size * scene.height)
        frame = scene.resize(scene.size, Image.Resampling.BILINEAR, box)
        frame = ImageEnhance.Brightness(frame).enhance(random.uniform(0.85, 1.15))
        file = io.BytesIO()
        frame.save(file, "JPEG", quality=_QUALITY, exif=_metadata(vehicle))
        shown.append(file.getvalue())
    return shown


def _metadata(vehicle: Vehicle) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[_DESCRIPTION] = f"{vehicle.vin} behind {PLATE_SHOWN}"
    exif.get_ifd(_EXIF)[_SERIAL_NUMBER] = vehicle.vin
    latitude_deg, longitude_deg = vehicle.home
    exif.get_ifd(_GPS).update({1: "N", 2: _sexagesimal(latitude_deg), 3: "E", 4: _sexagesimal(longitude_deg)})
    return exif


def _sexagesimal(degrees: float) -> tuple[float, float, float]:
    minutes = degrees % 1 * 60
    return float(int(degrees)), float(int(minutes)), round(minutes % 1 * 60, 4)


def found_in(content: bytes, outputs: "Mapping[str, NDArray[Any]]") -> list[dict[str, float]]:
    """The plates that the detector found in a picture."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        return [box.as_value() for box in plate.plates(outputs, SIDE, *picture.size)]
