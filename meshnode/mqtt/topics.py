"""Topics and keys: what one is in the other's place.

A topic filter of MQTT has ``+`` for one level and ``#`` for all that follow; an expression of keys has ``*`` for one
chunk and ``**`` for any number. A template is filled with what these stood for, in their order: ``{1}``, ``{2}`` …;
``{node}`` is this node, ``{key}`` and ``{origin}`` are those of a reading.
"""

import re
from typing import Final

MAX_TOPIC_BYTES: Final = 65_535
_PLACE: Final = re.compile(r"\{([^{}]*)\}")


class Template:
    """A text with places. ``names`` are those that it may have beside numbers up to ``wildcards``."""

    def __init__(self, text: str, wildcards: int, names: frozenset[str]) -> None:
        """:raises ValueError: a place has another name, or braces don't match; says which."""
        self._parts = _PLACE.split(text)  # texts and places in turn
        for place in self._parts[1::2]:
            if not (place in names or (place.isdecimal() and 1 <= int(place) <= wildcards)):
                known = [f"{{{name}}}" for name in sorted(names)] + [f"{{{number + 1}}}" for number in range(wildcards)]
                raise ValueError(f"has no place {{{place}}}: use {', '.join(known) or 'none'}")
        if any("{" in part or "}" in part for part in self._parts[::2]):
            raise ValueError("has a brace without its partner")

    def filled(self, found: tuple[str, ...], values: dict[str, str]) -> str:
        """The text with what the wildcards stood for, and the values of names, in its places."""
        parts = self._parts
        return "".join(
            part if not index % 2 else (found[int(part) - 1] if part.isdecimal() else values[part])
            for index, part in enumerate(parts)
        )


class Matcher:
    """Finds what the wildcards of a filter or an expression stand for. Each chunk is looked at with its slash."""

    def __init__(self, chunks: list[str]) -> None:
        """``chunks``: a pattern for each chunk, with a group if it is a wildcard."""
        self._pattern = re.compile("".join(chunks), re.DOTALL)

    def found(self, text: str) -> tuple[str, ...] | None:
        """What each wildcard stands for; None: the text does not match."""
        match = self._pattern.fullmatch("/" + text)
        return None if match is None else tuple(group[1:] for group in match.groups())


def filter_matcher(topic_filter: str) -> Matcher:
    """Finds the topics of a filter.

    :raises ValueError: it is none; says why.
    """
    levels = topic_filter.split("/")
    if not topic_filter or len(topic_filter.encode()) > MAX_TOPIC_BYTES or "\0" in topic_filter:
        raise ValueError("is no topic filter: give one, such as sensors/+/temperature")
    chunks = []
    for place, level in enumerate(levels):
        if level == "#" and place == len(levels) - 1:
            chunks.append("((?:/[^/]*)*)")
        elif level == "+":
            chunks.append("(/[^/]*)")
        elif "#" in level or "+" in level:
            raise ValueError("mixes a wildcard with text: '+' and '#' stand alone, and '#' stands last")
        else:
            chunks.append(re.escape("/" + level))
    return Matcher(chunks)


def expression_matcher(expression: str) -> Matcher:
    """Finds the keys of an expression."""
    wild = {"*": "(/[^/]+)", "**": "((?:/[^/]+)*?)"}
    return Matcher([wild.get(chunk) or re.escape("/" + chunk) for chunk in expression.split("/")])


def wildcards_in(text: str) -> int:
    """How many wildcards a filter or an expression has."""
    return sum(level in ("+", "#", "*", "**") for level in text.split("/"))
