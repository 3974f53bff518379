"""Every bound of the wire and of the machines, with its unit and the attack or failure behind it.

Bounds are checked before memory is taken. What a bound turns away is counted.
"""

from typing import Final

MS: Final = 1_000_000
"""Nanoseconds in a millisecond."""
SECOND: Final = 1_000_000_000
"""Nanoseconds in a second."""

# --- frames --------------------------------------------------------------------------------------------------------
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""Largest frame a link takes. NNG's own default is unlimited: one length field could claim all memory."""
MAX_REALTIME_FRAME_BYTES: Final = 64 * 1024
"""Largest batch that is put together on the realtime lane: 64 KiB take 5 ms at 100 Mb/s, and nothing overtakes a
frame."""
BULK_THRESHOLD_BYTES: Final = 32 * 1024
"""A reading larger than this travels on the bulk lane, so that it can't delay a brake event."""
MAX_READINGS_PER_FRAME: Final = 64
"""Readings in one frame. Larger batches gained nothing when measured and delay the first reading in them."""

LARGE_FRAME_BYTES: Final = 128 * 1024
"""Above this the elements of a frame are counted before it is decoded …"""
MAX_ELEMENTS: Final = 65_536
"""… and this many are the most. An empty dict takes one byte on the wire and 64 in memory: 15 MB of them took 10 s to
decode, and a neighbour could send them again and again. An array or bytes, of whatever size, are one element."""

# --- names ---------------------------------------------------------------------------------------------------------
MAX_KEY_BYTES: Final = 200
"""A key stands in every reading and in tables of every node; long ones are an attack on both."""
MAX_KEY_CHUNKS: Final = 16
MAX_DOUBLE_WILDCARDS: Final = 2
"""``**`` in one expression: matching costs chunks × chunks, and a neighbour may send 256 expressions at once."""
MAX_TEXT_CHARS: Final = 200
"""Units, sensors, calibrations, reasons, model and tensor names."""

# --- tensors -------------------------------------------------------------------------------------------------------
MAX_TENSORS: Final = 32
"""Inputs or outputs of one inference."""
MAX_TENSOR_DIMENSIONS: Final = 8
"""ONNX models in use have at most six."""

# --- membership ----------------------------------------------------------------------------------------------------
MAX_NEIGHBOURS: Final = 64
"""Links of one node: two TLS sessions each way. A stranger can't take one; an insider could otherwise take them all."""
MAX_ADVERTS: Final = 512
"""Hints held at once. Anybody on the radio can send mDNS."""
MAX_ADVERT_ADDRESSES: Final = 8
"""Addresses tried per advert: a hostile advert could else make us dial the whole subnet."""
MAX_SUSPECTS_PER_HEARTBEAT: Final = 8
"""Confirmations of suspicion carried by a heartbeat."""
HEARTBEAT_INTERVAL_NS: Final = 250 * MS
"""Costs 10 frames a second for five neighbours; four may be lost or late before anybody is suspected."""
SUSPECT_AFTER_SILENCE_NS: Final = 1_200 * MS
"""Silence on an open link before a neighbour is suspected. On a busy 2-core computer a process waited 0.6 s at
worst."""
SUSPICION_MAX_NS: Final = 2_500 * MS
"""From suspect to dead with nobody else agreeing and the link still open."""
SUSPICION_MIN_NS: Final = 600 * MS
"""From suspect to dead when every other neighbour agrees."""
LOST_LINK_SUSPICION_NS: Final = 700 * MS
"""From suspect to dead when the peer's own pipes are gone too: its kernel said that the process ended, or the peer
hung up. A peer that merely rotates or restarts is back within this time."""
LOCAL_STALL_NS: Final = 400 * MS
"""A timer later than this means that we were not watching (starved, suspended): no silence is held against anybody."""
DIAL_TIMEOUT_NS: Final = 5 * SECOND
"""A dial without a pipe: a mute TCP server would otherwise hold the dialer for ever."""
HELLO_TIMEOUT_NS: Final = 3 * SECOND
"""A pipe without a Hello is closed."""
REDIAL_MIN_NS: Final = 250 * MS
REDIAL_MAX_NS: Final = 8 * SECOND
"""Redial back-off: doubled at each failure."""
REFUSAL_MEMORY_NS: Final = 30 * SECOND
"""Who was refused is not dialled again for this long; NNG alone would redial 17 times in half a second."""
FORGET_DEAD_NS: Final = 120 * SECOND
"""A dead neighbour stays visible this long."""

# --- readings ------------------------------------------------------------------------------------------------------
MAX_SUBSCRIPTIONS: Final = 256
"""Key expressions in one Interest; each is tested once per new key."""
MAX_CACHED_KEYS: Final = 16_384
"""Routing decisions and last values held; oldest out first. Keys come from neighbours."""
MAX_STREAMS: Final = 16_384
"""(origin, key) pairs whose newest sequence is remembered, for duplicates."""
MAX_QUEUE_READINGS: Final = 2_048
"""Readings waiting for one neighbour that doesn't take them."""
MAX_QUEUE_BYTES: Final = 32 * 1024 * 1024
"""Bytes waiting for one lane of one neighbour."""
MAX_CONTROL_FRAMES: Final = 256
"""Control frames waiting for one neighbour; heartbeats replace one another and don't count."""
MAX_CACHE_BYTES: Final = 16 * 1024 * 1024
"""Last values held for late subscribers."""
MAX_DROP_REASONS: Final = 4_096
"""Distinct (peer, key, reason) drop counters; beyond, the key is counted as ``*``."""
MAX_LIFESPAN_MS: Final = 24 * 3_600_000
MAX_HOPS: Final = 8
"""Forwarding limit of a reading."""
MAX_LINEAGE: Final = 16
"""Steps in a reading's lineage."""

# --- inference -----------------------------------------------------------------------------------------------------
MAX_OFFERS: Final = 64
"""Models a node offers."""
MAX_PENDING_REQUESTS: Final = 256
"""Own requests in flight."""
MAX_SERVED_REQUESTS: Final = 32
"""Requests of neighbours held at once; the next is refused as busy, so that helping can't drown a node."""
MAX_BUDGET_MS: Final = 600_000

# --- records -------------------------------------------------------------------------------------------------------
MAX_BATCH_RECORDS: Final = 256
"""Records in one upload."""
MAX_BATCH_BYTES: Final = 1024 * 1024
"""Bytes in one upload: a batch must pass a poor uplink within its time-out."""
MAX_RECORD_BYTES: Final = 256 * 1024
MAX_FATES_PER_BATCH: Final = 1_024
"""Sequence ranges in one account of lost records."""

# --- local applications --------------------------------------------------------------------------------------------
MAX_LOCAL_APPLICATIONS: Final = 16
"""Applications connected at once. Each may hold a queue of ``MAX_QUEUE_BYTES`` and a frame on its way in."""
MAX_LOCAL_SUBSCRIPTIONS: Final = 64
"""Subscriptions of one application, so that one can't use up ``MAX_SUBSCRIPTIONS`` for all."""
MAX_LOCAL_REQUESTS: Final = 32
"""Inferences of one application in flight."""
LOCAL_OPEN_TIMEOUT_NS: Final = 3 * SECOND
"""A connection that has not said who it is by then is closed: it holds a place."""
LOCAL_ANSWER_TIMEOUT_NS: Final = 5 * SECOND
"""An application that asks its node something waits no longer; the answer needs well below a millisecond."""
LOCAL_REDIAL_MIN_NS: Final = 50 * MS
LOCAL_REDIAL_MAX_NS: Final = 1 * SECOND
"""How often an application looks whether its node is back: a failed look costs a few microseconds."""
MAX_SOCKET_PATH_BYTES: Final = 107
"""Linux gives the path of a Unix socket 108 bytes, its final NUL included."""
