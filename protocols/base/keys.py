"""Keys and key expressions.

A key consists of chunks joined by ``/``: ``rsu/north/hazard``. In an expression the chunk ``*`` stands for exactly one
chunk and ``**`` for any number of chunks, including none. The grammar is that of Zenoh without ``$*``.
Invariant: a valid key is also a valid expression, which matches only itself.
"""

from functools import lru_cache
from typing import Final

from protocols.base.errors import InvalidKey
from protocols.base.limits import MAX_DOUBLE_WILDCARDS, MAX_KEY_BYTES, MAX_KEY_CHUNKS

_FORBIDDEN: Final = frozenset("#?$")


def checked_key(text: str) -> str:
    """Return ``text`` if it is a valid key. :raises InvalidKey: says what is wrong with it."""
    _check(text, "key")
    if "*" in text:
        raise InvalidKey(f"key {text!r} has a wildcard: readings are published on exact keys")
    return text


def checked_expression(text: str) -> str:
    """Return ``text`` if it is a valid key expression. :raises InvalidKey: says what is wrong with it."""
    _check(text, "key expression")
    return text


def _check(text: str, what: str) -> None:
    shown = text[:80]
    if not text:
        raise InvalidKey(f"the {what} is empty: use chunks joined by '/', as in 'veh/17/speed'")
    if (len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))) > MAX_KEY_BYTES:
        raise InvalidKey(f"{what} {shown!r}… is longer than {MAX_KEY_BYTES} bytes: use a shorter one")
    chunks = text.split("/")
    if len(chunks) > MAX_KEY_CHUNKS:
        raise InvalidKey(f"{what} {shown!r} has {len(chunks)} chunks: use at most {MAX_KEY_CHUNKS}")
    if chunks.count("**") > MAX_DOUBLE_WILDCARDS:
        raise InvalidKey(f"{what} {shown!r} has more than {MAX_DOUBLE_WILDCARDS} '**': use several subscriptions")
    if "*" not in text and "" not in chunks and text.isprintable() and _FORBIDDEN.isdisjoint(text):
        return  # a loop over the chunks would take half of what a new key costs
    for chunk in chunks:
        if not chunk:
            raise InvalidKey(f"{what} {shown!r} has an empty chunk: remove the extra '/'")
        if "*" in chunk and chunk not in ("*", "**"):
            raise InvalidKey(f"{what} {shown!r} mixes '*' with text in the chunk {chunk!r}: '*' and '**' stand alone")
        if not chunk.isprintable() or not _FORBIDDEN.isdisjoint(chunk):
            raise InvalidKey(f"{what} {shown!r} has a control character or one of # ? $: remove it")


@lru_cache(maxsize=4096)
def _chunks(text: str) -> tuple[str, ...]:
    return tuple(text.split("/"))


def matches(expression: str, key: str) -> bool:
    """Whether a valid ``expression`` matches a valid ``key``. It takes at most ``MAX_KEY_CHUNKS`` squared steps."""
    if expression == key or expression == "**":
        return True
    star = expression.find("*")
    if star < 0:
        return False
    if expression.endswith("/**") and star == len(expression) - 2:  # as in nearly all rules of access
        return key.startswith(expression[:-2]) or key == expression[:-3]
    return _matches(expression, key)


@lru_cache(maxsize=4096)  # each change of an interest matches the same expressions with every stream again
def _matches(expression: str, key: str) -> bool:
    pattern, text = _chunks(expression), key.split("/")
    # reachable[j]: the pattern so far can match the first j chunks
    reachable = [True] + [False] * len(text)
    for part in pattern:
        if part == "**":
            for j in range(1, len(reachable)):
                reachable[j] = reachable[j] or reachable[j - 1]
        else:
            reachable = [False] + [reachable[j] and (part == "*" or part == text[j]) for j in range(len(text))]
    return reachable[-1]


def intersects(left: str, right: str) -> bool:
    """Whether some key matches both valid expressions."""
    a, b = _chunks(left), _chunks(right)
    row = [True] + [False] * len(b)
    for j, part in enumerate(b, 1):
        row[j] = row[j - 1] and part == "**"
    for part in a:
        below = [row[0] and part == "**"] + [False] * len(b)
        for j, other in enumerate(b, 1):
            if part == "**" or other == "**":
                below[j] = row[j] or below[j - 1]
            else:
                below[j] = row[j - 1] and (part == "*" or other == "*" or part == other)
        row = below
    return row[-1]


def includes(outer: str, inner: str) -> bool:
    """Whether every key that matches ``inner`` also matches ``outer``.

    ``inner`` is compared chunk by chunk: a wildcard in it needs one at least as wide in ``outer``. This is exact for
    the expressions of access rules.
    """
    if outer == "**":
        return True
    pattern, text = _chunks(outer), _chunks(inner)
    reachable = [True] + [False] * len(text)
    for part in pattern:
        if part == "**":
            for j in range(1, len(reachable)):
                reachable[j] = reachable[j] or reachable[j - 1]
        else:
            reachable = [False] + [
                reachable[j] and text[j] != "**" and (part == "*" or part == text[j]) for j in range(len(text))
            ]
    return reachable[-1]
