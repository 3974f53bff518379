"""Stock clients of the Open Inference Protocol against real nodes.

    $ python -m tests.clients --python VENV/bin/python

A roadside unit has the models, and a vehicle beside it has none, so the vehicle asks its neighbour; the clients run
against both, unchanged, each in the interpreter that has it. It prints a table of their calls.

Exit statuses: 0 every call did what it should, 1 one did not, 3 no client was found.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from tests.clients.rows import FAILED, MISSING
from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, environment, pair
from tests.tools.tiny_onnx import write_model

CLIENTS = ("triton", "tritongrpc", "kserve", "kservegrpc", "mlserver")
"""Modules; those of which the name ends with ``grpc`` ask the gRPC endpoint."""


_PATIENT = "[grpc]\nport = 0\n[inference]\ndeadline_ms = 60_000\n"
"""A busy machine makes answers late, which is not what is tried here."""


def nodes_with_models(folder: Path) -> Iterator[tuple[RunningNode, RunningNode]]:
    """A roadside unit that has the models which the clients ask for, and a vehicle beside it that has none."""
    for rsu, vehicle in pair(folder, _PATIENT + _write_models(folder), _PATIENT):
        eventually(lambda: vehicle.get("/v2/models/double")["inputs"], "the unit has said what its models take")  # noqa: B023
        yield rsu, vehicle


def _write_models(folder: Path) -> str:
    """Returns their tables of a configuration."""
    made = {
        "double": write_model(folder / "double.onnx", ["batch", 4], "Add"),
        "half": write_model(folder / "half.onnx", ["n", "m"], dtype="f2"),
        "bytes": write_model(folder / "bytes.onnx", ["n", "m"], dtype="u1"),
        "vector": write_model(folder / "vector.onnx", ["n"]),
        "flags": write_model(folder / "flags.onnx", ["n", "m"], "Not", dtype="b1"),
    }
    return "".join(f'[models.{name}]\npath = "{path}"\n' for name, path in made.items())


def address_of(client: str, node: RunningNode) -> str:
    """Where a client finds its endpoint of a node."""
    return f"127.0.0.1:{node.grpc_port if client.endswith('grpc') else node.http_port}"


def rows_of(client: str, python: str, address: str) -> list[dict[str, str]] | None:
    """The rows of one client; None when that interpreter does not have it."""
    ran = subprocess.run(
        [python, "-W", "ignore", "-m", f"tests.clients.{client}", address],
        env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    if ran.returncode == MISSING:
        return None
    rows: list[dict[str, str]] = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode:
        rows.append({"client": client, "call": "all", "outcome": FAILED, "detail": ran.stderr[-400:]})
    return rows


def _print(where: str, rows: list[dict[str, str]]) -> None:
    wide = max(len(row["call"]) for row in rows)
    click.echo(f"\n{rows[0]['client']}, asking {where}")
    for row in rows:
        click.echo(f"  {row['call']:<{wide}}  {row['outcome']:<11}  {row['detail'][:120]}".rstrip())


@click.command(help=__doc__)
@click.option("--python", "pythons", multiple=True, help="An interpreter that has a client.  [default: this one]")
@click.option("--client", "clients", multiple=True, type=click.Choice(CLIENTS), help="Only this one.  [default: all]")
def main(pythons: tuple[str, ...], clients: tuple[str, ...]) -> None:
    """Run all clients that the interpreters have."""
    failed = found = 0
    with tempfile.TemporaryDirectory() as folder:
        for rsu, vehicle in nodes_with_models(Path(folder)):
            for python in pythons or (sys.executable,):
                for client in clients or CLIENTS:
                    for where, node in (("the node that computes", rsu), ("its neighbour", vehicle)):
                        rows = rows_of(client, python, address_of(client, node))
                        if rows is not None:
                            found += 1
                            failed += sum(row["outcome"] == FAILED for row in rows)
                            _print(where, rows)
    click.echo(f"\n{failed} calls failed" if found else "\nno client is installed in these interpreters")
    sys.exit(3 if not found else 1 if failed else 0)


if __name__ == "__main__":
    main()
