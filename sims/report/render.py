"""Makes the report: one HTML file that needs nothing but itself.

Invariants: the page asks for nothing over any network (its own content security policy forbids it). What a result says
(names of nodes, details of failures) is data in the page, and never becomes markup or script.
"""

import html
from importlib import resources

import msgspec

from sims.report.compact import compact
from sims.results.result import Result

_SCRIPTS = ("charts.js", "track.js", "map.js", "messages.js", "sections.js", "page.js")


def render(result: Result) -> str:
    """The page of ``result``."""
    folder = resources.files("sims.report")
    data = msgspec.json.encode(compact(result)).decode("utf-8")
    fields = {
        "title": html.escape(f"{result.scenario}, seed {result.seed}"),
        "style": (folder / "page.css").read_text("utf-8"),
        "data": data.replace("<", "\\u003c"),  # no `</script>` and no `<!--` can end the element early
        "script": "\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS),
    }
    page = (folder / "page.html").read_text("utf-8")
    parts = page.split("{{")
    filled = [parts[0]]
    for part in parts[1:]:  # one pass, so that what was filled in is not looked at again
        name, _, rest = part.partition("}}")
        filled += [fields[name], rest]
    return "".join(filled)
