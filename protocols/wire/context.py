"""What the context of a reading may be: an application builds it, and the bounds of the wire are checked here."""

from protocols.base import limits
from protocols.base.errors import ValueUnsupported
from protocols.wire.readings import Position, Provenance


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
