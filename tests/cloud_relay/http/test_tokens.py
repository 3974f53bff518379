"""Who may ask the relay what, once it demands tokens."""

import ssl
import stat
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from cloud_relay.config import HttpConfig, load_config
from cloud_relay.http.serving import RelayHttp
from cloud_relay.http.tokens import FILE, MAX_TOKENS, TokenFile, TokenRole
from meshnode.identity import create_mesh, issue
from protocols.base.errors import ConfigError, LocalProtocolError, StorageError
from protocols.base.ids import Role
from tests.tools.relay_fixture import batch
from tests.tools.relay_http_fixture import RelayWeb

VIEWED, OPERATED, OPEN = (
    ("/v1/records", "/v1/newest", "/v1/aggregates"),
    ("/v1/statistics",),
    ("/v1/openapi.json", "/healthz"),
)


@pytest.fixture(name="guarded")
def given_guarded(tmp_path: Path) -> Iterator[RelayWeb]:
    """A server that demands tokens."""
    with closing(RelayWeb(tmp_path, tokens_required=True)) as web:
        yield web


def token(folder: Path, role: TokenRole, expires_utc_s: int | None = None) -> str:
    return TokenFile(folder / FILE).create(f"a-{role}", role, 0, expires_utc_s)


@pytest.mark.parametrize(
    ("who", "viewed", "operated", "said"),
    [
        ("stranger", 401, 401, "cloud-relay token create"),
        ("forger", 401, 401, "unknown, revoked or expired"),
        ("expired", 401, 401, "unknown, revoked or expired"),
        ("revoked", 401, 401, "unknown, revoked or expired"),
        ("viewer", 200, 403, "the token 'a-viewer' is one of a viewer"),
        ("operator", 200, 200, ""),
    ],
)
def test_each_may_do_what_the_role_of_the_token_says(
    guarded: RelayWeb, who: str, viewed: int, operated: int, said: str
) -> None:
    """The table of who may do what, from outside."""
    guarded.relay.send(batch(1))
    shown = {
        "stranger": lambda: None,
        "forger": lambda: token(guarded.folder, TokenRole.OPERATOR)[:-1] + "!",
        "expired": lambda: token(guarded.folder, TokenRole.OPERATOR, 1),
        "revoked": lambda: token(guarded.folder, TokenRole.OPERATOR),
        "viewer": lambda: token(guarded.folder, TokenRole.VIEWER),
        "operator": lambda: token(guarded.folder, TokenRole.OPERATOR, 2**40),
    }[who]()
    if who == "revoked":
        assert guarded.get("/v1/records", shown).status == 200
        TokenFile(guarded.folder / FILE).revoke("a-operator")
    for paths, status in ((VIEWED, viewed), (OPERATED, operated), (OPEN, 200)):
        for path in paths:
            answer = guarded.get(path, shown)
            assert answer.status == status, path
            if status != 200:
                assert said in answer.json["detail"]
                assert answer.headers["www-authenticate"].startswith("Bearer ")
                assert b"veh/" not in answer.body


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer  ", "Basic dTpw", "bearer\tx", "Bearer " + "x" * 9_000])
def test_header_that_shows_no_token_is_refused(guarded: RelayWeb, header: str) -> None:
    """Whatever is sent, it lets nobody in."""
    for path in ("/v1/records", "/v1/stream"):
        assert guarded.get(path, headers={"authorization": header}).status == 401


def test_page_of_any_name_may_ask_when_it_shows_a_token(guarded: RelayWeb) -> None:
    """With tokens the relay may be behind a name; a page that has no token gets nothing by it."""
    shown = token(guarded.folder, TokenRole.VIEWER)
    assert guarded.get("/v1/records", shown, {"host": "relay.example"}).status == 200
    assert guarded.get("/v1/records", None, {"host": "relay.example"}).status == 401


# --- the file --------------------------------------------------------------------------------------------------------
def test_file_has_hashes_only_and_is_its_owners(tmp_path: Path) -> None:
    """Who reads a backup must not get in by it."""
    shown = token(tmp_path, TokenRole.VIEWER)
    path = tmp_path / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    assert shown not in content
    assert shown.rpartition("_")[2] not in content
    assert TokenFile(path).untrusted_holder(shown, 0.0) is not None


def test_wrong_file_and_wrong_names_are_refused(tmp_path: Path) -> None:
    """A file that can't be read must not mean that nobody, or everybody, gets in."""
    tokens = TokenFile(tmp_path / FILE)
    for name in ("", "a b", "../x", "x" * 65):
        with pytest.raises(LocalProtocolError, match="no name of a token"):
            tokens.create(name, TokenRole.VIEWER, 0, None)
    tokens.create("board", TokenRole.VIEWER, 0, None)
    with pytest.raises(LocalProtocolError, match="already"):
        tokens.create("board", TokenRole.VIEWER, 0, None)
    with pytest.raises(LocalProtocolError, match="token list"):
        tokens.revoke("none")
    (tmp_path / FILE).write_text("{}x")
    with pytest.raises(StorageError, match="create tokens anew"):
        tokens.tokens()
    with pytest.raises(StorageError, match=FILE):
        RelayHttp(HttpConfig("127.0.0.1", 0, True, None, tmp_path / "none.sqlite", tmp_path), dict)
    assert MAX_TOKENS == 1_000


def test_commands_make_list_and_revoke(tmp_path: Path) -> None:
    """An operator needs nothing else."""
    config = tmp_path / "relay.toml"
    config.write_text('[relay]\nid = "relay-1"\n')

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["token", *arguments, "--config", str(config)])
        assert done.exit_code == 0, done.output
        return done.output

    made = run("create", "board", "--expires", "12h").strip()
    run("create", "ops", "--role", "operator", "--expires", "never")
    listed = run("list").splitlines()
    assert [line.split()[:2] for line in listed] == [["board", "viewer"], ["ops", "operator"]]
    assert made not in "".join(listed)
    assert "never expires" in listed[1]
    run("revoke", "board")
    run("revoke", listed[1].split()[2])
    assert run("list") == ""
    done = CliRunner().invoke(main, ["token", "create", "x", "--expires", "1y", "--config", str(config)])
    assert (done.exit_code, "'1y' is no span of time" in done.output) == (2, True)


# --- the configuration -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('host = "0.0.0.0"', 'set tokens = "required", certificate and key'),
        ('host = "0.0.0.0"\ntokens = "required"', "certificate and key"),
        ('host = "relay.example"\ncertificate = "c"\nkey = "k"', 'tokens = "required"'),
        ('certificate = "c"', "http.key"),
        ('tokens = "some"', 'write "none" or "required"'),
        ("port = -1", "http.port is -1"),
        ("prot = 1", "'http.prot': did you mean 'port'"),
    ],
)
def test_configuration_that_would_show_records_to_everybody_is_refused(tmp_path: Path, table: str, said: str) -> None:
    """Records over a network without tokens, or tokens in the clear, must not be one line away."""
    path = tmp_path / "relay.toml"
    path.write_text(f'[relay]\nid = "relay-1"\n[http]\n{table}\n')
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert said in str(raised.value)


def test_server_speaks_tls_when_it_has_a_certificate(tmp_path: Path) -> None:
    """Beyond loopback, nobody may read along; and a certificate that can't be used is named."""
    create_mesh(tmp_path / "authority", "demo")
    files = issue(tmp_path / "authority", Role.RELAY, "relay-1", tmp_path).credentials
    config = HttpConfig("127.0.0.1", 0, False, (files.certificate, files.key), tmp_path / "none.sqlite", tmp_path)
    trusting = ssl.create_default_context(cafile=str(files.authority))
    trusting.check_hostname = False
    with closing(RelayHttp(config, dict)) as server:
        url = f"https://127.0.0.1:{server.port}/healthz"
        with urllib.request.urlopen(url, context=trusting, timeout=20) as answer:
            assert answer.status == 200
    wrong = HttpConfig("127.0.0.1", 0, False, (files.key, files.key), tmp_path / "none.sqlite", tmp_path)
    with pytest.raises(ConfigError, match="certificate in PEM"):
        RelayHttp(wrong, dict)
