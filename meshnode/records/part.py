"""Records as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    import click

    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.records.running import RunningRecords

    return RunningRecords(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.records.egress.section import EgressRulesSection
    from meshnode.records.rules.section import RulesSection
    from meshnode.records.section import CarryingSection, CurationRulesSection, OutboxSection, RelaySection

    return (CurationRulesSection, RulesSection, EgressRulesSection, OutboxSection, RelaySection, CarryingSection)


def _commands() -> "Sequence[click.Command]":
    from meshnode.records.console.rules import rules

    return (rules,)


RECORDS: Final = Part("records", _start, _sections, _commands)
