"""How benchmarks with one figure a name print them. It imports little, because some of them measure memory."""

import json
from collections.abc import Container, Mapping


def print_figures(figures: Mapping[str, float], missed: Container[str], *, as_json: bool) -> None:
    """Print one object, or a line for each figure that says when its bar is missed."""
    if as_json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:36} {figure:12.2f}{'   MISSED' if name in missed else ''}")
