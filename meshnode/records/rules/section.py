"""The section of the configuration that names files of rules."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from meshnode.config.parsing import Problem, shown
from meshnode.config.sections import NodeConfig, PartSection

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _check_name(value: str) -> str | None:
    if _NAME.fullmatch(value):
        return None
    return "is not the name of released rules: write NAME, as in 'traffic' for rules/traffic"


class RulesSection(PartSection, frozen=True, kw_only=True):
    """Rules that derive readings and records from readings."""

    table: ClassVar[str] = "rules"

    files: Annotated[
        tuple[Annotated[Path, Meta(extra={"file": "write it, or correct the path"})], ...],
        Meta(max_length=16, description="Files of rules, see [rules](rules.md)."),
    ] = ()
    release: Annotated[
        Annotated[str, Meta(extra={"check": _check_name})] | None,
        Meta(
            description="The name of rules that this node takes from signed releases. Once one serves, it holds in "
            "place of `files`. It needs `[releases]`.",
            extra={"default": "none"},
        ),
    ] = None
    max_mib: Annotated[
        int,
        Meta(ge=1, le=65_536, description="MiB that all rules together may need for windows and held readings."),
    ] = 1_024

    @property
    def max_bytes(self) -> int:
        """``max_mib`` in bytes."""
        return self.max_mib * 1024 * 1024

    @property
    def released_path(self) -> str | None:
        """The path of the releases that are taken; None: of none."""
        return None if self.release is None else f"rules/{self.release}"

    def conflicts_in(self, config: NodeConfig) -> Iterator[Problem]:
        """Rules from releases at a node that takes no releases."""
        if self.release is not None and not any(section.table == "releases" for section in config.sections):
            yield Problem(
                "rules.release", shown(self.release), "needs [releases]: add the table, or use rules in files only"
            )
