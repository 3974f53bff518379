"""The error tree.

    MeshError
    ├── LocalProtocolError        our side asked for something that can't be done
    │   ├── InvalidName           a node id, mesh name or identity of the wrong form
    │   ├── InvalidKey            a key or key expression of the wrong form
    │   ├── ContextMissing        a reading without where, when or how
    │   ├── ValueUnsupported      a value that the wire can't carry, or that is too large
    │   ├── NotPermitted          the access table denies it
    │   └── BoundExceeded         one of ``protocols.base.limits`` was reached
    ├── RemoteProtocolError       the other side sent something that is not valid
    │   ├── UnknownFrame          a frame type of a newer minor version: counted and skipped
    │   ├── MetadataInvalid       metadata of releases that is forged, old, mixed or expired
    │   └── ReceiptWrong          a receipt that is not that of its records, or not of their node
    ├── TransportError            a link or a listener failed, or its credentials did
    ├── ConfigError               a configuration is wrong; names file, key and value
    │   └── SourceUnavailable     what it names can't be used now: a file, a folder, a device
    ├── IdentityError             a certificate, a key or an authority can't be used
    │   └── ClockImplausible      it can't be used at the time that the clock shows; later it may be
    ├── InferenceError            a request for inference was not answered
    │   ├── ModelUnknown          no node within reach has that model
    │   ├── ModelInvalid          the model file can't be loaded
    │   ├── InputInvalid          inputs of the wrong name, type or shape
    │   ├── BudgetExhausted       no answer within the deadline
    │   └── NeighbourFailed       neighbours alone could compute it, and none of them did
    ├── ReleaseInvalid            what is to be released is not fit for it, or the repository of releases is not
    └── StorageError              the outbox or the store can't take a record (a full disk, say)

Every message says what happened, with which value, and what to do.
"""


class MeshError(Exception):
    """The root of the tree: catching it catches every error that this project raises on purpose."""


class LocalProtocolError(MeshError):
    """Our side asked for something that can't be done; nothing was sent."""


class InvalidName(LocalProtocolError):
    """A node id, mesh name or identity of the wrong form."""


class InvalidKey(LocalProtocolError):
    """A key or a key expression of the wrong form."""


class ContextMissing(LocalProtocolError):
    """A reading without where, when or how."""


class ValueUnsupported(LocalProtocolError):
    """A value that the wire can't carry, or that is too large for it."""


class NotPermitted(LocalProtocolError):
    """The access table denies the operation."""


class BoundExceeded(LocalProtocolError):
    """One of the bounds in ``protocols.base.limits`` was reached."""


class RemoteProtocolError(MeshError):
    """The other side sent something that is not valid. Parsing untrusted bytes raises no other error."""


class UnknownFrame(RemoteProtocolError):
    """A frame type that this version does not know."""

    def __init__(self, frame_type: int) -> None:
        super().__init__(f"unknown frame type {frame_type}: sent by a newer version, skipped")
        self.frame_type = frame_type


class ReceiptWrong(RemoteProtocolError):
    """A receipt, or what is to prove a record by it, that must not be believed."""

    def __init__(self, step: str, message: str | None = None) -> None:
        """``step``: the check that failed: ``form``, ``receipt``, ``certificate``, ``signature``, ``path`` or
        ``record``. Without ``message`` it is the whole text, as when an error comes to an application by its name."""
        super().__init__(step if message is None else message)
        self.step = step


class MetadataInvalid(RemoteProtocolError):
    """Metadata of releases that must not be taken."""

    def __init__(self, attack: str, message: str | None = None) -> None:
        """``attack``: what it would have done, as TUF calls it, or the fault: ``arbitrary software``, ``wrong keys``,
        ``tampered``, ``rollback``, ``freeze``, ``fast-forward``, ``endless data``, ``extraneous data``,
        ``mix-and-match``, ``withheld``, ``malformed`` or ``clock``. Without ``message`` it is the whole text, as
        another process tells it."""
        super().__init__(attack if message is None else f"{attack}: {message}")
        self.attack = attack if message is not None else attack.partition(":")[0]


class TransportError(MeshError):
    """A link or a listener failed, or its credentials did."""


class ConfigError(MeshError):
    """A configuration is wrong; the message names file, key and value."""


class SourceUnavailable(ConfigError):
    """The configuration may be right, and what it names can't be used now: a file, a folder, a device. Trying again
    later may help."""


class IdentityError(MeshError):
    """A certificate, a key or an authority can't be used."""


class ClockImplausible(IdentityError):
    """A certificate or an authority can't be used at the time that the clock shows, and nothing else is wrong with
    it."""

    def __init__(self, message: str, fault: str = "") -> None:
        """``fault``: the same without what the clock shows, so that it changes only when the fault does."""
        super().__init__(message)
        self.fault = fault or message


class InferenceError(MeshError):
    """A request for inference was not answered."""


class ModelUnknown(InferenceError):
    """Neither this node nor a neighbour within reach has that model."""


class ModelInvalid(InferenceError):
    """The model file can't be loaded."""


class InputInvalid(InferenceError):
    """Inputs of the wrong name, type or shape."""


class BudgetExhausted(InferenceError):
    """No answer within the deadline."""


class NeighbourFailed(InferenceError):
    """Neighbours alone could compute it, and none of them did. Nothing is wrong with this node."""


class ReleaseInvalid(MeshError):
    """A release, an order or a change of keys that can't be published as it is."""


class StorageError(MeshError):
    """The outbox or the store can't take a record."""
