"""A real browser for pages: headless Chromium, driven over the DevTools protocol on a pipe, with nothing but Python.

The protocol is JSON between NUL bytes on descriptors 3 and 4 of the browser (``--remote-debugging-pipe``).
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--mute-audio", "--remote-debugging-pipe",
)  # fmt: skip
_ANSWER_S = 120.0


def browser_path() -> str:
    """The browser of this machine. Skips the test where there is none; in CI that is a failure."""
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    why = "no Chromium on this machine: `sudo .ci/browser` installs it on Debian and Ubuntu"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


class Browser:
    """One page. ``complaints``: errors and warnings on the console; ``requests``: what the page asked for."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 1000) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._seen: list[str] = []
        self._number = 0
        self._buffer = b""
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        high_in, high_out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out))
        path = browser_path()
        self._process = os.posix_spawn(
            path, [path, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"],
            {**os.environ, "HOME": str(profile)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, high_in, 3),
                (os.POSIX_SPAWN_DUP2, high_out, 4),
                (os.POSIX_SPAWN_OPEN, 2, str(profile / "stderr"), os.O_WRONLY | os.O_CREAT, 0o600),
            ],
            setsid=True,
        )  # fmt: skip
        for end in (theirs_in, theirs_out, high_in, high_out):
            os.close(end)
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser and all its processes."""
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: object) -> Any:
        """Send a command and return its answer."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        limit = time.monotonic() + _ANSWER_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, limit - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._from, 1 << 20)
            assert read, "the browser ended"
            self._buffer += read
        whole, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(whole)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in {"error", "warning", "assert"}:
                self.complaints.append(str([argument.get("value") for argument in parameters["args"]]))
            case "Log.entryAdded" if parameters["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case str(method):
                self._seen.append(method)

    def open(self, page: Path) -> None:
        """Load a file and wait until all of it has run."""
        self._seen.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while "Page.loadEventFired" not in self._seen:
            self._next()

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page's window."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page. A promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str, within_s: float = 60.0) -> None:
        """Wait for an expression to be true."""
        limit = time.monotonic() + within_s
        while not self.run(condition):
            assert time.monotonic() < limit, f"never came true: {condition}"
            self.run("new Promise(requestAnimationFrame)")

    def screenshot(self, file: Path, whole: bool = False) -> None:
        """Save a picture of the window or, with ``whole``, of the page from top to bottom."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(picture["data"]))


@pytest.fixture(name="browser")
def given_browser(tmp_path: Path) -> Iterator[Browser]:
    """A page that nobody has used."""
    profile = tmp_path / "profile"
    profile.mkdir()
    opened = Browser(profile)
    yield opened
    opened.close()
