"""Parts of drawings as SVG. Names are other people's text, so all text is escaped."""

from typing import Final
from xml.sax.saxutils import escape

from meshnode.console.printing import printable

TEXT_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#222}.head{font-size:17px;font-weight:600}.soft{fill:#666}"
    ".strong{font-weight:600}.grid{stroke:#ddd;stroke-width:1}.axis{stroke:#888;stroke-width:1}"
)
"""The style of texts and lines, by class."""


def svg_text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text at a place. ``kind``: its class."""
    marks = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{marks}>{escape(text)}</text>'


def safe(text: str, most: int) -> str:
    """Text within an element, on one line of at most ``most`` characters."""
    return escape(printable(text, most))
