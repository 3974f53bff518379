"""What a person should know of the egress of a configuration before a node runs with it."""

from collections.abc import Iterator

from meshnode.config.sections import NodeConfig
from meshnode.records.egress.section import EgressRulesSection, rules_here
from meshnode.records.section import CurationRulesSection, RelaySection
from protocols.base.keys import intersects


def shortcomings(config: NodeConfig) -> Iterator[str]:
    """What leaves although nobody said so, and what never leaves although somebody chose it."""
    chosen, rules = config.of(CurationRulesSection).rules, rules_here(config)
    if not config.of(EgressRulesSection).rules:
        if config.given(RelaySection) is not None:
            yield (
                "records leave whole for the relay, with exact places, times and names: say in [[egress]] what may "
                "leave; a rule with keys = '**' alone says that all may"
            )
        return
    relay = config.given(RelaySection)
    if relay is not None and relay.infer:
        yield (
            f"inputs of models may go to the relay past [[egress]], because [relay] infer names "
            f"{', '.join(relay.infer)}: name only those whose inputs may leave as they are"
        )
    for rule in chosen:
        if not any(intersects(rule.keys, egress.keys) for egress in rules if not egress.drop):
            yield (
                f"records of the curation rule {rule.name!r} never leave: no rule of [[egress]] lets something of "
                f"{rule.keys!r} through"
            )
