"""``meshnode split``: where a model can be cut into stages, as a table, JSON or a drawing, and the stages as files."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.console.node_api import NodeApi, chosen_node, on_a_node
from meshnode.console.printing import print_json, printable
from protocols.base.errors import LocalProtocolError

if TYPE_CHECKING:
    from meshnode.models import ModelSpec
    from meshnode.models.cutting import Cut, CutDescription, StageFile

_HEAD = ("cut", "behind", "bytes", "time", "ms", "weights", "tensors")


def _shapes(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``NAME=1,3,320,320``, any number of them."""
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        numbers = sizes.split(",") if sizes else []
        if not name or not all(number.strip().isdecimal() for number in numbers):
            raise click.BadParameter(f"{text!r} is not NAME=SIZES, as in image=1,3,320,320", ctx, param)
        shapes[name] = tuple(map(int, numbers))
    return shapes


def _cuts(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """``7,12``."""
    if text is not None and not all(number.strip().isdecimal() for number in text.split(",")):
        raise click.BadParameter(f"{text!r} is not a list of cuts, as in 7,12", ctx, param)
    return tuple(map(int, text.split(","))) if text is not None else None


@click.command()
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@on_a_node
@click.option("--warm-up", "shapes", multiple=True, callback=_shapes, metavar="NAME=SIZES",
              help="The shape of an input whose sizes are open, as in image=1,3,320,320. May be repeated.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads of one run.")
@click.option("--optimisation", type=click.Choice(("disabled", "basic", "extended", "all")), default="basic",
              show_default=True, help="The level at which the model and its stages run.")  # fmt: skip
@click.option("--stages", "cuts", callback=_cuts, metavar="CUTS",
              help="Cut it there, as in 7,12, and write the stages into the folder of --out.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help="See --stages.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Draw the cuts into this file.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def split(
    model: Path, node_config: Path | None, http_address: str | None, shapes: dict[str, tuple[int, ...]], threads: int,
    optimisation: Any, cuts: tuple[int, ...] | None, out: Path | None, svg: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show where MODEL, an ONNX file, can be cut into stages.

    A stage is a model of its own. Stages in a chain give the same bits as the whole model, unless its manifest allows
    boundaries to be rounded; they are run and compared before they are written. It needs the extra meshnode[split], and
    no node.

    With --node or --http, MODEL is the name of a model of a running node instead, and the command shows its plan: who
    runs which stage, what that takes, which other plans were tried, and which neighbours get no stage and why. The
    exit status is 1 when no plan is in force.
    """
    if node_config is not None or http_address is not None:
        if shapes or cuts is not None or out is not None or svg is not None:
            raise click.UsageError(
                "--node and --http ask a running node: the other options are for files, except --json"
            )
        _show_plans(chosen_node(node_config, http_address), str(model), as_json)
        return
    from meshnode.inference.console.drawing import drawing
    from meshnode.models import ModelSpec
    from meshnode.models.cutting import StageFolder

    if (cuts is None) != (out is None):
        raise click.UsageError("--stages and --out go together: give both, or neither")
    spec = ModelSpec(printable(model.stem, 200) or "model", model, threads, optimisation=optimisation,
                     warm_up=shapes)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="meshnode-split-") as place:
        folder = StageFolder(Path(place) / "stages")
        description = folder.describe(spec)
        stages = folder.stages(spec, cuts) if cuts is not None else ()
        files = _written(stages, model.stem, out) if out is not None else []
    if svg is not None:
        _write(svg, drawing(model.stem, description))
    if as_json:
        _print_json(description, stages, files)
    else:
        for line in _lines(spec, description):
            click.echo(line)
        for stage, file in zip(stages, files, strict=True):
            click.echo(f"{file}: {_tensors(stage.inputs)} -> {_tensors(stage.outputs)}, {stage.size_bytes:,} bytes")
        if stages and (error := max(stage.error for stage in stages)):
            click.echo(f"Rounded boundaries change an output by up to {error:.2g} of its largest value.")


def _show_plans(api: NodeApi, model: str, as_json: bool) -> None:
    from meshnode.inference.console.plans import description, known_plans

    plans = known_plans(api)
    lines = list(description(plans, model, str(api.get("/v1/node")["id"])))
    (found,) = (each for each in plans["models"] if each["model"] == model)
    if as_json:
        print_json(found)
    else:
        for line in lines:
            click.echo(line)
    if all(plan["state"] != "in force" for plan in found["plans"]):
        click.get_current_context().exit(1)


def _lines(spec: "ModelSpec", description: "CutDescription") -> Iterator[str]:
    """What the command prints for people."""
    from meshnode.inference.console.drawing import bytes_text, milliseconds_text

    yield (
        f"{spec.name}: {description.nodes} nodes, {bytes_text(description.weight_bytes)} of weights, "
        f"{milliseconds_text(description.run_us)} a run here; takes {_tensors(description.inputs)} and gives "
        f"{_tensors(description.outputs)}"
    )
    rows = [_HEAD, *(_row(number, cut, description.run_us) for number, cut in enumerate(description.cuts))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if description.cuts else ():
        *numbers, tensors = row
        yield "  ".join((*(cell.rjust(width) for cell, width in zip(numbers, widths, strict=False)), tensors))
    for note in description.notes:
        yield printable(note, 500)


def _row(number: int, cut: "Cut", run_us: int) -> tuple[str, ...]:
    from meshnode.inference.console.drawing import bytes_text

    needs = f"; later also {printable(', '.join(cut.inputs), 100)}" if cut.inputs else ""
    return (
        str(number), str(cut.at), f"{cut.size_bytes:,}", f"{cut.share:.1%}", f"{cut.share * run_us / 1e3:.2f}",
        bytes_text(cut.weight_bytes), _tensors(cut.tensors) + needs,
    )  # fmt: skip


def _tensors(tensors: Sequence[Any]) -> str:
    return ", ".join(printable(str(each), 120) for each in tensors)


def _print_json(description: "CutDescription", stages: "Sequence[StageFile]", files: Sequence[Path]) -> None:
    import msgspec

    made = [{**msgspec.to_builtins(stage), "path": str(file)} for stage, file in zip(stages, files, strict=True)]
    print_json({**msgspec.to_builtins(description), "stages": made})


def _written(stages: "Sequence[StageFile]", name: str, folder: Path) -> list[Path]:
    """Copy stages as ``NAME-1.onnx`` and so on, with their manifests."""
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, stage in enumerate(stages, 1):
            target = folder / f"{name}-{number}.onnx"
            part = target.with_name(f".{target.name}.part")
            try:
                shutil.copyfile(stage.path, part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
            if stage.manifest:
                _write(target.with_suffix(".toml"), stage.manifest)
            files.append(target)
    except OSError as error:
        raise LocalProtocolError(f"stages can't be written into {folder} ({error.strerror}): choose another") from error
    return files


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise LocalProtocolError(f"{path} can't be written ({error.strerror}): choose another place") from error
