"""Fuzzes every decoder: ``python -m tests.fuzz --inputs 10000000 --keep``.

Each target runs in a process of its own, with the kept corpus to begin with, and gets an equal number of inputs; with
``--seconds`` an equal time. With ``--keep`` inputs that reached new code are added to the corpus, which is then reduced
to those that are needed for what is reached. ``--together`` fuzzes all of them in one process for ``--seconds`` of its
processor time, as the tests do: most of a short campaign would be the start of eighteen processes.

Exit statuses: 0 every input did what was promised; 1 one did not, and it is printed; 3 the fuzzer is not to be had
here.
"""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from tests.fuzz import corpus
from tests.fuzz.targets import MAX_INPUT_BYTES, TARGETS, Target

ROOT = Path(__file__).parents[2]
_SPARE_S = 120
"""What a process may take longer than it was given before it is ended."""


@dataclass(frozen=True)
class Fuzzed:
    """What the fuzzing of one target gave."""

    inputs: int
    slowest_ms: float
    broken: str


@contextmanager
def _folder_of(target: Target) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        for number, data in enumerate(corpus.read(target)):
            (Path(name) / f"kept-{number}").write_bytes(data)
        yield Path(name)


def _worker(*options: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.worker", *options, f"-max_len={MAX_INPUT_BYTES}"],
        cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
    )  # fmt: skip


def fuzz(target: Target, inputs: int, seconds: float, seed: int, keep: bool) -> Fuzzed:
    """Fuzz one target until ``inputs`` were tried, or for some seconds. At less than a hundred inputs a second it ends
    early, and says so."""
    with _folder_of(target) as folder:
        longest_s = inputs / 100 if inputs else seconds
        bounds = [f"-max_total_time={max(1, round(longest_s))}", *([f"-runs={inputs}"] if inputs else [])]
        ran = _worker(
            target.name, str(folder), *bounds, f"-seed={seed}", "-print_final_stats=1", f"-artifact_prefix={folder}/",
            timeout_s=longest_s + _SPARE_S,
        )  # fmt: skip
        tried = [line for line in ran.stderr.splitlines() if line.startswith("stat::number_of_executed_units")]
        broken = _broken(ran, target.name)
        if keep and not broken:
            corpus.keep(target, [path.read_bytes() for path in folder.iterdir()])
        slowest = [float(line) for line in ran.stdout.splitlines() if line.replace(".", "").isdigit()]
        count = int(tried[0].split()[-1]) if tried else 0
        if count < inputs and not broken:
            broken = [
                f"{target.name}: only {count:,} of {inputs:,} inputs in {longest_s:.0f} s: the computer is too busy"
            ]
        return Fuzzed(count, max(slowest, default=0.0), broken[0] if broken else "")


def fuzz_together(targets: list[Target], seconds: float, seed: int) -> list[Fuzzed]:
    """Fuzz all targets in one process, for some seconds of processor time."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        for number, target in enumerate(targets):
            for kept, data in enumerate(corpus.read(target)):
                (Path(name) / f"kept-{number}-{kept}").write_bytes(bytes((number,)) + data)
        ran = _worker(
            "together", str(seconds), name, f"-seed={seed}", f"-artifact_prefix={name}/",
            timeout_s=20 * seconds + _SPARE_S,
        )  # fmt: skip
    broken = _broken(ran, "all")
    counts = {line.split()[0]: line.split()[1:] for line in ran.stdout.splitlines()}
    results = []
    for target in targets:
        inputs, slowest_ms = counts.get(target.name, ("0", "0"))
        results.append(Fuzzed(int(inputs), float(slowest_ms), broken.pop() if broken else ""))
    return results


def _broken(ran: "subprocess.CompletedProcess[str]", name: str) -> list[str]:
    """What was found, in words."""
    broken = [line for line in ran.stderr.splitlines() if line.startswith("Broken: ")]
    if ran.returncode and not broken:
        broken = [f"{name}: the fuzzer ended with status {ran.returncode}: {ran.stderr[-2_000:]}"]
    return broken


@click.command()
@click.option("--inputs", type=click.IntRange(0), default=0, help="inputs in all; 0: go by --seconds")
@click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="time in all, of one process"
)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="processes at a time")
@click.option("--seed", type=click.IntRange(1), default=1, show_default=True, help="for the mutations")
@click.option("--keep", is_flag=True, help="add what reached new code to the corpus")
@click.option("--together", is_flag=True, help="all targets in one process, for --seconds of its processor time")
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)), help="only these; default: all")
def main(inputs: int, seconds: float, jobs: int, seed: int, keep: bool, together: bool, names: tuple[str, ...]) -> None:
    """Fuzz the decoders of everything that a stranger or a neighbour can send."""
    if importlib.util.find_spec("atheris") is None:
        click.echo("atheris is not installed: it has wheels for Linux on x86-64 only, 'pip install atheris'", err=True)
        raise SystemExit(3)
    if together and (inputs or keep or names):
        raise click.UsageError("--together goes by --seconds, has all targets, and keeps nothing")
    chosen = [TARGETS[name] for name in names] or list(TARGETS.values())
    share, share_s = -(-inputs // len(chosen)), seconds / len(chosen)
    if together:
        results = fuzz_together(chosen, seconds, seed)
    else:
        with ThreadPoolExecutor(jobs) as pool:
            results = list(pool.map(lambda target: fuzz(target, share, share_s, seed, keep), chosen))
    click.echo(f"{'target':<18} {'inputs':>12} {'slowest ms':>12} {'kept':>6}")
    for target, result in zip(chosen, results, strict=True):
        kept = len(corpus.read(target))
        click.echo(f"{target.name:<18} {result.inputs:>12,} {result.slowest_ms:>12.3f} {kept:>6}")
    click.echo(f"{'all':<18} {sum(result.inputs for result in results):>12,}")
    broken = [result.broken for result in results if result.broken]
    for line in broken:
        click.echo(line, err=True)
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
