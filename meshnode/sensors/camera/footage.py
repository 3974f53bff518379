"""The frames of an open source, in order, each at its time.

Invariants:

- A frame that nobody asks for costs as little as its coding allows. Of a coding without references between frames
  (MJPEG, raw) only what is asked for is decoded, and that only when it is; of others each frame has to be decoded, or
  with ``keyframes`` each key frame, and only what is asked for becomes a picture.
- Frames are not copied. Whoever keeps a :class:`Shot` keeps one frame, and the memory of those passed over is reused.
- Time never goes back: a gap of more than ``MAX_GAP_S``, or a step backwards, counts as one frame.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meshnode.sensors.camera.sources import MAX_PIXELS, SourceKind, VideoSource
from protocols.base.errors import InputInvalid, SourceUnavailable
from protocols.base.limits import SECOND

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_GAP_S: Final = 10.0
MAX_BAD: Final = 250
"""Damaged frames in a row after which a source is given up: it is no video, or of another kind than it says."""
_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame that was asked for."""

    number: int
    """Frames that came before it, whether they were wanted or not."""
    time_s: float
    """Seconds since the first frame, by the source."""
    width: int
    height: int
    """Of the frame as it is to be seen, upright."""
    utc_ns: int | None
    """When it was taken, if the source says so."""
    decoded: Callable[[], Any]
    """The frame (``av.VideoFrame``). May be called on any thread. :raises InputInvalid: it is damaged."""
    turned_deg: int
    """How far it has to be turned counter-clockwise to be upright: 0, 90, 180 or 270."""


class Footage:
    """An open source. ``turned_deg`` is added, clockwise, to what the source says of its orientation."""

    def __init__(
        self, source: VideoSource, skipped: Callable[[str], None], turned_deg: int = 0, keyframes: bool = False,
        first: int = 0,
    ) -> None:  # fmt: skip
        """``first``: the number of the first frame. :raises SourceUnavailable: it can't be opened."""
        self._source, self._skipped, self._turned_deg, self._keyframes = source, skipped, turned_deg, keyframes
        self._container = source.open()
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        context.options = decoder_options(context.codec.intra_only)
        self._alone = AloneDecoder(context) if context.codec.intra_only else None
        rate = self._stream.average_rate
        self.frame_s = float(1 / rate) if rate and 0.1 <= rate <= 1_000 else 1 / 30
        """How long one frame lasts."""
        self.is_paced = source.kind is SourceKind.FILE or self._container.duration is not None
        """Whether frames come as fast as they are read, so that somebody has to wait between them."""
        self._time_s = 0.0
        self._pts_s: float | None = None
        self.number = first
        """Of the next frame."""
        self._bad = 0
        self._hurries = False
        self._orientation_deg: int | None = None
        self._size = (0, 0)

    @property
    def coding(self) -> str:
        """The name of the coding: ``h264``."""
        return str(self._stream.codec_context.name)

    def hurry(self) -> None:
        """Leave out what comes until the next key frame, because frames come faster than they can be decoded."""
        self._hurries = self._alone is None

    def shots(self, is_wanted: Callable[[float], bool]) -> Iterator[Shot]:
        """Those frames whose time is wanted, as they come.

        :raises SourceUnavailable: the source has gone, or gives what is no video.
        """
        for packet in self._packets():
            if packet.size and (self._keyframes or self._hurries) and not packet.is_keyframe:
                self.number += 1
                continue
            self._hurries = self._hurries and not packet.is_keyframe
            if self._alone is not None and packet.size and self._orientation_deg is not None:
                self._pass(packet.pts, packet.time_base)
                if is_wanted(self._time_s):
                    yield self._shot(packet.pts, packet.time_base, self._alone.later(packet))
                continue
            for frame in self._decoded(packet):
                self._pass(frame.pts, frame.time_base)
                self._learn(frame)
                if is_wanted(self._time_s):
                    yield self._shot(frame.pts, frame.time_base, _Kept(frame))

    def close(self) -> None:
        """Idempotent."""
        self._container.close()

    def _packets(self) -> Iterator[Any]:
        import av

        while True:
            try:
                yield from self._container.demux(self._stream)
                return
            except av.error.EOFError:
                return
            except av.error.InvalidDataError as error:
                self._damaged(error)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                raise SourceUnavailable(f"{self._source.name} has gone: {self._source.way_out(error)}") from error

    def _decoded(self, packet: Any) -> list[Any]:
        """The frames that this packet completes."""
        import av

        try:
            frames = packet.decode()
            for frame in frames:
                check_frame(frame)
        except (av.error.FFmpegError, InputInvalid, ValueError) as error:
            self._damaged(error)
            return []
        if frames:
            self._bad = 0
        return list(frames)

    def _damaged(self, error: Exception) -> None:
        self._bad += 1
        self.number += 1
        if self._bad > MAX_BAD:
            raise SourceUnavailable(
                f"{self._source.name}: {MAX_BAD} frames in a row are damaged ({str(error)[:100]}): is this the video "
                "that was meant?"
            )
        self._skipped(f"{self._source.name}: a damaged frame ({str(error)[:100]})")

    def _pass(self, pts: int | None, time_base: Any) -> None:
        """The next frame has come."""
        pts_s = None if pts is None or time_base is None else float(pts * time_base)
        step_s = self.frame_s if pts_s is None or self._pts_s is None else pts_s - self._pts_s
        if self._orientation_deg is not None:  # it is not the first
            self._time_s += step_s if 0 <= step_s <= MAX_GAP_S else self.frame_s
        self._pts_s = pts_s
        self.number += 1

    def _learn(self, frame: Any) -> None:
        self._orientation_deg = (round(frame.rotation / 90) * 90 - self._turned_deg) % 360
        across = self._orientation_deg in (90, 270)
        self._size = (frame.height, frame.width) if across else (frame.width, frame.height)

    def _shot(self, pts: int | None, time_base: Any, decoded: Callable[[], Any]) -> Shot:
        assert self._orientation_deg is not None, "a frame was decoded"
        utc_ns = self._utc_ns(pts, time_base)
        return Shot(self.number - 1, self._time_s, *self._size, utc_ns, decoded, self._orientation_deg)

    def _utc_ns(self, pts: int | None, time_base: Any) -> int | None:
        """The time of a frame: a device's by the clock of this host, a stream's by that of the camera (RTCP)."""
        if pts is None or self._source.kind is SourceKind.FILE:
            return None
        at_ns = int(pts * time_base * SECOND)
        if self._source.kind is SourceKind.DEVICE:
            return at_ns
        start_us = self._container.start_time_realtime
        return None if not start_us or start_us < 0 else start_us * _US + at_ns


@dataclass(frozen=True, slots=True)
class _Kept:
    """A frame that had to be decoded."""

    frame: Any

    def __call__(self) -> Any:
        return self.frame


class AloneDecoder:
    """Decodes single frames of a coding without references, on whichever thread wants one."""

    def __init__(self, of: Any) -> None:
        """``of``: the decoder of the stream, which stays with the thread that reads."""
        import av

        self._context: Any = av.CodecContext.create(of.name, "r")
        self._context.extradata = of.extradata
        if of.width and of.height:
            self._context.width, self._context.height = of.width, of.height
        if of.pix_fmt:
            self._context.pix_fmt = of.pix_fmt
        self._context.options = decoder_options(True)
        self._lock = threading.Lock()

    def later(self, packet: Any) -> Callable[[], Any]:
        """What decodes this packet when it is called."""

        def decoded() -> Any:
            import av

            try:
                with self._lock:
                    frames = self._context.decode(packet)
            except (av.error.FFmpegError, ValueError) as error:
                raise InputInvalid(f"the frame is damaged: {str(error)[:100]}") from error
            if not frames:
                raise InputInvalid("the frame is damaged: it gives no picture")
            check_frame(frames[0])
            return frames[0]

        return decoded


def decoder_options(is_alone: bool) -> dict[str, str]:
    """What a decoder is told. Of a coding without references half a frame is none: its other half would be grey. Of
    others a damaged frame is mended from those around it, and dropping it would spoil all that refer to it."""
    bound = {"max_pixels": str(MAX_PIXELS)}
    return {**bound, "err_detect": "explode"} if is_alone else bound


def check_frame(frame: Any) -> None:
    """:raises InputInvalid: parts of it are missing, or it is too large."""
    if frame.is_corrupt:
        raise InputInvalid("the frame is damaged: parts of it are missing")
    if frame.width * frame.height > MAX_PIXELS:
        raise InputInvalid(
            f"the frame has {frame.width} × {frame.height} pixels, more than {MAX_PIXELS}: scale it down"
        )


def upright_rgb(shot: Shot, width: int | None = None, height: int | None = None) -> "NDArray[Any]":
    """The picture of a shot, ``uint8[height, width, 3]``: turned, and scaled to what is given of ``width`` and
    ``height``; the other keeps the proportions. :raises InputInvalid: the frame is damaged."""
    import numpy as np

    frame = shot.decoded()
    wide, high = scaled_size(shot.width, shot.height, width, height)
    if shot.turned_deg in (90, 270):
        wide, high = high, wide
    rgb = frame.to_ndarray(format="rgb24", width=wide, height=high)  # scaled and converted in one pass
    return np.ascontiguousarray(np.rot90(rgb, shot.turned_deg // 90))


def scaled_size(width: int, height: int, to_width: int | None, to_height: int | None) -> tuple[int, int]:
    """Width and height of a picture of that size when it is scaled."""
    if to_width is None and to_height is None:
        return width, height
    if to_width is None:
        assert to_height is not None, "one of them is given"
        return max(1, round(width * to_height / height)), to_height
    return to_width, to_height if to_height is not None else max(1, round(height * to_width / width))
