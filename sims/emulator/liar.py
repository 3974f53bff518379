"""The liar of a host: a program in the network of a lying node, which sends what no real node would.

    python -m sims.emulator.liar

Its orders are lines of JSON on standard input. For each knock it writes a line on standard error, which says how the
knock ended.

    ["advert", address, mesh, node, incarnation, port]   multicast DNS-SD records that say that a life of ``node`` is at
                                                         ``address``, which is this host's
    ["knock", address, port, certificate, key, frames]   open a link with this certificate (PEM files), send raw frames
                                                         (base64), the first of which need not be a Hello, and see
                                                         whether the other end closes it

DNS messages follow RFC 1035, and DNS-SD RFC 6763. Links are TLS 1.3 with NNG's framing (``docs/reference/wire.md``).
It uses none of the node's code: a stranger has code of their own.
"""

import base64
import contextlib
import json
import socket
import ssl
import struct
import sys
import threading
from typing import Any, Final

_GROUP: Final = ("224.0.0.251", 5353)
_SERVICE: Final = "_meshnode._tcp.local."
_SERVER_NAME: Final = "mesh.node"
_IN, _FLUSH = 1, 0x8001
"""The class of records, and the same with the bit that makes hearers forget other records of that name and type."""
_A, _PTR, _TXT, _SRV = 1, 12, 16, 33
_TTL_S: Final = 120
_PATIENCE_S: Final = 3.0
_MAX_LABEL_CHARS: Final = 63
_AT_ONCE: Final = 8
"""The number of knocks that may be under way; more wait."""


def advert(address: str, mesh: str, node: str, incarnation: int, port: int) -> bytes:
    """A response with the records of one service."""
    life = f"-{incarnation:x}"
    label = node[: _MAX_LABEL_CHARS - len(life)] + life
    instance, server = f"{label}.{_SERVICE}", f"{label}.local."
    texts = ["v=1", f"m={mesh}", f"n={node}", f"i={incarnation}"]
    text = b"".join(bytes([len(entry)]) + entry.encode() for entry in texts)
    records = [
        _record(_SERVICE, _PTR, _IN, _name(instance)),
        _record(instance, _SRV, _FLUSH, struct.pack("!HHH", 0, 0, port) + _name(server)),
        _record(instance, _TXT, _FLUSH, text),
        _record(server, _A, _FLUSH, socket.inet_aton(address)),
    ]
    return struct.pack("!6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def _record(name: str, kind: int, of_class: int, data: bytes) -> bytes:
    return _name(name) + struct.pack("!HHIH", kind, of_class, _TTL_S, len(data)) + data


def _name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))


def send_advert(address: str, mesh: str, node: str, incarnation: int, port: int) -> None:
    """Send one advert to everybody but this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # the node of this host has that port
        sender.bind((address, _GROUP[1]))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        sender.sendto(advert(address, mesh, node, incarnation, port), _GROUP)


def knock(address: str, port: int, certificate: str, key: str, frames: list[bytes]) -> str:
    """Open a link and send frames. Returns how it ended: ``refused …`` before a frame could be sent, ``closed`` by the
    other end, or ``open`` still."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    try:
        with (
            socket.create_connection((address, port), _PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=_SERVER_NAME) as link,
        ):
            link.sendall(b"\0SP\0" + struct.pack("!HH", 0x50, 0))
            if len(link.recv(8)) < 8:  # TLS 1.3: only now it shows whether our certificate was taken
                return "refused"
            for frame in frames:
                link.sendall(struct.pack("!Q", len(frame)) + frame)
            try:
                return "open" if link.recv(1) else "closed"
            except TimeoutError:
                return "open"
            except OSError:
                return "closed"
    except OSError as error:
        return f"refused {error}"


def _main() -> None:
    places, printing = threading.Semaphore(_AT_ONCE), threading.Lock()

    def knock_and_tell(address: str, port: int, certificate: str, key: str, frames: list[bytes]) -> None:
        with places:
            ended = knock(address, port, certificate, key, frames)
        with printing:
            sys.stderr.write(json.dumps([address, port, ended]) + "\n")
            sys.stderr.flush()

    for line in sys.stdin:
        order: list[Any] = json.loads(line)
        match order:
            case ["advert", *rest]:
                with contextlib.suppress(OSError):  # what is lost on the way is lost
                    send_advert(*rest)
            case ["knock", address, port, certificate, key, frames]:
                raw = [base64.b64decode(frame) for frame in frames]
                arguments = (address, port, certificate, key, raw)
                threading.Thread(target=knock_and_tell, args=arguments, daemon=True).start()


if __name__ == "__main__":
    _main()
