"""One application as its node sees it: it does what frames ask for, and sends back what they get.

Everything runs on the server's thread, except deliveries, events and answers of inferences, which come from any thread.
A ``MeshError`` goes back to the application by name; a malformed frame raises, and the server hangs up.
"""

import asyncio
import logging
import time
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from meshnode.inference.batches import by_name
from meshnode.inference.result import InferenceResult
from meshnode.inference.running import RunningInference
from meshnode.local.outgoing import Outgoing
from meshnode.local.pipe import Pipe
from meshnode.local.rights import Rights
from meshnode.running import DropCount, Host
from protocols.access import DEFAULT_RULES
from protocols.base import limits
from protocols.base.errors import (
    BoundExceeded,
    InferenceError,
    LocalProtocolError,
    MeshError,
    RemoteProtocolError,
    UnknownFrame,
)
from protocols.links.drops import Drops
from protocols.local import (
    LOCAL_MAJOR,
    LOCAL_MINOR,
    MAX_TOLD_ATTEMPTS,
    OWN_POSITION,
    Ask,
    CancelInfer,
    Closing,
    Done,
    Fallen,
    Flush,
    Infer,
    Inferred,
    LocalNodeFrame,
    Locate,
    Missed,
    Open,
    Parcels,
    Refused,
    Subscribe,
    Told,
    Unsubscribe,
    Welcome,
    decode_untrusted_application_frame,
    decode_untrusted_parcel,
    encode_local,
    encode_parcel,
)
from protocols.readings.quality import Quality
from protocols.wire.readings import Reading
from protocols.wire.tensors import NamedTensor, tensor_of

_log = logging.getLogger(__name__)
_TELL_DROPS_NS = 100 * limits.MS
"""How often a slow application is told what it missed, while it is slow."""


@dataclass(frozen=True, slots=True)
class ProcessCredentials:
    """The process and the user at the other end, as the kernel says."""

    pid: int
    uid: int


class _Wanted:
    """A subscription of an application."""

    __slots__ = ("conflate", "fallen", "handle", "number", "told")

    def __init__(self, number: int, conflate: bool) -> None:
        self.number, self.conflate = number, conflate
        self.handle = 0
        self.fallen = self.told = 0


class _Fallen(Drops):
    """Counts drops for the node by key, and for the application by subscription. A queued reading's name has both."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: dict[int, _Wanted] = {}

    def count(self, peer: str, key: str, reason: str, number: int = 1) -> None:
        """``key`` is as :meth:`Application._deliver` made it."""
        subscription, _, stream = key.partition(" ")
        if stream:
            wanted = self.wanted.get(int(subscription))
            if wanted is not None:
                wanted.fallen += number
            key = stream.partition(" ")[2]
        super().count(peer, key, reason, number)


class Application:
    """A connection to :class:`meshnode.local.server.LocalServer`."""

    def __init__(
        self, number: int, pipe: Pipe, who: ProcessCredentials, host: Host, counters: dict[str, int],
        rights: Rights | None = None,
    ) -> None:  # fmt: skip
        """``rights``: None: it may do all that the node may."""
        self.number, self.pipe, self.who, self._rights = number, pipe, who, rights
        self.name = ""
        """Empty until it has opened."""
        self.since_ns = time.monotonic_ns()
        self._host, self._inference, self._counters = host, host.part(RunningInference), counters
        self._drops = _Fallen()
        self.outgoing = Outgoing(f"application {number}", self._drops)
        self._running: dict[int, Future[InferenceResult]] = {}
        self._told_ns = 0
        self._refusals = 0

    def __str__(self) -> str:
        return f"application {self.number} {self.name!r} (pid {self.who.pid}, uid {self.who.uid})"

    # --- life ------------------------------------------------------------------------------------------------------
    def receive(self, data: bytes | bytearray) -> bool:
        """Do what a frame asks for. False: hang up, after sending what is queued.

        :raises RemoteProtocolError: for a malformed frame, or one that may not come now.
        """
        try:
            frame = decode_untrusted_application_frame(data)
        except UnknownFrame:
            self._counters["frames_unknown"] += 1
            return True
        if isinstance(frame, Open):
            return self._open(frame)
        if not self.name:
            raise RemoteProtocolError(f"a {type(frame).__name__} came before Open")
        match frame:
            case Parcels():
                self._publish(frame)
            case Subscribe():
                self._subscribe(frame)
            case Unsubscribe():
                self._unsubscribe(frame.subscription)
            case Infer():
                self._infer(frame)
            case CancelInfer():
                running = self._running.pop(frame.request, None)
                if running is not None:
                    running.cancel()
            case Ask():
                self._tell(frame)
            case Flush():
                self._say(Done(frame.question))
            case Locate():
                self._locate(frame)
            case _:
                assert_never(frame)
        return True

    def _open(self, frame: Open) -> bool:
        if self.name:
            raise RemoteProtocolError("a second Open came on the same connection")
        if frame.major != LOCAL_MAJOR:
            self.farewell(
                Closing(
                    "version", f"the node speaks version {LOCAL_MAJOR}, the application {frame.major}: update the older"
                )
            )
            return False
        self.name = frame.name or "?"
        node = self._host
        rules = node.config.access.rules
        # An application checks only what it publishes, and an older library refuses a verb that it does not know.
        publishing = tuple(rule for rule in (DEFAULT_RULES if rules is None else rules) if rule.verb == "publish")
        if self._rights is not None:
            publishing = self._rights.publish_rules(node.role)
        self._say(
            Welcome(
                LOCAL_MAJOR, LOCAL_MINOR, self.number, node.mesh, node.id, node.role, node.incarnation, publishing
            )
        )  # fmt: skip
        self._counters["opened"] += 1
        _log.info("%s connected", self)
        return True

    def farewell(self, frame: Closing) -> None:
        """Try once to send the reason for hanging up."""
        with self.outgoing.lock:
            self.pipe.try_send(encode_local(frame))

    def end(self) -> None:
        """The connection is gone: end everything that the application asked for."""
        self.outgoing.detach()
        for wanted in list(self._drops.wanted.values()):
            self._unsubscribe(wanted.number)
        for running in list(self._running.values()):
            running.cancel()
        self.outgoing.clear("application_gone")
        if self.name:
            self._counters["closed"] += 1
            _log.info("%s is gone", self)

    def drops(self) -> list[DropCount]:
        """((application, key, reason), count) of what it was too slow for."""
        with self.outgoing.lock:
            return list(self._drops.items())

    # --- readings --------------------------------------------------------------------------------------------------
    def _publish(self, frame: Parcels) -> None:
        node, counters = self._host, self._counters
        for parcel in frame.parcels:
            reading = decode_untrusted_parcel(parcel)
            how = reading.how
            try:
                if self._rights is not None:
                    self._rights.check_publish(reading.key)
                node.publish(
                    reading.key, reading.value, unit=how.unit, sensor=how.sensor,
                    where=reading.where if parcel.label == OWN_POSITION else None, time_ns=reading.when.utc_ns,
                    quality=how.quality, calibration=how.calibration, lineage=how.lineage, priority=reading.priority,
                    lifespan_ms=reading.lifespan_ms, hops=reading.hops,
                )  # fmt: skip
                counters["published"] += 1
            except MeshError as error:
                self._refuse(reading, error)

    def _refuse(self, reading: Reading, error: MeshError) -> None:
        self._count_refusal(error)
        self._say(Refused(reading.key, reading.sequence, type(error).__name__, str(error)[:4_096]), needed=False)

    def _count_refusal(self, error: MeshError) -> None:
        self._counters["refused"] += 1
        self._refusals += 1
        if self._refusals & (self._refusals - 1) == 0:  # 1, 2, 4, 8 …: a broken application can't fill a disk
            _log.warning("%s was refused something: %s (%d times so far)", self, error, self._refusals)

    def _locate(self, frame: Locate) -> None:
        try:
            if self._rights is not None:
                self._rights.check_locate()
            self._host.position = frame.position
        except MeshError as error:  # nobody waits for an answer
            self._count_refusal(error)

    def _subscribe(self, frame: Subscribe) -> None:
        subscriptions = self._drops.wanted
        try:
            if self._rights is not None:
                self._rights.check_subscribe(frame.expression)
            if len(subscriptions) >= limits.MAX_LOCAL_SUBSCRIPTIONS:
                raise BoundExceeded(
                    f"{limits.MAX_LOCAL_SUBSCRIPTIONS} subscriptions of one application are open: close some, or use a "
                    "wider expression"
                )
            if frame.question in subscriptions:
                raise LocalProtocolError(f"a subscription with the number {frame.question} is open: use another")
            quality = Quality(
                deadline_ns=frame.deadline_ms * limits.MS, min_interval_ns=frame.min_interval_us * 1_000,
                conflate=frame.conflate, history=frame.history, hops=frame.hops, own=frame.own,
                every=frame.every,
            )  # fmt: skip
            wanted = _Wanted(frame.question, frame.conflate)
            subscriptions[frame.question] = wanted
            try:
                wanted.handle = self._host.driver.subscribe(frame.expression, quality, partial(self._deliver, wanted))
            except MeshError:
                del subscriptions[frame.question]
                raise
        except MeshError as error:
            self._say(Done(frame.question, type(error).__name__, str(error)))
        else:
            self._say(Done(frame.question))

    def _unsubscribe(self, number: int) -> None:
        wanted = self._drops.wanted.pop(number, None)
        if wanted is not None:
            self._host.driver.unsubscribe(wanted.handle)

    def _deliver(self, wanted: _Wanted, reading: Reading) -> None:
        """Send a reading. Called on any thread, and never waits."""
        left_ms = 0
        if reading.lifespan_ms:
            left_ms = max(1, reading.lifespan_ms - (time.time_ns() - reading.when.utc_ns) // limits.MS)
        name = f"{wanted.number} {reading.origin} {reading.key}"
        parcel = encode_parcel(wanted.number, reading)
        self.outgoing.send_reading(name, parcel, reading.priority, left_ms, wanted.conflate)

    def flush(self) -> None:
        """Send what waits, because the socket takes bytes again."""
        self.outgoing.flush()
        now = time.monotonic_ns()
        if now - self._told_ns >= _TELL_DROPS_NS or not self.outgoing.waiting_readings:
            self._told_ns = now
            for wanted in list(self._drops.wanted.values()):
                if wanted.fallen != wanted.told:
                    wanted.told = wanted.fallen
                    self._say(Fallen(wanted.number, wanted.told), needed=False)

    def missed(self, handle: int, origin: str, key: str) -> bool:
        """Report a missed deadline of the driver's subscription ``handle``; False: it is of another application."""
        for wanted in list(self._drops.wanted.values()):
            if wanted.handle == handle:
                self._say(Missed(wanted.number, origin, key), needed=False)
                return True
        return False

    # --- inference -------------------------------------------------------------------------------------------------
    def _infer(self, frame: Infer) -> None:
        self._counters["inferences"] += 1
        try:
            if self._rights is not None:
                self._rights.check_infer(frame.model)
        except MeshError as error:
            self._count_refusal(error)
            self._say(Inferred(frame.request, type(error).__name__, str(error)[:4_096]))
            return
        if len(self._running) >= limits.MAX_LOCAL_REQUESTS or frame.request in self._running:
            self._say(
                Inferred(
                    frame.request, "BoundExceeded", f"{len(self._running)} inferences of one application are under way"
                )
            )
            return
        how = frame.outputs, frame.deadline_ms, frame.hedge
        if frame.shard is None:
            inputs = {named.name: named.tensor for named in frame.inputs}
            work = self._inference.infer(frame.model, inputs, *how)
        else:
            batch = by_name(frame.inputs)
            work = self._inference.infer_batch(frame.model, batch, *how, frame.shard or None, frame.divided)
        running = asyncio.run_coroutine_threadsafe(work, self._host.loop)
        self._running[frame.request] = running
        running.add_done_callback(partial(self._inferred, frame.request))

    def _inferred(self, request: int, running: "Future[InferenceResult]") -> None:
        self._running.pop(request, None)
        try:
            result = running.result()
            outputs = tuple(NamedTensor(name, tensor_of(array)) for name, array in result.outputs.items())
            attempts = [run for run in result.attempts if not result.parts or run.outcome != "done"]
            frame = encode_local(
                Inferred(
                    request, "", "", outputs, result.ran_on, result.took_ms, result.compute_ms, result.queued_ms,
                    tuple(attempts[:MAX_TOLD_ATTEMPTS]), result.model, result.parts,
                )
            )  # fmt: skip
        except CancelledError:
            return
        except MeshError as error:
            frame = encode_local(Inferred(request, type(error).__name__, str(error)[:4_096]))
        except Exception as error:  # noqa: BLE001 -- whatever a model's answer does, the application gets one
            _log.exception("an inference of %s failed", self)
            frame = encode_local(Inferred(request, InferenceError.__name__, f"the node failed: {error}"[:4_096]))
        self._send(frame, needed=True)

    # --- answers ---------------------------------------------------------------------------------------------------
    def _tell(self, frame: Ask) -> None:
        try:
            if self._rights is not None:
                self._rights.check_question(frame.subject, frame.argument)
            content = self._host.begin_asking(frame.subject, frame.argument)
        except Exception as error:  # noqa: BLE001 -- whatever a part does, the application gets an answer
            self._tell_error(frame, error)
            return
        if isinstance(content, Future):
            content.add_done_callback(partial(self._found_out, frame))
        else:
            self._tell_content(frame, content)

    def _found_out(self, frame: Ask, answer: "Future[Any]") -> None:
        """A question that took long is answered. Called on any thread."""
        error = answer.exception()
        if error is None:
            self._tell_content(frame, answer.result())
        else:
            self._tell_error(frame, error)

    def _tell_content(self, frame: Ask, content: Any) -> None:
        try:
            answer = encode_local(Told(frame.question, content))
        except MeshError as error:
            self._tell_error(frame, error)
        else:
            self._send(answer, needed=True)

    def _tell_error(self, frame: Ask, error: BaseException) -> None:
        if isinstance(error, MeshError):
            answer = Done(frame.question, type(error).__name__, str(error)[:4_096])
        else:
            _log.error("a question of %s about %r failed", self, frame.subject, exc_info=error)
            answer = Done(frame.question, MeshError.__name__, f"the node failed: {error}"[:4_096])
        self._say(answer)

    def _say(self, frame: LocalNodeFrame, needed: bool = True) -> None:
        self._send(encode_local(frame), needed)

    def _send(self, data: bytes, needed: bool) -> None:
        """``needed``: without this frame the application would wait for ever, so hang up if it can't be queued."""
        try:
            self.outgoing.send_control(data)
        except BoundExceeded as error:
            if needed:
                _log.warning("%s does not take its answers, hanging up: %s", self, error)
                self.pipe.shut_down()

    def notify(self, frame: bytes) -> None:
        """Send an event of a neighbour. May be called from any thread."""
        if self.name and self._rights is None:
            self._send(frame, needed=False)
