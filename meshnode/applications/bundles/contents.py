"""What is in a bundle: its description ``bundle.toml``, and the files that it names.

A bundle is checked as a node would check its parts: rules are compiled and their cases tried, and the manifests of
models and applications are read. Nothing of it is run.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Final

from msgspec import Meta

from meshnode.applications.manifest import APPLICATION_FILE, NAME, read_application
from meshnode.config.parsing import Problem, Section, TableReader, problem_report, shown
from meshnode.config.toml import read_toml
from meshnode.console.printing import printable
from meshnode.models.manifest import manifest_path, read_manifest
from protocols.base.errors import ConfigError, ModelInvalid
from protocols.base.ids import NodeId

BUNDLE_FILE: Final = "bundle.toml"
CASES: Final = "-cases.toml"
"""A file of cases has the name of its file of rules, and this ending."""
VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,39}")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_NODE: Final = NodeId("node")


def _check_name(value: str) -> str | None:
    return None if NAME.fullmatch(value) else "is no name of a bundle: use up to 40 small letters, digits and -"


def _check_version(value: str) -> str | None:
    return None if VERSION.fullmatch(value) else "is no version: use digits, letters, '.', '-' and '+', as in '1.2.0'"


def check_place(value: str) -> str | None:
    """The complaint about the path of a file that is not inside of the bundle."""
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in value or str(path) != value:
        return "is not a plain path below the folder of the bundle: put the file there, as in 'rules/traffic.toml'"
    return None


_Text = Annotated[str, Meta(min_length=1, max_length=200)]
_Place = Annotated[str, Meta(max_length=400, extra={"check": check_place})]
_Places = Annotated[tuple[_Place, ...], Meta(max_length=64)]


class Bundle(Section, frozen=True, kw_only=True):
    """What ``bundle.toml`` says."""

    name: Annotated[str, Meta(description="Its name.", extra={"check": _check_name})]
    version: Annotated[str, Meta(description="Its version.", extra={"check": _check_version})]
    publisher: Annotated[_Text, Meta(description="Who made it.")]
    licence: Annotated[_Text, Meta(description="Its licence, by the identifier of SPDX where there is one.")]
    about: Annotated[str, Meta(max_length=2_000, description="What it is for.")] = ""
    rules: Annotated[
        _Places, Meta(description="Files of rules. Cases may stand beside them in `NAME-cases.toml`.")
    ] = ()
    models: Annotated[
        _Places, Meta(description="ONNX files, with their manifests and golden vectors beside them.")
    ] = ()
    applications: Annotated[_Places, Meta(description="Folders of applications, each with an `application.toml`.")] = ()

    def conflicts(self) -> Iterator[Problem]:
        """A bundle of nothing."""
        if not (self.rules or self.models or self.applications):
            yield Problem("rules", shown(list(self.rules)), "and models and applications are empty: name what is in it")


def read_bundle(folder: Path) -> Bundle:
    """The description in a folder. :raises ConfigError: names every mistake in it with key, value and what to do."""
    path = folder / BUNDLE_FILE
    reader = TableReader()
    bundle = reader.read_table(Bundle, read_toml(path), "")
    if reader.problems or not isinstance(bundle, Bundle):
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    return bundle


def files_of(folder: Path, bundle: Bundle) -> list[str]:
    """The files that belong to a bundle, as paths below its folder, in order.

    :raises ConfigError: one is not there, is not a plain file, or leads out of the folder.
    """
    found = {BUNDLE_FILE}
    for rules in bundle.rules:
        cases = rules.removesuffix(".toml") + CASES
        found |= {rules, cases} if (folder / cases).exists() else {rules}
    for model in bundle.models:
        found |= {model, *_beside(folder, model)}
    for application in bundle.applications:
        found |= {
            path.relative_to(folder).as_posix()
            for path in (folder / application).rglob("*")
            if not path.is_dir() or path.is_symlink()
        }
        found.add(f"{application}/{APPLICATION_FILE}")
    for name in sorted(found):
        _check_file(folder, name)
    return sorted(found)


def _beside(folder: Path, model: str) -> set[str]:
    """The manifest of a model, and the golden vectors that it names."""
    path = folder / model
    if not manifest_path(path).exists():
        return set()
    try:
        manifest = read_manifest(path)
    except ModelInvalid as error:
        raise ConfigError(str(error)) from error
    vectors = (file for golden in manifest.golden for file in (*golden.inputs.values(), *golden.outputs.values()))
    beside = PurePosixPath(model).parent
    return {manifest_path(path).relative_to(folder).as_posix(), *((beside / vector).as_posix() for vector in vectors)}


def _check_file(folder: Path, name: str) -> None:
    path = folder / name
    if check_place(name) is not None or not name.isprintable():  # what unpacks it would refuse it, or not find it
        raise ConfigError(f"{folder} holds {name!r}, whose name no bundle can have: give it a plain one")
    if path.is_symlink() or not path.is_file():
        raise ConfigError(f"{path} is not a file: put a copy of it there, or take it out of {folder / BUNDLE_FILE}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{path} leads out of the folder of the bundle: put a copy of it there")


def check_bundle(folder: Path) -> Bundle:
    """Check a bundle and all that is in it. :raises ConfigError: says what is wrong, with file, value and way out."""
    bundle = read_bundle(folder)
    files_of(folder, bundle)
    if bundle.rules:
        _check_rules(folder, bundle)
    for application in bundle.applications:
        read_application(folder / application / APPLICATION_FILE)
    return bundle


def _check_rules(folder: Path, bundle: Bundle) -> None:
    from meshnode.records.rules.compiling import rules_in  # the evaluator of expressions
    from meshnode.records.rules.trying import cases_of_file, tried

    rules_in([folder / rules for rules in bundle.rules], _NODE)
    for rules in bundle.rules:
        path = folder / (rules.removesuffix(".toml") + CASES)
        if not path.exists():
            continue
        rules_file, cases = cases_of_file(path)
        if not rules_file.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{path} tries rules outside of the bundle: name a file of it")
        for case in cases:
            if differences := tried(rules_file, case).differences:
                raise ConfigError(f"{path}: the case {case.name!r} is not as expected: {differences[0]}")


def tables_for(place: str, folder: Path, bundle: Bundle) -> str:
    """The tables that use a bundle on a node. ``place``: its folder, as the configuration should name it.

    Whoever made the bundle chose its texts, and an operator copies the tables: none of these texts can end its line.
    """
    lines = [printable(f"# {bundle.name} {bundle.version} by {bundle.publisher} ({bundle.licence})", 500)]
    if bundle.rules:
        lines += ["[rules]", f"files = {_listed(f'{place}/{rules}' for rules in bundle.rules)}", ""]
    for model in bundle.models:
        name = PurePosixPath(model).stem
        name = name if _BARE_KEY.fullmatch(name) else _quoted(name)
        lines += [f"[models.{name}]", f"path = {_quoted(f'{place}/{model}')}", ""]
    for application in bundle.applications:
        manifest = read_application(folder / application / APPLICATION_FILE)
        lines += ["[[application]]", f"manifest = {_quoted(f'{place}/{application}/{APPLICATION_FILE}')}"]
        lines += [
            f"{key} = {_listed(asked)}" for key in ("reads", "publishes", "infers") if (asked := getattr(manifest, key))
        ]
        lines += [f"memory_mib = {manifest.memory_mib}", ""]
    return "\n".join(lines).rstrip("\n")


def _listed(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]"


def _quoted(text: str) -> str:
    """A text in TOML, on one line and without anything that a terminal would obey."""
    plain = (each if each.isprintable() and each not in '"\\' else f"\\U{ord(each):08x}" for each in text)
    return f'"{"".join(plain)}"'
