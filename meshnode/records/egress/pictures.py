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

MAX_PIXELS: Final = 3840 * 2160
"""A larger picture hardly fits into a record. One that is decoded takes up to 16 bytes of memory a pixel: 130 MB."""
_QUALITY: Final = 80
_PNG: Final = b"\x89PNG"


def redrawn_picture(content: bytes, cover: Sequence[CoveredBox]) -> bytes:
    """A JPEG or PNG from anybody, upright, with boxes covered and without metadata, in the same format.

    :raises InputInvalid: when it is no such picture, is damaged, or exceeds a bound.
    """
    from PIL import Image

    decoded = decoded_untrusted(content, MAX_PIXELS)
    picture = Image.new(decoded.mode, decoded.size)  # the decoded one remembers what stood beside the pixels
    picture.paste(decoded)
    width, height = picture.size
    for left, top, right, bottom in cover:
        picture.paste(
            0 if picture.mode == "L" else (0, 0, 0),
            (int(left * width), int(top * height), math.ceil(right * width), math.ceil(bottom * height)),
        )
    out = io.BytesIO()
    try:
        if content.startswith(_PNG):
            picture.save(out, "PNG")
        else:
            picture.save(out, "JPEG", quality=_QUALITY)
    except Exception as error:  # encoders raise anything
        raise InputInvalid(f"a picture of {width} × {height} pixels can't be encoded anew: {error}") from error
    return out.getvalue()
