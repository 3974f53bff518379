"""A camera: a video device of Linux (V4L2), a stream (RTSP and others), or a video file.

Options: one of ``device`` (with ``capture_size``, ``capture_rate_hz``, ``capture_format``), ``url`` (with ``transport``
and ``clock_error_ms``) and ``file`` (with ``rate`` and ``loop``); ``rate_hz`` (at most so many frames a second),
``keyframes`` (only those), ``turn_deg`` (clockwise, beside what the source says itself), ``key``; ``model`` with its
options as of ``images``, ``width`` and ``height`` (of what it is given), ``result`` (the key of its outputs).

The value of a reading is small: which frame, when, and how large. The frame itself goes to the model only, and is
prepared only if the model computes it: the newest one at the moment when the model is free.

Keys: ``<prefix>/camera``, and ``<prefix>/plates`` for what the plate detector finds. It needs ``meshnode[camera]``.
"""

import re
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from meshnode.sensors.camera.footage import Footage, Shot, scaled_size, upright_rgb
from meshnode.sensors.camera.given import PictureModel
from meshnode.sensors.camera.sources import SCHEMES, SourceKind, VideoSource, file_source
from meshnode.sensors.contract import DriverContext, Sample
from meshnode.sensors.options import Options
from protocols.base.errors import ConfigError, SourceUnavailable
from protocols.base.limits import MS, SECOND
from protocols.wire.readings import EventTime

SENSOR: Final = "camera"
MAX_SIDE: Final = 8_192
BEHIND_S: Final = 1.0
"""A live source that is read so much later than at best is hurried to its next key frame."""
_AGAIN_S: Final = 1.0
"""How often a source that has gone is sought."""
_BELIEVED_NS: Final = 10 * SECOND
"""A camera whose clock differs by more from that of the node has a clock that was never set."""
_SIZE: Final = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,4}")
_OF_KIND: Final = {
    SourceKind.DEVICE: ("capture_size", "capture_rate_hz", "capture_format"),
    SourceKind.STREAM: ("transport", "clock_error_ms"),
    SourceKind.FILE: ("rate", "loop"),
}


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """How the frames of a source are shown. The fields are options, see the module."""

    key: str
    rate_hz: float | None = None
    keyframes: bool = False
    turn_deg: int = 0
    width: int | None = None
    height: int | None = None
    model: PictureModel | None = None
    plates_key: str = ""
    result_key: str | None = None
    clock_error_ns: int = 0
    rate: float = 1.0
    loop: bool = False


class Camera:
    """Shows the frames of one source; see the module."""

    def __init__(self, context: DriverContext, source: VideoSource, options: CameraOptions) -> None:
        self._context, self._source, self._options = context, source, options
        self._number = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options.

        :raises ConfigError: one is wrong or unknown, or the extra is missing.
        :raises SourceUnavailable: there is no such file.
        """
        read = Options("camera", options)
        source = _source(read, context)
        rate_hz = read.number("rate_hz", 1.0, 0.001, 240.0) if read.has("rate_hz") else None
        turn_deg = read.integer("turn_deg", 0, 0, 270)
        if turn_deg % 90:
            raise read.wrong("turn_deg", "use one of 0, 90, 180, 270")
        width = read.integer("width", 640, 1, MAX_SIDE) if read.has("width") else None
        height = read.integer("height", 480, 1, MAX_SIDE) if read.has("height") else None
        model = PictureModel.read(read)
        keyframes, has_result = read.flag("keyframes", False), read.has("result")
        key, result_key = read.key("key", "camera", context.prefix), read.key("result", "plates", context.prefix)
        shown = CameraOptions(
            key, rate_hz, keyframes, turn_deg, width, height, model, result_key, result_key if has_result else None,
            int(read.number("clock_error_ms", 100.0, 0.0, 10_000.0) * MS),
            read.number("rate", 1.0, 0.01, 100.0), read.flag("loop", False),
        )  # fmt: skip
        read.finish()
        read.need("av", "camera")
        return cls(context, source, shown)

    def samples(self) -> Generator[Sample, None, None]:
        """One sample for each frame that is due.

        :raises SourceUnavailable: it can't be opened at the start, or a file has no frame.
        """
        if self._source.kind is not SourceKind.FILE:
            yield from self._live()
            return
        starts_s = 0.0
        while True:
            due_s: float | None = None
            footage = self._opened()
            try:
                for sample in self._paced(footage, starts_s):
                    due_s = sample.due_s
                    yield sample
            finally:
                self._close(footage)
            if due_s is None:
                raise SourceUnavailable(f"{self._source.name} has no frame that can be decoded: name another video")
            if not self._options.loop:
                return
            starts_s = due_s + footage.frame_s / self._options.rate

    def check(self) -> str:
        """See ``CheckedDriver``."""
        footage = self._opened()
        try:
            shot = next(footage.shots(lambda _: True), None)
            if shot is not None:
                rate = f"{1 / footage.frame_s:.3g} frames a second"
                return f"{self._source.name}: {shot.width} × {shot.height}, {footage.coding}, {rate}"
        finally:
            footage.close()
        raise SourceUnavailable(f"{self._source.name} has no frame that can be decoded")

    # --- a source that is there now ---------------------------------------------------------------------------------
    def _live(self) -> Generator[Sample, None, None]:
        """Frames as they come. A source that worked once is sought again each second."""
        context = self._context
        footage: Footage | None = self._opened()
        while footage is not None:
            try:
                yield from self._coming(footage)
                why = f"{self._source.name} has ended: is the camera still on?"
            except SourceUnavailable as error:
                why = str(error)
            finally:
                self._close(footage)
            if context.stopping.is_set():
                return
            footage = self._again(why)

    def _coming(self, footage: Footage) -> Iterator[Sample]:
        if footage.is_paced:
            yield from self._paced(footage, self._context.elapsed_s())
            return
        is_wanted = Rhythm(self._options.rate_hz).is_wanted
        least_s, is_told = 1e9, False
        for shot in footage.shots(is_wanted):
            if self._context.stopping.is_set():
                return
            if not is_told:
                is_told = True
                self._context.trouble("")
            now_s = self._context.elapsed_s()
            least_s = min(least_s, now_s - shot.time_s)
            if now_s - shot.time_s - least_s > BEHIND_S:
                least_s = 1e9
                footage.hurry()
            yield self._sample(shot, now_s)

    def _again(self, why: str) -> Footage | None:
        """The source, opened again. None: the node stops."""
        while True:
            self._context.trouble(why)
            if not self._context.wait(self._context.elapsed_s() + _AGAIN_S):
                return None
            try:
                return self._opened()
            except SourceUnavailable as error:
                why = str(error)

    # --- a file -----------------------------------------------------------------------------------------------------
    def _paced(self, footage: Footage, starts_s: float) -> Iterator[Sample]:
        """Frames at their time."""
        for shot in footage.shots(Rhythm(self._options.rate_hz, self._options.rate).is_wanted):
            self._context.trouble("")
            yield self._sample(shot, starts_s + shot.time_s / self._options.rate)

    # --- both -------------------------------------------------------------------------------------------------------
    def _opened(self) -> Footage:
        options = self._options
        return Footage(self._source, self._context.skipped, options.turn_deg, options.keyframes, self._number)

    def _close(self, footage: Footage) -> None:
        self._number = footage.number
        footage.close()

    def _sample(self, shot: Shot, due_s: float) -> Sample:
        options, model = self._options, self._options.model
        value = {
            "frame": shot.number, "time_s": round(shot.time_s, 3), "width": shot.width, "height": shot.height,
        }  # fmt: skip
        infer = None
        if model is not None:
            given = model  # of that type in the function, too

            def inputs() -> Mapping[str, Any]:
                return given.inputs(upright_rgb(shot, options.width, options.height))

            size = scaled_size(shot.width, shot.height, options.width, options.height)
            corners = (0.0, 0.0, float(shot.width), float(shot.height))
            infer = model.asked(inputs, size, corners, options.plates_key, options.result_key)
        return Sample(
            due_s, options.key, value, sensor=SENSOR, priority=2, infer=infer, when=self._when(shot.utc_ns)
        )  # fmt: skip

    def _when(self, utc_ns: int | None) -> EventTime | None:
        if utc_ns is None or abs(time.time_ns() - utc_ns) > _BELIEVED_NS:
            return None
        of_camera_ns = self._options.clock_error_ns if self._source.kind is SourceKind.STREAM else 0
        return EventTime(utc_ns, max(of_camera_ns, self._context.uncertainty_now_ns()))


class Rhythm:
    """Which frames are due at a rate. ``rate``: how much faster than the source's the time of the node goes."""

    def __init__(self, rate_hz: float | None, rate: float = 1.0) -> None:
        self._every_s = 0.0 if rate_hz is None else rate / rate_hz
        self._next_s = 0.0

    def is_wanted(self, time_s: float) -> bool:
        """Whether the frame of that time is due."""
        if time_s < self._next_s - 1e-3:  # times of frames are rounded to milliseconds
            return False
        self._next_s = max(self._next_s + self._every_s, time_s)
        return True


def _source(read: Options, context: DriverContext) -> VideoSource:
    given = [kind for kind in SourceKind if read.has(kind.value)]
    if len(given) != 1:
        raise ConfigError(
            "sensor driver 'camera': give one of 'device' (such as '/dev/video0'), 'url' (such as 'rtsp://…') and "
            "'file'"
        )
    kind = given[0]
    for other, names in _OF_KIND.items():
        for name in names:
            if read.has(name) and other is not kind:
                raise ConfigError(
                    f"sensor driver 'camera': option {name!r} is for a camera with {other.value!r}: remove it"
                )
    match kind:
        case SourceKind.DEVICE:
            return VideoSource(kind, read.text("device", "-"), _captured(read))
        case SourceKind.FILE:
            return file_source(read.file("file", context.folder, context.folder))
        case SourceKind.STREAM:
            url = read.text("url", "-")
            if not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
                raise read.wrong("url", f"begin with {', '.join(SCHEMES)} and ://")
            transport = read.choice("transport", ("tcp", "udp"), "tcp")
            return VideoSource(kind, url, {"rtsp_transport": transport} if url.startswith("rtsp") else {})


def _captured(read: Options) -> dict[str, str]:
    """What a device is asked for."""
    options = {}
    if read.has("capture_size"):
        size = read.text("capture_size", "-")
        if not _SIZE.fullmatch(size):
            raise read.wrong("capture_size", "give width and height, such as '1280x720'")
        options["video_size"] = size
    if read.has("capture_rate_hz"):
        options["framerate"] = f"{read.number('capture_rate_hz', 30.0, 0.1, 240.0):g}"
    if read.has("capture_format"):
        options["input_format"] = read.text("capture_format", "-")
    return options
