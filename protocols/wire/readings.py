"""Readings on the wire, and who wants which."""

from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.errors import ValueUnsupported
from protocols.wire.encoding.values import COMPOSITE, check_untrusted_value, travelling_value
from protocols.wire.fields import Count, Id, Key, Latitude, Longitude, NonNegative, Share, Text
from protocols.wire.frame import Frame


class Position(Struct, frozen=True, array_like=True, gc=False):
    """Where a reading was sensed, in WGS 84."""

    latitude_deg: Latitude
    longitude_deg: Longitude
    accuracy_m: NonNegative
    """The radius of the 68 % circle."""
    altitude_m: Annotated[float, Meta(ge=-1e6, le=1e9)] | None = None
    """Height above the ellipsoid."""
    heading_deg: Annotated[float, Meta(ge=0, lt=360)] | None = None
    """Clockwise from true north."""


class EventTime(Struct, frozen=True, array_like=True, gc=False):
    """When a reading was sensed, not when it was sent."""

    utc_ns: Count
    uncertainty_ns: Count
    """Half the width of the interval that holds the true time."""


class Provenance(Struct, frozen=True, array_like=True, gc=False):
    """How a reading was sensed, and how good it is."""

    sensor: Text
    unit: Text
    """A UCUM symbol such as ``m/s``; ``1`` for a bare number."""
    quality: Share = 1.0
    calibration: Text = ""
    """The identifier of the calibration in force; empty when there is none."""
    lineage: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_LINEAGE)] = ()
    """What it was derived from, nearest step first."""


class Reading(Struct, frozen=True, array_like=True, gc=False):
    """One value with its context. ``(origin, key, sequence)`` identifies it for ever."""

    key: Key
    origin: Id
    sequence: Count
    """It grows within ``(origin, key)``, over restarts too."""
    value: Any
    """``None``, bool, int, float, str, bytes, list, dict with text keys, or :class:`Tensor`."""
    where: Position
    when: EventTime
    how: Provenance
    priority: Annotated[int, Meta(ge=0, le=7)] = 3
    """7 is the most urgent."""
    lifespan_ms: Annotated[int, Meta(ge=0, le=limits.MAX_LIFESPAN_MS)] = 0
    """The reading is worthless this long after ``when``; 0: never."""
    hops: Annotated[int, Meta(ge=0, le=limits.MAX_HOPS)] = 0
    """How many more nodes may pass it on."""


class Want(Struct, frozen=True, array_like=True, gc=False):
    """One subscription, as a publisher sees it."""

    expression: Key
    min_interval_us: Count = 0
    """At most one reading of a key is sent in this time; 0: all are."""
    conflate: bool = False
    """Whether only the newest of the waiting readings of a key is wanted."""
    history: bool = True
    """Whether the last known values of matching keys are sent first."""
    hops: Annotated[int, Meta(ge=0, le=limits.MAX_HOPS)] = 0
    """How much further the receiver may ask on the sender's behalf."""
    every: bool = False
    """Whether readings of a key that wait for a slow link are wanted too, and not only the newest; since minor 3."""


class Interest(Frame, frozen=True, array_like=True, gc=False, tag=5):
    """Everything that the sender wants. It replaces what the sender said before."""

    replaces: ClassVar[bool] = True

    version: Count
    wants: Annotated[tuple[Want, ...], Meta(max_length=limits.MAX_SUBSCRIPTIONS)]


class Readings(Frame, frozen=True, array_like=True, gc=False, tag=6):
    """One or more readings, oldest first."""

    readings: Annotated[tuple[Reading, ...], Meta(max_length=limits.MAX_READINGS_PER_FRAME)]

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when a value is nested too deeply or has a dict whose keys are not text."""
        for reading in self.readings:
            if type(reading.value) in COMPOSITE:
                check_untrusted_value(reading.value)

    def travelling(self) -> "Readings":
        """See :meth:`Frame.travelling`."""
        return Readings(tuple(travelling_reading(reading) for reading in self.readings))


class SignedReadings(Frame, frozen=True, array_like=True, gc=False, tag=15):
    """Readings of one stream that may be passed on, with the signature of their author. Whoever passes them on lowers
    ``hops`` and changes nothing else."""

    hops: Annotated[int, Meta(ge=0, le=limits.MAX_HOPS)]
    """How many more nodes may pass them on. It takes the place of ``hops`` in the readings themselves, which says what
    the author allowed."""
    certificate: Annotated[bytes, Meta(min_length=limits.CERTIFICATE_ID_BYTES, max_length=limits.CERTIFICATE_ID_BYTES)]
    """The first bytes of the SHA-256 of the author's certificate, DER."""
    signature: Annotated[bytes, Meta(max_length=limits.MAX_SIGNATURE_BYTES)]
    """By the key of that certificate, of the statement of ``parcel``."""
    parcel: memoryview
    """The bytes of a :class:`Readings` frame as its author made them. They look into the bytes of this frame."""


def check_position(where: Position) -> None:
    """:raises ValueUnsupported: for what neighbours would refuse as malformed, and hang up. NaN is never in range."""
    altitude_m, heading_deg = where.altitude_m, where.heading_deg
    if (
        not -90 <= where.latitude_deg <= 90
        or not -180 <= where.longitude_deg <= 180
        or not where.accuracy_m >= 0
        or not (altitude_m is None or -1e6 <= altitude_m <= 1e9)
        or not (heading_deg is None or 0 <= heading_deg < 360)
    ):
        raise ValueUnsupported(
            f"{where} is not on earth: use latitude -90 to 90, longitude -180 to 180, accuracy 0 or more, "
            "heading 0 to below 360"
        )


def check_provenance(how: Provenance) -> None:
    """:raises ValueUnsupported: as :func:`check_position`."""
    texts = (how.sensor, how.unit, how.calibration, *how.lineage)
    too_long = any(len(text) > limits.MAX_TEXT_CHARS for text in texts)
    if not 0 <= how.quality <= 1 or len(how.lineage) > limits.MAX_LINEAGE or too_long:
        raise ValueUnsupported(
            f"quality {how.quality} must be 0 to 1, lineage at most {limits.MAX_LINEAGE} steps, and each text at most "
            f"{limits.MAX_TEXT_CHARS} characters"
        )


def expiry_utc_ns(reading: Reading) -> int:
    """When the reading becomes worthless, in UTC nanoseconds of a correct clock."""
    return reading.when.utc_ns + reading.when.uncertainty_ns + reading.lifespan_ms * limits.MS


def travelling_reading(reading: Reading) -> Reading:
    """Return the reading as the encoder needs it. :raises ValueUnsupported: when its value can't travel."""
    if type(reading.value) in COMPOSITE:
        return replace(reading, value=travelling_value(reading.value))
    return reading


FRAMES: Final[tuple[type[Frame], ...]] = (Interest, Readings, SignedReadings)
