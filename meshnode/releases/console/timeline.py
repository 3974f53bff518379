"""A drawing of how releases got on at one node or many, as SVG: time goes to the right, and each release has a row.

It is one file that needs nothing else. Whoever points at a bar or a mark sees all that is known of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from meshnode.console.printing import printable
from meshnode.console.svg import TEXT_STYLE, safe, svg_text
from meshnode.releases.console.history import DROPPED, ENDS, SERVED, ReleaseHistory, ReleaseStep

_COLOURS: Final = {
    "fetching": "#b9d3ee", "fetched": "#8ab4de", "staged": "#c9bfe6", "shadowing": "#f3cf7d", "soaking": "#f0a63c",
    "healthy": "#9ad29a", "serving": "#2f9e5b", "failed": "#c9302c", "refused": "#c9302c", "rolled_back": "#7d7d7d",
}  # fmt: skip
_DECISIONS: Final = {
    "waiting": "#7d7d7d", "promoted": "#14683a", "halted": "#a3130f", "paused": "#b8741a", "aborted": "#333333",
}  # fmt: skip
_OTHER: Final = "#555555"
"""Of states that are not known here: a newer node may have more."""
_LEFT, _WIDTH, _RIGHT = 210, 900, 30
_TOP: Final = 112
_ROW: Final = 16
_HEADING: Final = 34
_STEPS_S: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400, 172_800, 604_800)
"""Distances of lines of the scale of time; then whole multiples of the last."""
_MOST_LINES: Final = 10


@dataclass(frozen=True, slots=True)
class ReleaseBar:
    """A release in one state at one node. Without length it is a mark: there it ended."""

    state: str
    from_s: float
    until_s: float
    detail: str


def bars_of(steps: Iterable[ReleaseStep], end_s: float) -> dict[int, list[ReleaseBar]]:
    """The bars of one path at one node, by release. What is open at the end goes on until ``end_s``."""
    bars: dict[int, list[ReleaseBar]] = {}
    now: dict[int, ReleaseStep] = {}

    def close(counter: int, at_s: float) -> None:
        step = now.pop(counter, None)
        if step is not None:
            bars[counter].append(ReleaseBar(step.state, step.utc_s, at_s, step.detail))

    for step in steps:
        if step.kind == "rollout":
            continue
        if step.state in SERVED:  # one release answers at a time
            for other in [each for each, its in now.items() if its.state in SERVED and each != step.counter]:
                close(other, step.utc_s)
        is_served = step.counter in now and now[step.counter].state in SERVED
        if step.kind == "swap" and (is_served or not step.counter):
            continue
        bars.setdefault(step.counter, [])
        close(step.counter, step.utc_s)
        if step.state in ENDS:
            bars[step.counter].append(ReleaseBar(step.state, step.utc_s, step.utc_s, step.detail))
        elif step.state != DROPPED:
            now[step.counter] = step
    for counter in list(now):
        close(counter, end_s)
    return bars


def timeline(histories: Sequence[ReleaseHistory]) -> str:
    """The SVG of some nodes. There has to be a step."""
    steps = [step for each in histories for step in each.steps]
    scale = _Scale(min(step.utc_s for step in steps), max(step.utc_s for step in steps))
    parts: list[str] = []
    y = _TOP
    for path in sorted({step.path for step in steps}):
        y += _HEADING
        parts.append(svg_text(24, y - 12, printable(path, 80), "strong"))
        for each in histories:
            of_path = [step for step in each.steps if step.path == path]
            rows = list(_rows(each.node, of_path, scale, y))
            parts += [part for row in rows for part in row]
            y += _ROW * len(rows) + 6 * bool(rows)
    width, height = _LEFT + _WIDTH + _RIGHT, y + 40
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        "<title>Releases</title>",
        f'<style>{TEXT_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        svg_text(24, 32, "Releases", "head"),
        svg_text(24, 52, scale.described(), "soft"),
        *_legend(steps), *scale.lines(_TOP, y), *parts, "</svg>",
    )) + "\n"  # fmt: skip


class _Scale:
    """Places of instants."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self.first_s, self.last_s = first_s, last_s
        self.end_s = last_s + max((last_s - first_s) * 0.04, 1.0)
        """A little later, so that the last states can be seen."""

    def x(self, utc_s: float) -> float:
        return _LEFT + _WIDTH * (utc_s - self.first_s) / (self.end_s - self.first_s)

    def described(self) -> str:
        first, last = (datetime.fromtimestamp(each, UTC) for each in (self.first_s, self.last_s))
        took = timedelta(seconds=round(self.last_s - self.first_s))
        return f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC, {took}"

    def lines(self, top: float, bottom: float) -> Iterator[str]:
        span_s = self.end_s - self.first_s
        weeks_s = _STEPS_S[-1] * (1 + int(span_s / _STEPS_S[-1] / _MOST_LINES))
        step_s = next((each for each in _STEPS_S if span_s / each <= _MOST_LINES), weeks_s)
        form = "%m-%d" if step_s >= 86_400 else "%H:%M" if step_s >= 60 else "%H:%M:%S"
        at_s = -(-self.first_s // step_s) * step_s
        while at_s <= self.end_s:
            x = self.x(at_s)
            yield f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>'
            yield svg_text(x, bottom + 18, datetime.fromtimestamp(at_s, UTC).strftime(form), "soft", "middle")
            at_s += step_s


def _legend(steps: Iterable[ReleaseStep]) -> Iterator[str]:
    """The states that occur in one line, and the decisions below."""
    seen = {step.state for step in steps}
    for y, colours, size in ((68, _COLOURS, 'width="10" height="10"'), (88, _DECISIONS, 'width="3" height="12"')):
        for number, state in enumerate(each for each in colours if each in seen):
            x = 24 + number * 92
            yield f'<rect x="{x}" y="{y}" {size} fill="{colours[state]}"/>'
            yield svg_text(x + 15, y + 9, state.replace("_", " "), "soft")


def _rows(node: str, steps: Sequence[ReleaseStep], scale: _Scale, top: float) -> Iterator[list[str]]:
    """The rows of one path at one node: one for each release, oldest first."""
    bars = bars_of(steps, scale.end_s)
    decisions = [step for step in steps if step.kind == "rollout"]
    for number, counter in enumerate(sorted({*bars, *(step.counter for step in decisions)})):
        y = top + number * _ROW
        row = [svg_text(_LEFT - 8, y + 10, str(counter), "soft", "end")]
        if not number:
            row.append(svg_text(24, y + 10, printable(node, 24)))
        row += [_bar(node, counter, bar, scale, y) for bar in bars.get(counter, ())]
        row += [_decision(node, step, scale, y) for step in decisions if step.counter == counter]
        yield row


def _bar(node: str, counter: int, bar: ReleaseBar, scale: _Scale, y: float) -> str:
    x, colour = scale.x(bar.from_s), _COLOURS.get(bar.state, _OTHER)
    told = f"{node}, release {counter}: {bar.state}{f' ({bar.detail})' if bar.detail else ''} at {_clock(bar.from_s)}"
    if bar.state in ENDS:
        shape = f'<circle cx="{x:.1f}" cy="{y + 6}" r="4.5" fill="{colour}">'
        return f"{shape}<title>{safe(told, 400)}</title></circle>"
    width = max(scale.x(bar.until_s) - x, 1.0)
    shape = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="12" fill="{colour}">'
    return f"{shape}<title>{safe(f'{told}, until {_clock(bar.until_s)}', 400)}</title></rect>"


def _decision(node: str, step: ReleaseStep, scale: _Scale, y: float) -> str:
    why = f" ({step.detail})" if step.detail else ""
    told = f"{node}, order {step.serial}: {step.state}{why} at {_clock(step.utc_s)}"
    return (
        f'<rect x="{scale.x(step.utc_s) - 1.5:.1f}" y="{y - 2}" width="3" height="16" '
        f'fill="{_DECISIONS.get(step.state, _OTHER)}"><title>{safe(told, 400)}</title></rect>'
    )


def _clock(utc_s: float) -> str:
    return datetime.fromtimestamp(utc_s, UTC).strftime("%H:%M:%S")
