"""What a value and its context may be, and what they hold in memory.

Structs are checked when they come from the wire; those that an application builds are checked here, by the same bounds.
"""

from typing import Any, Final

from protocols.base import limits
from protocols.base.errors import ValueUnsupported
from protocols.wire.readings import Position, Provenance
from protocols.wire.tensors import Tensor

_NUMBERS: Final = frozenset("biuf")
"""NumPy's letters for the kinds of elements that are plain numbers."""


def kept_alive(tensor: Tensor) -> bytes | bytearray | memoryview:
    """What a tensor keeps in memory: the frame that it came in, or itself."""
    frame = tensor.data.obj
    return frame if isinstance(frame, bytes | bytearray) else tensor.data


def weight_bytes(value: object) -> int:
    """About how much memory a list or dict holds."""
    total_bytes = 64
    rest = [value]
    while rest:
        item = rest.pop()
        if type(item) is list or type(item) is dict:
            total_bytes += 32 * len(item) + 64
            rest.extend(item)
            if type(item) is dict:
                rest.extend(item.values())
        elif type(item) is str or type(item) is bytes:
            total_bytes += len(item)
        elif type(item) is Tensor:
            total_bytes += len(kept_alive(item))
    return total_bytes


def check_context(where: Position, how: Provenance) -> None:
    """:raises ValueUnsupported: as :func:`check_position`."""
    check_position(where)
    check_provenance(how)


def check_position(where: Position) -> None:
    """:raises ValueUnsupported: for what neighbours would refuse as malformed, and hang up. NaN is never in range."""
    altitude_m, heading_deg = where.altitude_m, where.heading_deg
    if (
        not -90 <= where.latitude_deg <= 90
        or not -180 <= where.longitude_deg <= 180
        or not where.accuracy_m >= 0
        or not (altitude_m is None or -1e6 <= altitude_m <= 1e9)
        or not (heading_deg is None or 0 <= heading_deg < 360)
    ):
        raise ValueUnsupported(
            f"{where} is not on earth: use latitude -90 to 90, longitude -180 to 180, accuracy 0 or more, "
            "heading 0 to below 360"
        )


def check_provenance(how: Provenance) -> None:
    """:raises ValueUnsupported: as :func:`check_position`."""
    texts = (how.sensor, how.unit, how.calibration, *how.lineage)
    too_long = any(len(text) > limits.MAX_TEXT_CHARS for text in texts)
    if not 0 <= how.quality <= 1 or len(how.lineage) > limits.MAX_LINEAGE or too_long:
        raise ValueUnsupported(
            f"quality {how.quality} must be 0 to 1, lineage at most {limits.MAX_LINEAGE} steps, and each text at most "
            f"{limits.MAX_TEXT_CHARS} characters"
        )


def plain(value: Any) -> Any:
    """A NumPy scalar, which would travel as an array of no dimension, as the number it is; anything else as it is."""
    if getattr(value, "ndim", None) != 0 or hasattr(value, "__setitem__"):  # an array has that
        return value
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return value.item() if kind in _NUMBERS else value


def listed(values: Any) -> Any:
    """Several values as a list, each :func:`plain`, and so the elements of an array of one dimension."""
    return values.tolist() if getattr(values, "ndim", None) == 1 else [plain(value) for value in values]
