"""The doctor's checks of what users add to a node: rules, policies, functions and applications."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.applications.manifest import granted_rights, read_application
from meshnode.applications.section import ApplicationsSection
from meshnode.cli.finding import Finding
from meshnode.config.sections import NodeConfig
from meshnode.functions.section import FunctionsSection
from meshnode.groups import program_in
from meshnode.mqtt.section import MqttSection
from meshnode.records.egress.advice import shortcomings
from meshnode.records.egress.section import policy_of
from meshnode.records.rules.expressions import check_evaluator
from meshnode.records.rules.section import RulesSection
from meshnode.records.using import NodeRules
from protocols.base.errors import ConfigError, MeshError

if TYPE_CHECKING:
    from meshnode.records.rules.compiling import Rule

_BROKER_S: Final = 3.0
"""How long a broker may take to answer."""


def check_rules(config: NodeConfig) -> Iterator[Finding]:
    """Rules in files, with a broken one of which a node does not start, and those of the release that serves."""
    section = config.of(RulesSection)
    user = NodeRules(config)
    if section.files:
        try:
            yield Finding("ok", "rules", _in_words(user.own()))
        except ConfigError as error:
            yield Finding("fail", "rules", str(error))
    if (path := section.released_path) is None:
        return
    from meshnode.releases.console.verifying import serving_file

    try:
        check_evaluator()
        counter, file = serving_file(config.node.state_dir / "releases", path)
        if file is None:
            yield Finding("ok", "released rules", f"no release of {path} serves yet: [rules] files hold")
        else:
            yield Finding("ok", "released rules", f"{path} {counter}: {_in_words(user.compiled((file,)))}")
    except MeshError as error:
        yield Finding("fail", "released rules", str(error))


def _in_words(rules: "Sequence[Rule]") -> str:
    needs_mib = sum(rule.max_state_bytes for rule in rules) / (1 << 20)
    return f"{', '.join(rule.name for rule in rules)}; at most {needs_mib:.1f} MiB of memory"


def check_functions(config: NodeConfig, folder: Path) -> Iterator[Finding]:
    """The programs of functions."""
    for section in config.of(FunctionsSection).functions:
        found = shutil.which(program_in(folder, section.run)[0])
        if found is None:
            why = f"{section.run[0]} is no program that can be run: correct 'run', or make the file executable"
            yield Finding("fail", f"function {section.name}", why)
        else:
            yield Finding("ok", f"function {section.name}", found)


def check_applications(config: NodeConfig) -> Iterator[Finding]:
    """What applications ask for, and whether they get it."""
    for section in config.of(ApplicationsSection).applications:
        try:
            manifest = read_application(section.manifest)
            rights = granted_rights(manifest, section, config.node.id)
        except ConfigError as error:
            yield Finding("fail", f"application {section.manifest.parent.name}", str(error))
            continue
        what = f"application {manifest.name}"
        if shutil.which(program_in(section.manifest.absolute().parent, manifest.run)[0]) is None:
            why = f"{manifest.run[0]} is no program that can be run: correct 'run', or make the file executable"
            yield Finding("fail", what, why)
        else:
            may = ", ".join(
                f"{key} {' '.join(granted)}"
                for key, granted in (
                    ("reads", rights.reads),
                    ("publishes", rights.publishes),
                    ("infers", rights.infers),
                )
                if granted
            )
            yield Finding(
                "ok", what, f"{manifest.version} by {manifest.publisher} ({manifest.licence}): {may or 'no rights'}"
            )


def check_mqtt(config: NodeConfig, folder: Path) -> Iterator[Finding]:
    """Whether brokers answer, and let this node in."""
    brokers = config.of(MqttSection).brokers
    if not brokers:
        return
    try:
        from meshnode.mqtt.client import BrokerAbsent, knock, session_name
    except ImportError:
        yield Finding("fail", "mqtt", "[[mqtt]] needs paho-mqtt: pip install 'meshnode[mqtt]'")
        return
    for broker in brokers:
        try:
            knock(broker, folder, session_name(broker, config.node.id, "-dr"), _BROKER_S)
        except BrokerAbsent as error:
            yield Finding("warn", "mqtt", f"{error} Messages wait meanwhile")
        except MeshError as error:
            yield Finding("fail", "mqtt", str(error))
        else:
            yield Finding("ok", "mqtt", f"{broker.name}: {broker.host} port {broker.number} answers")


def check_egress(config: NodeConfig) -> Iterator[Finding]:
    """What may leave for the relay."""
    found = [Finding("warn", "egress", text) for text in shortcomings(config)]
    policy = policy_of(config)
    if policy is not None and not found:
        found.append(
            Finding("ok", "egress", f"what may leave for the relay is said by a policy with rules: {len(policy.rules)}")
        )
    yield from found
