"""How values and durations look to people. Control characters are removed from what others chose, because they could
rewrite the reader's terminal."""

import json
from typing import Any, Final

import click

MAX_CELL_CHARS: Final = 60
PIPE_CLOSED: Final = 141
"""Exit status, as in a shell, when the reader of the output has gone."""


def printable(text: str, most: int = MAX_CELL_CHARS) -> str:
    """``text`` on one line, cut to ``most`` characters."""
    shown = "".join(c if c.isprintable() else "�" for c in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def value_text(value: Any, most: int = MAX_CELL_CHARS) -> str:
    """The value of a reading, as the HTTP API gives it."""
    match value:
        case str():
            return printable(value, most)
        case {"$bytes": str(data)}:
            return f"{len(data) * 3 // 4 - data[-2:].count('=')} bytes"
        case {"$tensor": {"dtype": dtype, "shape": shape}}:
            return f"{dtype}{shape}"
        case {"$float": text}:
            return str(text)
        case {"$time": text}:
            return printable(str(text), most)
        case _:
            return printable(json.dumps(value, ensure_ascii=False), most)


def milliseconds(ns: int) -> str:
    """Nanoseconds as milliseconds; a dash for what is not measured yet."""
    return f"{ns / 1e6:.2f} ms" if ns else "-"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def print_json(content: Any) -> None:
    """Print ``content`` as JSON for a program, indented for people who read it too."""
    click.echo(json.dumps(content, indent=1, ensure_ascii=False))
