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

# --- gossip --------------------------------------------------------------------------------------------------------
MAX_ENTRY_BYTES: Final = 1024
"""A signed entry as it travels, its author's certificate (474 bytes with short names, 714 with the longest) and
signature (72) included."""
MAX_KIND_CHARS: Final = 32
MAX_ENTRIES: Final = 8_192
"""Entries held: 8 MiB at most. A mesh of 5,000 nodes has as many addresses; beyond, the one nearest to its end goes."""
MAX_KINDS_PER_AUTHOR: Final = 8
"""So that one insider can't fill the store: each entry is signed, and its author holds this many places."""
MAX_ENTRY_LIFETIME_S: Final = 30 * 86_400
"""What nobody repeats is forgotten after its lifetime: departed nodes would otherwise fill the store."""
ENTRY_BUCKETS: Final = 64
"""Two stores compare by a hash for each: 512 bytes, and one difference costs the list of a 64th of the store."""
MAX_FINGERPRINTS_PER_FRAME: Final = 1_024
"""8 KiB of them: a control frame delays what is behind it by 11 ms on a radio of 6 Mb/s."""
MAX_ENTRIES_PER_FRAME: Final = 32
MAX_ENTRIES_FRAME_BYTES: Final = 8 * 1024
"""Entries that are put together in one frame, for the same reason."""
MAX_PULL: Final = 32
"""Entries asked of one neighbour and not yet come."""
MAX_ENTRY_OFFERS: Final = 2_048
"""Fingerprints that one neighbour told of and that wait to be asked for."""
MAX_ENTRY_CANDIDATES: Final = 512
"""Entries that wait for their signature to be checked."""
MAX_REFUSED_ENTRIES: Final = 2_048
"""Fingerprints remembered as superseded or forged, so that they are neither asked for nor checked again …"""
REFUSED_ENTRY_MEMORY_NS: Final = 600 * SECOND
"""… for this long: a clock that was wrong made good certificates look bad."""
ENTRIES_PER_S: Final = 200
MAX_ENTRY_BURST: Final = 400
"""Signatures checked for one neighbour: one takes 80 µs on a 2-core computer, the first of an author 180 µs."""
SERVED_ENTRIES_PER_S: Final = 400
MAX_SERVED_BURST: Final = 800
"""Entries given to one neighbour: eight bytes of asking cost a kilobyte of answer."""
GOSSIP_FRAMES_PER_S: Final = 100
MAX_GOSSIP_FRAME_BURST: Final = 400
"""Gossip frames of one neighbour that are looked at."""
FORGED_ENTRY_COST: Final = 20
"""What a forged entry takes from the allowance of whoever sent it, in entries."""
TRICKLE_MIN_NS: Final = 1 * SECOND
TRICKLE_MAX_NS: Final = 64 * SECOND
"""Interval between beacons while stores differ, and when all agree: a frame of 20 bytes a minute and neighbour."""
TRICKLE_REDUNDANCY: Final = 1
"""Consistent beacons of a neighbour that make ours to it superfluous in an interval."""
NEWS_GATHER_NS: Final = 100 * MS
"""News goes on at once, and then at most this often."""
PULL_TIMEOUT_NS: Final = 2 * SECOND
"""Then an entry is asked of somebody else: a TLS stream stalls for up to 0.4 s at 5 % loss."""
EXCHANGE_PAUSE_NS: Final = 1 * SECOND
"""Two neighbours compare their stores in detail at most this often."""

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
