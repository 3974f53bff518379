"""The table of access says who may do what, by role, verb and key expression. What no rule allows is denied.

``{id}`` in an expression stands for the id of the node that asks, so that one rule lets every vehicle publish on its
own keys and on nobody else's.
"""

from typing import Final, Literal

from msgspec import Struct

from protocols.base.ids import NodeId, Role
from protocols.base.keys import checked_expression, includes, matches

Verb = Literal["publish", "subscribe", "infer", "offer", "release", "carry"]


class AccessRule(Struct, frozen=True):
    """Nodes of ``role`` may ``verb`` on ``keys`` (for ``infer`` and ``offer``: on models whose name matches; for
    ``release``: they get the releases whose path matches, as in ``models/plate``; for ``carry``: those whose id matches
    have their sealed records carried to the relay)."""

    role: Role
    verb: Verb
    keys: str


DEFAULT_RULES = (
    AccessRule(Role.VEHICLE, "publish", "veh/{id}/**"),
    AccessRule(Role.VEHICLE, "subscribe", "**"),
    AccessRule(Role.VEHICLE, "infer", "**"),
    AccessRule(Role.VEHICLE, "offer", "**"),
    AccessRule(Role.VEHICLE, "release", "**"),
    AccessRule(Role.VEHICLE, "carry", "**"),
    AccessRule(Role.RSU, "publish", "rsu/{id}/**"),
    AccessRule(Role.RSU, "subscribe", "**"),
    AccessRule(Role.RSU, "infer", "**"),
    AccessRule(Role.RSU, "offer", "**"),
    AccessRule(Role.RSU, "release", "**"),
    AccessRule(Role.RSU, "carry", "**"),
    AccessRule(Role.TOOL, "publish", "tool/{id}/**"),
    AccessRule(Role.TOOL, "subscribe", "**"),
    AccessRule(Role.TOOL, "infer", "**"),
    AccessRule(Role.TOOL, "offer", "**"),
    AccessRule(Role.TOOL, "release", "**"),
)
"""The rules in force unless the configuration says otherwise. Those for ``LATER_VERBS`` are also in force beside rules
that have none for that verb, because rules written before there was the verb would otherwise forbid all of it."""
LATER_VERBS: Final[tuple[Verb, ...]] = ("offer", "release", "carry")

LINK_ROLES = frozenset((Role.VEHICLE, Role.RSU, Role.TOOL))
"""Roles that may be neighbours. A relay's certificate opens no link, because relays never dial a node."""


class AccessTable:
    """A fixed tuple of rules, and what they permit."""

    def __init__(self, rules: tuple[AccessRule, ...] = DEFAULT_RULES) -> None:
        """:raises InvalidKey: when the keys of a rule are not a valid key expression."""
        for rule in rules:
            checked_expression(rule.keys.replace("{id}", "x"))
        for verb in LATER_VERBS:
            if not any(rule.verb == verb for rule in rules):
                rules = (*rules, *(rule for rule in DEFAULT_RULES if rule.verb == verb))
        self._rules = rules
        self._last: dict[Verb, tuple[Role, NodeId, list[str]]] = {}  # most often the same node asks again

    def permits_publish(self, role: Role, node: NodeId, key: str) -> bool:
        """Whether ``node`` may be the origin of readings on ``key``."""
        return any(matches(expression, key) for expression in self._expressions(role, node, "publish"))

    def permits_origin(self, node: NodeId, key: str) -> bool:
        """Whether some role would let ``node`` be the origin of ``key``. This decides where the certificate of the
        origin was not seen, as at the relay."""
        return any(self.permits_publish(role, node, key) for role in LINK_ROLES)

    def permits_subscribe(self, role: Role, node: NodeId, expression: str) -> bool:
        """Whether ``node`` may receive every reading that ``expression`` matches."""
        return any(includes(allowed, expression) for allowed in self._expressions(role, node, "subscribe"))

    def permits_infer(self, role: Role, node: NodeId, model: str) -> bool:
        """Whether ``node`` may have ``model`` computed here."""
        return any(matches(expression, model) for expression in self._expressions(role, node, "infer"))

    def permits_offer(self, role: Role, node: NodeId, model: str) -> bool:
        """Whether ``node`` may be asked to compute ``model`` for this node."""
        return any(matches(expression, model) for expression in self._expressions(role, node, "offer"))

    def permits_release(self, role: Role, node: NodeId, path: str) -> bool:
        """Whether ``node`` may get the release ``path``, as in ``models/plate``, from this node."""
        return any(matches(expression, path) for expression in self._expressions(role, node, "release"))

    def permits_any_release(self, role: Role, node: NodeId) -> bool:
        """Whether ``node`` may get any release at all, and so the metadata of all of them."""
        return bool(self._expressions(role, node, "release"))

    def permits_carry(self, role: Role, node: NodeId) -> bool:
        """Whether sealed records of ``node`` may be carried to the relay by this node."""
        return any(matches(expression, node) for expression in self._expressions(role, node, "carry"))

    def _expressions(self, role: Role, node: NodeId, verb: Verb) -> list[str]:
        last = self._last.get(verb)
        if last is None or last[0] is not role or last[1] != node:
            keys = [rule.keys.replace("{id}", node) for rule in self._rules if rule.role is role and rule.verb == verb]
            last = self._last[verb] = (role, node, keys)
        return last[2]
