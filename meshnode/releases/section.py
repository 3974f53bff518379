"""The section of releases: which ones this node takes, from whom, and what they may take of the disk and of links."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from meshnode.config.parsing import Problem
from meshnode.config.sections import NodeConfig, PartSection
from meshnode.links.transport import Address
from protocols.releases.catalogue import Path as ReleasePath

ALL: Final = "*"
ALL_MODELS: Final = "models/*"
_PATH: Final = re.compile(r"[a-z]+/[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}=[A-Za-z0-9._-]{1,50}")


def _check_path(value: str) -> str | None:
    if value.startswith("rules/"):
        return "is taken by another key: write release = 'NAME' into [rules]"
    if value == ALL or _PATH.fullmatch(value):
        return None
    return "is not the path of a release: write 'models/NAME', or '*' for all"


def _check_label(value: str) -> str | None:
    return None if _LABEL.fullmatch(value) else "is not a label: write 'key=value', as in 'city=ingolstadt'"


_Follow = Annotated[str, Meta(extra={"check": _check_path})]
_Label = Annotated[str, Meta(extra={"check": _check_label})]


class ReleasesSection(PartSection, frozen=True, kw_only=True):
    """Releases of models and rules: new versions that come from the relay and from neighbours, signed by their
    publishers. Without this table the node takes none."""

    table: ClassVar[str] = "releases"

    root: Annotated[
        Path,
        Meta(
            description="The root of trust, `1.root.json` of the relay's repository: whoever signs releases is trusted "
            "because of it.",
            extra={"file": "copy 1.root.json of the relay's repository there"},
        ),
    ]
    follow: Annotated[
        tuple[_Follow, ...],
        Meta(
            max_length=64,
            description='Paths of models of which this node takes releases, as in `["models/plate"]`; `["*"]`: all. '
            "Rules are taken by `[rules] release`.",
            extra={"default": "the models of `[models]`"},
        ),
    ] = ()
    labels: Annotated[
        tuple[_Label, ...],
        Meta(
            max_length=16,
            description='What orders may choose this node by, as in `["city=ingolstadt"]`. Labels select, they never '
            "authorise.",
        ),
    ] = ()
    keep: Annotated[
        int, Meta(ge=0, le=4, description="Versions that stay warm behind the one that serves, for going back at once.")
    ] = 1
    store_mib: Annotated[
        int, Meta(ge=1, le=1_048_576, description="MiB that releases may take in the state folder.")
    ] = 4_096
    fetch_bytes_per_hour: Annotated[
        int, Meta(ge=0, le=2**40, description="Bytes to fetch in an hour, from all others together; 0: no limit.")
    ] = 0
    relay_bytes_per_hour: Annotated[
        int, Meta(ge=0, le=2**40, description="Those from the relay, whose uplink may be paid for; 0: no limit.")
    ] = 0
    serve_bytes_per_s: Annotated[
        int, Meta(ge=0, le=2**40, description="Bytes to give to neighbours in a second; 0: no limit.")
    ] = 0
    relay: Annotated[
        Address | None,
        Meta(
            description="`host:port` of the relay that publishes releases.",
            extra={"default": "the relay of `[relay]`, if there is one"},
        ),
    ] = None

    def conflicts(self) -> Iterator[Problem]:
        """``*`` beside others."""
        if ALL in self.follow and len(self.follow) > 1:
            yield Problem("follow", None, "has '*' and others: keep one of both")

    def followed(self, config: NodeConfig) -> tuple[ReleasePath, ...]:
        """Key expressions of the paths that are followed. Only that of all models is more than a path."""
        from meshnode.inference.section import ModelsSection
        from meshnode.records.rules.section import RulesSection

        follow = tuple(ALL_MODELS if path == ALL else path for path in self.follow)
        models = follow or tuple(f"models/{name}" for name in config.of(ModelsSection).models)
        rules = config.of(RulesSection).released_path
        return models if rules is None else (*models, rules)
