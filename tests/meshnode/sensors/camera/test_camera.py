"""The driver of cameras: files in several codings, a camera on the network that comes and goes, and hostile videos."""

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import av
import pytest

from benchmarks.numbered_video import HEIGHT, WIDTH, number_of, write_video
from meshnode.sensors import DriverContext, Sample, create_driver
from meshnode.sensors.camera.sources import SourceKind, VideoSource
from meshnode.sensors.contract import checked
from protocols.base.errors import ConfigError, InputInvalid, SourceUnavailable
from protocols.base.ids import node_id
from tests.tools.eventually import eventually
from tests.tools.rtsp_server import RtspServer

RGB: dict[str, Any] = {"model": "m", "preprocess": "rgb"}


def context(folder: Path = Path(), **fields: Any) -> DriverContext:
    return DriverContext(node_id("v-1"), folder, Random(1), logs_skipped=False, **fields)


def shown(sample: Sample) -> Any:
    """The picture that the model would be given."""
    assert sample.infer is not None
    assert callable(sample.infer.inputs)
    return sample.infer.inputs()["image"][0]


# --- files ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "codec"), [("v.mp4", "mpeg4"), ("v.mkv", "libx264"), ("v.avi", "mjpeg"), ("v.ts", "mpeg2video")]
)
def test_file_gives_its_frames_at_a_rate_and_each_picture_is_that_of_its_number(
    name: str, codec: str, tmp_path: Path
) -> None:
    """A detector must be told of the frame that it saw, whichever coding, and whether or not it was decoded at once."""
    write_video(tmp_path / name, 40, codec)
    driver = create_driver("camera", {"file": name, "rate_hz": 10.0, **RGB}, context(tmp_path))
    assert checked(driver).startswith(f"{tmp_path / name}: {WIDTH} × {HEIGHT}, ")
    samples = list(driver.samples())
    assert [sample.value["frame"] for sample in samples] == list(range(0, 40, 3))
    assert [number_of(shown(sample)) for sample in samples] == list(range(0, 40, 3))
    assert [sample.due_s for sample in samples] == pytest.approx([number / 10 for number in range(14)], abs=0.002)


def test_file_begins_again_with_frames_that_count_on_and_plays_faster(tmp_path: Path) -> None:
    """A replay that loops must not look as if time went back."""
    write_video(tmp_path / "v.mp4", 10)
    samples = create_driver("camera", {"file": "v.mp4", "loop": True, "rate": 2.0}, context(tmp_path)).samples()
    first = [next(samples) for _ in range(25)]
    samples.close()
    assert [sample.value["frame"] for sample in first] == list(range(25))
    assert [sample.due_s for sample in first] == pytest.approx([number / 60 for number in range(25)], abs=0.01)


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", "mp4"), ("mjpeg", "mov")])
@pytest.mark.parametrize("turned_deg", [90, 180, 270])
def test_picture_is_upright_as_the_video_says_and_as_the_camera_was_mounted(
    codec: str, suffix: str, turned_deg: int, tmp_path: Path
) -> None:
    """A phone and a camera that hangs upside down say it differently."""
    write_video(tmp_path / f"v.{suffix}", 4, codec, turned_deg=turned_deg)
    driver = create_driver("camera", {"file": f"v.{suffix}", "turn_deg": turned_deg, **RGB}, context(tmp_path))
    assert [number_of(shown(sample)) for sample in driver.samples()] == [0, 1, 2, 3], "one undoes the other"
    driver = create_driver("camera", {"file": f"v.{suffix}", **RGB}, context(tmp_path))
    for sample in driver.samples():
        size = (sample.value["height"], sample.value["width"])
        assert shown(sample).shape[:2] == size == ((WIDTH, HEIGHT) if turned_deg != 180 else (HEIGHT, WIDTH))


def test_model_is_given_the_size_and_encoding_that_it_wants(tmp_path: Path) -> None:
    """A model with fixed sides, one that takes encoded pictures, and the plate detector."""
    write_video(tmp_path / "v.mp4", 3)

    def first(**options: Any) -> Sample:
        return next(create_driver("camera", {"file": "v.mp4", "model": "m", **options}, context(tmp_path)).samples())

    assert shown(first(preprocess="rgb", width=96, height=80)).shape == (80, 96, 3)
    assert shown(first(preprocess="rgb", width=128)).shape == (32, 128, 3)
    plates = first(side=64)
    assert shown(plates).shape == (3, 64, 64)
    assert plates.infer is not None
    assert plates.infer.key == "veh/v-1/plates"
    jpeg = first(send="jpeg", preprocess="rgb", result="found").infer
    assert jpeg is not None
    assert callable(jpeg.inputs)
    assert bytes(jpeg.inputs()["image"][:2]) == b"\xff\xd8"
    assert jpeg.key == "veh/v-1/found"


def test_key_frames_alone_are_decoded_where_they_are_enough(tmp_path: Path) -> None:
    """One frame a second of a coded stream must not cost thirty."""
    write_video(tmp_path / "v.mp4", 60, "libx264", gop=15)
    driver = create_driver("camera", {"file": "v.mp4", "keyframes": True, **RGB}, context(tmp_path))
    numbers = [number_of(shown(sample)) for sample in driver.samples()]
    assert numbers[0] == 0
    assert len(numbers) <= 8
    assert all(number % 15 == 0 for number in numbers)


# --- hostile and damaged ---------------------------------------------------------------------------------------------
def test_half_a_frame_is_no_picture_and_the_others_are(tmp_path: Path) -> None:
    """A camera on a bad cable gives half a JPEG, which a decoder would fill with grey."""
    write_video(tmp_path / "v.avi", 6, "mjpeg")
    content = bytearray((tmp_path / "v.avi").read_bytes())
    starts = [at for at in range(len(content) - 3) if content[at : at + 3] == b"\xff\xd8\xff"]
    middle, end = starts[3] + (starts[4] - starts[3]) * 3 // 4, starts[4] - 8
    content[middle:end] = bytes(end - middle)
    (tmp_path / "v.avi").write_bytes(content)
    numbers, damaged = [], 0
    for sample in create_driver("camera", {"file": "v.avi", **RGB}, context(tmp_path)).samples():
        try:
            numbers.append(number_of(shown(sample)))
        except InputInvalid:
            damaged += 1
    assert (numbers, damaged) == ([0, 1, 2, 4, 5], 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("name", "codec"), [("v.mp4", "mpeg4"), ("v.mkv", "libx264"), ("v.avi", "mjpeg")])
def test_damaged_video_gives_what_it_can_or_says_so(name: str, codec: str, seed: int, tmp_path: Path) -> None:
    """Cards lose bits. Whatever they are, the driver ends with frames or with one error, and never grows."""
    write_video(tmp_path / name, 30, codec)
    content, random = bytearray((tmp_path / name).read_bytes()), Random(seed)
    for _ in range(1 + 40 * (seed % 3)):
        content[random.randrange(len(content))] = random.randrange(256)
    if seed % 2:
        del content[random.randrange(len(content)) :]
    (tmp_path / name).write_bytes(content)
    due_s, driver = 0.0, create_driver("camera", {"file": name, **RGB}, context(tmp_path))
    with contextlib.suppress(SourceUnavailable):
        for count, sample in enumerate(driver.samples()):
            assert due_s <= sample.due_s < 1_000
            due_s = sample.due_s
            assert count < 1_000
            with contextlib.suppress(InputInvalid):
                shown(sample)


def test_picture_of_absurd_size_takes_no_memory(tmp_path: Path) -> None:
    """Its header of a few bytes claims 10.7 GB."""
    write_video(tmp_path / "v.avi", 1, "mjpeg")
    content = (tmp_path / "v.avi").read_bytes()
    jpeg = bytearray(content[content.index(b"\xff\xd8\xff") :])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "v.mjpeg").write_bytes(bytes(jpeg) * 3)
    given = context(tmp_path)
    with pytest.raises(SourceUnavailable, match=r"v\.mjpeg"):
        list(create_driver("camera", {"file": "v.mjpeg", **RGB}, given).samples())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("noise.mp4", bytes(range(256)) * 40),
        ("text.mp4", b"hello\n" * 100),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"),
        ("script.txt", b"ffconcat version 1.0\nfile /etc/passwd\n"),
    ],
)
def test_file_that_is_no_video_is_refused_and_opens_nothing_else(name: str, content: bytes, tmp_path: Path) -> None:
    """A playlist names hosts and files of others."""
    (tmp_path / name).write_bytes(content)
    driver = create_driver("camera", {"file": name}, context(tmp_path))
    with pytest.raises(SourceUnavailable, match=rf"{name} can't be opened: (it is no video|what comes is no video)"):
        checked(driver)


# --- devices --------------------------------------------------------------------------------------------------------
def test_device_that_is_absent_or_none_is_told_with_the_way_out(tmp_path: Path) -> None:
    """The first thing an integrator sees."""
    for device, says in (
        (tmp_path / "video7", r"it is not there: connect it, or name another 'device' \(ls -l /dev/v4l/by-id\)"),
        (Path("/dev/null"), "this is no video device"),
    ):
        with pytest.raises(SourceUnavailable, match=f"the camera {device} can't be opened: {says}"):
            checked(create_driver("camera", {"device": str(device)}, context()))


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to become somebody with fewer rights")
def test_device_of_others_is_told_as_not_permitted(tmp_path: Path) -> None:
    """The user of a service is in no group of its own accord."""
    device = tmp_path / "video0"
    device.write_bytes(b"")
    device.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o111)
    os.seteuid(65_534)
    try:
        with pytest.raises(SourceUnavailable, match=r"it is not permitted: give the user .* group \(video on Debian\)"):
            checked(create_driver("camera", {"device": str(device)}, context()))
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("code", "says"), [(errno.EBUSY, "another program uses it"), (errno.ENODEV, "unplugged"), (errno.EINVAL, "size")]
)
def test_error_of_a_device_says_what_helps(code: int, says: str) -> None:
    """What the kernel answers while a device is opened or read. There is no such device where tests run."""
    assert says in VideoSource(SourceKind.DEVICE, "/dev/video0").way_out(OSError(code, os.strerror(code)))


def test_device_is_asked_for_what_was_configured() -> None:
    """FFmpeg's names of these options are not ours."""
    options = {"device": "/dev/video0", "capture_size": "1280x720", "capture_rate_hz": 15, "capture_format": "mjpeg"}
    driver: Any = create_driver("camera", options, context())
    assert driver._source.options == {"video_size": "1280x720", "framerate": "15", "input_format": "mjpeg"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give one of 'device'"),
        ({"device": "/dev/video0", "url": "rtsp://h/"}, "give one of 'device'"),
        ({"device": "/dev/video0", "loop": True}, "option 'loop' is for a camera with 'file'"),
        ({"url": "file:///etc/passwd"}, "begin with rtsp"),
        ({"url": "concat:a|b"}, "begin with rtsp"),
        ({"device": "/dev/video0", "turn_deg": 45}, "use one of 0, 90, 180, 270"),
        ({"device": "/dev/video0", "capture_size": "big"}, "'1280x720'"),
        ({"device": "/dev/video0", "key": "a b/*"}, "give a key below veh/v-1"),
        ({"device": "/dev/video0", "framrate": 3}, "no option 'framrate'"),
        ({"device": "/dev/video0", "side": 33}, "multiple of 32"),
    ],
)
def test_wrong_option_names_the_way_out(options: dict[str, Any], says: str) -> None:
    """Options are checked before anything is opened."""
    with pytest.raises(ConfigError, match=says):
        create_driver("camera", options, context())


# --- a camera on the network ------------------------------------------------------------------------------------------
@pytest.fixture(name="server")
def given_server() -> Iterator[RtspServer]:
    """A camera that speaks RTSP."""
    server = RtspServer()
    server.start()
    yield server
    server.stop()


class Watched:
    """A driver on a thread of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.troubles: list[str] = []
        self.samples: list[Sample] = []
        self.context = context(trouble=self.troubles.append)
        self.driver = create_driver("camera", options, self.context)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.context.begin()
        for sample in self.driver.samples():
            self.samples.append(sample)

    def stop(self) -> None:
        self.context.stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_address_is_told_without_its_password() -> None:
    """FFmpeg takes passwords with an @ in them."""
    for address, told in (
        ("rtsp://admin:s3cret@cam.example/a@b", "rtsp://…@cam.example/a@b"),
        ("rtsp://admin:s3@cret@cam.example:554/", "rtsp://…@cam.example:554/"),
        ("rtsp://cam.example", "rtsp://cam.example"),
    ):
        source = VideoSource(SourceKind.STREAM, address)
        assert source.name == told
        assert source.way_out(OSError(f"{address} is busy")).startswith(f"{told} is busy: ")
    with pytest.raises(ConfigError, match=r"'url' is 'ftp://…@cam\.example/': begin with"):
        create_driver("camera", {"url": "ftp://admin:s3cret@cam.example/"}, context())


def test_stream_is_followed_with_its_own_time_and_sought_again_when_it_ends_or_is_silent(
    server: RtspServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cameras lose power and networks stop. No log may have the password."""
    monkeypatch.setattr("meshnode.sensors.camera.sources.CHECK_S", 1.5)
    for _ in range(4):  # a stall looks like a camera that is silent, which counts anew when it is found again
        watched = Watched({"url": server.url, "clock_error_ms": 40, **RGB})
        eventually(lambda: len(watched.samples) > 40, "frames come", 60)  # noqa: B023
        if not any(watched.troubles):
            break
        watched.stop()
    sample = watched.samples[40]
    assert number_of(shown(sample)) == sample.value["frame"] == 40
    assert sample.when is not None
    assert sample.when.uncertainty_ns == 40_000_000
    assert watched.samples[39].when is not None
    assert sample.when.utc_ns - watched.samples[39].when.utc_ns == pytest.approx(1e9 / 30, abs=2e6)
    assert abs(sample.when.utc_ns - time.time_ns()) < 60e9, "by the clock of the camera"

    server.stop()
    eventually(lambda: "can't be opened: nothing listens there" in watched.troubles[-1], "its end is told", 60)
    server.start()
    eventually(lambda: watched.troubles[-1] == "", "it is found again", 60)
    count = len(watched.samples)
    server.is_mute = True
    eventually(lambda: "has given nothing" in watched.troubles[-1], "its silence is told", 60)
    server.is_mute = False
    eventually(lambda: len(watched.samples) > count + 40, "frames come again", 60)
    watched.stop()
    assert not any("secret" in why for why in watched.troubles)
    numbers = [sample.value["frame"] for sample in watched.samples]
    assert numbers == sorted(set(numbers))


def test_stream_of_a_host_that_says_nothing_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that accepts a connection and is mute must not hang a node."""
    monkeypatch.setattr("meshnode.sensors.camera.sources.CHECK_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for scheme in ("rtsp", "tcp", "http"):
            with pytest.raises(SourceUnavailable, match=r"can't be opened: it has given nothing for"):
                checked(create_driver("camera", {"url": f"{scheme}://127.0.0.1:{port}/x"}, context()))


def test_stream_of_mpeg_over_tcp_ends_and_that_is_told(tmp_path: Path) -> None:
    """Encoders on vehicles serve MPEG-TS on a port."""
    write_video(tmp_path / "v.ts", 60, "mpeg2video")

    def serve(listener: socket.socket) -> None:
        with listener, listener.accept()[0] as client:
            client.sendall((tmp_path / "v.ts").read_bytes())

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    watched = Watched({"url": f"tcp://127.0.0.1:{port}", **RGB})
    eventually(
        lambda: any("has ended: is the camera still on" in why for why in watched.troubles), "the end is told", 60
    )
    watched.stop()
    assert [number_of(shown(sample)) for sample in watched.samples] == list(range(60))


def test_node_without_the_extra_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is large, so few nodes have it."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"needs av: pip install 'meshnode\[camera\]'"):
        create_driver("camera", {"device": "/dev/video0"}, context())


def test_stream_of_garbage_is_refused_in_bounded_time() -> None:
    """Another program listens at that port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as client, contextlib.suppress(OSError):
            client.sendall(b"".join(b"\x47\x01\x00\x10" + Random(each).randbytes(184) for each in range(2_000)))

    threading.Thread(target=serve, daemon=True).start()
    url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(SourceUnavailable, match="what comes is no video, or ends before its first frame"):
        checked(create_driver("camera", {"url": url}, context()))


def test_logging_of_the_library_stays_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It writes to the standard error of the node for each damaged frame, past every bound."""
    (tmp_path / "noise.avi").write_bytes(b"RIFF" + bytes(range(256)) * 400)
    with pytest.raises(SourceUnavailable):
        checked(create_driver("camera", {"file": "noise.avi"}, context(tmp_path)))
    assert capfd.readouterr().err == ""
    assert av.logging.get_level() is None
