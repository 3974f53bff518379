"""``meshnode infer``: have a model computed by the mesh, from files."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from meshnode.console.node_api import NodeAbsent, NodeApi, chosen_node, on_a_node
from meshnode.console.printing import print_json, printable
from meshnode.inference.console.report import RequestReport, parts_table, table
from protocols.base.errors import MeshError
from protocols.base.limits import MAX_BUDGET_MS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from meshnode.inference.console.asking import NodeAnswer
    from meshnode.inference.console.batch import PieceResult, Pieces
    from meshnode.inference.console.inputs import FileRequest, GivenInput

_SHOWN = 6
_SHOWN_FAILURES: Final = 10
"""Failures that are told one by one; a wrong option fails every request."""
_SHOWN_NOTES: Final = 5
"""Ways to prepare images that are told: each image of a folder may have another size."""
MAX_IN_FLIGHT: Final = 64
"""A node has 128 places for connections and 256 for requests."""


@click.command()
@click.argument("model")
@on_a_node
@click.option("--input", "inputs", multiple=True, required=True, metavar="NAME[:TYPE]=VALUE",
              help="A .npy, .npz or .json file, an image, a folder or a pattern of such files, or JSON itself. Repeat "
              "it for each input, or for more values of one.")  # fmt: skip
@click.option("--output", "outputs", multiple=True, metavar="NAME[=FILE.npy]",
              help="Return only this output; with a file, save it there.")  # fmt: skip
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Save the outputs of each request there: one as .npy, several as .npz.")  # fmt: skip
@click.option("--in-flight", "places", type=click.IntRange(1, MAX_IN_FLIGHT), default=4, show_default=True,
              help="Requests that are under way at once.")  # fmt: skip
@click.option("--batch", is_flag=True,
              help="Send the files as batches, which the node divides among itself and its neighbours.")  # fmt: skip
@click.option(
    "--tiles", metavar="WIDTHxHEIGHT", help="Cut the image into tiles of that size, and send them as a batch."
)
@click.option("--overlap", type=click.IntRange(0, 4_096), default=0, show_default=True, metavar="PIXELS",
              help="With --tiles: what neighbouring tiles have in common.")  # fmt: skip
@click.option("--shard", type=click.IntRange(1, 1_000_000), metavar="ROWS",
              help="With --batch: how many rows a node gets at a time.  [default: the node chooses]")  # fmt: skip
@click.option("--deadline-ms", type=click.IntRange(1, MAX_BUDGET_MS),
              help="Deadline of each request.  [default: that of the node's configuration]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with several requests, one object on each line.")
@click.option("-v", "--verbose", is_flag=True, help="Show each of several requests with its outputs.")
def infer(
    model: str, node_config: Path | None, http_address: str | None, inputs: tuple[str, ...], outputs: tuple[str, ...],
    folder: Path | None, places: int, batch: bool, tiles: str | None, overlap: int, shard: int | None,
    deadline_ms: int | None, as_json: bool, verbose: bool,
) -> None:  # fmt: skip
    """Have MODEL computed by a node, or by a neighbour when that is faster.

    An input with several files makes a request of each, and a table shows who computed them. JSON takes its type and
    shape from the model; where nobody tells them, give the type: --input x:f4=[[1,2]]. A model that takes encoded
    images gets an image file as it is; NAME:bytes=FILE sends any file so. For other models, an image is decoded and
    fitted to an input with three colours or grey, of type UINT8, or of type FP32 with values from 0 to 1; for other
    preparations, give a .npy file.

    With --batch, neighbours with the model compute the files together, each as many as it is fast. A .npy file may have
    many rows on its first axis.
    """
    from meshnode.inference.console.asking import model_path
    from meshnode.inference.console.inputs import given_inputs, requests_of
    from meshnode.inference.console.results import make_folder

    api = chosen_node(node_config, http_address)
    given = given_inputs(model, inputs, api.get(model_path(model))["inputs"])
    requests = requests_of(given)
    wanted = dict(text.partition("=")[::2] for text in outputs)
    is_batch = batch or tiles is not None
    if (shard is not None and not is_batch) or (overlap and tiles is None):
        raise click.UsageError("--shard needs --batch or --tiles, and --overlap needs --tiles")
    if (len(requests) > 1 or is_batch) and any(wanted.values()):
        raise click.UsageError("--output NAME=FILE saves one array: use --out FOLDER for several requests")
    if folder is not None:
        make_folder(folder, given)
    run = _Run(api, model, tuple(wanted), deadline_ms, folder, as_json)
    if is_batch:
        pieces = run.tiles(given, tiles, overlap) if tiles is not None else run.pieces(given, requests)
        if not run.batches(pieces, shard or 0, verbose):
            click.get_current_context().exit(1)
    elif len(requests) == 1:
        run.single(requests[0], wanted)
    elif not run.several(requests, places, verbose):
        click.get_current_context().exit(1)


class _Run:
    """One run of the command."""

    def __init__(
        self, api: NodeApi, model: str, outputs: tuple[str, ...], deadline_ms: int | None, folder: Path | None,
        as_json: bool,
    ) -> None:  # fmt: skip
        self._api, self._model, self._outputs, self._deadline_ms = api, model, outputs, deadline_ms
        self._folder, self._as_json = folder, as_json
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._failures = 0

    def _answered(self, request: "FileRequest") -> "NodeAnswer":
        """Read the files of a request, and have it computed. Any thread."""
        from meshnode.inference.console.asking import ask

        return ask(self._api, self._model, self._arrays(request), self._outputs, self._deadline_ms)

    def _arrays(self, request: "FileRequest") -> "dict[str, NDArray[Any]]":
        from meshnode.inference.console.inputs import array_of

        arrays = {}
        for each, value in request.values:
            arrays[each.name], note = array_of(each, value)
            if note and isinstance(value, Path):
                self._tell(each.name, value.name, note)
        return arrays

    def _tell(self, name: str, file: str, note: str) -> None:
        """Say once what was done to images, because the model sees nothing else."""
        with self._lock:
            is_new = (name, note) not in self._told and len(self._told) < _SHOWN_NOTES
            if is_new:
                self._told.add((name, note))
        if is_new:
            click.echo(f"input {name}: {file} {note}", err=True)

    # --- one request -----------------------------------------------------------------------------------------------
    def single(self, request: "FileRequest", wanted: Mapping[str, str]) -> None:
        """Have one request computed, and print its outputs. :raises MeshError: why it failed."""
        from meshnode.inference.console.results import listed, save_array, save_in

        answer = self._answered(request)
        for name, file in wanted.items():
            if file:
                save_array(Path(file), answer.outputs[name])
        if self._folder is not None:
            save_in(self._folder, request.name, answer.outputs)
        if self._as_json:
            print_json({"model": self._model, "parameters": answer.parameters, "outputs": listed(answer.outputs)})
            return
        _show(answer.outputs)
        report = RequestReport.done(request.name, answer.parameters)
        click.echo(
            f"computed by {report.nodes} in {report.compute_ms:.1f} ms, {report.took_ms:.1f} ms in all", err=True
        )
        if report.parts:
            for line in parts_table([report], str(self._api.get("/v1/node")["id"])):
                click.echo(line, err=True)

    # --- several requests ------------------------------------------------------------------------------------------
    def several(self, requests: "Sequence[FileRequest]", places: int, verbose: bool) -> bool:
        """Have all of them computed, and print who did. Returns whether all were answered.

        :raises NodeAbsent: the node is gone, so that the others can't be asked.
        """
        from meshnode.inference.console.asking import in_flight

        here = str(self._api.get("/v1/node")["id"])
        reports: list[RequestReport] = []
        began_s = time.monotonic()
        try:
            for request, ended in in_flight(self._answered, requests, places):
                error = ended.exception()
                if error is None:
                    answer = ended.result()
                    report = RequestReport.done(request.name, answer.parameters)
                    reports.append(report)  # before anybody reads of it and presses Ctrl-C
                    self._hand_out(report, answer, here, verbose)
                elif isinstance(error, MeshError) and not isinstance(error, NodeAbsent):
                    reports.append(RequestReport.failed(request.name, error))
                    self._hand_out_failure(reports[-1], verbose)
                else:
                    raise error
        finally:
            self._sum_up(reports, len(requests), here, time.monotonic() - began_s)
        return all(report.outcome == "done" for report in reports)

    def _hand_out(self, report: RequestReport, answer: "NodeAnswer", here: str, verbose: bool) -> None:
        from meshnode.inference.console.results import listed, save_in

        saved = save_in(self._folder, report.name, answer.outputs) if self._folder is not None else None
        if verbose:
            click.echo(report.line(here), err=self._as_json)
        if self._as_json:
            result = {"outputs": listed(answer.outputs)} if saved is None else {"saved": str(saved)}
            _print_line({"request": report.name, "outcome": "done", "parameters": answer.parameters, **result})
        elif verbose:
            _show(answer.outputs)

    def _hand_out_failure(self, report: RequestReport, verbose: bool) -> None:
        self._failures += 1
        if self._as_json:
            _print_line({"request": report.name, "outcome": report.outcome, "error": report.error})
        if self._failures <= _SHOWN_FAILURES or verbose:
            click.echo(f"meshnode: {report.name}: {report.error}", err=True)
        elif self._failures == _SHOWN_FAILURES + 1:
            click.echo("meshnode: more requests failed; -v shows each of them", err=True)

    def _sum_up(self, reports: Sequence[RequestReport], count: int, here: str, took_s: float) -> None:
        """Print the tables, to standard error when the output is JSON."""
        for line in (*table(reports, here), *parts_table(reports, here)) if reports else ():
            click.echo(line, err=self._as_json)
        done = sum(report.outcome == "done" for report in reports)
        text = f"{done} of {count} requests computed in {took_s:.1f} s"
        if len(reports) < count:
            text += f"; the command ended early, and {count - len(reports)} have no answer"
        click.echo(text, err=True)

    # --- batches ---------------------------------------------------------------------------------------------------
    def pieces(self, given: "Sequence[GivenInput]", requests: "Sequence[FileRequest]") -> "Pieces":
        """The files of a batch, one by one."""
        from meshnode.inference.console.batch import Piece, Pieces

        several = frozenset(each.name for each in given if len(each.values) > 1)
        encoded = frozenset(each.name for each in given if each.wants.is_encoded or each.is_bytes)
        return Pieces(
            (Piece(request.name, self._arrays(request)) for request in requests), len(requests), several, encoded
        )

    def tiles(self, given: "Sequence[GivenInput]", size: str, overlap: int) -> "Pieces":
        """The tiles of the image that one of the inputs has."""
        from meshnode.inference.console.tiling import tile_pieces

        pieces, note = tile_pieces(given, size, overlap)
        click.echo(note, err=True)
        return pieces

    def batches(self, pieces: "Pieces", shard: int, verbose: bool) -> bool:
        """Have all pieces computed as batches, and print who computed which. Returns whether all were answered.

        :raises NodeAbsent: the node is gone, so that the others can't be asked.
        """
        from meshnode.inference.console.asking import ask, in_flight
        from meshnode.inference.console.batch import (
            IN_FLIGHT,
            PiecesBatch,
            Share,
            batches,
            results_of,
            share_table,
            shares_of,
        )

        def answered(batch: PiecesBatch) -> "NodeAnswer":
            return ask(self._api, self._model, batch.inputs, self._outputs, self._deadline_ms, shard)

        here = str(self._api.get("/v1/node")["id"])
        shares: list[Share] = []
        done = 0
        began_s = time.monotonic()
        try:
            for batch, ended in in_flight(answered, batches(pieces), IN_FLIGHT):
                error = ended.exception()
                if error is None:
                    answer = ended.result()
                    for result in results_of(batch, answer):
                        self._hand_out_piece(result, here, verbose or pieces.are_tiles, verbose)
                    shares += shares_of(answer.parameters)
                    done += len(batch.names)
                elif isinstance(error, MeshError) and not isinstance(error, NodeAbsent):
                    names = " to ".join(dict.fromkeys((batch.names[0], batch.names[-1])))
                    self._hand_out_failure(RequestReport.failed(names, error), verbose)
                else:
                    raise error
        finally:
            for line in share_table(shares, here) if shares else ():
                click.echo(line, err=self._as_json)
            what = "tiles" if pieces.are_tiles else "files"
            click.echo(f"{done} of {pieces.count} {what} computed in {time.monotonic() - began_s:.1f} s", err=True)
        return done == pieces.count

    def _hand_out_piece(self, result: "PieceResult", here: str, shown: bool, verbose: bool) -> None:
        from meshnode.inference.console.results import listed, save_in

        saved = save_in(self._folder, result.name, result.outputs) if self._folder is not None else None
        if shown:
            click.echo(result.line(here), err=self._as_json)
        if self._as_json:
            content = {"outputs": listed(result.outputs)} if saved is None else {"saved": str(saved)}
            _print_line({"request": result.name, "outcome": "done", "ran_on": list(result.nodes), **content})
        elif verbose:
            _show(result.outputs)


def _show(outputs: "Mapping[str, NDArray[Any]]") -> None:
    for name, array in outputs.items():
        values = ", ".join(f"{value:g}" for value in array.ravel()[:_SHOWN].tolist())
        more = ", …" if array.size > _SHOWN else ""
        click.echo(f"{printable(name)}  {array.dtype.str.lstrip('<|')}{list(array.shape)}  {values}{more}")


def _print_line(content: Mapping[str, Any]) -> None:
    click.echo(json.dumps(content, ensure_ascii=False))
