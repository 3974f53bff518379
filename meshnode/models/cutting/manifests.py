"""The manifest of a stage: what the manifest of the whole says of the inputs that the stage takes."""

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from meshnode.config.parsing import Section, TableReader, problem_report
from meshnode.models.manifest import Manifest
from protocols.base.errors import ModelInvalid

_BARE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def stage_manifest(whole: Manifest, inputs: Collection[str]) -> str:
    """The text of the manifest of a stage that takes these inputs of the model; empty: it needs none."""
    lines: list[str] = []
    for declared in whole.inputs:
        if declared.name in inputs:
            lines += ["[[inputs]]", *_pairs(_given(declared)), ""]
    for name, steps in whole.preprocessing.items():
        if name in inputs:
            lines += [f"[preprocessing.{_key(name)}]", *_pairs(_given(steps)), ""]
    return "\n".join(lines)


def read_stage_manifest(text: str) -> Manifest:
    """The manifest of a stage; of no text an empty one. :raises ModelInvalid: it is not valid; names each mistake."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelInvalid(f"the manifest of a stage is not TOML ({error}): have the stage made again") from error
    reader = TableReader()
    manifest = reader.read_table(Manifest, tables, "")
    if reader.problems or not isinstance(manifest, Manifest):
        raise ModelInvalid(problem_report("the manifest of a stage", tuple(reader.problems)))
    return manifest


def _given(section: Section) -> dict[str, Any]:
    """What differs from its default, so that results are those of the whole."""
    fields = {field.name: field.default for field in msgspec.structs.fields(section)}
    return {name: value for name, default in fields.items() if (value := getattr(section, name)) not in (default, None)}


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"{_key(name)} = {_value(value)}"


def _key(name: str) -> str:
    return name if name and _BARE.issuperset(name) else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


def _text(text: str) -> str:
    """A basic string of TOML. It is written as JSON writes it, but for two characters."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
