"""Which rules a node uses: those in files that its configuration names, or released ones in their place."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.config.sections import NodeConfig
from meshnode.records.rules.noting import Note
from meshnode.records.rules.section import RulesSection
from protocols.base.errors import ConfigError, LocalProtocolError, MeshError
from protocols.base.ids import NodeId
from protocols.records.curation import Curator

if TYPE_CHECKING:
    from meshnode.records.recording import Recorder
    from meshnode.records.rules.compiling import Rule

_log = logging.getLogger(__name__)


class NodeRules:
    """See the module. Its methods block for as long as it takes to compile rules; one at a time."""

    def __init__(self, config: NodeConfig, recorder: "Callable[[], Recorder | None]" = lambda: None) -> None:
        """``recorder``: what uses the rules, once it is open."""
        self._node, self._section, self._recorder = NodeId(config.node.id), config.of(RulesSection), recorder
        self._config = config
        self._keeps_history = any(section.table == "history" for section in config.sections)

    def first(self, installed: Callable[[], Sequence[Path]]) -> "Sequence[Rule]":
        """The rules with which the node begins: those of the first installed file that can be used, or those of the
        configuration. :raises ConfigError: these can't be used."""
        try:
            for file in installed():
                try:
                    return self.compiled((file,))
                except MeshError as error:
                    _log.warning("released rules can't be used any more: %s", error)
        except MeshError as error:
            _log.warning("no released rules can be used: %s", error)
        return self.own()

    def own(self) -> "Sequence[Rule]":
        """The rules of the configuration. :raises ConfigError: they can't be used."""
        try:
            return self.compiled(self._section.files)
        except LocalProtocolError as error:  # they need too much memory, or one has the name of another rule
            raise ConfigError(str(error)) from error

    def compiled(self, files: Sequence[Path]) -> "Sequence[Rule]":
        """The rules in some files.

        :raises ConfigError: they are wrong. :raises BoundExceeded: they may need more memory than this node allows.
        :raises LocalProtocolError: a rule of the configuration has the name of one of them.
        """
        if not files:
            return ()
        from meshnode.records.made import rules_of
        from meshnode.records.rules.compiling import check_needs, rules_in  # the evaluator takes long to load

        rules = rules_in(files, self._node)
        check_needs(rules, self._section.max_bytes)
        self._check_recordings(rules)
        Curator(rules_of(self._config)).check(rules)
        return rules

    def _check_recordings(self, rules: "Sequence[Rule]") -> None:
        for rule in rules:
            if rule.recording is not None and rule.recording.before_ns and not self._keeps_history:
                raise ConfigError(
                    f"rule {rule.name!r} records what was read before it finds something, and this node keeps no "
                    "history: add [history] with these keys, or remove recording.before_s"
                )

    def use(self, rules: "Sequence[Rule] | None", about_to: Callable[[], object], note: Note | None) -> None:
        """See :meth:`meshnode.records.recording.Recorder.use`. None: the rules of the configuration."""
        recorder = self._recorder()
        if recorder is None:
            raise LocalProtocolError("the node is not open yet, or closes: its rules can't be exchanged")
        recorder.use(self.own() if rules is None else rules, about_to, note)
