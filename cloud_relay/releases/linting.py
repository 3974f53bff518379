"""What is checked of a release before it is signed, so that no node has to find out.

The model is loaded as a node loads it, with its manifest and golden vectors. Whoever asks for the model by its name
must not notice the exchange: what the release before took and gave, this one takes and gives, unless its publisher
declares that it breaks with it.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cloud_relay.releases.shelf import ChunkShelf
from meshnode.models import LoadedModel, Manifest, ModelSpec, load_model, read_manifest
from meshnode.models.weights import weight_files
from protocols.base.errors import ModelInvalid, ReleaseInvalid
from protocols.inference.signature import ModelSignature, breaks
from protocols.releases.catalogue import MAX_FILES, Description

_DIFFERENCES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class ReleaseSource:
    """The files of a release before it is one."""

    model: Path
    manifest: Manifest
    files: tuple[Path, ...]
    """All of them, the model first. They are in one folder."""


def source_of(given: Path) -> ReleaseSource:
    """The files that belong to a model: itself, its manifest, the golden vectors and the weights that these name.
    ``given``: the ONNX file, or a folder with one.

    :raises ReleaseInvalid: there is no such model, or a file is missing or in another folder.
    :raises ModelInvalid: the manifest is wrong.
    """
    model = given
    if given.is_dir():
        found = sorted(given.glob("*.onnx"))
        if len(found) != 1:
            raise ReleaseInvalid(f"{given} has {len(found)} files *.onnx: name the model itself")
        model = found[0]
    try:
        content = model.read_bytes()
    except OSError as error:
        raise ReleaseInvalid(f"{model} can't be read ({error.strerror}): name an ONNX file") from error
    manifest = read_manifest(model)
    names = [model.name]
    if model.with_suffix(".toml").exists():
        names.append(model.with_suffix(".toml").name)
    for golden in manifest.golden:
        names += [*golden.inputs.values(), *golden.outputs.values()]
    names += weight_files(content)
    names = list(dict.fromkeys(names))
    for name in names:
        if "/" in name:
            raise ReleaseInvalid(
                f"{name} is in a folder of its own: put it beside {model.name}, a release is one folder"
            )
        if not (model.parent / name).is_file():
            raise ReleaseInvalid(f"{name} is not beside {model}: copy it there")
    if len(names) > MAX_FILES:
        raise ReleaseInvalid(f"the release has {len(names)} files: at most {MAX_FILES} can travel, use fewer vectors")
    return ReleaseSource(model, manifest, tuple(model.parent / name for name in names))


def lint(source: ReleaseSource, name: str) -> LoadedModel:
    """Load the model, which runs its golden vectors, and run it once.

    :raises ReleaseInvalid: it can't be loaded, gives other outputs than its golden vectors, or fails on zeros.
    """
    try:
        model = load_model(ModelSpec(name, source.model))
        if (zeros := model.zeros()) is not None:
            model.run(zeros)
    except ModelInvalid as error:
        raise ReleaseInvalid(f"{source.model} is not published: {error}") from error
    return model


def previous_model(shelf: ChunkShelf, before: Description, name: str) -> ModelSignature:
    """What the release before takes and gives. It is put together from the shelf in a folder that is removed again.

    :raises ReleaseInvalid: it can't be loaded here. :raises StorageError: chunks of it are missing.
    """
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        for file in before.files:
            with (Path(folder) / file.name).open("wb") as out:
                out.writelines(shelf.blocks(file.content))
        try:
            return load_model(ModelSpec(name, Path(folder) / before.model)).signature
        except ModelInvalid as error:
            raise ReleaseInvalid(
                f"release {before.counter} of {before.path} can't be loaded to compare signatures: {error}"
            ) from error


def check_signature(before: ModelSignature, now: ModelSignature, release: str) -> None:
    """Whether whoever used the release before can use this one in the same way.

    :raises ReleaseInvalid: names what differs.
    """
    differences = list(breaks(before, now))
    if differences:
        more = f", and {len(differences) - _DIFFERENCES_SHOWN} more" if len(differences) > _DIFFERENCES_SHOWN else ""
        raise ReleaseInvalid(
            f"its signature is not that of {release}: {'; '.join(differences[:_DIFFERENCES_SHOWN])}{more}. "
            "Applications would fail: publish it under another name, or declare the break with --breaks-signature"
        )
