"""How a reading looks to people, on one line."""

import time
from typing import Any

from meshnode.console.printing import printable, value_text


def reading_line(entry: dict[str, Any], *, with_date: bool = False) -> str:
    """A reading as the HTTP API gives it, with the time of sensing, and its date if wanted."""
    when_s, rest_ns = divmod(entry["when"]["utc_ns"], 1_000_000_000)
    try:
        form = "%Y-%m-%dT%H:%M:%S" if with_date else "%H:%M:%S"
        instant = f"{time.strftime(form, time.gmtime(when_s))}.{rest_ns // 1_000_000:03}Z"
    except (OverflowError, ValueError, OSError):
        instant = f"{when_s} s"
    unit = "" if entry["how"]["unit"] == "1" else f" {printable(entry['how']['unit'])}"
    where = f"{entry['where']['latitude_deg']:.5f},{entry['where']['longitude_deg']:.5f}"
    key = printable(entry["key"], 200)
    return f"{instant} {key} {value_text(entry['value'])}{unit}  ({entry['origin']} at {where})"
