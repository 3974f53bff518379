"""A relay that dies with a request in its hands, and comes back: the node must learn of it at once."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meshnode.identity import create_mesh, issue
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Address
from protocols.base.errors import TransportError
from protocols.base.ids import MeshName, Role

pytestmark = pytest.mark.processes

_SILENT_RELAY = """
import sys, threading
from pathlib import Path
from meshnode.links.nng.library import open_responder
from meshnode.links.transport import CredentialFiles
from protocols.base.ids import MeshName
folder, port = Path(sys.argv[1]), int(sys.argv[2])
files = CredentialFiles(folder / "relay-1.crt", folder / "relay-1.key", folder / "authority.crt")
def answer(identity, frame):
    print("asked", flush=True)
    if frame == b"hold":
        threading.Event().wait()
    return frame
responder = open_responder(files, "127.0.0.1", port, MeshName("road"), answer)
print(responder.port, flush=True)
sys.stdin.read()
"""


def _relay(folder: Path, port: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _SILENT_RELAY, str(folder), str(port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_when_asked(relay: "subprocess.Popen[str]") -> None:
    """While it holds a request."""
    assert relay.stdout is not None
    relay.stdout.readline()
    relay.kill()


def test_request_whose_relay_is_killed_fails_at_once_and_the_next_reaches_its_successor(tmp_path: Path) -> None:
    """Found when a node said 'connected' for ten seconds after its relay was gone: NNG does not end such a request."""
    create_mesh(tmp_path / "ca", "road")
    node = issue(tmp_path / "ca", Role.VEHICLE, "veh-1", tmp_path / "veh-1")
    issue(tmp_path / "ca", Role.RELAY, "relay-1", tmp_path / "relay-1")
    with _relay(tmp_path / "relay-1", 0) as relay:
        assert relay.stdout is not None
        port = int(relay.stdout.readline())
        requester = open_requester(node.credentials, Address("127.0.0.1", port), MeshName("road"))
        assert requester.request(b"first", 30.0) == b"first"
        assert relay.stdout.readline() == "asked\n"
        killer = threading.Thread(target=kill_when_asked, args=(relay,))
        killer.start()
        with pytest.raises(TransportError, match="lost"):  # it would be another error when the time is up
            requester.request(b"hold", 60.0)
        killer.join()
    with _relay(tmp_path / "relay-1", port) as relay:
        try:
            assert requester.request(b"second", 60.0) == b"second"
        finally:
            requester.close()
            relay.kill()
