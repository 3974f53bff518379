"""Finds rules that derive from one another in a circle.

A rule without a window derives at once from each reading, and a join where both were sensed at the same moment. What
they derive is shown to the other rules before the publisher goes on. A rule never takes what was derived through
itself, so a circle ends; but k rules that all take what the others derive are tried in every order, which gives 109,600
readings out of one for eight. So a circle is refused. A rule that takes its own output is none: it is never shown it.
"""

from collections.abc import Sequence

from protocols.base.errors import ConfigError
from protocols.base.ids import NodeId
from protocols.base.keys import intersects
from protocols.records.deriving.each import EachRule
from protocols.records.deriving.output import Output
from protocols.records.patterns.join import JoinRule


def refuse_cycles(rules: Sequence[object], node: NodeId) -> None:
    """:raises ConfigError: when rules that derive at once may take one another's output in a circle; it names them."""
    at_once = [rule for rule in rules if isinstance(rule, EachRule | JoinRule)]
    keys = [outputs_of(rule.output, node) for rule in at_once]
    takers = [
        [other for other, taker in enumerate(at_once) if other != index and _may_take(taker, rule.output, keys[index])]
        for index, rule in enumerate(at_once)
    ]
    circle = _circle(takers)
    if circle:
        names = " -> ".join(repr(at_once[index].name) for index in (*circle, circle[0]))
        raise ConfigError(
            f"the rules {names} may each take what the one before it derives, in a circle: let 'output.key' of one of "
            "them be a key that the next does not take, or narrow 'keys' of the next"
        )


def outputs_of(output: Output, node: NodeId) -> str:
    """A key expression that matches every key that an output may have on a node."""
    chunks = output.key.replace("{node}", node).split("/")
    return "/".join("**" if "{partition}" in chunk else chunk for chunk in chunks)


def _may_take(taker: EachRule | JoinRule, output: Output, keys: str) -> bool:
    source = taker.sources[0]
    return (not output.unit or source.unit in (None, output.unit)) and intersects(keys, source.keys)


def _circle(takers: Sequence[Sequence[int]]) -> list[int]:
    """The rules of one circle, in order; empty: there is none. Rules that are in none are taken away, first those that
    nobody takes anything of; from any of the rest a circle is reached by going on."""
    left = set(range(len(takers)))
    while ends := {index for index in left if left.isdisjoint(takers[index])}:
        left -= ends
    if not left:
        return []
    path = [min(left)]
    while (following := min(left.intersection(takers[path[-1]]))) not in path:
        path.append(following)
    return path[path.index(following) :]
