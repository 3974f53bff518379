"""``meshnode doctor``: whether a node has everything it needs, and what to do about what is missing."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshnode.console.printing import print_json

if TYPE_CHECKING:
    from meshnode.part import Part


@click.command()
@click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(parts: "Sequence[Part]", config_path: Path, as_json: bool) -> None:
    """Check certificates, clock, multicast, ports, models, state folder and relay of a node.

    The node may be running. The exit status is 1 when something would keep the node from working.
    """
    from meshnode.cli.checks import examine

    findings = []
    for finding in examine(config_path, parts):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.status:<5} {finding.check:<12} {finding.message}")
    failures = sum(finding.status == "fail" for finding in findings)
    warnings = sum(finding.status == "warn" for finding in findings)
    if as_json:
        print_json({"healthy": not failures, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        click.echo(f"{len(findings)} checks, {warnings} warnings, {failures} failures")
    if failures:
        click.get_current_context().exit(1)
