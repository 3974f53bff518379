"""``python -m benchmarks.datasets [--records N] [--check] [--json]``: what a dataset of a whole store takes.

It fills a store as ``relay_queries`` does, makes a version of everything, exports it in each format, verifies each file
and the store, and exports once more to compare the bytes. Each command is a process of its own. Of each it tells

- ``…_us``: processor time for each record, which other programs on the computer hardly change;
- ``…_s``: time by the clock;
- ``…_mib``: the largest resident memory of the process;
- ``…_bytes``: of a record in the file, or in the list of the version.

It ends with status 1 when a command fails, or two exports differ.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.figures import print_figures
from benchmarks.relay_queries import fill

MEMORY_BAR_MIB: Final = 384.0
"""However many records there are: a row group, its compressed form, and the libraries."""
_FORMS: Final = ("parquet", "arrow", "csv")


def measured(figures: dict[str, float], name: str, records: int, *words: str) -> None:
    """Run a command about datasets and note what it took. :raises SystemExit: it failed."""
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "cloud_relay", "dataset", *words]
    began_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {process.returncode}")
    figures[f"{name}_us"] = (used.ru_utime + used.ru_stime) / max(records, 1) * 1e6
    figures[f"{name}_s"] = time.perf_counter() - began_s
    figures[f"{name}_mib"] = used.ru_maxrss / 1_024


def run(store: Path, folder: Path, records: int, forms: tuple[str, ...] = _FORMS) -> dict[str, float]:
    """Everything about a version of all records of a store."""
    figures: dict[str, float] = {}
    where = ("--store", str(store), "--folder", str(folder / "datasets"))
    measured(figures, "create", records, "create", *where, "all")
    figures["list_bytes"] = (folder / "datasets/all/1/members.jsonl.gz").stat().st_size / records
    measured(figures, "verify_store", records, "verify", *where, "all")
    for form in forms:
        file = folder / f"all.{form}"
        measured(figures, f"export_{form}", records, "export", *where, "all", str(file))
        figures[f"{form}_bytes"] = file.stat().st_size / records
        measured(figures, f"verify_{form}", records, "verify", *where, "all", str(file))
    again = folder / f"again.{forms[0]}"
    measured(figures, "again", records, "export", *where, "all", str(again))
    if again.read_bytes() != (folder / f"all.{forms[0]}").read_bytes():
        raise SystemExit("two exports of one version differ")
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and judge. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datasets", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000, metavar="N", help="records of the store")
    parser.add_argument("--folder", type=Path, help="where all is made (default: that of temporary files)")
    parser.add_argument("--store", type=Path, help="keep the store in this file, and use it if it is there")
    parser.add_argument("--form", choices=_FORMS, action="append", help="only this format, repeated for each")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a process takes more than "
                        f"{MEMORY_BAR_MIB:g} MiB")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="mesh-datasets-", dir=options.folder))
    try:
        store = options.store or scratch / "relay.sqlite"
        if not store.exists():
            fill(store, options.records)
        figures = run(store, scratch, options.records, tuple(options.form or _FORMS))
    finally:
        shutil.rmtree(scratch)
    missed = [name for name, figure in figures.items() if name.endswith("_mib") and figure > MEMORY_BAR_MIB]
    print_figures(figures, missed, as_json=options.json)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
