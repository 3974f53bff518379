"""What a model is given of a picture, and what its outputs mean: options that all drivers with pictures share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from meshnode.models import plate
from meshnode.sensors.contract import InferenceSample
from meshnode.sensors.options import Options
from protocols.base.errors import InputInvalid
from protocols.base.limits import MAX_BUDGET_MS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_JPEG_QUALITY: Final = 90
"""About what a camera uses: 57 kB for the street scene."""


@dataclass(frozen=True, slots=True)
class PictureModel:
    """A model that is given pictures. The fields are options, see ``images``."""

    name: str
    preprocess: str = "plate"
    send: str = "tensor"
    input_name: str = plate.INPUT
    side: int = plate.DEFAULT_SIDE
    budget_ms: int = 1_000

    @classmethod
    def read(cls, read: Options) -> Self | None:
        """The options ``model``, ``preprocess``, ``send``, ``input``, ``side`` and ``budget_ms``; None: no model.

        :raises ConfigError: one is wrong.
        """
        name = read.text("model", "-") if read.has("model") else None
        preprocess = read.choice("preprocess", ("plate", "rgb"), "plate")
        send = read.choice("send", ("tensor", "jpeg"), "tensor")
        input_name = read.text("input", plate.INPUT)
        side = read.integer("side", plate.DEFAULT_SIDE, 32, plate.MAX_SIDE)
        budget_ms = read.integer("budget_ms", 1_000, 1, MAX_BUDGET_MS)
        try:
            plate.check_side(side)
        except InputInvalid as error:
            raise read.wrong("side", "give a multiple of 32") from error
        return None if name is None else cls(name, preprocess, send, input_name, side, budget_ms)

    def inputs(self, rgb: "NDArray[Any]") -> "dict[str, NDArray[Any]]":
        """The model's inputs for a picture ``uint8[height, width, 3]``."""
        if self.send == "jpeg":
            return {self.input_name: encoded_jpeg(rgb)}
        if self.preprocess == "rgb":
            return {self.input_name: rgb[None]}
        return {self.input_name: plate.preprocess(rgb, self.side)[plate.INPUT]}

    def asked(
        self,
        inputs: "Mapping[str, NDArray[Any]] | Callable[[], Mapping[str, NDArray[Any]]]",
        size: tuple[int, int],
        corners: tuple[float, float, float, float],
        plates_key: str,
        result_key: str | None = None,
    ) -> InferenceSample:
        """What the node is asked to compute for a picture of ``size`` (width and height, in pixels).

        What the plate detector finds is published as ``plates_key``, in pixels of the picture of which ``corners``
        (left, top, right, bottom) were shown; the outputs of others as ``result_key``, or not at all.
        """
        if self.preprocess == "rgb":
            return InferenceSample(self.name, inputs, budget_ms=self.budget_ms, key=result_key)
        left, top, right, bottom = corners
        width, height = size
        across, down = (right - left) / width, (bottom - top) / height

        def interpret(outputs: "Mapping[str, NDArray[Any]]") -> list[dict[str, float]]:
            return [
                plate.PlateBox(
                    left + box.left * across,
                    top + box.top * down,
                    left + box.right * across,
                    top + box.bottom * down,
                    box.probability,
                ).as_value()
                for box in plate.plates(outputs, self.side, width, height)
            ]

        return InferenceSample(self.name, inputs, plate.OUTPUTS, self.budget_ms, plates_key, interpret)


def encoded_jpeg(rgb: "NDArray[Any]") -> "NDArray[Any]":
    """The frame as a camera would send it: ``uint8[bytes]``."""
    import io

    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=_JPEG_QUALITY)
    return np.frombuffer(file.getvalue(), np.uint8)
