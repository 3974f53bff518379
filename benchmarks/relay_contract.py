"""``python -m benchmarks.relay_contract [--cases N] [--seed N]``: asks a relay whatever its OpenAPI document allows.

It fills a store with records of 1,000 nodes, with an aggregate that is by everything, serves it over HTTP, once open to
everybody and once for who shows a token, and has schemathesis ask each with all its checks: what the document allows is
accepted, what it does not allow is refused, answers are of the form that it promises, and nobody gets in who shows
nothing. Streams have no end and are left out. The exit status is 1 when there is a finding, which is printed with the
command to repeat it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from benchmarks.relay_queries import fill
from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.config import HttpConfig
from cloud_relay.http.serving import RelayHttp
from cloud_relay.http.tokens import FILE, TokenFile, TokenRole
from cloud_relay.store.sqlite import Store
from protocols.base.limits import SECOND

KEPT: Final = AggregateDefinition("all", "**", 3_600 * SECOND, by=("key", "origin", "rule"), cell_e7=1_000_000)
"""All that may be asked of an aggregate may be asked of this one."""
ENDLESS: Final = ("/v1/stream", "/v1/aggregates/kept/{name}/stream")
RECORDS: Final = 4_000
_CONFIG: Final = f"""
[parameters]
"path.name" = "{KEPT.name}"
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 413, 414, 429, "5xx"]
"""
"""414: a text that is too long may make the URL too long."""


def findings(url: str, cases: int, seed: int, token: str | None = None) -> str:
    """What schemathesis finds; empty: nothing. ``cases``: examples for each operation."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/v1/openapi.json", "--checks", "all",
        "--max-examples", str(cases), "--seed", str(seed), "--generation-database", "none",
        "--no-color", "--request-timeout", "60",
    ]  # fmt: skip
    for path in ENDLESS:
        command += ["--exclude-path", path]
    if token is not None:
        command += ["--header", f"Authorization: Bearer {token}"]
    with tempfile.TemporaryDirectory() as folder:  # it leaves files where it runs
        (Path(folder) / "schemathesis.toml").write_text(_CONFIG)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    return "" if done.returncode == 0 and "No issues found" in said else said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="examples for each operation")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found = False
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        fill(folder / "relay.sqlite", RECORDS)
        token = TokenFile(folder / FILE).create("contract", TokenRole.OPERATOR, int(time.time()), None)
        stack.enter_context(closing(Store(folder / "relay.sqlite", aggregates=(KEPT,))))  # it fills it, and goes on
        for shown in (None, token):
            config = HttpConfig("127.0.0.1", 0, shown is not None, None, folder / "relay.sqlite", folder)
            with closing(RelayHttp(config, dict)) as server:
                began_s = time.monotonic()
                said = findings(f"http://127.0.0.1:{server.port}", arguments.cases, arguments.seed, shown)
            kind = "open to everybody" if shown is None else "for tokens"
            print(f"{kind}: {said or 'nothing found'} ({time.monotonic() - began_s:.0f} s)")
            found = found or bool(said)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
