"""Certificates are accepted by both TLS stacks, and whatever is wrong with a set of files is said in words."""

import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from meshnode.identity import (
    AUTHORITY_CERTIFICATE,
    AUTHORITY_KEY,
    NodeIdentity,
    create_mesh,
    identity_from_untrusted_names,
    inspect,
    issue,
    load_identity,
)
from meshnode.identity.pem_files import key_pem
from protocols.base.errors import ClockImplausible, IdentityError, InvalidName, LocalProtocolError
from protocols.base.ids import SERVER_NAME, PeerIdentity, Role

NOW = datetime(2030, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    """The folder of an authority made at ``NOW``."""
    create_mesh(tmp_path / "ca", "demo", now=NOW)
    return tmp_path / "ca"


@pytest.fixture
def rsu(mesh: Path, tmp_path: Path) -> NodeIdentity:
    """An RSU of that mesh, issued at ``NOW``."""
    return issue(mesh, Role.RSU, "rsu-1", tmp_path / "rsu-1", now=NOW)


def problems(node: NodeIdentity, now: datetime = NOW) -> tuple[str, ...]:
    """What ``inspect`` says about the files of a node."""
    files = node.credentials
    return inspect(files.certificate, files.key, files.authority, now).problems


def only_problem(node: NodeIdentity, now: datetime = NOW) -> str:
    """The one problem; ``load_identity`` must raise the same."""
    (problem,) = problems(node, now)
    with pytest.raises(IdentityError) as caught:
        load_identity(node.credentials.certificate, node.credentials.key, node.credentials.authority, now)
    assert str(caught.value) == problem
    assert ": " in problem, "after the fault comes the way out"
    return problem


# --- creating and issuing ------------------------------------------------------------------------------------------
def test_issue_then_load_gives_the_identity_of_the_certificate(rsu: NodeIdentity) -> None:
    """The id in the certificate is the node's only proof of who it is."""
    files = rsu.credentials
    assert load_identity(files.certificate, files.key, files.authority, NOW) == rsu
    assert rsu.peer == PeerIdentity("demo", Role.RSU, "rsu-1")
    assert rsu.not_after == NOW + 30 * DAY
    assert rsu.not_before == NOW - timedelta(hours=1)
    assert len(rsu.fingerprint) == 64


def test_issued_certificate_carries_what_both_tls_stacks_ask(rsu: NodeIdentity, mesh: Path) -> None:
    """The profile is part of the wire: another implementation must be able to rely on it."""
    leaf = x509.load_pem_x509_certificate(rsu.credentials.certificate.read_bytes())
    anchor = x509.load_pem_x509_certificate((mesh / AUTHORITY_CERTIFICATE).read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://demo/rsu/rsu-1"]
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME]
    constraints = anchor.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    own_id = anchor.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own_id
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    key = rsu.credentials.key.read_bytes()
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----"), "PKCS #8, unencrypted"


def test_keys_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """A service manager may start us with any umask; a key readable by others is a lost identity."""
    before = os.umask(0)
    try:
        create_mesh(tmp_path / "ca", "demo")
        node = issue(tmp_path / "ca", "vehicle", "v-1", tmp_path / "v-1")
    finally:
        os.umask(before)
    for key in (tmp_path / "ca" / AUTHORITY_KEY, node.credentials.key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    leftovers = [path.name for path in tmp_path.rglob(".*")]
    assert leftovers == [], "staged keys are gone"


def test_create_mesh_twice_refuses_and_keeps_the_first(mesh: Path) -> None:
    """Overwriting an authority locks out every node of its mesh at once."""
    before = {path.name: path.read_bytes() for path in mesh.iterdir()}
    with pytest.raises(IdentityError, match="exists already: a new authority would lock out every node"):
        create_mesh(mesh, "other")
    assert {path.name: path.read_bytes() for path in mesh.iterdir()} == before


def test_issue_again_renews_with_a_new_key(mesh: Path, rsu: NodeIdentity, tmp_path: Path) -> None:
    """Renewal is the normal life of a 30-day certificate."""
    again = issue(mesh, "rsu", "rsu-1", tmp_path / "rsu-1", now=NOW + 20 * DAY)
    assert again.serial != rsu.serial
    assert again.not_after == NOW + 50 * DAY
    assert problems(again, NOW + 40 * DAY) == ()


def test_issue_into_the_folder_of_another_mesh_refuses(rsu: NodeIdentity, tmp_path: Path) -> None:
    """Replacing the trusted authority there would cut off the nodes that use it."""
    create_mesh(tmp_path / "other", "demo", now=NOW)
    with pytest.raises(IdentityError, match="is of another authority"):
        issue(tmp_path / "other", "rsu", "rsu-2", rsu.credentials.certificate.parent, now=NOW)
    assert problems(rsu) == ()


def test_issue_into_the_authoritys_own_folder_keeps_the_authority(mesh: Path) -> None:
    """A one-folder set-up is the first thing people try."""
    node = issue(mesh, "vehicle", "v-1", mesh, now=NOW)
    assert problems(node) == ()
    with pytest.raises(IdentityError, match="would overwrite the files of the authority"):
        issue(mesh, "vehicle", "authority", mesh, now=NOW)
    assert problems(issue(mesh, "vehicle", "v-2", mesh, now=NOW)) == ()


def test_issue_never_outlives_its_authority(tmp_path: Path) -> None:
    """A leaf that is valid under an expired authority is refused by every peer, for no reason its owner can see."""
    authority = create_mesh(tmp_path / "ca", "demo", valid_days=10, now=NOW)
    node = issue(tmp_path / "ca", "rsu", "rsu-1", tmp_path / "n", valid_days=30, now=NOW)
    assert node.not_after == authority.not_after
    with pytest.raises(IdentityError, match=r"expired at 2030-06-11 .*: make a new mesh"):
        issue(tmp_path / "ca", "rsu", "rsu-2", tmp_path / "n", now=NOW + 11 * DAY)


@pytest.mark.parametrize(
    ("role", "node", "days", "error", "message"),
    [
        ("car", "v-1", 30, IdentityError, "role 'car' is unknown: use one of vehicle, rsu, relay, tool"),
        ("rsu", "RSU 1", 30, InvalidName, "node id 'RSU 1' is not valid"),
        ("rsu", "../rsu", 30, InvalidName, "is not valid"),
        ("rsu", "rsu-1", 0, IdentityError, "0 days is out of range"),
        ("rsu", "rsu-1", float("nan"), IdentityError, "nan days is out of range"),
        ("rsu", "rsu-1", 10**9, IdentityError, "out of range"),
    ],
)
def test_issue_wrong_argument_says_what_to_use(
    mesh: Path, tmp_path: Path, role: str, node: str, days: float, error: type[Exception], message: str
) -> None:
    """These come straight from a command line."""
    with pytest.raises(error, match=message):
        issue(mesh, role, node, tmp_path / "n", valid_days=days, now=NOW)
    assert not (tmp_path / "n").exists()


def test_issue_with_broken_authority_names_the_file(mesh: Path, tmp_path: Path) -> None:
    """Restored from a backup, half of an authority is the common case."""
    with pytest.raises(IdentityError, match=r"absent/authority\.crt does not exist"):
        issue(tmp_path / "absent", "rsu", "rsu-1", tmp_path / "n", now=NOW)
    create_mesh(tmp_path / "other", "demo", now=NOW)
    (mesh / AUTHORITY_KEY).write_bytes((tmp_path / "other" / AUTHORITY_KEY).read_bytes())
    with pytest.raises(IdentityError, match=r"authority\.key is not the key of .*authority\.crt"):
        issue(mesh, "rsu", "rsu-1", tmp_path / "n", now=NOW)


def test_writing_into_a_file_as_folder_is_refused_in_words(tmp_path: Path) -> None:
    """A mistyped output folder, or a full disk, must not end in a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(IdentityError, match="can't be written"):
        create_mesh(tmp_path / "file" / "ca", "demo")


def test_time_without_zone_is_refused(tmp_path: Path) -> None:
    """Taken for UTC, local time would make certificates that are valid hours too early or late."""
    with pytest.raises(LocalProtocolError, match="has no time zone"):
        create_mesh(tmp_path, "demo", now=datetime(2030, 1, 1))  # noqa: DTZ001 - the fault under test


# --- inspecting ----------------------------------------------------------------------------------------------------
def test_inspect_expired_certificate_says_since_when(rsu: NodeIdentity) -> None:
    """The most frequent fault of all."""
    problem = only_problem(rsu, NOW + 31 * DAY)
    assert "rsu-1.crt expired at 2030-07-01 12:00 UTC and this clock shows 2030-07-02 12:00: issue it again" in problem
    assert problem.endswith("or set the clock if it is ahead")


def test_inspect_clock_behind_says_to_set_it(rsu: NodeIdentity) -> None:
    """A board without a battery wakes up in 1970."""
    found = problems(rsu, datetime(1970, 1, 1, tzinfo=UTC))
    assert len(found) == 2, "certificate and authority"
    assert "this clock shows 1970-01-01 00:00: set the clock" in found[0]


def test_inspect_foreign_key_says_to_put_back_the_pair(mesh: Path, rsu: NodeIdentity, tmp_path: Path) -> None:
    """What a power cut between two renames or a wrong copy leaves."""
    other = issue(mesh, "rsu", "rsu-2", tmp_path / "rsu-2", now=NOW)
    rsu.credentials.key.write_bytes(other.credentials.key.read_bytes())
    assert "rsu-1.key does not belong to certificate" in only_problem(rsu)


def test_inspect_other_authority_of_same_name_is_told_apart(rsu: NodeIdentity, tmp_path: Path) -> None:
    """Two meshes named 'demo' are two meshes: the signature counts, not the name."""
    create_mesh(tmp_path / "other", "demo", now=NOW)
    rsu.credentials.authority.write_bytes((tmp_path / "other" / AUTHORITY_CERTIFICATE).read_bytes())
    assert "was not signed by authority" in only_problem(rsu)


def test_inspect_leaf_in_place_of_authority_is_refused(rsu: NodeIdentity) -> None:
    """Whoever copies the wrong file would otherwise trust a single neighbour as an authority."""
    rsu.credentials.authority.write_bytes(rsu.credentials.certificate.read_bytes())
    assert any("is not the certificate of an authority" in problem for problem in problems(rsu))


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o600, True), (0o400, True), (0o644, False), (0o660, False), (0o604, False)]
)
def test_inspect_key_mode_is_judged(rsu: NodeIdentity, mode: int, fine: bool) -> None:
    """Other users of the host must not be able to become this node."""
    rsu.credentials.key.chmod(mode)
    if fine:
        assert problems(rsu) == ()
    else:
        assert f"has mode {mode:04o}" in only_problem(rsu)
        assert f"chmod 600 {rsu.credentials.key}" in only_problem(rsu)


def handmade(
    mesh: Path, rsu: NodeIdentity, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, uris: list[str]
) -> None:
    """Replace the RSU's files by ones that another tool made badly, with the mesh's true authority."""
    anchor = x509.load_pem_x509_certificate((mesh / AUTHORITY_CERTIFICATE).read_bytes())
    anchor_key = load_pem_private_key((mesh / AUTHORITY_KEY).read_bytes(), None)
    assert isinstance(anchor_key, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsu-1")]))
        .issuer_name(anchor.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(anchor_key, hashes.SHA256())
    rsu.credentials.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    rsu.credentials.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(
    ("uris", "expected"),
    [
        ([], "has no readable URI SAN"),
        (["https://example.org"], "carries no identity of the form spiffe://"),
        (["spiffe://demo/rsu/rsu-1", "spiffe://demo/relay/r"], "carries 2 identities where one is allowed"),
        (["spiffe://demo/king/rsu-1"], "unknown role 'king'"),
        (["spiffe://demo/rsu/rsu-1/x"], "is not of the form"),
        (["spiffe://other/rsu/rsu-1"], "is for mesh 'other' and authority"),
    ],
)
def test_inspect_wrong_names_are_explained(mesh: Path, rsu: NodeIdentity, uris: list[str], expected: str) -> None:
    """Certificates from a company's own PKI fail here first."""
    handmade(mesh, rsu, ec.generate_private_key(ec.SECP256R1()), uris)
    found = problems(rsu)
    assert expected in found[0]
    assert any("DNS SAN mesh.node" in problem for problem in found) or not uris
    assert any("both server and client use" in problem for problem in found)
    assert any("no authority key identifier" in problem for problem in found)


def test_inspect_wrong_kind_of_key_is_named(mesh: Path, rsu: NodeIdentity) -> None:
    """Mbed TLS refuses Ed25519 without saying so; we say so."""
    for key, kind in (
        (ec.generate_private_key(ec.SECP384R1()), "secp384r1"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    ):
        handmade(mesh, rsu, key, ["spiffe://demo/rsu/rsu-1"])
        assert any(f"key of kind {kind}, and the mesh takes ECDSA P-256 only" in problem for problem in problems(rsu))


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
def test_inspect_unreadable_file_is_named(rsu: NodeIdentity, which: str) -> None:
    """Absent, a folder, garbage, huge or a device: a sentence with the file, never a traceback or a hang."""
    path: Path = getattr(rsu.credentials, which)
    good = path.read_bytes()
    for content in (b"", b"garbage", good[: len(good) // 2], b"\xff" * 100_000):
        path.write_bytes(content)
        with pytest.raises(IdentityError) as caught:
            problems(rsu)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(IdentityError, match=f"{path.name} does not exist: create it"):
        problems(rsu)
    os.mkfifo(path)
    with pytest.raises(IdentityError, match=f"{path.name} is not a file"):
        problems(rsu)
    path.unlink()
    path.mkdir()
    with pytest.raises(IdentityError, match=path.name):
        problems(rsu)


def test_inspect_encrypted_key_says_to_decrypt(rsu: NodeIdentity) -> None:
    """A node starts with nobody there to type a password."""
    key = load_pem_private_key(rsu.credentials.key.read_bytes(), None)
    rsu.credentials.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    with pytest.raises(IdentityError, match=r"is encrypted, .*: store it unencrypted with mode 0600"):
        problems(rsu)


def test_identity_from_untrusted_names_takes_exactly_one() -> None:
    """A peer's SANs come untyped from the TLS stack: DNS names and addresses stand among them."""
    assert identity_from_untrusted_names(["mesh.node", "", "spiffe://m/tool/t"]) == PeerIdentity("m", Role.TOOL, "t")
    with pytest.raises(InvalidName):
        identity_from_untrusted_names(["spiffe://m/tool/t", "spiffe://m/tool/t"])
    with pytest.raises(InvalidName):
        identity_from_untrusted_names(["mesh.node"])


# --- the two TLS stacks --------------------------------------------------------------------------------------------
def context(node: NodeIdentity, *, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with both sides authenticated, as strict as OpenSSL gets."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(node.credentials.authority)
    made.load_cert_chain(node.credentials.certificate, node.credentials.key)
    return made


def handshake(server: NodeIdentity, client: NodeIdentity) -> dict[str, object]:
    """What each side sees of the other, by a real handshake over a socket pair."""
    left, right = socket.socketpair()
    left.settimeout(30)
    right.settimeout(30)
    seen: dict[str, object] = {}

    def serve() -> None:
        try:
            with context(server, server=True).wrap_socket(left, server_side=True) as stream:
                seen["client"] = dict(stream.getpeercert() or {})["subjectAltName"]
                stream.sendall(b"x")
        except OSError as error:
            seen["server_error"] = error

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with context(client, server=False).wrap_socket(right, server_hostname=SERVER_NAME) as stream:
            seen["server"] = dict(stream.getpeercert() or {})["subjectAltName"]
            assert stream.recv(1) == b"x"
    finally:
        right.close()
        thread.join(30)
        left.close()
    return seen


def test_openssl_strict_accepts_both_sides(tmp_path: Path) -> None:
    """Python 3.13 verifies strictly by default; a node must not stop working with an upgrade."""
    create_mesh(tmp_path / "ca", "demo")
    server = issue(tmp_path / "ca", "rsu", "rsu-1", tmp_path / "n")
    client = issue(tmp_path / "ca", "vehicle", "v-1", tmp_path / "n")
    seen = handshake(server, client)
    assert ("URI", "spiffe://demo/rsu/rsu-1") in seen["server"]
    assert ("URI", "spiffe://demo/vehicle/v-1") in seen["client"]


def test_openssl_refuses_a_stranger_of_the_same_mesh_name(tmp_path: Path) -> None:
    """Names are free to choose; only the authority's signature lets anybody in."""
    for folder in ("ca", "fake"):
        create_mesh(tmp_path / folder, "demo")
    server = issue(tmp_path / "ca", "rsu", "rsu-1", tmp_path / "n")
    stranger = issue(tmp_path / "fake", "vehicle", "v-1", tmp_path / "s")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, stranger)


NNG_PEERS = """
import pathlib, sys
from pynng import Pull0, Push0, TLSConfig
def config(mode, node, name=None):
    read = lambda file: pathlib.Path(sys.argv[1], file).read_text()
    return TLSConfig(mode, ca_string=read("authority.crt"), own_cert_string=read(node + ".crt"),
                     own_key_string=read(node + ".key"), auth_mode=TLSConfig.AUTH_MODE_REQUIRED, server_name=name)
with Pull0(tls_config=config(TLSConfig.MODE_SERVER, "rsu-1"), recv_timeout=30000) as inbox:
    inbox.listen("tls+tcp://127.0.0.1:0")
    port = inbox.listeners[0].local_address.port
    port = ((port & 0xFF) << 8) | (port >> 8)
    with Push0(tls_config=config(TLSConfig.MODE_CLIENT, "v-1", "mesh.node"), send_timeout=30000) as lane:
        lane.dial(f"tls+tcp://127.0.0.1:{port}", block=True)
        lane.send(b"hello")
        assert inbox.recv() == b"hello"
print("accepted")
"""


@pytest.mark.processes
def test_mbed_tls_accepts_both_sides(tmp_path: Path) -> None:
    """NNG's TLS stack differs from OpenSSL in what it takes. In a process of its own: NNG must not see a fork."""
    create_mesh(tmp_path / "ca", "demo")
    for role, node in (("rsu", "rsu-1"), ("vehicle", "v-1")):
        issue(tmp_path / "ca", role, node, tmp_path / "n")
    done = subprocess.run(
        [sys.executable, "-c", NNG_PEERS, str(tmp_path / "n")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "accepted", done.stderr


# --- clocks --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("now", "what"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), "is not valid before 2030"),
        (NOW - 2 * timedelta(hours=1), "this clock shows 2030-06-01 10:00: set the clock"),
        (NOW + 31 * DAY, "expired at 2030-07-01"),
        (datetime(2107, 1, 1, tzinfo=UTC), "this clock shows 2107-01-01 00:00"),
    ],
)
def test_clock_that_a_certificate_does_not_fit_is_told_from_other_faults(
    rsu: NodeIdentity, now: datetime, what: str
) -> None:
    """The one can be waited for. The other ends the node at once, whatever the clock shows."""
    files = rsu.credentials
    with pytest.raises(ClockImplausible, match=what) as caught:
        load_identity(files.certificate, files.key, files.authority, now)
    with pytest.raises(ClockImplausible) as later:
        load_identity(files.certificate, files.key, files.authority, now + timedelta(minutes=5))
    assert later.value.fault == caught.value.fault, "so that a log tells it once"
    files.key.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(IdentityError, match="does not belong to") as other:
        load_identity(files.certificate, files.key, files.authority, now)
    assert not isinstance(other.value, ClockImplausible)


def test_clock_before_this_software_is_implausible_whatever_the_certificate_says(tmp_path: Path) -> None:
    """Some authorities date certificates back to 1970, so that nobody has to think of clocks."""
    early = datetime(1971, 1, 1, tzinfo=UTC)
    create_mesh(tmp_path / "ca", "demo", now=early, valid_days=36_500)
    node = issue(tmp_path / "ca", "rsu", "rsu-1", tmp_path, now=early, valid_days=36_500).credentials
    with pytest.raises(ClockImplausible, match="clock shows 1971-01-02 00:00: set it"):
        load_identity(node.certificate, node.key, node.authority, early + DAY)
    assert load_identity(node.certificate, node.key, node.authority, NOW).peer.node == "rsu-1"
