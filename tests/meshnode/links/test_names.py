"""Names of hosts: each of their addresses is tried, the first connection wins, and nobody else waits for a resolver."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshnode.cli.probes import ProbeFailed, tls_identity
from meshnode.links.names import NoConnection, Target, connect, interleaved, look_up, look_up_within
from meshnode.links.nng.library import open_requester, open_responder
from meshnode.links.transport import Address
from protocols.base.errors import TransportError
from tests.tools.eventually import eventually
from tests.tools.link_fixture import (  # noqa: F401 -- fixtures
    MESH,
    given_ca,
    given_end,
    given_engine,
    given_pki,
)

V4, V6 = socket.AF_INET, socket.AF_INET6
LONG_S = 20.0
NOWHERE = "nowhere.example"
Listen = Callable[[str, int], int]


def target(host: str, port: int = 0) -> Target:
    return Target(V6, (host, port, 0, 0)) if ":" in host else Target(V4, (host, port))


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Listen at an address, and return the port."""
    with contextlib.ExitStack() as stack:

        def make(host: str, port: int = 0) -> int:
            listener = socket.create_server((host, port), family=V6 if ":" in host else V4)
            stack.enter_context(listener)
            return int(listener.getsockname()[1])

        yield make


@pytest.fixture
def mute(listen: Listen) -> Iterator[Target]:
    """An address that answers no attempt to connect: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.3", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield Target(V4, listener.getsockname())


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of names, which a test fills in. Each look-up of one is noted under ``asked``."""
    names: dict[str, list[str]] = {"asked": [], NOWHERE: []}
    original = socket.getaddrinfo

    def ask(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host not in names:
            return original(host, port, *arguments, **options)
        names["asked"].append(host)
        if not names[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = [target(address, int(port)) for address in names[host]]
        return [(one.family, socket.SOCK_STREAM, 6, "", one.to) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return names


# --- the race --------------------------------------------------------------------------------------------------------
def test_families_take_turns_and_repetitions_go() -> None:
    """RFC 8305: eight dead IPv6 addresses must not stand before the first IPv4 one."""
    hosts = ["2001:db8::1", "2001:db8::2", "2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]
    order = [one.host for one in interleaved([target(host) for host in hosts])]
    assert order == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3"]


def test_address_that_refuses_gives_way_to_the_next(listen: Listen) -> None:
    """At once, and in either order."""
    port = listen("127.0.0.1")
    for hosts in (("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")):
        sock, winner = connect([target(host, port) for host in hosts], time.monotonic() + LONG_S)
        with sock:
            assert (winner.host, sock.getpeername()) == ("127.0.0.1", ("127.0.0.1", port))


def test_address_that_is_mute_is_overtaken_by_the_next(listen: Listen, mute: Target) -> None:
    """It would take two minutes to give up by itself."""
    began_s = time.monotonic()
    sock, winner = connect([mute, target("127.0.0.1", listen("127.0.0.1"))], time.monotonic() + LONG_S)
    sock.close()
    assert winner.host == "127.0.0.1"
    assert time.monotonic() - began_s < LONG_S


def test_failure_says_what_became_of_each_address(mute: Target, listen: Listen) -> None:
    """The operator wants to know which of them is wrong."""
    with socket.socket() as closed:  # bound and not listening
        closed.bind(("127.0.0.2", 0))
        targets = [mute, target("127.0.0.2", closed.getsockname()[1])]
        for time_s in (0.5, 2.0, 8.0):  # a stall may take the time of one of them
            with pytest.raises(NoConnection) as told:
                connect(targets, time.monotonic() + time_s)
            if "127.0.0.2: connection refused; 127.0.0.3: no answer" in str(told.value):
                break
        else:
            pytest.fail(str(told.value))
    with pytest.raises(NoConnection, match="no address"):
        connect([], time.monotonic() + LONG_S)


def test_race_ends_when_nobody_wants_its_winner(mute: Target) -> None:
    """A node that closes must not wait for addresses that never answer."""
    with pytest.raises(NoConnection, match="not wanted"):
        connect([mute], time.monotonic() + 10 * LONG_S, iter([True, True, False]).__next__)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", NOWHERE])
def test_name_that_can_not_be_found_is_told(host: str, resolver: dict[str, list[str]]) -> None:
    """Names of the wrong form raise errors of another kind in Python."""
    with pytest.raises(NoConnection, match="unknown host"):
        look_up(host, 1)
    assert len(resolver["asked"]) == (host == NOWHERE)


# --- links -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hosts", [["::1", "127.0.0.1"], ["127.0.0.1", "::1"], ["127.0.0.2", "::1", "127.0.0.1"]])
def test_name_of_which_one_address_listens_is_connected(
    pki: Any, end: Any, engine: str, resolver: dict[str, list[str]], hosts: list[str]
) -> None:
    """A seed with IPv6 and IPv4 addresses never connected when its first one had no listener."""
    resolver["seed.example"] = hosts
    a, b = end(pki("a"), engine=engine), end(pki("b"))
    lane = a.dial(Address("seed.example", b.address.port))
    assert a.told.one("lane_opened")[2].node == "b"
    eventually(lambda: lane.try_send(b"more"), "the lane takes a frame, as soon as the greeting has gone")
    eventually(lambda: b.told.frames() == [b"hello", b"more"], "frames arrive")
    assert lane.address.host == "seed.example"


def test_name_is_looked_up_anew_by_each_dial(pki: Any, end: Any, engine: str, resolver: dict[str, list[str]]) -> None:
    """The address behind it may have changed, which is why it is a name."""
    resolver["seed.example"] = ["127.0.0.2"]
    a, b = end(pki("a"), engine=engine), end(pki("b"))
    a.dial(Address("seed.example", b.address.port), timeout_s=1.0)
    assert "no connection to seed.example" in a.told.one("lane_closed")[2]
    resolver["seed.example"] = ["127.0.0.1"]
    a.dial(Address("seed.example", b.address.port))
    a.told.one("lane_opened")
    assert resolver["asked"] == ["seed.example"] * 2


def test_name_without_an_address_ends_the_dial_and_says_so(
    pki: Any, end: Any, engine: str, resolver: dict[str, list[str]]
) -> None:
    """A typing error in a seed."""
    a = end(pki("a"), engine=engine)
    a.dial(Address(NOWHERE, 7000))
    assert resolver[NOWHERE] == []
    assert "unknown host" in a.told.one("lane_closed")[2]


def test_resolver_that_hangs_keeps_no_other_dial_waiting(
    pki: Any, end: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver without a network takes half a minute for each name."""
    original, go_on = socket.getaddrinfo, threading.Event()

    def ask(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "slow.example":
            go_on.wait(10 * LONG_S)
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return original(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    a, b = end(pki("a"), engine=engine), end(pki("b"))
    for _ in range(4):
        a.dial(Address("slow.example", 7000), timeout_s=10 * LONG_S)
    a.dial(b)
    a.told.one("lane_opened")
    with pytest.raises(NoConnection, match=r"not found within 0\.1 s"):
        look_up_within("slow.example", 1, 0.1)
    go_on.set()
    eventually(lambda: len(a.told.all("lane_closed")) == 4, "the others end")


# --- the relay, and the doctor ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("hosts", [["::1", "127.0.0.1"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "::1"]])
def test_relay_by_name_is_asked_at_the_address_that_listens(
    pki: Any, resolver: dict[str, list[str]], hosts: list[str]
) -> None:
    """The uplink has the same trouble with names as links have."""
    resolver["relay.example"] = hosts
    responder = open_responder(pki("relay", role="relay"), "127.0.0.1", 0, MESH, lambda _, frame: frame, workers=2)
    requester = open_requester(pki("a"), Address("relay.example", responder.port), MESH)
    try:
        assert requester.request(b"one", LONG_S) == b"one"
        assert requester.request(b"two", LONG_S) == b"two"
        assert resolver["asked"] == ["relay.example"]
    finally:
        requester.close()
        responder.close()


def test_relay_that_is_nowhere_is_told_and_found_once_it_has_an_address(
    pki: Any, resolver: dict[str, list[str]]
) -> None:
    """A node may start before its network."""
    resolver["relay.example"] = ["127.0.0.2"]
    responder = open_responder(pki("relay", role="relay"), "127.0.0.1", 0, MESH, lambda _, frame: frame, workers=2)
    requester = open_requester(pki("a"), Address("relay.example", responder.port), MESH)
    try:
        with pytest.raises(TransportError, match=r"no connection to relay\.example|127\.0\.0\.2"):
            requester.request(b"x", 0.6)
        nowhere = open_requester(pki("a"), Address(NOWHERE, responder.port), MESH)
        with pytest.raises(TransportError, match="unknown host"):
            nowhere.request(b"x", 0.6)
        nowhere.close()
    finally:
        requester.close()
        responder.close()


def test_doctor_tries_every_address_of_a_name(pki: Any, end: Any, resolver: dict[str, list[str]]) -> None:
    """It must not blame a seed to which the node itself connects."""
    resolver["seed.example"] = ["::1", "127.0.0.2", "127.0.0.1"]
    b = end(pki("b"))
    assert tls_identity(Address("seed.example", b.address.port), pki("a")).node == "b"
    for host in ("a..b", NOWHERE):
        with pytest.raises(ProbeFailed, match="unknown host") as failed:
            tls_identity(Address(host, 7000), pki("a"))
        assert failed.value.absent
