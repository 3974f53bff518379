"""Encoded pictures from anybody, decoded within bounds: upright, with 8 bits a channel.

Invariants:

- Everything that a picture claims is compared with its bounds before memory or time is spent on it: a file of 100 bytes
  can claim a billion pixels, and one of a megabyte can ask for the same pixels to be refined ten thousand times.
- Any bytes give a picture or ``InputInvalid``.
- Equal bytes give equal pixels with equal versions of Pillow.

Only JPEG and PNG are read, because that is what cameras write and what can be bounded. Pillow's decoder of WebP takes
the memory of the whole picture before its size can be asked for; its decoder of packed BMP is a loop in Python; others
start programs.
"""

import io
import re
from typing import TYPE_CHECKING, Final

from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS: Final = ("JPEG", "PNG")
DEFAULT_MAX_PIXELS: Final = 16_000_000
"""While it is decoded, a picture takes up to 16 bytes of memory a pixel: a progressive JPEG's coefficients, Pillow's
four bytes a pixel, and the same again while it is turned."""
MAX_SIDE: Final = 65_535
"""The longest side that JPEG allows. Resampling takes memory for each row and column, which a bound of pixels alone
leaves open."""
MAX_SECTIONS: Final = 4_096
"""Segments of a JPEG, chunks of a PNG. Pillow looks at each of them in Python; 16 MB of empty ones take seconds."""
MAX_SCANS: Final = 32
"""Scans of a progressive JPEG, each of which goes over all pixels. Usual are 10; the standard allows any number."""

_MARKER: Final = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
"""A marker of JPEG, apart from the restarts inside of a scan. 0xFF 0x00 stands for the byte 0xFF."""
_END, _SCAN, _WITHOUT_LENGTH = 0xD9, 0xDA, (0x01, 0xD8, 0xD9)
_ORIENTATION: Final = 0x0112
_TURNS: Final = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""How a picture is turned upright (``PIL.Image.Transpose``), by its EXIF orientation (EXIF 2.32, section 4.6.4)."""


def decoded_untrusted(content: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> "Image":
    """The picture in ``content``, in mode ``RGB`` or ``L`` (grey).

    It is turned as its EXIF orientation says. Grey of 16 bits is scaled, with 65,535 as white; of colours with 16 bits
    the upper 8 are kept. Palettes and CMYK become RGB. Transparency is dropped. Of several pictures it is the first.

    :raises InputInvalid: it is no such picture, is cut off or damaged, or exceeds a bound; the message says which.
    """
    from PIL import Image, UnidentifiedImageError

    _check_sections(content)
    claimed = "more than 178 million"
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            claimed = f"{width} × {height}"
            if width * height <= max_pixels and max(width, height) <= MAX_SIDE:
                picture.load()
                turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
                plain = _plain(picture)
                return plain if turn is None else plain.transpose(Image.Transpose(turn))
    except UnidentifiedImageError as error:
        raise InputInvalid(f"{len(content)} bytes are not a picture that can be read: send a JPEG or PNG") from error
    except Image.DecompressionBombError:  # a bound of Pillow's own
        pass
    except Exception as error:  # decoders of damaged pictures raise anything
        text = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputInvalid(f"the picture can't be decoded ({text}): it may be cut off, so send it again") from error
    raise InputInvalid(
        f"the picture has {claimed} pixels, and {max_pixels} are decoded, up to {MAX_SIDE} a side: scale it "
        "down, or raise 'max_pixels' in the manifest"
    )


def of_eight_bits(picture: "Image") -> "Image":
    """Grey of 16 bits (modes ``I;16`` and ``I``) with 65,535 as white. Pillow's own conversion clips it at 255."""
    if not picture.mode.startswith("I"):
        return picture
    import numpy as np
    from PIL import Image

    grey = np.clip(np.asarray(picture, dtype=np.int32), 0, 65_535)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def _plain(picture: "Image") -> "Image":
    picture = of_eight_bits(picture)
    if picture.mode in ("RGB", "L"):
        return picture
    if picture.mode in ("1", "LA"):
        return picture.convert("L")
    if "transparency" in picture.info or picture.mode == "PA":
        picture = picture.convert("RGBA")  # otherwise Pillow warns
    return picture.convert("RGB")


def _check_sections(content: bytes) -> None:
    if content.startswith(b"\xff\xd8"):
        sections, scans = _sections_of_jpeg(content)
    elif content.startswith(b"\x89PNG"):
        sections, scans = _sections_of_png(content), 0
    else:
        return
    if sections > MAX_SECTIONS or scans > MAX_SCANS:
        raise InputInvalid(
            f"the picture has more than {MAX_SECTIONS} sections or {MAX_SCANS} scans, so it was not made by a camera: "
            "save it again"
        )


def _sections_of_jpeg(content: bytes) -> tuple[int, int]:
    """The segments up to the end of the first picture, and how many of them are scans; both counted up to the bound."""
    at, sections, scans = 2, 0, 0
    while sections <= MAX_SECTIONS and (marker := _MARKER.search(content, at)):
        kind, at = marker[1][0], marker.end()
        if kind == _END:
            break
        if kind not in _WITHOUT_LENGTH:
            at += int.from_bytes(content[at : at + 2], "big")
        sections += 1
        scans += kind == _SCAN
    return sections, scans


def _sections_of_png(content: bytes) -> int:
    at, sections = 8, 0
    while sections <= MAX_SECTIONS and at < len(content):
        at += 12 + int.from_bytes(content[at : at + 4], "big")
        sections += 1
    return sections
