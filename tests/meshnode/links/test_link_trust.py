"""Who gets a link and who does not, on each engine and across them; and with which credentials it can be asked for."""

import contextlib
import ssl
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from meshnode.links.peer import identify
from meshnode.links.transport import CredentialFiles
from protocols.base.errors import IdentityError, TransportError
from protocols.base.ids import PeerIdentity, Role, node_id
from tests.tools.eventually import eventually
from tests.tools.link_fixture import (  # noqa: F401 -- fixtures
    ENGINES,
    MESH,
    SP_PUSH,
    Recorder,
    drained,
    given_ca,
    given_end,
    given_engine,
    given_pair,
    given_pki,
    given_two,
    raw_tls,
)
from tests.tools.pki_fixture import Authority, authority, credentials


@pytest.mark.parametrize(
    ("options", "stranger"),
    [({}, True), ({"days": -1}, False), ({"dns": ("other.name",)}, False)],
    ids=["other authority", "expired", "wrong server name"],
)
def test_inbox_with_untrusted_certificate_ends_the_dial_early(
    pki: Any, two: Any, options: dict[str, Any], stranger: bool
) -> None:
    """A dialer must neither trust such an inbox nor hammer it until the time-out."""
    bad = pki("bad", authority(), **options) if stranger else pki("bad", **options)
    a, b = two(pki("a"), bad)
    lane = a.dial(b, timeout_s=30)
    _, closed, reason = a.told.one("lane_closed")
    assert closed is lane
    assert "TLS handshake failed" in reason
    assert str(b.address) in reason
    assert not a.told.all("admit")
    assert not b.told.all("inbound_opened")
    assert not lane.try_send(b"x")


@pytest.mark.parametrize(
    ("options", "stranger"), [({}, True), ({"days": -1}, False)], ids=["other authority", "expired"]
)
def test_dialer_with_untrusted_certificate_never_gets_in(
    pki: Any, two: Any, options: dict[str, Any], stranger: bool
) -> None:
    """The inbox decides alone: the refused side's own checks are not relied upon."""
    bad = pki("bad", authority(), **options) if stranger else pki("bad", **options)
    a, b = two(bad, pki("b"))
    a.dial(b, timeout_s=3)
    a.told.one("lane_closed")
    assert not b.told.log
    eventually(lambda: b.transport.statistics()["handshakes_failed"] >= 1, "the failure is counted")


def test_client_without_certificate_is_closed_unheard(pki: Any, end: Any, engine: str) -> None:
    """The library's default asks for none: a slip in configuration would open the mesh to everybody."""
    files = pki("b")
    b = end(files, engine=engine)
    with contextlib.suppress(ssl.SSLError, ConnectionError), raw_tls(b.address, None, files.authority) as sock:
        sock.sendall(SP_PUSH + struct.pack(">Q", 5) + b"hello")
        assert drained(sock) == b""
    eventually(lambda: b.transport.statistics()["handshakes_failed"], "the failure is counted")
    assert not b.told.log


def test_client_with_tls_1_2_is_refused(pki: Any, end: Any, engine: str) -> None:
    """TLS 1.3 always: there is no weaker mode to be talked down to."""
    files = pki("b")
    b = end(files, engine=engine)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        raw_tls(b.address, pki("a"), files.authority, maximum_version=ssl.TLSVersion.TLSv1_2).close()


@pytest.mark.parametrize(
    ("uris", "why"),
    [
        (["spiffe://other/vehicle/a"], "mesh 'other'"),
        ([], "0 identities"),
        (["spiffe://demo/vehicle/a", "spiffe://demo/relay/a"], "2 identities"),
        (["spiffe://demo/king/a"], "unknown role"),
        (["spiffe://demo/vehicle/UPPER"], "node id"),
    ],
)
def test_certificate_that_names_nobody_of_the_mesh_is_refused_by_inbox(
    pki: Any, two: Any, uris: list[str], why: str
) -> None:
    """One authority may sign for several meshes; only the identity tells them apart."""
    a, b = two(pki("a", uris=uris), pki("b"))
    a.dial(b)
    _, identity, detail, lane, host = b.told.one("admit")
    assert identity is None
    assert why in detail
    assert (lane, host) == (None, "127.0.0.1")
    a.told.one("lane_closed")
    assert not b.told.all("inbound_opened")
    assert not b.told.frames()


def test_inbox_of_another_mesh_is_refused_by_dialer_once(pki: Any, two: Any) -> None:
    """NNG alone would redial 17 times in half a second."""
    a, b = two(pki("a"), pki("b", mesh="other"))
    lane = a.dial(b)
    _, closed, reason = a.told.one("lane_closed")
    assert closed is lane
    assert reason.startswith("refused: ")
    assert "other" in reason
    time.sleep(0.7)  # longer than the redial interval: any further attempt would be seen
    assert len(a.told.all("admit")) == 1
    assert not b.told.frames()
    assert a.transport.statistics()["handshakes_refused"] == 1


def test_observer_refusing_inbound_pipe_gets_no_frame_of_it(pki: Any, two: Any) -> None:
    """Revoked and duplicate peers are turned away here, before the first frame."""
    a, b = two(pki("a"), pki("b"), told_second=Recorder(refusal="revoked"))
    a.dial(b)
    a.told.one("lane_closed")
    assert {entry[0] for entry in b.told.log} == {"admit"}  # libnng may dial once more before it is stopped


def test_observer_failing_in_admit_refuses(pki: Any, two: Any) -> None:
    """A bug in the judge must not be an open door."""

    class Broken(Recorder):
        def admit(self, *arguments: Any) -> str | None:
            self.log.append(("admit", *arguments))
            raise RuntimeError("bug")

    a, b = two(pki("a"), pki("b"), told_second=Broken())
    a.dial(b)
    a.told.one("lane_closed")
    b.dial(a)
    assert "internal error" in b.told.one("lane_closed")[2]
    assert {entry[0] for entry in b.told.log} == {"admit", "lane_closed"}


def test_identity_with_control_characters_names_nobody() -> None:
    """Certificate names are chosen by whoever asks for the certificate."""
    assert identify(["mesh.node", "spiffe://demo/vehicle/a\n"], MESH)[0] is None
    assert identify(["mesh.node", "SPIFFE://demo/vehicle/a", "spiffe://demo/vehicle/b"], MESH)[0] is None
    assert identify(["mesh.node", "spiffe://demo/vehicle/b"], MESH)[0] == PeerIdentity(MESH, Role.VEHICLE, node_id("b"))


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "binary", "key of another", "no authority"])
def test_unusable_credentials_name_the_file(pki: Any, tmp_path: Path, engine: str, damage: str) -> None:
    """Found at start, not as a handshake that fails for ever."""
    good, other = pki("a"), pki("b")
    files = {name: tmp_path / name for name in ("certificate", "key", "authority")}
    for name, path in files.items():
        path.write_bytes(getattr(good, name).read_bytes())
    if damage == "missing":
        files["key"].unlink()
    elif damage == "key of another":
        files["key"].write_bytes(other.key.read_bytes())
    elif damage == "no authority":
        files["authority"].write_bytes(b"")
    else:
        files["certificate"].write_bytes({"empty": b"", "text": b"hello\n", "binary": bytes(range(256))}[damage])
    with pytest.raises(IdentityError, match=str(tmp_path)):
        ENGINES[engine](CredentialFiles(**files), Recorder(), MESH)


def test_relay_refused_by_the_judge_of_either_side_is_told_why(pki: Any, two: Any) -> None:
    """Roles are the judge's business; the link layer must carry its verdict and never a frame."""

    class NoRelays(Recorder):
        def admit(self, identity: Any, detail: str, lane: Any, remote_host: str) -> str | None:
            super().admit(identity, detail, lane, remote_host)
            return "a relay is nobody's neighbour" if identity.role is Role.RELAY else None

    a, b = two(pki("a"), pki("cloud", role="relay"), NoRelays())
    a.dial(b)
    assert "a relay is nobody's neighbour" in a.told.one("lane_closed")[2]
    b.dial(a)
    b.told.one("lane_closed")
    assert not a.told.all("inbound_opened")
    assert not a.told.frames() + b.told.frames()
    assert a.transport.statistics()["handshakes_refused"] >= 2


def test_new_credentials_serve_new_handshakes_and_spare_open_pipes(pki: Any, end: Any, engine: str) -> None:
    """A certificate of hours must be replaced on the road, without losing a neighbour."""
    strange = authority()
    files = pki("b", days=-1)
    a, b = end(pki("a"), engine=engine), end(files, engine=engine)
    a.dial(b)
    a.told.one("lane_closed")
    if engine == "nng":  # the documented difference: NNG freezes a TLS configuration once it is used
        with pytest.raises(TransportError, match="start the node anew"):
            b.transport.renew(pki("b"))
        return
    b.transport.renew(pki("b"))
    a.told.log.clear()
    lane = a.dial(b)
    a.told.one("lane_opened")
    with pytest.raises(IdentityError):
        b.transport.renew(CredentialFiles(files.certificate, pki("a").key, files.authority))
    b.transport.renew(pki("b", strange))
    assert lane.try_send(b"spared")
    eventually(lambda: b.told.frames() == [b"hello", b"spared"], "the open pipe lives on")
    a.dial(b)
    assert "another authority" in a.told.one("lane_closed")[2]


def test_identity_tells_when_its_certificate_ends_where_the_engine_can(pki: Any, two: Any, pair: Any) -> None:
    """A live pipe outlives its certificate unless somebody looks at the date."""
    a, b = two(pki("a"), pki("b"))
    a.dial(b)
    for told, engine in ((a.told.one("lane_opened")[2], pair[0]), (b.told.one("inbound_opened")[2], pair[1])):
        days_left = (told.not_after_utc_ns - time.time_ns()) / 86_400e9
        assert 29 < days_left < 31 if engine == "express" else told.not_after_utc_ns == 0


def test_certificate_that_breaks_rfc_5280_is_refused(pki: Any, end: Any) -> None:
    """OpenSSL takes a certificate that names no key of its signer unless it is told to be strict."""
    inbox, loose = end(pki("b")), end(pki("a", identified=False))
    loose.dial(inbox)
    loose.told.one("lane_closed")
    assert not inbox.told.all("admit")
    inbox.dial(loose)
    inbox.told.one("lane_closed")
    assert [failed.peer for failed in inbox.transport.failures() if "Authority Key Identifier" in failed.why] == [
        "127.0.0.1", str(loose.address)
    ]  # fmt: skip


def test_links_that_a_new_authority_does_not_vouch_for_are_closed_at_once(
    pki: Any, end: Any, ca: Authority, tmp_path: Path
) -> None:
    """They lived on for as long as their certificates, up to 30 days after the node had been locked out."""
    here, there = end(pki("a")), end(pki("b"))
    lane, back = here.dial(there), there.dial(here)
    here.told.one("lane_opened")
    there.told.one("lane_opened")
    here.transport.renew(credentials(tmp_path / "same", ca, "a"))
    assert lane.try_send(b"the authority is the same")
    eventually(lambda: b"the authority is the same" in there.told.frames(), "the link lives")
    here.transport.renew(credentials(tmp_path / "new", authority(), "a"))
    _, closed, reason = here.told.one("lane_closed")
    assert closed is lane
    assert "new authority" in reason
    here.told.one("inbound_closed")
    there.told.one("lane_closed")
    assert back is there.told.one("lane_closed")[1]
    assert here.transport.statistics()["unvouched_connections_closed"] == 2
