"""Spans of time as people write them: a whole number and a unit, as in ``90s``, ``10m``, ``2h`` or ``30d``."""

import re
from typing import Final

UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])")


def untrusted_span_s(text: object, units: str = "smhd") -> int | None:
    """The seconds of a span of time in one of some units; None: it is no such text, or no time at all."""
    found = _SPAN.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[2] not in units:
        return None
    return int(found[1]) * UNIT_S[found[2]] or None
