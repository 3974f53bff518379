"""Searches what left a mesh for a plate, a VIN and a home.

It is meant to find them wherever they are:

- as text, in any letters and with anything between them, in each text, key and byte string of each record, in what is
  compressed or in Base64 there, in the metadata of pictures, and in the raw bytes of all frames and files;
- as coordinates within 10 m: in the context of a record, in its value, in text, in the metadata of pictures, and as
  binary numbers at any place in the raw bytes;
- as a plate that can be read in a picture, in records and in the raw bytes of frames.
"""

import base64
import gzip
import hashlib
import io
import math
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Raw

from demo.curation.reader import written
from protocols.wire.parcels import decode_untrusted_record
from protocols.wire.readings import Reading
from protocols.wire.records import Record
from protocols.wire.tensors import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

STORE: Final = "relay.sqlite"
NEAR_M: Final = 10.0
PLATE: Final = "plate as text"
READ: Final = "plate in pictures"
VIN: Final = "VIN"
HOME: Final = "exact home"
_METRES_PER_DEG: Final = 111_320.0
_DEPTH: Final = 4
"""How often something is taken out of something else: compressed data in Base64 in a record."""
_DECIMAL: Final = re.compile(r"[-+]?\d{1,3}\.\d{3,}")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")
_PICTURE: Final = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n")
_CLOSE_BYTES: Final = 64
"""How far apart the two numbers of a place may stand in raw bytes."""
_GPS: Final = 0x8825

Place = tuple[float, float]
"""Latitude and longitude in degrees."""
if TYPE_CHECKING:
    Content = str | float | Image | Place
    """What a value holds."""


@dataclass(frozen=True)
class Secrets:
    """What was planted."""

    plate: str
    """Letters and digits alone."""
    vins: tuple[str, ...]
    homes: tuple[Place, ...]


@dataclass
class Left:
    """What left a mesh."""

    readings: list[Reading] = field(default_factory=list)
    """Of the records that the relay stores."""
    frames: dict[str, bytes] = field(default_factory=dict)
    """What was sent to the relay, as it was before it was compressed and encrypted, by node."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What lies on the disk of the relay, by name."""


@dataclass
class Search:
    """What was found, by kind, with the places where it was found."""

    found: dict[str, list[str]] = field(default_factory=lambda: {PLATE: [], READ: [], VIN: [], HOME: []})
    pictures: dict[str, "Image"] = field(default_factory=dict)
    """Each different picture, by a hash of its pixels."""

    def note(self, kind: str, where: str) -> None:
        """Something was found."""
        if where not in self.found[kind]:
            self.found[kind].append(where)


def left_at(relay: Path, sent: Iterable[Path]) -> Left:
    """What is in the state folder of a relay, and in files that nodes' frames were copied to."""
    left = Left(frames={path.parent.name: path.read_bytes() for path in sent if path.exists()})
    left.files = {path.name: path.read_bytes() for path in sorted(relay.iterdir()) if path.is_file()}
    store = relay / STORE
    if store.exists():
        with closing(sqlite3.connect(store)) as database:
            rows = database.execute("SELECT sequence, rule, encoded FROM records ORDER BY origin, sequence").fetchall()
        left.readings = [decode_untrusted_record(Record(number, rule, Raw(encoded))) for number, rule, encoded in rows]
    return left


def searched(left: Left, secrets: Secrets, reads: "Callable[[Image, str], str]") -> Search:
    """Search all of it. ``reads`` tells what is read where a plate stands in a picture, or nothing."""
    search = Search()
    for reading in left.readings:
        _look(search, secrets, reading.key, [*contents((reading.key, reading.origin, reading.how, reading.value))],
              [(reading.where.latitude_deg, reading.where.longitude_deg)])  # fmt: skip
    for name, content in (*left.frames.items(), *left.files.items()):
        where = f"the bytes of {name}"
        _look_for_text(search, secrets, where, content.decode("latin-1"))
        for home in secrets.homes:
            if _holds_binary(content, home):
                search.note(HOME, where)
    for name, content in left.frames.items():
        for match in _PICTURE.finditer(content):
            _look(search, secrets, f"a picture in the bytes of {name}", [*_in_bytes(content[match.start() :], _DEPTH)])
    for picture in search.pictures.values():
        if text := reads(picture, secrets.plate):
            search.note(READ, f"a picture that reads {text!r}")
            break  # it takes seconds for each, and one is enough
    return search


# --- what is in a value ----------------------------------------------------------------------------------------------
def contents(value: Any, depth: int = _DEPTH) -> "Iterator[Content]":
    """All texts, numbers, pictures and places in a value, at any depth, taken out of whatever they are packed in."""
    match value:
        case str():
            yield value
            if depth:
                yield from _in_base64(value.encode("utf-8", "replace"), depth - 1)
        case bool() | None:
            pass
        case int() | float():
            yield float(value)
        case bytes():
            yield from _in_bytes(value, depth)
        case Tensor():
            yield from _in_bytes(bytes(value.data), depth)
        case dict():
            for name, item in value.items():
                yield from contents(name, depth)
                yield from contents(item, depth)
        case list() | tuple():
            for item in value:
                yield from contents(item, depth)
        case _ if hasattr(value, "__struct_fields__"):
            yield from contents(tuple(getattr(value, name) for name in value.__struct_fields__), depth)
        case _:
            yield str(value)


def _in_bytes(content: bytes, depth: int) -> "Iterator[Content]":
    yield content.decode("latin-1")
    yield from _in_picture(content)
    if depth:
        yield from _in_base64(content, depth - 1)
        for unpack in (gzip.decompress, zlib.decompress):
            with suppress(OSError, EOFError, zlib.error):
                yield from _in_bytes(unpack(content), depth - 1)


def _in_base64(content: bytes, depth: int) -> "Iterator[Content]":
    for match in _BASE64.finditer(content):
        text = match[0].rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        with suppress(ValueError):
            yield from _in_bytes(base64.b64decode(text + b"=" * (-len(text) % 4)), depth)


def _in_picture(content: bytes) -> "Iterator[Content]":
    from PIL import Image

    if not _PICTURE.match(content):
        return
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            exif = picture.getexif()
            yield picture.copy()
    except Exception:  # noqa: BLE001 - decoders of damaged pictures raise anything; it was no picture
        return
    yield from (str(each) for each in (*exif.values(), *picture.info.values()))
    gps = exif.get_ifd(_GPS)
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        yield _degrees(gps[2], gps.get(1) == "S"), _degrees(gps[4], gps.get(3) == "W")


def _degrees(parts: Iterable[Any], is_negative: bool) -> float:
    degrees, minutes, seconds = (float(part) for part in parts)
    return (degrees + minutes / 60 + seconds / 3_600) * (-1 if is_negative else 1)


# --- looking ---------------------------------------------------------------------------------------------------------
def _look(
    search: Search,
    secrets: Secrets,
    where: str,
    found: "list[Content]",
    places: Iterable[Place] = (),
) -> None:
    numbers: list[float] = []
    at = [*places]
    for one in found:
        if isinstance(one, str):
            _look_for_text(search, secrets, where, one)
            numbers += map(float, _DECIMAL.findall(one))
        elif isinstance(one, float):
            numbers.append(one)
        elif isinstance(one, tuple):
            at.append(one)
        else:
            search.pictures.setdefault(hashlib.sha256(one.tobytes()).hexdigest(), one)
    for home in secrets.homes:
        near = [number for number in numbers if min(abs(number - side) for side in home) < 2 * NEAR_M / _METRES_PER_DEG]
        at += [(latitude_deg, longitude_deg) for latitude_deg in near for longitude_deg in near]
        if any(apart_m(place, home) <= NEAR_M for place in at):
            search.note(HOME, where)


def _look_for_text(search: Search, secrets: Secrets, where: str, text: str) -> None:
    plain = written(text)
    for kind, wanted in ((PLATE, (secrets.plate,)), (VIN, secrets.vins)):
        if any(each in plain for each in wanted):
            search.note(kind, where)


def apart_m(one: Place, other: Place) -> float:
    """The distance of two places in metres, for short ones."""
    north = (one[0] - other[0]) * _METRES_PER_DEG
    east = (one[1] - other[1]) * _METRES_PER_DEG * math.cos(math.radians(other[0]))
    return math.hypot(north, east)


def _holds_binary(content: bytes, home: Place) -> bool:
    """Whether two numbers of double or single precision, in either order of bytes, are a place near ``home``."""
    import numpy as np

    latitudes: list[tuple[int, float]] = []
    longitudes: list[tuple[int, float]] = []
    for kind, size in ((">f8", 8), ("<f8", 8), (">f4", 4), ("<f4", 4)):
        for shift in range(size):
            count = (len(content) - shift) // size
            numbers = np.frombuffer(content, kind, max(0, count), shift) if count > 0 else np.empty(0)
            for side, places in ((0, latitudes), (1, longitudes)):
                with np.errstate(invalid="ignore"):
                    near = np.flatnonzero(np.abs(numbers - home[side]) < 2 * NEAR_M / _METRES_PER_DEG)
                places += [(shift + size * int(at), float(numbers[at])) for at in near]
    return any(
        abs(one - other) <= _CLOSE_BYTES and apart_m((latitude_deg, longitude_deg), home) <= NEAR_M
        for one, latitude_deg in latitudes
        for other, longitude_deg in longitudes
    )
