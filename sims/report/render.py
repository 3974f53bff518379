"""Makes reports of a run and of a sweep: one HTML file that needs nothing but itself.

Invariants: the page asks for nothing over any network (its own content security policy forbids it). What a result says
(names of nodes, details of failures) is data in the page, and never becomes markup or script.
"""

import html
from importlib import resources
from typing import Any

import msgspec

from sims.report.compact import compact
from sims.report.sweep import compact_sweep
from sims.results.result import Result
from sims.results.sweep_table import SweepTable

_SWEEP_SCRIPTS = ("charts.js", "sweep.js")
_SCRIPTS = ("charts.js", "track.js", "map.js", "messages.js", "sections.js", "page.js")


def render(result: Result) -> str:
    """The page of ``result``."""
    return _page("page.html", _SCRIPTS, f"{result.scenario}, seed {result.seed}", compact(result))


def render_sweep(table: SweepTable) -> str:
    """The page of a sweep."""
    return _page("sweep.html", _SWEEP_SCRIPTS, f"{table.scenario}, sweep", compact_sweep(table))


def _page(body: str, scripts: tuple[str, ...], title: str, content: dict[str, Any]) -> str:
    folder = resources.files("sims.report")
    data = msgspec.json.encode(content).decode("utf-8")
    fields = {
        "body": (folder / body).read_text("utf-8"),
        "title": html.escape(title),
        "style": (folder / "page.css").read_text("utf-8"),
        "data": data.replace("<", "\\u003c"),  # no `</script>` and no `<!--` can end the element early
        "script": "\n".join((folder / name).read_text("utf-8") for name in scripts),
    }
    parts = (folder / "frame.html").read_text("utf-8").split("{{")
    filled = [parts[0]]
    for part in parts[1:]:  # one pass, so that what was filled in is not looked at again
        name, _, rest = part.partition("}}")
        filled += [fields[name], rest]
    return "".join(filled)
