"""What a node and a worker process tell each other. Tensors lie in shared memory; messages say where.

Messages are datagrams on a pair of Unix sockets (``SOCK_SEQPACKET``), so that one ``recv`` gives one message, and none
is half read when the other side dies. There is a socket of the process that starts the workers, a control socket for
each of these, and a socket for each *slot*. A slot
carries one run after the other; runs that go on at the same time use slots of their own.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from protocols.inference.signature import TensorSignature

MAX_MESSAGE_BYTES: Final = 128 * 1024
"""Smaller than what the kernel's default buffer of a socket takes. A run of 32 inputs and 32 outputs with names of 200
characters takes 16 kB."""

PIPE_NUMBER: Final = struct.Struct("=i")
"""What the pipe of a worker carries: its process id, or minus the error number for which there is none; and later its
status as ``subprocess`` tells it, where signals are negative."""


class PlacedTensor(Struct, frozen=True, array_like=True):
    """A tensor in the segment of a slot."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the segment."""


# --- to the fork server, from the node -------------------------------------------------------------------------------
class StartOrder(Struct, frozen=True, array_like=True, tag="start"):
    """Start a worker. Its control socket and the pipe on which its process id and its status are told come along."""

    number: int
    idle: bool
    """Whether it gets only the processor time that nobody else wants."""


class KillOrder(Struct, frozen=True, array_like=True, tag="kill"):
    """Kill the worker of that number, if it has not ended."""

    number: int


# --- control socket, from the node -----------------------------------------------------------------------------------
class LoadOrder(Struct, frozen=True, array_like=True, tag="load"):
    """Load the model. It is the first message, and comes once."""

    name: str
    path: str
    threads: int
    optimisation: str
    warm_up: Mapping[str, tuple[int, ...]]
    digest: str | None
    providers: tuple[str, ...]
    limit_bytes: int | None
    """The memory that the model may take beyond what an empty worker takes; None: by the size of its files."""


class SlotOrder(Struct, frozen=True, array_like=True, tag="slot"):
    """Serve a further slot. Its socket comes along with the message."""

    slot: int


class CancelOrder(Struct, frozen=True, array_like=True, tag="cancel"):
    """End a run, or don't start it. It may come before the run's order does, and after the run's end."""

    slot: int
    run: int


class CedeOrder(Struct, frozen=True, array_like=True, tag="cede"):
    """Of runs that follow one another, begin no further one. It may come when and as often as a cancel order may."""

    slot: int
    run: int


# --- control socket, from the worker ---------------------------------------------------------------------------------
class LoadedReply(Struct, frozen=True, array_like=True, tag="loaded"):
    """The model is ready."""

    digest: str
    inputs: tuple[TensorSignature, ...]
    """The tensors that the file takes, as its manifest narrows them."""
    outputs: tuple[TensorSignature, ...]
    results: bytes
    """What its manifest says that changes results (:meth:`Manifest.results`). The node reads the manifest itself."""
    left_out: dict[str, str]
    notes: tuple[str, ...]


class RefusedReply(Struct, frozen=True, array_like=True, tag="refused"):
    """The model can't be loaded; the process ends."""

    why: str


# --- slot, from the node ---------------------------------------------------------------------------------------------
class RunOrder(Struct, frozen=True, array_like=True, tag="run"):
    """Compute once, or several times, one after the other. A new segment comes along when the slot has none that is
    large enough."""

    run: int
    """Orders of a slot have growing numbers."""
    runs: int
    """How many runs there are."""
    inputs: tuple[PlacedTensor, ...]
    """Those of the first run, then as many of the second one, and so on."""
    outputs: tuple[str, ...]
    used_bytes: int
    """Where the inputs end: outputs go behind them."""


class RoomOrder(Struct, frozen=True, array_like=True, tag="room"):
    """A larger segment comes along: put the outputs at its start."""


# --- slot, from the worker -------------------------------------------------------------------------------------------
class RunReply(Struct, frozen=True, array_like=True, tag="done"):
    """The outputs, in the order in which they were asked for: those of the first run, then those of the second one."""

    outputs: tuple[PlacedTensor, ...]
    compute_ns: int
    """How long the model computed, in all runs. A run that waits for a processor does not, and threads that compute
    side by side count once."""


class RoomReply(Struct, frozen=True, array_like=True, tag="needs_room"):
    """The run has ended, and its outputs don't fit: the slot waits for a :class:`RoomOrder`."""

    size_bytes: int


class FailureReply(Struct, frozen=True, array_like=True, tag="failed"):
    """The run has no result."""

    kind: str
    """``invalid``: the model refused its inputs; ``memory``: it wanted more than its limit; ``failed``."""
    why: str


ServerOrder = StartOrder | KillOrder
ControlOrder = LoadOrder | SlotOrder | CancelOrder | CedeOrder
ControlReply = LoadedReply | RefusedReply
SlotCommand = RunOrder | RoomOrder
SlotReply = RunReply | RoomReply | FailureReply

encode: Final = Encoder().encode
decode_server_order: Final[Callable[[bytes], ServerOrder]] = Decoder(ServerOrder).decode
decode_control_order: Final[Callable[[bytes], ControlOrder]] = Decoder(ControlOrder).decode
decode_control_reply: Final[Callable[[bytes], ControlReply]] = Decoder(ControlReply).decode
decode_slot_order: Final[Callable[[bytes], SlotCommand]] = Decoder(SlotCommand).decode
decode_slot_reply: Final[Callable[[bytes], SlotReply]] = Decoder(SlotReply).decode
