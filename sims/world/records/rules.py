"""The files of rules that the nodes of a scenario run: those of real nodes, compiled by what real nodes compile them
with.

A rule knows the node that runs it, and has a state. So each life of each node gets rules of its own, which have seen
nothing: open windows that real nodes save over a restart begin anew here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from protocols.base.errors import ConfigError
from protocols.base.ids import NodeId
from protocols.records.curation import Curator, Pattern
from sims.errors import ScenarioError
from sims.scenario.file import Group, Scenario, rules_path
from sims.scenario.schema import nearest, shown

if TYPE_CHECKING:
    from meshnode.records.rules.compiling import Rule

OWN_RULE = "all"
"""The name of the rule by which readings of a node's own become records as they are."""


class RuleNeeds(NamedTuple):
    """What one file of rules is."""

    rules: int
    max_state_bytes: int
    """The memory that all of its rules may need at one node."""


class NodeRules:
    """The rules of all nodes of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        """:raises ScenarioError: when a file can't be used, with what ``meshnode rules check`` says of it, or when
        records are expected of a rule that none of their nodes runs."""
        self._paths: dict[str, tuple[Path, ...]] = {}
        self._expressions: dict[str, tuple[str, ...]] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self.needs: dict[Path, RuleNeeds] = {}
        """By file: what is in it."""
        for group in scenario.groups:
            if group.relay:
                self._read(scenario, group)
        for number, expected in enumerate(scenario.curation.expected):
            of_nodes = {name for what in expected.nodes for name in scenario.members(what)} or self._names
            known = dict.fromkeys(rule for name in self._names if name in of_nodes for rule in self._names[name])
            if expected.rule not in known:
                place = f"curation.expected[{number}].rule is {shown(expected.rule)}"
                raise ScenarioError(f"{place}, no rule of these nodes{nearest(expected.rule, known)}")

    def _read(self, scenario: Scenario, group: Group) -> None:
        paths = tuple(rules_path(scenario, name) for name in scenario.rule_files(group))
        members = scenario.members(group.name)
        found = _compiled(paths, NodeId(members[0]))
        own = (OWN_RULE,) if scenario.curation.own_readings else ()
        names = (*own, *(rule.name for rule in found))
        if own and names.count(OWN_RULE) > 1:
            raise ScenarioError(
                f"a rule of group {group.name!r} is called {OWN_RULE!r}, as the one that makes records of all readings "
                "of a node: rename it, or set curation.own_readings = false"
            )
        self._paths |= dict.fromkeys(members, paths)
        self._expressions |= dict.fromkeys(members, Curator((), found).expressions)
        self._names |= dict.fromkeys(members, names)
        for path in paths:
            of_file = _compiled((path,), NodeId(members[0]))
            self.needs[path] = RuleNeeds(len(of_file), sum(rule.max_state_bytes for rule in of_file))

    def expressions(self, node: str) -> tuple[str, ...]:
        """Key expressions of the readings that the rules of a node want from its neighbours."""
        return self._expressions.get(node, ())

    def of(self, node: NodeId) -> Sequence[Pattern]:
        """The rules of a life of a node that begins."""
        paths = self._paths.get(node, ())
        return _compiled(paths, node) if paths else ()


def _compiled(paths: Sequence[Path], node: NodeId) -> "Sequence[Rule]":
    if not paths:
        return ()
    from meshnode.records.rules.compiling import rules_in  # needs an extra, which only such scenarios need

    try:
        return rules_in(paths, node)
    except ConfigError as error:
        raise ScenarioError(str(error)) from error
