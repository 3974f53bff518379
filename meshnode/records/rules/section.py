"""The section of the configuration that names files of rules."""

from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from meshnode.config.sections import PartSection


class RulesSection(PartSection, frozen=True, kw_only=True):
    """Rules that derive readings and records from readings."""

    table: ClassVar[str] = "rules"

    files: Annotated[
        tuple[Annotated[Path, Meta(extra={"file": "write it, or correct the path"})], ...],
        Meta(max_length=16, description="Files of rules, see [rules](rules.md)."),
    ] = ()
