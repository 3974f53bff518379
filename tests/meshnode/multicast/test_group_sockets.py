"""The sockets of a multicast group when they do not work: the log has the beginning and the end, and not each try."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from meshnode.links.interfaces import HostAddress
from meshnode.multicast.sockets import GroupSockets
from meshnode.troubles import Troubles
from tests.tools.eventually import eventually
from tests.tools.own_loopback import on_own_loopback, switch

GROUP = "239.255.77.84"
LOOPBACK = HostAddress("lo", 1, "127.0.0.1")


@pytest.fixture(name="port")
def given_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


@pytest.fixture(autouse=True)
def given_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield


def test_socket_that_can_not_be_read_is_one_trouble_until_it_can(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """It was a warning twice a second."""
    troubles, heard = Troubles(), list[bytes]()
    with closing(GroupSockets(GROUP, port, lambda datagram, _: heard.append(datagram), troubles)) as sockets:
        sockets.use([LOOPBACK], frozenset())
        sockets.start()
        descriptor = sockets._receiver.fileno()
        kept, nothing = os.dup(descriptor), os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, descriptor)
        eventually(lambda: sockets.not_read >= 3, "it is tried again and again")
        assert [trouble.part for trouble in troubles.current()] == ["multicast"]
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nothing)
        eventually(lambda: (sockets.send(b"x"), heard)[1], "a datagram comes")
        eventually(lambda: not troubles.current(), "the trouble has ended")
    assert troubles.reported == 1
    assert caplog.text.count("can't be read") == 1
    assert caplog.text.count("works again") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to switch an interface off")
def test_interface_on_which_nothing_can_be_sent_is_one_trouble_until_it_can(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each datagram that is not sent is counted, and nothing said so."""
    troubles = Troubles()

    def play() -> None:
        with closing(GroupSockets(GROUP, port, lambda *_: None, troubles)) as sockets:
            sockets.use([LOOPBACK], frozenset())
            switch(on=False)
            for _ in range(100):
                sockets.send(b"x")
            assert sockets.not_sent == 100
            assert [(trouble.part, trouble.name) for trouble in troubles.current()] == [("multicast", "lo")]
            switch(on=True)
            sockets.send(b"x")
            assert sockets.not_sent == 100
            assert troubles.current() == []
            switch(on=False)
            sockets.send(b"x")
            sockets.use([], frozenset())
            assert troubles.current() == [], "it is not used any more"

    on_own_loopback(play)
    assert troubles.reported == 2
    assert caplog.text.count("can't be sent") == 2


def test_datagrams_that_can_not_be_taken_are_logged_once(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever finds one could fill the log."""

    def refuse(datagram: bytes, host: str) -> None:
        raise KeyError(datagram)

    with closing(GroupSockets(GROUP, port, refuse, Troubles())) as sockets:
        sockets.use([LOOPBACK], frozenset())
        sockets.start()
        eventually(lambda: (sockets.send(b"x"), sockets.not_taken > 10)[1], "they come")
    assert caplog.text.count("could not be taken") == 1
