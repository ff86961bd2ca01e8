"""The one exception of the product: a code of the contracts and words that never hold identity."""

from typing import NamedTuple

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from stepwedge.common.v1.common_pb2 import ErrorCode

__all__ = ["DOMAIN", "MEANING", "ErrorCode", "StepwedgeError", "from_rpc", "to_status"]

DOMAIN = "stepwedge"
"""`domain` of the google.rpc.ErrorInfo that carries our codes."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries a google.rpc.Status."""

_PREFIX = "ERROR_CODE_"


class _Class(NamedTuple):
    """How an error travels over gRPC, and whether trying again is useless."""

    status: grpc.StatusCode
    permanent: bool


_S = grpc.StatusCode
_CLASSES: dict[ErrorCode.ValueType, _Class] = {
    ErrorCode.ERROR_CODE_UNSPECIFIED: _Class(_S.UNKNOWN, True),
    ErrorCode.ERROR_CODE_INTERNAL: _Class(_S.INTERNAL, False),
    ErrorCode.ERROR_CODE_INVALID_REQUEST: _Class(_S.INVALID_ARGUMENT, True),
    ErrorCode.ERROR_CODE_UNAUTHENTICATED: _Class(_S.UNAUTHENTICATED, True),
    ErrorCode.ERROR_CODE_PERMISSION_DENIED: _Class(_S.PERMISSION_DENIED, True),
    ErrorCode.ERROR_CODE_DEADLINE_REQUIRED: _Class(_S.INVALID_ARGUMENT, True),
    ErrorCode.ERROR_CODE_OVERLOADED: _Class(_S.RESOURCE_EXHAUSTED, False),
    ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE: _Class(_S.UNAVAILABLE, False),
    ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE: _Class(_S.UNAVAILABLE, False),
    ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND: _Class(_S.NOT_FOUND, True),
    ErrorCode.ERROR_CODE_OBJECT_CORRUPT: _Class(_S.DATA_LOSS, True),
    ErrorCode.ERROR_CODE_STORAGE_FULL: _Class(_S.RESOURCE_EXHAUSTED, False),
    ErrorCode.ERROR_CODE_NOT_DICOM: _Class(_S.INVALID_ARGUMENT, True),
    ErrorCode.ERROR_CODE_MALFORMED_DICOM: _Class(_S.INVALID_ARGUMENT, True),
    ErrorCode.ERROR_CODE_INVALID_UID: _Class(_S.INVALID_ARGUMENT, True),
    ErrorCode.ERROR_CODE_SOP_CLASS_MISMATCH: _Class(_S.INVALID_ARGUMENT, True),
    ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE: _Class(_S.INVALID_ARGUMENT, True),
    ErrorCode.ERROR_CODE_INSTANCE_CONFLICT: _Class(_S.ALREADY_EXISTS, True),
    ErrorCode.ERROR_CODE_NOT_REDACTABLE: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_RESIDUAL_IDENTITY: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_MODEL_NOT_FOUND: _Class(_S.NOT_FOUND, True),
    ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_PROVIDER_UNAVAILABLE: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_STUDY_NOT_FOUND: _Class(_S.NOT_FOUND, True),
    ErrorCode.ERROR_CODE_WRONG_STATE: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_IDEMPOTENCY_CONFLICT: _Class(_S.ALREADY_EXISTS, True),
    ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND: _Class(_S.NOT_FOUND, True),
    ErrorCode.ERROR_CODE_LOG_INCONSISTENT: _Class(_S.DATA_LOSS, True),
    ErrorCode.ERROR_CODE_CONFIGURATION: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_FILE: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_LEGAL_HOLD: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_RETAINED: _Class(_S.FAILED_PRECONDITION, True),
    ErrorCode.ERROR_CODE_RESULT_INVALID: _Class(_S.INTERNAL, True),
}

MEANING: dict[ErrorCode.ValueType, str] = {
    ErrorCode.ERROR_CODE_UNSPECIFIED: "no error was named",
    ErrorCode.ERROR_CODE_INTERNAL: "a defect of ours; the service's log says where",
    ErrorCode.ERROR_CODE_INVALID_REQUEST: "the request lacks a field or holds one out of range",
    ErrorCode.ERROR_CODE_UNAUTHENTICATED: "the certificate that was shown names nobody of this cluster",
    ErrorCode.ERROR_CODE_PERMISSION_DENIED: "the identity of the caller may not do this",
    ErrorCode.ERROR_CODE_DEADLINE_REQUIRED: "the call had no deadline",
    ErrorCode.ERROR_CODE_OVERLOADED: "the service has as much work as it takes at once",
    ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE: "a service, store or destination that is needed does not answer",
    ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE: "the audit log did not take the record, so the step does not count as done",
    ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND: "an object that was stored is no longer in the object store",
    ErrorCode.ERROR_CODE_OBJECT_CORRUPT: "the stored bytes of an object are not those that were stored",
    ErrorCode.ERROR_CODE_STORAGE_FULL: "the object store is full or nearly so",
    ErrorCode.ERROR_CODE_NOT_DICOM: "the bytes are not a DICOM object",
    ErrorCode.ERROR_CODE_MALFORMED_DICOM: "the object ends too early or holds wrong lengths",
    ErrorCode.ERROR_CODE_INVALID_UID: "a UID is absent, too long, or holds other than digits and full stops",
    ErrorCode.ERROR_CODE_SOP_CLASS_MISMATCH: "the object is of another SOP class than was said, or its content is",
    ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE: "the object is larger than this site takes",
    ErrorCode.ERROR_CODE_INSTANCE_CONFLICT: "the SOP Instance UID is known with other content",
    ErrorCode.ERROR_CODE_NOT_REDACTABLE: "redaction cannot clean an object of this kind",
    ErrorCode.ERROR_CODE_RESIDUAL_IDENTITY: "identity was found after redaction, so the object went no further",
    ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE: "the pixel data does not decode",
    ErrorCode.ERROR_CODE_MODEL_NOT_FOUND: "the model that was asked for is not served",
    ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH: "a file of the model is not the one that was released",
    ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED: "the model answers its self-test otherwise than when it was released",
    ErrorCode.ERROR_CODE_PROVIDER_UNAVAILABLE: "the execution provider of the settings is not on this machine",
    ErrorCode.ERROR_CODE_STUDY_NOT_FOUND: "no such study was received",
    ErrorCode.ERROR_CODE_WRONG_STATE: "the study is not in a state that allows this",
    ErrorCode.ERROR_CODE_IDEMPOTENCY_CONFLICT: "the log has another record under the key of this one",
    ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND: "the log has no such entry",
    ErrorCode.ERROR_CODE_LOG_INCONSISTENT: "what the log holds contradicts what it signed; it refuses to go on",
    ErrorCode.ERROR_CODE_CONFIGURATION: "a setting is missing, wrong, or not allowed",
    ErrorCode.ERROR_CODE_FILE: "a file or folder cannot be read or written",
    ErrorCode.ERROR_CODE_LEGAL_HOLD: "a legal hold keeps what was to be erased or removed",
    ErrorCode.ERROR_CODE_RETAINED: "what was to be removed must still be kept",
    ErrorCode.ERROR_CODE_RESULT_INVALID: "a result that was made failed a check, so it was not sent",
}
"""Each code in plain words, to stand behind a colon."""

# What a status means that did not come from a service of ours (the transport, the core, a proxy).
_FOREIGN: dict[grpc.StatusCode, ErrorCode.ValueType] = {
    _S.UNAVAILABLE: ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE,
    _S.DEADLINE_EXCEEDED: ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE,
    _S.CANCELLED: ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE,
    _S.ABORTED: ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE,
    _S.RESOURCE_EXHAUSTED: ErrorCode.ERROR_CODE_OVERLOADED,
    _S.UNAUTHENTICATED: ErrorCode.ERROR_CODE_UNAUTHENTICATED,
    _S.PERMISSION_DENIED: ErrorCode.ERROR_CODE_PERMISSION_DENIED,
    _S.INVALID_ARGUMENT: ErrorCode.ERROR_CODE_INVALID_REQUEST,
    _S.OUT_OF_RANGE: ErrorCode.ERROR_CODE_INVALID_REQUEST,
    _S.UNIMPLEMENTED: ErrorCode.ERROR_CODE_INVALID_REQUEST,
}

# How the core words it that a message is over the limit, with the status of a server that is full: the one is for ever,
# the other for now.
_TOO_LONG = "message larger than max"

_BY_NAME: dict[str, ErrorCode.ValueType] = {
    name.removeprefix(_PREFIX): number for name, number in ErrorCode.items() if number
}


class StepwedgeError(Exception):
    """A failure with a code of the contracts.

    Parameters
    ----------
    code
        Which error; a member of `ErrorCode`.
    message
        One sentence for a person. Never holds identity, nor any value read from an object.
    permanent
        Whether trying again is useless; by default what the code's class says.
    """

    def __init__(self, code: ErrorCode.ValueType, message: str, *, permanent: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.permanent = _CLASSES[code].permanent if permanent is None else permanent

    @property
    def name(self) -> str:
        """The code in words, without the prefix of the enum: "NOT_DICOM"."""
        return str(ErrorCode.Name(self.code)).removeprefix(_PREFIX)

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        # Work is done in child processes, and an exception of theirs travels back by pickle.
        return (_rebuild, (int(self.code), self.message, self.permanent))


def _rebuild(code: ErrorCode.ValueType, message: str, permanent: bool) -> StepwedgeError:
    return StepwedgeError(code, message, permanent=permanent)


def to_status(error: StepwedgeError) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """Return the gRPC status of `error` and the google.rpc.Status that carries its code as an ErrorInfo."""
    info = error_details_pb2.ErrorInfo(
        reason=error.name, domain=DOMAIN, metadata={"permanent": "true" if error.permanent else "false"}
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    status = _CLASSES[error.code].status
    number: int = status.value[0]
    return status, status_pb2.Status(code=number, message=error.message, details=[detail])


def from_rpc(exc: grpc.RpcError) -> StepwedgeError:
    """Return the error that a call failed with.

    One of ours comes back as it was raised; any other status is mapped by its class, without the text of the
    transport, which we did not write.
    """
    status = exc.code() if callable(getattr(exc, "code", None)) else _S.UNKNOWN
    for key, value in _trailing(exc):
        if key == DETAILS_KEY:
            ours = _decode(value)
            if ours is not None:
                return ours
    if status is _S.RESOURCE_EXHAUSTED and _TOO_LONG in _details(exc):
        return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "a message is longer than the transport takes")
    code = _FOREIGN.get(status, ErrorCode.ERROR_CODE_INTERNAL)
    return StepwedgeError(code, f"the call ended with {status.name}")


def _details(exc: grpc.RpcError) -> str:
    details = getattr(exc, "details", None)
    return str(details() or "") if callable(details) else ""


def _trailing(exc: grpc.RpcError) -> list[tuple[str, bytes]]:
    trailing = getattr(exc, "trailing_metadata", None)
    return list(trailing() or ()) if callable(trailing) else []


def _decode(value: bytes) -> StepwedgeError | None:
    """Return the error in a serialized google.rpc.Status; None where it holds none of ours."""
    try:
        rich = status_pb2.Status.FromString(value)
    except Exception:  # noqa: BLE001 - a peer's malformed trailer must not hide that the call failed
        return None
    for detail in rich.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            code = _BY_NAME.get(info.reason, ErrorCode.ERROR_CODE_INTERNAL)
            return StepwedgeError(code, rich.message, permanent=info.metadata.get("permanent") == "true")
    return None
