"""A relay whose clock is wrong when it starts."""

import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshnode.identity import create_mesh, issue
from meshnode.identity.authority import CLOCK_TOLERANCE
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Address
from protocols.base.ids import MeshName, Role
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.records import Acknowledgement
from tests.tools.eventually import eventually
from tests.tools.node_fixture import environment
from tests.tools.relay_fixture import batch


@pytest.mark.processes
@pytest.mark.parametrize("days", [1, -5])
def test_relay_waits_until_its_clock_fits_its_certificate(tmp_path: Path, days: int) -> None:
    """Nodes keep their records meanwhile, and nobody is there to start it again."""
    now = datetime.now(UTC)
    create_mesh(tmp_path / "authority", "demo", now=now - timedelta(days=30))
    begins = now + timedelta(days=days) + CLOCK_TOLERANCE
    issue(tmp_path / "authority", Role.RELAY, "relay-1", tmp_path, now=begins, valid_days=1)
    (tmp_path / "relay.toml").write_text('[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n')
    log = tmp_path / "relay.log"
    command = [sys.executable, "-m", "cloud_relay", "run", "--config", str(tmp_path / "relay.toml")]
    with log.open("w") as told:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=told, text=True)
    try:
        eventually(lambda: "the relay waits: certificate" in log.read_text(), log.read_text)
        if days < 0:
            process.terminate()
            began_s = time.monotonic()
            assert process.wait(60) == 0
            assert time.monotonic() - began_s < 10
            return
        issue(tmp_path / "authority", Role.RELAY, "relay-1", tmp_path)
        assert process.stdout is not None
        address = Address("127.0.0.1", int(process.stdout.readline().rsplit(":", 1)[1]))
        node = issue(tmp_path / "authority", Role.VEHICLE, "v-1", tmp_path / "v")
        with closing(open_requester(node.credentials, address, MeshName("demo"))) as requester:
            answer = decode_untrusted_relay_frame(requester.request(encode_frame(batch(1)), 10))
        assert answer == Acknowledgement((1,))
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
