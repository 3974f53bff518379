"""A camera on the network: a small RTSP server (RFC 2326) that gives numbered frames as MJPEG over RTP (RFC 2435).

It answers one client at a time on one connection, interleaved (section 10.12). FFmpeg makes the RTP packets and the
sender reports, which it sends to a socket here; the server hands them on.
"""

import contextlib
import socket
import threading
import time
from typing import Any, Final

from benchmarks.numbered_video import HEIGHT, WIDTH, picture

_DESCRIPTION: Final = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP 26
a=control:video
""".replace("\n", "\r\n")


class RtspServer:
    """Begin with ``start``, end with ``stop``. ``port`` stays the same when it is started again."""

    def __init__(self, rate_hz: int = 30) -> None:
        self.rate_hz, self.port = rate_hz, 0
        self.sent = 0
        self.is_mute = False
        """Whether it says nothing more, although it stays connected."""
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._client: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is, with a password that no log may have."""
        return f"rtsp://user:secret@127.0.0.1:{self.port}/live"

    def start(self) -> None:
        """Listen."""
        self._closing.clear()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, as when the power fails."""
        self._closing.set()
        assert self._listener is not None
        assert self._thread is not None
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)

    def _serve(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._client = client
            with client, contextlib.suppress(OSError):
                self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        """Answer the requests of one client; after PLAY it is sent frames."""
        requests = client.makefile("rb")
        while (line := requests.readline()).strip():
            method = line.split()[0].decode()
            fields = {}
            while header := requests.readline().strip():
                name, _, value = header.decode().partition(":")
                fields[name.lower()] = value.strip()
            more, body = "", ""
            if method == "OPTIONS":
                more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif method == "DESCRIBE":
                body = _DESCRIPTION
                more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\nSession: 1\r\n{more}\r\n{body}".encode())
            if method == "PLAY":
                self._play(client)
                return

    def _play(self, client: socket.socket) -> None:
        import av

        with socket.socket(type=socket.SOCK_DGRAM) as rtp, socket.socket(type=socket.SOCK_DGRAM) as rtcp:
            for each in (rtp, rtcp):
                each.bind(("127.0.0.1", 0))
                each.setblocking(False)
            port, reports = rtp.getsockname()[1], rtcp.getsockname()[1]
            output = av.open(f"rtp://127.0.0.1:{port}?rtcpport={reports}&pkt_size=1400", "w", format="rtp")
            stream: Any = output.add_stream("mjpeg", rate=self.rate_hz, options={"huffman": "default"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            stream.codec_context.thread_count = 1  # RFC 2435 has no slices
            number, begun_s = 0, time.monotonic()
            with output:
                while not self._closing.wait(max(0.0, begun_s + number / self.rate_hz - time.monotonic())):
                    if is_closed(client):
                        return
                    if not self.is_mute:
                        for packet in stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")):
                            output.mux(packet)
                        for channel, each in enumerate((rtp, rtcp)):
                            hand_on(client, channel, each)
                        self.sent += 1
                    number += 1


def is_closed(client: socket.socket) -> bool:
    """Whether the client has gone."""
    with contextlib.suppress(BlockingIOError):
        return not client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return False


def hand_on(client: socket.socket, channel: int, each: socket.socket) -> None:
    """Send what has come at a socket, interleaved."""
    with contextlib.suppress(BlockingIOError):
        while data := each.recv(65_535):
            client.sendall(b"$" + bytes([channel]) + len(data).to_bytes(2, "big") + data)
