"""What an error of a step means: wait, try again, find not assessable, or give up. One table."""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from shared.errors import ErrorCode, StepwedgeError
from stepwedge.common.v1.common_pb2 import Reason


class Outcome(Enum):
    """What follows from an error."""

    WAIT = "wait"
    """A dependency is away or not fit for work, which is no fault of the study: no attempt is counted."""
    TRY_AGAIN = "try again"
    """Perhaps a defect of ours that this object brings out: the attempt counts."""
    NOT_ASSESSABLE = "not assessable"
    """The object's own fault, for good: the instance is settled, the study goes on without it."""
    GIVE_UP = "give up"
    """For good, and nobody but a person can mend it."""


_C = ErrorCode

_WAITS: Final = frozenset(
    {
        _C.ERROR_CODE_OVERLOADED,
        _C.ERROR_CODE_DEPENDENCY_UNAVAILABLE,
        _C.ERROR_CODE_AUDIT_UNAVAILABLE,
        _C.ERROR_CODE_STORAGE_FULL,
        # These say that the service or its certificate is set up wrongly: every study would fail alike.
        _C.ERROR_CODE_UNAUTHENTICATED,
        _C.ERROR_CODE_PERMISSION_DENIED,
        _C.ERROR_CODE_DEADLINE_REQUIRED,
        _C.ERROR_CODE_CONFIGURATION,
        _C.ERROR_CODE_MODEL_NOT_FOUND,
        _C.ERROR_CODE_MODEL_DIGEST_MISMATCH,
        _C.ERROR_CODE_MODEL_SELF_TEST_FAILED,
        _C.ERROR_CODE_PROVIDER_UNAVAILABLE,
        _C.ERROR_CODE_LOG_INCONSISTENT,
    }
)

NOT_ASSESSABLE: Final[Mapping[tuple[str, ErrorCode.ValueType], Reason.ValueType]] = {
    ("redact", _C.ERROR_CODE_NOT_REDACTABLE): Reason.REASON_NOT_REDACTABLE,
    ("redact", _C.ERROR_CODE_RESIDUAL_IDENTITY): Reason.REASON_NOT_REDACTABLE,
    ("redact", _C.ERROR_CODE_MALFORMED_DICOM): Reason.REASON_NOT_REDACTABLE,
    ("redact", _C.ERROR_CODE_NOT_DICOM): Reason.REASON_NOT_REDACTABLE,
    ("redact", _C.ERROR_CODE_INVALID_UID): Reason.REASON_NOT_REDACTABLE,
    ("redact", _C.ERROR_CODE_PIXELS_UNDECODABLE): Reason.REASON_PIXELS_UNDECODABLE,
    ("assess", _C.ERROR_CODE_PIXELS_UNDECODABLE): Reason.REASON_PIXELS_UNDECODABLE,
    ("assess", _C.ERROR_CODE_MALFORMED_DICOM): Reason.REASON_PROCESSING_FAILED,
    ("assess", _C.ERROR_CODE_NOT_DICOM): Reason.REASON_PROCESSING_FAILED,
    ("assess", _C.ERROR_CODE_OBJECT_TOO_LARGE): Reason.REASON_PROCESSING_FAILED,
}
"""Step and error -> the reason for which the instance is not assessable."""


def outcome(step: str, error: StepwedgeError) -> Outcome:
    """What follows from `error` at `step` ("redact", "assess", "decide", "deliver")."""
    if error.code in _WAITS and not (step == "deliver" and error.permanent):
        return Outcome.WAIT
    if (step, error.code) in NOT_ASSESSABLE:
        return Outcome.NOT_ASSESSABLE
    return Outcome.GIVE_UP if error.permanent else Outcome.TRY_AGAIN
