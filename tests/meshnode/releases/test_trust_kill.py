"""A node that is killed while it takes metadata."""

import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from meshnode.releases.trust import Trust
from tests.tools.release_fixture import Publisher

pytestmark = pytest.mark.processes

_TAKE = """
import sys
from pathlib import Path
from meshnode.releases.trust import Trust
folder, root, bundles = map(Path, sys.argv[1:])
paths = sorted(bundles.iterdir())
trust = Trust(folder, root)
trust.verify(paths[0].read_bytes())  # what has to be imported is imported now
print("ready", flush=True)
while True:
    (folder / "trusted").unlink()
    trust = Trust(folder, root)
    for path in paths:
        trust.verify(path.read_bytes())
"""


def test_trust_killed_at_any_moment_is_usable(tmp_path: Path) -> None:
    """SIGKILL while bundle after bundle is taken: one of them is trusted, whole, or none was yet."""
    publisher = Publisher(tmp_path / "repository")
    (tmp_path / "bundles").mkdir()
    bundles = [publisher.release(counter) for counter in range(1, 7)]
    for number, bundle in enumerate(bundles):
        (tmp_path / "bundles" / str(number)).write_bytes(bundle)
    random, folder = Random(5), tmp_path / "trust"
    for _ in range(4):
        command = [sys.executable, "-c", _TAKE, str(folder), str(publisher.root_path), str(tmp_path / "bundles")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.2))
            process.kill()
        trust = Trust(folder, publisher.root_path)
        current = trust.current()
        assert not list(folder.glob("checking-*"))
        assert trust.bundle in (None, *bundles)
        assert current is None or len(current.releases) == bundles.index(trust.bundle or b"") + 1
        assert len(trust.verify(bundles[-1]).releases) == 6
        (folder / "trusted").unlink()
