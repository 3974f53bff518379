"""A satellite receiver on a pseudo-terminal: it says in NMEA 0183 what it is told, as fast as it is told."""

import contextlib
import os
import pty
import termios
import tty
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Self

KNOT_MPS = 1852 / 3600


def sentence(body: str) -> bytes:
    """A sentence with its checksum: ``GPRMC,…`` becomes ``$GPRMC,…*hh``."""
    check = reduce(lambda sum_, byte: sum_ ^ byte, body.encode("ascii"), 0)
    return f"${body}*{check:02X}\r\n".encode("ascii")


def degrees_minutes(degrees: float, whole: int, signs: str) -> str:
    """``48.5`` as ``4830.00000,N``; ``whole`` digits of degrees."""
    sign, degrees = signs[degrees < 0], abs(degrees)
    minutes = round((degrees % 1) * 60, 5)
    return f"{int(degrees):0{whole}d}{minutes:08.5f},{sign}"


def fix_sentences(
    utc_s: float, latitude_deg: float, longitude_deg: float, speed_mps: float = 10.0, heading_deg: float = 90.0,
    quality: int = 1, errors: bool = True,
) -> bytes:  # fmt: skip
    """What a receiver says of one moment."""
    at = datetime.fromtimestamp(round(utc_s, 2), UTC)
    clock, day = f"{at:%H%M%S}.{at.microsecond // 10_000:02d}", f"{at:%d%m%y}"
    place = f"{degrees_minutes(latitude_deg, 2, 'NS')},{degrees_minutes(longitude_deg, 3, 'EW')}"
    said = sentence(f"GPRMC,{clock},A,{place},{speed_mps / KNOT_MPS:.3f},{heading_deg:.2f},{day},,,A")
    said += sentence(f"GPGGA,{clock},{place},{quality},09,0.9,370.0,M,46.0,M,,")
    said += sentence("GPGSA,A,3,01,02,03,04,05,06,07,08,09,,,,1.5,0.9,1.2")
    if errors:
        said += sentence(f"GPGST,{clock},6.5,2.0,1.5,30.0,1.8,1.6,3.0")
    return said


def no_fix_sentences(utc_s: float) -> bytes:
    """What a receiver says that sees too few satellites."""
    at = datetime.fromtimestamp(round(utc_s, 2), UTC)
    clock, day = f"{at:%H%M%S}.{at.microsecond // 10_000:02d}", f"{at:%d%m%y}"
    return (
        sentence(f"GPRMC,{clock},V,,,,,,,{day},,,N")
        + sentence(f"GPGGA,{clock},,,,,0,02,9.9,,M,,M,,")
        + sentence("GPGSA,A,1,,,,,,,,,,,,,9.9,9.9,9.9")
    )


class FakeReceiver:
    """Has a device for programs to open, while it is not unplugged."""

    def __init__(self) -> None:
        self._ours = self._theirs = -1
        self.device = ""
        self.plug()

    def plug(self) -> None:
        """Connect it: it has a device of a new name, as one on USB may have."""
        self._ours, self._theirs = pty.openpty()
        tty.setraw(self._theirs, termios.TCSANOW)
        os.set_blocking(self._ours, False)
        self.device = os.ttyname(self._theirs)
        Path(self.device).chmod(0o666)

    def say(self, data: bytes) -> None:
        """Say it; what nobody reads is lost."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._ours, data)

    def unplug(self) -> None:
        """Whoever reads the device sees it go. Idempotent."""
        for descriptor in (self._theirs, self._ours):
            if descriptor >= 0:
                os.close(descriptor)
        self._ours = self._theirs = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()
