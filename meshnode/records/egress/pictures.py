"""Pictures as they may leave: decoded, boxes covered with black, and encoded anew from the pixels alone.

Nothing else of the original survives: no EXIF, colour profile, text, comment, preview, further picture, or bytes
behind the end. What was under a box is not in the pixels that are encoded, so nobody can bring it back, unlike what is
blurred.

The noise of the sensor in the pixels that stay can tell one camera from another; that is not removed.
"""

import io
import math
from collections.abc import Sequence
from typing import Final

from meshnode.models.pictures import decoded_untrusted
from protocols.base.errors import InputInvalid
from protocols.records.egress.rules import CoveredBox
from protocols.records.egress.values import PixelBox

MAX_PIXELS: Final = 3840 * 2160
"""A larger picture hardly fits into a record. One that is decoded takes up to 16 bytes of memory a pixel: 130 MB."""
GROWN: Final = 0.25
"""By which share of its width and height a found box is covered beyond each of its sides: a detector is a few pixels
off, and half a character can be read."""
_QUALITY: Final = 80
_PNG: Final = b"\x89PNG"


def redrawn_picture(content: bytes, cover: Sequence[CoveredBox], found: Sequence[PixelBox] = ()) -> bytes:
    """A JPEG or PNG from anybody, upright, with boxes covered and without metadata, in the same format. ``found``:
    boxes that are covered with some more around them.

    :raises InputInvalid: when it is no such picture, is damaged, or exceeds a bound.
    """
    from PIL import Image

    decoded = decoded_untrusted(content, MAX_PIXELS)
    picture = Image.new(decoded.mode, decoded.size)  # the decoded one remembers what stood beside the pixels
    picture.paste(decoded)
    width, height = picture.size
    boxes = [(left * width, top * height, right * width, bottom * height) for left, top, right, bottom in cover]
    for left, top, right, bottom in (*boxes, *map(_grown, found)):
        corners = (max(0, int(left)), max(0, int(top)), min(width, math.ceil(right)), min(height, math.ceil(bottom)))
        if corners[0] < corners[2] and corners[1] < corners[3]:  # Pillow takes others for mistakes
            picture.paste(0 if picture.mode == "L" else (0, 0, 0), corners)
    out = io.BytesIO()
    try:
        if content.startswith(_PNG):
            picture.save(out, "PNG")
        else:
            picture.save(out, "JPEG", quality=_QUALITY)
    except Exception as error:  # encoders raise anything
        raise InputInvalid(f"a picture of {width} × {height} pixels can't be encoded anew: {error}") from error
    return out.getvalue()


def _grown(box: PixelBox) -> PixelBox:
    left, top, right, bottom = box
    across, down = GROWN * (right - left), GROWN * (bottom - top)
    return left - across, top - down, right + across, bottom + down
