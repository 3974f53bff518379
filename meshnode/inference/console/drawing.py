"""A drawing of the cuts of a model, as SVG: the run time goes down the page, the bytes of each cut go to the right.

It is one file that needs nothing else. Whoever points at a bar sees all that is known of the cut. Labels stand where
there is room, for the smallest cut nearby; names are other people's text and are escaped.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from meshnode.console.printing import printable
from meshnode.console.svg import TEXT_STYLE, safe, svg_text
from meshnode.models.cutting import Cut, CutDescription, CutTensor

_WIDTH: Final = 1_040
_HEIGHT: Final = 720
"""Of the run time. What is around it comes on top."""
_LEFT: Final = 120
_TOP: Final = 126
_SCALE: Final = 430
"""Pixels of the scale of bytes; labels stand behind it."""
_COLUMNS: Final = (_LEFT + _SCALE + 36, _LEFT + _SCALE + 92, _LEFT + _SCALE + 106)
"""Where numbers and sizes of labels end, and names begin."""
_LABEL_GAP: Final = 17
_MAX_LABEL: Final = 56
_COLOURS: Final = {1: "#0b7a4b", 2: "#2f6fb2", 3: "#b8741a"}
"""By the number of tensors."""
_STYLE: Final = TEXT_STYLE + ".end{fill:#555}"


def drawing(name: str, description: CutDescription) -> str:
    """The SVG of a model called ``name``."""
    scale = _Scale([*description.inputs, *description.outputs], description.cuts)
    bottom = _TOP + _HEIGHT
    place = f'width="{_WIDTH}" height="{bottom + 84}" viewBox="0 0 {_WIDTH} {bottom + 84}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {place} role="img">',
        f"<title>{safe(f'Cuts of {name}', 200)}</title>",
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        svg_text(24, 32, f"Cuts of {printable(name, 60)}", "head"),
        svg_text(24, 52, _summary(description), "soft"),
        *_legend(),
        *_axes(description, scale),
        *_end(_TOP - 26, "in", description.inputs, scale),
        *(bar for cut in enumerate(description.cuts) for bar in _bar(*cut, scale)),
        *_labels(description.cuts, scale),
        *_end(bottom + 26, "out", description.outputs, scale),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Scale:
    """Places of bytes and of shares of the run time."""

    def __init__(self, tensors: Iterable[CutTensor], cuts: Sequence[Cut]) -> None:
        sizes = [max(1, size) for size in (*(each.size_bytes for each in tensors), *(cut.size_bytes for cut in cuts))]
        self.least = math.floor(math.log10(min(sizes, default=1)))
        self.most = max(self.least + 1, math.ceil(math.log10(max(sizes, default=1))))

    def x(self, size_bytes: int) -> float:
        """To the right of the axis, logarithmic."""
        where = (math.log10(max(1, size_bytes)) - self.least) / (self.most - self.least)
        return _LEFT + 6 + (_SCALE - 6) * min(1.0, max(0.0, where))

    def y(self, share: float) -> float:
        return _TOP + _HEIGHT * share


def _summary(description: CutDescription) -> str:
    count = len(description.cuts)
    cuts = f"{count} cuts" if count != 1 else "1 cut"
    return (
        f"{description.nodes} nodes, {bytes_text(description.weight_bytes)} of weights, "
        f"{milliseconds_text(description.run_us)} a run on this computer, {cuts}"
    )


def _legend() -> Iterator[str]:
    for number, (tensors, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + number * 96
        yield f'<rect x="{x}" y="66" width="18" height="4" fill="{colour}"/>'
        yield svg_text(x + 24, 72, f"{tensors} tensor{'s' * (tensors > 1)}", "soft")


def _axes(description: CutDescription, scale: _Scale) -> Iterator[str]:
    bottom = _TOP + _HEIGHT
    for power in range(scale.least, scale.most + 1):
        x = scale.x(10**power)
        yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>'
        yield svg_text(x, bottom + 62, bytes_text(10**power), "soft", "middle")
    for tenth in range(0, 11, 2):
        y = scale.y(tenth / 10)
        yield f'<line class="axis" x1="{_LEFT - 5}" y1="{y:.1f}" x2="{_LEFT}" y2="{y:.1f}"/>'
        yield svg_text(
            _LEFT - 9, y + 4, f"{tenth * 10} %, {milliseconds_text(description.run_us * tenth / 10)}", "soft", "end"
        )
    yield f'<line class="axis" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{bottom}"/>'


def _end(y: float, word: str, tensors: Sequence[CutTensor], scale: _Scale) -> Iterator[str]:
    """The inputs or the outputs of the model."""
    size_bytes = sum(each.size_bytes for each in tensors)
    width = scale.x(size_bytes) - _LEFT
    yield f'<rect class="end" x="{_LEFT}" y="{y:.1f}" width="{width:.1f}" height="6"/>'
    yield svg_text(_LEFT - 9, y + 7, word, "soft", "end")
    yield from _label(y + 7, "", size_bytes, tensors)


def _bar(number: int, cut: Cut, scale: _Scale) -> Iterator[str]:
    y, colour = scale.y(cut.share), _COLOURS.get(len(cut.tensors), "#777")
    before = f"{cut.share:.1%} of the time and {bytes_text(cut.weight_bytes)} of weights before it"
    told = [
        f"cut {number}, behind {cut.at} nodes: {bytes_text(cut.size_bytes)}, {before}",
        *(f"{printable(str(each), 120)} ({bytes_text(each.size_bytes)})" for each in cut.tensors),
    ]
    if cut.inputs:
        told.append(f"later nodes use the inputs {printable(', '.join(cut.inputs), 200)}")
    yield (
        f'<rect x="{_LEFT}" y="{y - 1.25:.2f}" width="{scale.x(cut.size_bytes) - _LEFT:.1f}" height="2.5" '
        f'fill="{colour}" fill-opacity="0.8"><title>{escape(chr(10).join(told))}</title></rect>'
    )


def _labels(cuts: Sequence[Cut], scale: _Scale) -> Iterator[str]:
    """For the smallest cut of each stretch that has room for one label."""
    best: dict[int, tuple[int, int]] = {}
    for number, cut in enumerate(cuts):
        stretch = int(cut.share * _HEIGHT / _LABEL_GAP)
        best[stretch] = min(best.get(stretch, (cut.size_bytes, number)), (cut.size_bytes, number))
    below = float("-inf")
    for _, (_, number) in sorted(best.items()):
        cut = cuts[number]
        y = max(scale.y(cut.share) + 4, below + _LABEL_GAP)
        if y > min(scale.y(cut.share) + _LABEL_GAP, _TOP + _HEIGHT + 12):  # too far from its bar to belong to it
            continue
        below, x = y, scale.x(cut.size_bytes)
        yield (f'<polyline fill="none" stroke="#bbb" points="{x + 3:.1f},{scale.y(cut.share):.1f} '
               f'{_LEFT + _SCALE + 2},{scale.y(cut.share):.1f} {_LEFT + _SCALE + 9},{y - 4:.1f}"/>')  # fmt: skip
        yield from _label(y, str(number), cut.size_bytes, cut.tensors)


def _label(y: float, number: str, size_bytes: int, tensors: Sequence[CutTensor]) -> Iterator[str]:
    of_number, of_size, of_names = _COLUMNS
    if number:
        yield svg_text(of_number, y, number, "strong", "end")
    yield svg_text(of_size, y, bytes_text(size_bytes), "", "end")
    yield svg_text(of_names, y, printable(", ".join(map(str, tensors)), _MAX_LABEL), "soft")


def bytes_text(size_bytes: int) -> str:
    """Bytes as people read them: ``819 kB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.3g} {unit}" if size_bytes < 999.5 * size else f"{size_bytes / size:.0f} {unit}"
    return f"{size_bytes} B"


def milliseconds_text(us: float) -> str:
    """Microseconds as people read them: ``10.1 ms``."""
    return f"{us / 1e3:.3g} ms" if us < 999_500 else f"{us / 1e3:.0f} ms"
