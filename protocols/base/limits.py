"""Every bound of the wire and of the machines, with its unit and the attack or failure that it guards against.

Bounds are checked before memory is taken. Whatever a bound turns away is counted.
"""

from typing import Final

MS: Final = 1_000_000
"""Nanoseconds in a millisecond."""
SECOND: Final = 1_000_000_000
"""Nanoseconds in a second."""

# --- frames --------------------------------------------------------------------------------------------------------
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""Largest frame that a link takes. NNG has no limit by default, so one length field could claim all memory."""
MAX_REALTIME_FRAME_BYTES: Final = 64 * 1024
"""Largest frame that is put together from several readings on the realtime lane. 64 KiB take 5 ms at 100 Mb/s, and
nothing overtakes a frame."""
BULK_THRESHOLD_BYTES: Final = 32 * 1024
"""A reading larger than this travels on the bulk lane, so that it can't delay a brake event."""
MAX_READINGS_PER_FRAME: Final = 64
"""Readings in one frame. Larger batches gained nothing when we measured them, and they delay their first reading."""

LARGE_FRAME_BYTES: Final = 16 * 1024 + 512
"""The elements of a frame larger than this are counted before it is decoded. 16 KiB of data with their context are not,
because counting took 3 of the 9 µs that receiving them takes …"""
MAX_ELEMENTS: Final = 16_384
"""… and it may have at most this many. An empty dict takes one byte on the wire and 64 in memory: 15 MB of them took
10 s to decode, and a neighbour could send them again and again. These held the engine's lock for 25 ms when there were
32,768. A tensor or bytes of any size count as one element."""
MAX_SMALL_FRAME_ELEMENTS: Final = 2_048
MAX_SMALL_FRAME_TEXT_BYTES: Final = 1_024
"""Of a frame of membership, gossip or releases that is larger than ``LARGE_FRAME_BYTES``. One with 32 entries of gossip
has 97 elements and 33 KiB."""
ELEMENTS_PER_S: Final = 32_768
MAX_ELEMENTS_BURST: Final = 65_536
"""Elements of lists and dicts in the readings of one neighbour: each takes 0.2 µs, so a second's worth takes 0.7 % of a
core, and as much again with a signature. More than 1 % would show in the p99 of honest readings, because the frame with
most elements keeps the receiving thread for 3 ms. A hundred detections of six numbers each, ten times a second, are a
fifth of it, and two lists of 16,000 numbers a second are all of it. An array or bytes count as one element."""
FREE_READINGS_BYTES: Final = 2 * 1024
"""Frames of readings up to this size are free: they take less than a turn of a neighbour, after which others have
theirs."""

# --- names ---------------------------------------------------------------------------------------------------------
MAX_KEY_BYTES: Final = 200
"""Every reading has a key, and every node has tables of keys; long keys are an attack on both."""
MAX_KEY_CHUNKS: Final = 16
MAX_DOUBLE_WILDCARDS: Final = 2
"""``**`` in one expression: matching takes chunks × chunks steps, and a neighbour may send 256 expressions at once."""
MAX_TEXT_CHARS: Final = 200
"""Length of units, sensors, calibrations, reasons, and names of models and tensors."""

# --- tensors -------------------------------------------------------------------------------------------------------
MAX_TENSORS: Final = 32
"""Inputs or outputs of one inference."""
MAX_TENSOR_DIMENSIONS: Final = 8
"""ONNX models in use have at most six."""

# --- membership ----------------------------------------------------------------------------------------------------
MAX_NEIGHBOURS: Final = 64
"""Neighbours of one node; each takes up to two TLS sessions in each direction. A stranger can't take a place, but an
insider could otherwise take them all."""
MAX_ADVERTS: Final = 512
"""Hints held at once. Anybody within radio range can send mDNS."""
MAX_ADVERT_ADDRESSES: Final = 8
"""Addresses tried for each advert: a hostile advert could otherwise make us dial the whole subnet."""
MAX_SUSPECTS_PER_HEARTBEAT: Final = 8
"""Suspects that one heartbeat names."""
PIPES_PER_S: Final = 4
MAX_PIPE_BURST: Final = 64
"""Connections of one identity into our inbox: each costs a handshake of 1.5 ms and the work of a Hello."""
HANDSHAKES_PER_S: Final = 32
MAX_HANDSHAKE_BURST: Final = 128
"""TLS handshakes for connections from one host, before anybody knows whose they are; beyond that they wait. One takes
1.5 ms, so a host takes at most 5 % of a core. An insider that opened pipe after pipe had 150 a second, each time to be
told that it has too many. The burst is for a host with ``MAX_NEIGHBOURS`` nodes that open both lanes together."""
MALFORMED_PIPE_COST: Final = 2
"""What a malformed frame takes from the connections of its sender, beside the one that it was sent on."""
UNKNOWN_FRAMES_PER_S: Final = 20
MAX_UNKNOWN_FRAME_BURST: Final = 200
"""Frames of one identity whose type this version does not know; beyond that they are malformed. A newer version may
send a few, and 100,000 frames of two bytes a second would take a whole core."""
CONTROL_FRAMES_PER_S: Final = 1_000
MAX_CONTROL_FRAME_BURST: Final = 2_000
"""Frames of one neighbour that machines look at, without readings and heartbeats. A model of 1 ms that is asked without
a pause causes 1,000 a second."""
MAX_HEARTBEATS_A_ROUND: Final = 256
"""Heartbeats of one neighbour between two of our own; more are a flood and end its pipes. The shortest interval of
50 ms causes 220 between two of the longest. A link that stood still, or a node that did not run, gets what waited at
once; that is at most what the neighbour sent in the 4 s after which it gave up."""
HEARTBEAT_ANSWER_PAUSE_NS: Final = 100 * MS
"""A neighbour that asks for an answer gets at most one heartbeat in this time. An honest one asks once in a suspicion,
and regular heartbeats follow."""
LEAST_CONFIRMERS: Final = 3
"""Other neighbours that must agree before a suspect gets only ``SUSPICION_MIN_NS``, however few there are. Otherwise a
single insider could cut the time of everybody whom a radio shadow hides."""
HEARTBEAT_INTERVAL_NS: Final = 250 * MS
"""Pause between heartbeats. They cost 20 frames a second for five neighbours, and four of one neighbour may be lost or
late before it is suspected."""
SUSPECT_AFTER_SILENCE_NS: Final = 1_200 * MS
"""Silence on an open link before a neighbour is suspected. On a busy computer with two cores, a process waited at most
0.6 s for the processor."""
SUSPICION_MAX_NS: Final = 2_500 * MS
"""From suspect to dead when no other neighbour agrees and the link is still open."""
SUSPICION_MIN_NS: Final = 600 * MS
"""From suspect to dead when every other neighbour agrees."""
LOST_LINK_SUSPICION_NS: Final = 700 * MS
"""From suspect to dead when the peer's own pipes are gone too: its kernel said that the process ended, or the peer
closed them. A peer that merely renews its certificate or restarts is back within this time."""
LOCAL_STALL_NS: Final = 400 * MS
"""A timer that is later than this means that this node did not run (it got no processor time, or was suspended). It
then holds no silence against anybody."""
DIAL_TIMEOUT_NS: Final = 5 * SECOND
"""How long a dial waits for its pipe: a silent TCP server would otherwise hold the dialer for ever."""
HELLO_TIMEOUT_NS: Final = 3 * SECOND
"""A pipe that has brought no Hello by then is closed."""
REPLACED_PIPE_NS: Final = 5 * SECOND
"""A pipe is closed this long after its neighbour opened another one for the same lane. Frames that were on their way on
both have arrived by then."""
REDIAL_MIN_NS: Final = 250 * MS
REDIAL_MAX_NS: Final = 8 * SECOND
"""The pause before the next dial starts at ``REDIAL_MIN_NS`` and doubles at each failure."""
REFUSAL_MEMORY_NS: Final = 30 * SECOND
"""A refused peer is not dialled again for this long; NNG by itself would redial 17 times in half a second."""
FORGET_DEAD_NS: Final = 120 * SECOND
"""A dead neighbour stays visible for this long."""

# --- readings ------------------------------------------------------------------------------------------------------
MAX_SUBSCRIPTIONS: Final = 256
"""Key expressions in one Interest; each is matched once with each new key."""
MAX_CACHED_KEYS: Final = 16_384
"""Keys, or nodes that are absent, that one table remembers; the oldest are dropped first. They come from neighbours."""
MAX_STREAMS: Final = 16_384
"""(origin, key) pairs whose newest sequence, routes and last value are remembered. Keys come from neighbours, which
share the bound."""
MAX_DEADLINES: Final = 16_384
"""Deadlines watched, one for each subscription with a deadline and each stream that it matches."""
MAX_DEADLINES_AT_ONCE: Final = 256
"""Deadlines looked at by one timer, which takes 1 ms; all streams may fall silent at once."""
MAX_DISOWNED: Final = 256
"""Rows of a neighbour that is gone that are put together with those of others that are gone, which takes 1 ms. So at
most 64 neighbours that are gone have shares of their own."""
MAX_QUEUE_READINGS: Final = 2_048
"""Readings that wait for one lane of a neighbour that doesn't take them."""
MAX_QUEUE_BYTES: Final = 32 * 1024 * 1024
"""Bytes that wait for one lane of one neighbour."""
MAX_CONTROL_FRAMES: Final = 256
"""Control frames that wait for one neighbour; heartbeats replace one another and don't count."""
MAX_CACHE_BYTES: Final = 16 * 1024 * 1024
"""What last values held for late subscribers take in memory, with their keys and their context."""
MAX_DROP_REASONS: Final = 4_096
"""Distinct (peer, key, reason) drop counters, which the peers share; beyond that, those of the largest holder are
counted with ``*`` as key."""
MAX_LIFESPAN_MS: Final = 24 * 3_600_000
MAX_HOPS: Final = 8
"""How many neighbours may pass a reading on."""
MAX_WANTS: Final = 2_048
"""Wants of all neighbours that are held; each is matched with each new key that is published or passed on."""
INTERESTS_PER_S: Final = 1
MAX_INTEREST_BURST: Final = 32
"""Interests of one neighbour that change something. Each has routes decided anew. Beyond the allowance the newest one
waits. A program that makes 32 subscriptions one by one stays within it."""
NEW_WANTS_AT_ONCE: Final = 32
"""New wants of one Interest that are taken up in one call: a want takes up to 15 µs. An Interest of 256 of them once
held the engine's lock for 7.5 ms, with all that followed. A larger Interest counts after a pause for each part."""
MATCHING_STEPS_PER_S: Final = 100_000
MAX_MATCHING_BURST: Final = 200_000
"""Steps of matching that one neighbour may cause with new keys and new wants; a second's worth takes 15 ms. A thousand
new keys a second are within it, and two thousand at once."""
MATCHING_STEPS_PER_FRAME: Final = 16_384
"""Steps that one frame may cause before new keys in it are dropped: 4 ms. 64 new keys and 60 wildcards stay within
it."""
NEW_STREAM_STEPS: Final = 100
"""What it takes to check and keep a new key, in steps of matching."""
INTERESTS_AT_ONCE: Final = 8
WANTS_TOLD_AT_ONCE: Final = 512
"""Neighbours told at once that the interest of this node has changed, and wants looked at for all of them. A neighbour
takes 0.35 ms with 256 wants …"""
INTEREST_PAUSE_NS: Final = 10 * MS
"""… and the pause until the next are told, or until the next part of an Interest is taken up."""
HISTORY_STEPS: Final = 4_096
"""Steps of matching in one slice of history, which takes 0.7 ms …"""
HISTORY_PAUSE_NS: Final = 5 * MS
"""… and the pause until the next."""
HISTORY_PATIENCE_NS: Final = 200 * MS
"""The pause when no neighbour that waits for history takes more of it."""
MEETING_NS: Final = 2 * SECOND
"""After a node became a neighbour, what waited for the link to it may be older than what others passed on. For this
long, subscriptions with hops get from it only what is newer, so that they get everything once and in order."""
MAX_LINEAGE: Final = 16
"""Steps in a reading's lineage."""

# --- signed readings -----------------------------------------------------------------------------------------------
MAX_SIGNATURE_BYTES: Final = 72
"""The longest ECDSA signature by a P-256 key, in ASN.1 DER."""
CERTIFICATE_ID_BYTES: Final = 8
"""The first bytes of the SHA-256 of a certificate, which say which of its author's certificates a reading needs."""
SIGNED_READINGS_PER_S: Final = 500
MAX_SIGNED_READINGS_BURST: Final = 1_000
"""Signatures of readings checked for one neighbour. One takes 65 µs on a 2-core computer, so a neighbour costs at most
3 % of a core, and 50 streams of 10 Hz pass …"""
SIGNED_BYTES_PER_CHECK: Final = 64 * 1024
"""… and a larger parcel counts as another one for each of these bytes, which take 36 µs to hash."""
SIGNED_ELEMENTS_PER_CHECK: Final = 64
"""Elements of lists and dicts in signed readings that cost as much as a check. So no more of them pass than of those
without a signature: ``ELEMENTS_PER_S``."""
MAX_SIGNED_PARCEL_BYTES: Final = 4 * 1024 * 1024
"""Largest parcel that may be passed on. Hashing and copying it takes 3 ms, and 15 ms for the largest frame, for which
the engine's lock would be held."""
FORGED_READING_COST: Final = 20
"""What a forged or malformed signed reading takes from the allowance of the neighbour that sent it, in checks."""
MAX_SIGNED_BYTES: Final = 16 * 1024 * 1024
"""Signed parcels held, so that late subscribers beyond one hop get last values with their signatures."""
MAX_SIGNED_PAYERS: Final = 256
"""Neighbours whose allowance is remembered, so that one does not get a new allowance by connecting again."""

# --- gossip --------------------------------------------------------------------------------------------------------
MAX_ENTRY_BYTES: Final = 1024
"""A signed entry as it travels, including its author's certificate (474 bytes with short names, 714 with the longest)
and signature (72 bytes)."""
MAX_KIND_CHARS: Final = 32
MAX_ENTRIES: Final = 8_192
"""Entries held, in at most 8 MiB. A mesh of 5,000 nodes has 5,000 addresses. Beyond the bound, the entry that expires
first is dropped."""
MAX_KINDS_PER_AUTHOR: Final = 8
"""Entries of one author, so that one insider can't fill the store."""
MAX_ENTRY_LIFETIME_S: Final = 30 * 86_400
"""An entry that nobody repeats is forgotten after its lifetime: departed nodes would otherwise fill the store."""
ENTRY_BUCKETS: Final = 64
"""Two stores are compared by one hash for each bucket, which is 512 bytes. One difference then costs the list of a 64th
of the store."""
MAX_FINGERPRINTS_PER_FRAME: Final = 1_024
"""These are 8 KiB: such a control frame delays what is behind it by 11 ms on a radio of 6 Mb/s."""
MAX_ENTRIES_PER_FRAME: Final = 32
MAX_ENTRIES_FRAME_BYTES: Final = 8 * 1024
"""Bytes of the entries in one frame, for the same reason."""
MAX_PULL: Final = 32
"""Entries that one neighbour was asked for and has not sent yet."""
MAX_ENTRY_OFFERS: Final = 2_048
"""Fingerprints that one neighbour has announced and has not been asked for yet."""
MAX_ENTRY_CANDIDATES: Final = 512
"""Entries that wait for their signature to be checked."""
MAX_REFUSED_ENTRIES: Final = 2_048
"""Fingerprints remembered as superseded or forged, so that they are neither asked for nor checked again …"""
REFUSED_ENTRY_MEMORY_NS: Final = 600 * SECOND
"""… for this long. It ends because a clock that was wrong may have made good certificates look bad."""
ENTRIES_PER_S: Final = 200
MAX_ENTRY_BURST: Final = 400
"""Signatures checked for one neighbour: one takes 80 µs on a 2-core computer, and the first of an author 180 µs."""
SERVED_ENTRIES_PER_S: Final = 400
MAX_SERVED_BURST: Final = 800
"""Entries sent to one neighbour: eight bytes of a request cost a kilobyte of answer."""
GOSSIP_FRAMES_PER_S: Final = 100
MAX_GOSSIP_FRAME_BURST: Final = 400
"""Gossip frames of one neighbour that are looked at."""
AUTHOR_ENTRIES_PER_S: Final = 1
MAX_AUTHOR_BURST: Final = 64
"""Entries of one author that are accepted: each costs every node of the mesh a signature check and a kilobyte on the
air. An author writes when its addresses change, and repeats an entry a few times a day."""
AUTHOR_PAUSE_NS: Final = 10 * SECOND
"""An entry of an author that signs too many is asked for again after this time. The newest then has its turn."""
MAX_ENDED_AT_ONCE: Final = 512
"""Entries that are forgotten at once, because they have ended: 8,192 of them take 30 ms, and carriers say how old each
entry is."""
FORGED_ENTRY_COST: Final = 20
"""What a forged entry takes from the allowance of the neighbour that sent it, in entries."""
TRICKLE_MIN_NS: Final = 1 * SECOND
TRICKLE_MAX_NS: Final = 64 * SECOND
"""Intervals between beacons: the shortest while stores differ, and the longest when all agree. The longest costs a
frame of 20 bytes a minute for each neighbour."""
TRICKLE_REDUNDANCY: Final = 1
"""A neighbour that sent this many consistent beacons in an interval gets no beacon from us in it."""
NEWS_GATHER_NS: Final = 100 * MS
"""News is passed on at once, and after that at most this often."""
PULL_TIMEOUT_NS: Final = 2 * SECOND
"""After this, another neighbour is asked for an entry. A TLS stream stalls for up to 0.4 s at 5 % loss."""
EXCHANGE_PAUSE_NS: Final = 1 * SECOND
"""Two neighbours compare their stores in detail at most this often."""

# --- inference -----------------------------------------------------------------------------------------------------
MAX_OFFERS: Final = 64
"""Models that a node offers."""
MAX_PENDING_REQUESTS: Final = 256
"""Requests of this node that are in flight."""
MAX_REQUEST_RUNS: Final = 8
"""Runs that one request asks for. Beside what each run costs, a request takes about 1 ms of processor time on both
sides, of which an eighth is little. More would gain little, and a neighbour that holds all its places has so many times
as many runs waiting."""
MAX_SERVED_REQUESTS: Final = 32
"""Requests of neighbours held at once; the next is refused as busy, so that helping can't overload a node."""
MAX_BUDGET_MS: Final = 600_000
MAX_INFERENCE_ELEMENTS: Final = 2_048
"""Elements of a large frame of inference. A request of 32 inputs with eight dimensions each has 490. 65,536 take 20 ms
to count."""
MAX_STAGE_BYTES: Final = 512 * 1024 * 1024
"""The largest stage of a model that a neighbour is given. It is written to its disk while it comes."""
STAGE_CHUNK_BYTES: Final = 128 * 1024
"""Bytes of a stage in one frame: a lane of 1 MB/s has it through in an eighth of a second."""

# --- releases ------------------------------------------------------------------------------------------------------
MAX_BACKGROUND_FRAMES: Final = 8
"""Frames of the background that wait for one lane. They go when nothing else waits, so they could wait for ever."""
PIECE_BYTES: Final = 16 * 1024
"""Bytes of a chunk in one frame. Nothing overtakes a frame, and this one takes 130 ms at 1 Mb/s."""
MAX_CHUNK_BYTES: Final = 256 * 1024
"""The largest chunk: the metadata of all releases, the description of one, an index of chunks, or a part of a file."""
MAX_CHUNKS: Final = MAX_CHUNK_BYTES // 32
"""Chunks of one content: the index of their SHA-256 digests is a chunk itself."""
MAX_CONTENTS: Final = 64
"""Contents that a node fetches at the same time, and about which a neighbour may ask."""
MAX_CONTENT_BYTES: Final = MAX_CHUNKS * MAX_CHUNK_BYTES
"""The largest file of a release: 2 GiB, as the largest ONNX file."""
MAX_HAVE_BYTES: Final = 1024
"""Bits of ``MAX_CHUNKS`` chunks."""
MAX_COMING: Final = 8
"""Chunks that a node gets from the relay at the same time, and that a neighbour may say so of: who says it of all of
them, and gets none, holds up others."""
MAX_REPORTED_RELEASES: Final = 8
"""Orders that one entry of gossip tells of: 17 bytes each at most, and 240 are left beside the longest certificate."""

# --- records -------------------------------------------------------------------------------------------------------
MAX_BATCH_RECORDS: Final = 256
"""Records in one upload."""
MAX_BATCH_BYTES: Final = 1024 * 1024
"""Bytes in one upload: a batch must get through a poor uplink within its time-out."""
MAX_RECORD_BYTES: Final = 256 * 1024
MAX_RECORD_LIFESPAN_S: Final = 366 * 86_400
MAX_FATES_PER_BATCH: Final = 1_024
"""Ranges of sequences of undelivered records in one upload."""
MAX_POLICY_BYTES: Final = 32
"""The digest of an egress policy, which is a SHA-256; one of a later kind would be no longer."""
MAX_CERTIFICATE_BYTES: Final = 4 * 1024
"""A certificate that travels with a receipt, in DER. Those of ``meshnode mesh issue`` have at most 784 bytes."""
MAX_EXCHANGE_BYTES: Final = MAX_BATCH_BYTES + 64 * 1024
"""Largest frame between a node and the relay: an upload with its head, its fates and its receipt, which take at most
35 KiB. One frame of 16 MB once made a relay of 45 MB grow to 1.2 GB."""

MAX_TOLD_RECORDS: Final = 100
"""Records in one answer to a question of a node."""
MAX_TOLD_BYTES: Final = 512 * 1024
"""Bytes of readings in such an answer, after which it ends: it comes over a poor link, and fits an exchange with one
more record of the largest size."""

MAX_CARRIED_BATCH_BYTES: Final = 256 * 1024
"""Records in a batch that a neighbour carries. Nothing overtakes it on its lane, and it takes 2 s at 1 Mb/s. The
largest record fits."""
MAX_SEALED_BYTES: Final = MAX_CARRIED_BATCH_BYTES + 64 * 1024
"""A sealed batch: its records with head, fates, receipt, certificate and signature, and 49 bytes of the seal."""
MAX_REPLY_BYTES: Final = 24 * 1024
"""What a relay signs of a carried batch: up to 256 sequences, or as many refusals, and its certificate."""
SEALED_ID_BYTES: Final = 16
"""The first bytes of the SHA-256 of a sealed batch, which name it."""
SEALING_KEY_ID_BYTES: Final = 8
"""The first bytes of the SHA-256 of a relay's sealing key, which name it."""

# --- multicast -----------------------------------------------------------------------------------------------------
MAX_DATAGRAM_BYTES: Final = 1_420
"""With UDP and IPv6 it fits the 1,500 bytes of Ethernet and 802.11p: one that is sent in pieces is lost with each."""
MAX_SHARED_FRAME_BYTES: Final = 1_300
"""The largest frame in a datagram: 13 bytes of head, 16 of tag and 78 of signature are left over."""
DATAGRAM_KEY_ID_BYTES: Final = 8
DATAGRAM_SECRET_BYTES: Final = 16
MAX_DATAGRAM_PUBLIC_BYTES: Final = 65
MAX_DATAGRAMS_MISSING: Final = 16
"""Guarded frames that one ``Heard`` asks for again. Whoever missed more gets them all when it says that it is deaf."""
DATAGRAMS_PER_S: Final = 200
MAX_DATAGRAMS_BURST: Final = 400
"""Datagrams of one neighbour that are opened and checked, which takes 70 µs each. Ten positions a second and a burst of
hazards are a tenth of it."""
FORGED_DATAGRAMS_PER_S: Final = 20
MAX_FORGED_DATAGRAMS_BURST: Final = 40
"""Datagrams in the name of one sender, closed by another holder of its key: each costs a check of a signature. Beyond
it the sender is not heard, and its readings come on the link."""
BROKEN_DATAGRAMS_PER_S: Final = 200
MAX_BROKEN_DATAGRAMS_BURST: Final = 400
"""Datagrams from one address that begin with a known key and were not closed with it. Opening one costs 2 µs."""
MAX_DATAGRAM_HOSTS: Final = 256
"""Addresses whose broken datagrams are counted."""
DATAGRAM_REPAIRS_PER_S: Final = 20
MAX_DATAGRAM_REPAIRS_BURST: Final = 64
"""Frames that are sent again to one neighbour, which says that it missed them."""

# --- local applications --------------------------------------------------------------------------------------------
MAX_LOCAL_APPLICATIONS: Final = 16
"""Applications connected at once. Each may hold a queue of ``MAX_QUEUE_BYTES`` and a frame that is being received."""
MAX_LOCAL_SUBSCRIPTIONS: Final = 64
"""Subscriptions of one application, so that one can't use up ``MAX_SUBSCRIPTIONS`` for all."""
MAX_LOCAL_REQUESTS: Final = 32
"""Inferences of one application that are in flight."""
LOCAL_OPEN_TIMEOUT_NS: Final = 3 * SECOND
"""A connection that has not said who it is by then is closed, because it holds a place."""
LOCAL_ANSWER_TIMEOUT_NS: Final = 5 * SECOND
"""An application waits no longer than this for its node's answer, which takes well below a millisecond."""
LOCAL_REDIAL_MIN_NS: Final = 50 * MS
LOCAL_REDIAL_MAX_NS: Final = 1 * SECOND
"""How often an application tries to reconnect to its node: a failed attempt costs a few microseconds."""
MAX_SOCKET_PATH_BYTES: Final = 107
"""Linux gives the path of a Unix socket 108 bytes, including its final NUL."""
