"""Commands about datasets of a relay without a network."""

import json
from typing import Any

from click.testing import CliRunner, Result

from cloud_relay.cli import main
from tests.tools.relay_fixture import RelayInProcess


def run(relay: RelayInProcess, command: str, *words: str) -> Result:
    """A command about datasets that must succeed."""
    done = tried(relay, command, *words)
    assert done.exit_code == 0, done.output
    return done


def tried(relay: RelayInProcess, command: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["dataset", command, "--store", str(relay.path), *words])


def shown(relay: RelayInProcess, name: str) -> dict[str, Any]:
    return dict(json.loads(run(relay, "show", "--json", name).stdout))
