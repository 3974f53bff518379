"""``python -m benchmarks.cuts``: where real models can be cut, and that every cut computes the same.

Each model is described as ``meshnode split`` does it. Then it is cut into two stages at every cut, and into three and
more at some, and their chain is compared with the whole model bit for bit. Each model has a process of its own.

It ends with status 1 when an output of a chain differs from that of the whole or a model can't be tried, whatever the
options say.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from benchmarks import command
from benchmarks.cut_models import CASES, PackageMissing, cut_spec
from meshnode.models import ModelSpec, load_model
from meshnode.models.cutting import CutDescription
from protocols.base.errors import MeshError

LEVELS: Final = ("disabled", "basic", "extended", "all")


@dataclass(slots=True)
class CutFigures:
    """What was found about one model."""

    model: str
    level: str
    nodes: int = 0
    single: int = 0
    """Cuts that carry one tensor."""
    cuts: int = 0
    run_ms: float = 0.0
    smallest_bytes: int = 0
    """Of all cuts between a tenth and nine tenths of the run time."""
    chains: int = 0
    took_s: float = 0.0
    differing: list[str] = field(default_factory=list)
    note: str = ""
    failure: str = ""
    """Why nothing was tried."""


def examine(name: str, level: str, folder: Path, most: int, seed: int) -> CutFigures:
    """Describe a model, and compare chains of its stages with it. ``most``: how many cuts are tried; 0: all."""
    figures, began_s = CutFigures(name, level), time.monotonic()
    graph = folder / "graph.onnx"
    try:
        spec = cut_spec(name, folder, level)
        description = _described(spec, folder, graph)
    except (PackageMissing, MeshError) as error:
        figures.failure = str(error)
        return figures
    cuts = description.cuts
    figures.nodes, figures.cuts, figures.run_ms = description.nodes, len(cuts), description.run_us / 1e3
    figures.single = sum(len(cut.tensors) == 1 for cut in cuts)
    figures.smallest_bytes = min((cut.size_bytes for cut in cuts if 0.1 <= cut.share <= 0.9), default=0)
    if not cuts:
        figures.note = description.notes[-1]
    for chain, difference in _compared(spec, description, graph, list(_chains(len(cuts), most, Random(seed)))):
        figures.chains += 1
        if difference:
            figures.differing.append(f"cut at {', '.join(map(str, chain))}: {difference}")
    figures.took_s = round(time.monotonic() - began_s, 1)
    return figures


def _chains(cuts: int, most: int, random: Random) -> Iterator[tuple[int, ...]]:
    """Single cuts, pairs and triples of them, and all at once."""
    tried = list(range(cuts)) if not most or cuts <= most else sorted(random.sample(range(cuts), most))
    for cut in tried:
        yield (cut,)
    for size in (2, 3):
        for _ in range(min(len(tried) // 4, 12) if cuts >= size else 0):
            yield tuple(sorted(random.sample(range(cuts), size)))
    if cuts > 3 and not most:
        yield tuple(range(cuts))


def _described(spec: ModelSpec, folder: Path, graph: Path) -> CutDescription:
    from meshnode.models.cutting.inside.search import describe

    return describe(spec, folder, graph)


def _compared(
    spec: ModelSpec, description: CutDescription, simplified: Path, chains: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Each chain, and how it differs from the whole; empty: not at all."""
    from meshnode.models.cutting.inside.equality import check_chain
    from meshnode.models.cutting.inside.extraction import boundaries, extracted
    from meshnode.models.cutting.inside.graphs import ModelGraph, bound_shapes
    from meshnode.models.cutting.inside.samples import samples

    whole = load_model(spec)
    tried, path = samples(whole, bound_shapes(whole)), simplified.with_name("stage.onnx")
    inputs, outputs = ([each.name for each in of] for of in (whole.inputs, whole.outputs))
    graph = ModelGraph(simplified.read_bytes(), inputs, outputs)
    for chain in chains:
        stages, ends = [], [*(description.cuts[cut].at for cut in chain), description.nodes]
        try:
            for boundary in boundaries(graph, ends):
                path.write_bytes(extracted(graph, boundary))
                stages.append(load_model(ModelSpec("stage", path, optimisation=spec.optimisation)))
            check_chain(whole, stages, tried)
        except MeshError as error:
            yield chain, str(error)
        else:
            yield chain, ""


def main() -> int:
    """Run the command line."""
    parser = command.parser("cuts", __doc__, "an output of a chain differs (that ends with status 1 in any case)")
    parser.add_argument("--only", action="append", choices=CASES, metavar="MODEL", help="try only this one")
    parser.add_argument("--level", action="append", choices=LEVELS, help="of optimisation; default: basic")
    parser.add_argument("--most", type=command.between(0, 100_000), default=0, help="cuts of each model; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the chains of three and four stages")
    options: argparse.Namespace = parser.parse_args()
    found = []
    print(f"{'model':28}{'level':>10}{'nodes':>7}{'single':>8}{'cuts':>6}{'run ms':>9}{'least kB':>10}{'chains':>8}"
          f"{'differ':>8}{'s':>7}")  # fmt: skip
    spawn = multiprocessing.get_context("spawn")
    with command.measuring("cuts") as folder:
        for number, name in enumerate(options.only or CASES):
            for level in options.level or ("basic",):
                place = folder / f"{number}-{level}"
                place.mkdir()
                with ProcessPoolExecutor(1, spawn) as process:
                    figures = process.submit(examine, name, level, place, options.most, options.seed).result()
                found.append(figures)
                _show(figures)
    missed = [f"{each.model}, {each.level}: {text}" for each in found for text in each.differing]
    missed += [f"{each.model}, {each.level} was not tried: {each.failure}" for each in found if each.failure]
    return max(command.finish(options, {"models": [asdict(each) for each in found]}, missed), int(bool(missed)))


def _show(each: CutFigures) -> None:
    print(
        f"{each.model:28}{each.level:>10}{each.nodes:7}{each.single:8}{each.cuts:6}{each.run_ms:9.2f}"
        f"{each.smallest_bytes / 1e3:10.1f}{each.chains:8}{len(each.differing):8}{each.took_s:7.1f}", flush=True,
    )  # fmt: skip
    if each.note:
        print(f"    {each.note}")


if __name__ == "__main__":
    sys.exit(main())
