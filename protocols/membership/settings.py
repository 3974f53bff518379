"""The settings of membership."""

from msgspec import Struct

from protocols.base import limits


class MembershipSettings(Struct, frozen=True):
    """The settings of membership. Times are in nanoseconds; ``limits`` gives the reasons for the defaults.

    A crash is noticed within ``lost_link_suspicion_ns``; a radio shadow is forgiven for
    ``suspect_after_silence_ns + suspicion_max_ns``. Lower both for faster fail-over, at the price of false alarms
    when computers are busy.
    """

    heartbeat_interval_ns: int = limits.HEARTBEAT_INTERVAL_NS
    suspect_after_silence_ns: int = limits.SUSPECT_AFTER_SILENCE_NS
    suspicion_min_ns: int = limits.SUSPICION_MIN_NS
    suspicion_max_ns: int = limits.SUSPICION_MAX_NS
    lost_link_suspicion_ns: int = limits.LOST_LINK_SUSPICION_NS
    local_stall_ns: int = limits.LOCAL_STALL_NS
    dial_timeout_ns: int = limits.DIAL_TIMEOUT_NS
    max_neighbours: int = limits.MAX_NEIGHBOURS
