"""``python -m benchmarks.relay_contract [--cases N] [--seed N]``: asks a relay whatever its OpenAPI document allows.

It fills a store with records of 1,000 nodes, serves it over HTTP, once open to everybody and once for who shows a
token, and has schemathesis ask each with all its checks: what the document allows is accepted, what it does not allow
is refused, answers are of the form that it promises, and nobody gets in who shows nothing. The stream of records has
no end and is left out. The exit status is 1 when there is a finding, which is printed with the command to repeat it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.relay_queries import fill
from cloud_relay.config import HttpConfig
from cloud_relay.http.serving import RelayHttp
from cloud_relay.http.tokens import FILE, TokenFile, TokenRole

ENDLESS: Final = "/v1/stream"
RECORDS: Final = 4_000


def findings(url: str, cases: int, seed: int, token: str | None = None) -> str:
    """What schemathesis finds; empty: nothing. ``cases``: examples for each operation."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/v1/openapi.json", "--exclude-path", ENDLESS,
        "--checks", "all", "--max-examples", str(cases), "--seed", str(seed), "--generation-database", "none",
        "--no-color", "--request-timeout", "60",
    ]  # fmt: skip
    if token is not None:
        command += ["--header", f"Authorization: Bearer {token}"]
    with tempfile.TemporaryDirectory() as folder:  # it leaves files where it runs
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    return "" if done.returncode == 0 and "No issues found" in said else said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="examples for each operation")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "relay.sqlite", RECORDS)
        token = TokenFile(folder / FILE).create("contract", TokenRole.OPERATOR, int(time.time()), None)
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
