"""The manifest of an application: who made it, how it is started, and which rights it asks for."""

import re
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from meshnode.applications.section import PLACE, ApplicationSection, GrantedList
from meshnode.config.parsing import Section, TableReader, problem_report
from meshnode.config.toml import read_toml
from meshnode.local.rights import Rights
from protocols.base.errors import ConfigError
from protocols.base.ids import NodeId
from protocols.base.keys import includes

APPLICATION_FILE: Final = "application.toml"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


def _check_name(value: str) -> str | None:
    if NAME.fullmatch(value):
        return None
    return "is no name of an application: use up to 40 small letters, digits and -"


_Text = Annotated[str, Meta(min_length=1, max_length=200)]


class ApplicationManifest(Section, frozen=True, kw_only=True):
    """What the author of an application says of it."""

    name: Annotated[str, Meta(description="Its name, unique on a node.", extra={"check": _check_name})]
    version: Annotated[_Text, Meta(description="Its version.")]
    publisher: Annotated[_Text, Meta(description="Who made it.")]
    licence: Annotated[_Text, Meta(description="Its licence, by the identifier of SPDX where there is one.")]
    about: Annotated[str, Meta(max_length=2_000, description="What it does.")] = ""
    run: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4_000)], ...],
        Meta(
            min_length=1, max_length=64,
            description="The program and its arguments. A program with a `/` in its name is found from the folder of "
            "the manifest, others on the search path.",
        ),
    ]  # fmt: skip
    reads: Annotated[GrantedList, Meta(description="Key expressions of the readings that it needs.")] = ()
    publishes: Annotated[GrantedList, Meta(description="Key expressions of what it publishes.")] = ()
    infers: Annotated[GrantedList, Meta(description="The models that it uses.")] = ()
    memory_mib: Annotated[int, Meta(ge=16, le=1_048_576, description="The memory that it needs.")] = 64


def read_application(path: Path) -> ApplicationManifest:
    """A manifest. :raises ConfigError: names the file, and every mistake in it with key, value and what to do."""
    reader = TableReader()
    manifest = reader.read_table(ApplicationManifest, read_toml(path), "")
    if reader.problems or not isinstance(manifest, ApplicationManifest):
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    return manifest


def granted_rights(manifest: ApplicationManifest, section: ApplicationSection, node: NodeId) -> Rights:
    """What an application may do on a node: what its manifest asks for, if the operator grants all of it.

    :raises ConfigError: names what is asked for and not granted, and what to add to the configuration.
    """
    missing = [
        f"{key} = [{', '.join(repr(asked) for asked in lacking)}]"
        for key in ("reads", "publishes", "infers")
        if (lacking := _lacking(getattr(manifest, key), getattr(section, key), node))
    ]
    if manifest.memory_mib > section.memory_mib:
        missing.append(f"memory_mib = {manifest.memory_mib}")
    if missing:
        raise ConfigError(
            f"the application {manifest.name!r} of {section.manifest} asks for more than its table [[application]] "
            f"grants: add {', '.join(missing)} there if it may have that"
        )
    reads, publishes, infers = (
        tuple(_here(asked, node) for asked in getattr(manifest, key)) for key in ("reads", "publishes", "infers")
    )
    return Rights(manifest.name, reads, publishes, infers)


def _lacking(asked: tuple[str, ...], granted: tuple[str, ...], node: NodeId) -> list[str]:
    return [each for each in asked if not any(includes(_here(grant, node), _here(each, node)) for grant in granted)]


def _here(expression: str, node: NodeId) -> str:
    return expression.replace(PLACE, node)
