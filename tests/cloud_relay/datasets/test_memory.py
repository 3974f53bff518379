"""Memory of commands about datasets does not grow with the number of records."""

import json
from pathlib import Path

import pytest

from benchmarks import datasets

pytestmark = pytest.mark.processes


def test_benchmark_of_datasets_runs_and_memory_has_its_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its long form has a million records. A list of them in memory would show there: a record takes a kilobyte."""
    arguments = ["--records", "2000", "--folder", str(tmp_path), "--form", "csv", "--check", "--json"]
    assert datasets.main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert 5 < figures["list_bytes"] < 60
    assert {"create_mib", "verify_store_mib", "export_csv_us", "verify_csv_s", "csv_bytes"} <= figures.keys()
    assert list(tmp_path.iterdir()) == []
