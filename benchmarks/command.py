"""What all benchmarks that check a promise share as commands: options, a folder, a file, an exit status.

The status is 0, or 1 with ``--check`` when a promise was missed, 2 when it could not be measured, and 130 or 143 when
it was told to end.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.children import ChildFailed
from benchmarks.fleet import FleetFailed, machine


def parser(name: str, description: str | None, check: str) -> argparse.ArgumentParser:
    """A parser with the options that all have. ``check`` says in words when ``--check`` ends with status 1."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--check", action="store_true", help=f"end with status 1 when {check}")
    made.add_argument("--out", type=Path, default=Path(f"build/{name}.json"), help="default: %(default)s")
    return made


def between(least: float, most: float) -> Callable[[str], float]:
    """The type of an option that is a number between both; a whole number when ``least`` is one."""
    kind = type(least)

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is out of range: use {least:g} to {most:g}")
        return value

    return number


@contextmanager
def measuring(what: str) -> Iterator[Path]:
    """A temporary folder in which ``what`` is measured. An error or an interrupt ends the process with its status,
    after the clean-up of the children."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="meshnode-benchmark-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except (ChildFailed, FleetFailed, TimeoutError) as error:
        print(f"{what} could not be measured: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def finish(options: argparse.Namespace, figures: dict[str, Any], missed: list[str]) -> int:
    """Write the figures and print what was missed. Returns the exit status."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {**figures, "missed": missed, "machine": machine()}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for sentence in missed:
        print(f"MISSED {sentence}")
    print(f"{options.out} written")
    return 1 if options.check and missed else 0
