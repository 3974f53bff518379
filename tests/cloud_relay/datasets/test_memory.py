"""Memory of commands about datasets does not grow with the number of records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes


def test_benchmark_of_datasets_runs_and_memory_has_its_bound(tmp_path: Path) -> None:
    """Its long form has a million records. A list of them in memory would show there: a record takes a kilobyte.

    It is a process of its own: what the kernel says of a child's memory counts what its parent had when it began."""
    arguments = ["--records", "2000", "--folder", str(tmp_path), "--form", "csv", "--check", "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.datasets", *arguments], cwd=Path(__file__).parents[3], capture_output=True,
        text=True, timeout=250, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = json.loads(ran.stdout)
    assert 5 < figures["list_bytes"] < 60
    assert {"create_mib", "verify_store_mib", "export_csv_us", "verify_csv_s", "csv_bytes"} <= figures.keys()
    assert list(tmp_path.iterdir()) == []
