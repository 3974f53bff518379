"""The relay's side of triggers: it keeps the process alive that looks for them, and does nothing else for them.

Whatever that process does, it can't hold up the relay. When it ends by itself it is started again, later each time.
"""

import logging
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Final

from meshnode.backoff import Backoff
from meshnode.models.children import child_command, child_environment, how_it_exited

_FIRST_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 600.0
_SETTLED_S: Final = 600.0
"""Who ran so long begins again with the first pause."""
_GRACE_S: Final = 10.0
"""Longer than it gives to a run."""
_log = logging.getLogger(__name__)


class TrainingProcess:
    """Starts it, and ends it with :meth:`close`."""

    def __init__(self, config_path: Path) -> None:
        self._config_path = config_path.resolve()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the process with the thread that has started it, so this one lasts as long.
        self._thread = threading.Thread(target=self._keep, name="training", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        pause = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            with self._lock:
                if self._stop.is_set():
                    return
                command = child_command("cloud_relay.learning.retraining.watching", self._config_path, os.getpid())
                self._process = subprocess.Popen(  # noqa: S603 - a module of ours
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=child_environment()
                )
            began_s = time.monotonic()
            status = self._process.wait()
            if self._stop.is_set():
                return
            if time.monotonic() - began_s > _SETTLED_S:
                pause.reset()
            pause_s = pause.next_s()
            _log.error(
                "the process that trains %s; it is started again in %.0f s, and the relay goes on",
                how_it_exited(status), pause_s,
            )  # fmt: skip
            if self._stop.wait(pause_s):
                return

    def close(self) -> None:
        """End the process, and a run that is under way with it."""
        with self._lock:
            self._stop.set()
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join()
