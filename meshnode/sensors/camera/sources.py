"""Where frames come from: a video device of Linux (V4L2), a file, or a stream; how each is opened, and what is wrong.

Whatever a file or a host says is bounded before it is believed: only containers of video are read, a file opens no
other file and no connection, a stream opens connections only, and a picture has at most ``MAX_PIXELS``.
"""

import errno
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from meshnode.sensors.contract import CHECK_S
from meshnode.sensors.options import without_password
from protocols.base.errors import SourceUnavailable

MAX_PIXELS: Final = 40_000_000
"""The most pixels of one frame: 8K has 33 million. A header of a few bytes can claim far more."""
SCHEMES: Final = ("rtsp", "rtsps", "http", "https", "tcp", "udp", "rtp")
_CONTAINERS: Final = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,mjpeg,mpjpeg,h264,hevc,ivf,m4v,mpegvideo,asf,ogg,gif,"
    "yuv4mpegpipe,nut"
)
"""What a camera or a recorder writes. Playlists and scripts, which name other files and hosts, are not among them."""
_PROTOCOLS: Final = "rtsp,rtsps,rtp,srtp,tcp,tls,udp,http,https,httpproxy"


class SourceKind(Enum):
    """What frames come from."""

    DEVICE = "device"
    FILE = "file"
    STREAM = "url"


@dataclass(frozen=True, slots=True)
class VideoSource:
    """One source. ``options``: what FFmpeg is told when it is opened, beside the bounds."""

    kind: SourceKind
    address: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people call it, without the password of a stream."""
        shown = without_password(self.address.removeprefix("file:"))
        return f"the camera {shown}" if self.kind is SourceKind.DEVICE else shown

    def open(self) -> Any:
        """A container (``av.container.InputContainer``) with at least one stream of video.

        :raises SourceUnavailable: it is absent, busy, not permitted, or no video; names it and the way out.
        """
        import av

        begun_s = time.monotonic()
        av.logging.set_level(None)  # what is wrong with a frame is told by us, once
        try:
            container = av.open(
                self.address, format="v4l2" if self.kind is SourceKind.DEVICE else None, options=self._told(),
                timeout=CHECK_S,
            )  # fmt: skip
        except (av.error.FFmpegError, OSError, ValueError) as error:
            is_silent = self.kind is SourceKind.STREAM and time.monotonic() - begun_s >= CHECK_S
            why = _SILENT if is_silent else self.way_out(error)
            raise SourceUnavailable(f"{self.name} can't be opened: {why}") from error
        if not container.streams.video:
            container.close()
            raise SourceUnavailable(f"{self.name} has no video: name another one")
        return container

    def way_out(self, error: Exception) -> str:
        """What the error of a library means for a user, and what helps."""
        code = getattr(error, "errno", None)
        if code == errno.EINVAL and self.kind is SourceKind.FILE:
            return "it is no video of a kind that is read: convert it to MP4 or Matroska"
        if code in (errno.EACCES, errno.EPERM):
            group = " (video on Debian)" if self.kind is SourceKind.DEVICE else ""
            return f"it is not permitted: give the user of the node the rights of its group{group}"
        ways = _WAYS[self.kind]
        if code in ways:
            return ways[code]
        if type(error).__name__ == "ExitError":
            return _SILENT
        if type(error).__name__ in {"InvalidDataError", "EOFError"}:
            return "what comes is no video, or ends before its first frame"
        shown = without_password(str(error))[:200]
        return f"{shown}: {_WAYS_ELSE[self.kind]}"

    def _told(self) -> dict[str, str]:
        bounds = {"max_pixels": str(MAX_PIXELS), "probesize": "5000000", "analyzeduration": "3000000"}
        match self.kind:
            case SourceKind.DEVICE:  # frames carry the clock of the system
                return {**bounds, "ts": "abs", **self.options}
            case SourceKind.FILE:
                return {**bounds, "protocol_whitelist": "file", "format_whitelist": _CONTAINERS, **self.options}
            case SourceKind.STREAM:
                formats = f"rtsp,rtp,sdp,{_CONTAINERS}"
                return {**bounds, "protocol_whitelist": _PROTOCOLS, "format_whitelist": formats, **self.options}


_SILENT: Final = f"it has given nothing for {CHECK_S:g} s: is it on, and is the network there?"
_LIST: Final = "name another 'device' (ls -l /dev/v4l/by-id)"
_WAYS: Final = {
    SourceKind.DEVICE: {
        errno.ENOENT: f"it is not there: connect it, or {_LIST}",
        errno.ENODEV: f"it takes no pictures, or was unplugged: {_LIST}",
        errno.ENXIO: f"it was unplugged: connect it, or {_LIST}",
        errno.ENOTTY: f"this is no video device: {_LIST}",
        errno.EBUSY: "another program uses it: stop that (fuser shows which)",
        errno.EINVAL: "it does not have this size, rate or format: v4l2-ctl --list-formats-ext shows what it has",
    },
    SourceKind.FILE: {errno.ENOENT: "there is no such file"},
    SourceKind.STREAM: {
        errno.ECONNREFUSED: "nothing listens there: is the camera on, and are host and port right?",
        errno.EHOSTUNREACH: "there is no way to it: is the network there?",
        errno.ENETUNREACH: "there is no way to it: is the network there?",
        errno.ETIMEDOUT: "it does not answer: is the camera on, and is the network there?",
    },
}
_WAYS_ELSE: Final = {
    SourceKind.DEVICE: _LIST,
    SourceKind.FILE: "name a video",
    SourceKind.STREAM: "check the address, the user and the password",
}


def file_source(path: Path) -> VideoSource:
    """A file; its name is never taken for an address."""
    return VideoSource(SourceKind.FILE, f"file:{path}")
