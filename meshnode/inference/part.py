"""Inference as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    import click

    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.inference.running import RunningInference

    return RunningInference(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.inference.section import InferenceSection, ModelsSection

    return (ModelsSection, InferenceSection)


def _commands() -> "Sequence[click.Command]":
    from meshnode.inference.commands import infer
    from meshnode.inference.console.split import split

    return (infer, split)


INFERENCE: Final = Part("inference", _start, _sections, _commands)
