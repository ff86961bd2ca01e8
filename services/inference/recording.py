"""What the log is told of an assessment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from services.inference.assess import AssessmentResult, Pin
from shared.build import software_build
from shared.canonical import canonical_json, decimal
from stepwedge.audit.v1 import audit_pb2
from stepwedge.inference.v1 import inference_pb2


def message(result: AssessmentResult) -> inference_pb2.Assessment:
    """A result as it is answered, without its masks, which must be stored first."""
    told = inference_pb2.Assessment(
        findings=result.findings,
        measurements=result.measurements,
        rows=result.rows,
        columns=result.columns,
        facts=result.facts,
        rungs=[
            inference_pb2.Rung(
                form=one.form,
                model_sha256=one.model_sha256,
                output_sha256=one.output_sha256,
                confidence=round(one.confidence, 6),
                used=one.used,
            )
            for one in result.rungs
        ],
    )
    if result.confidence is not None:
        told.confidence = round(result.confidence, 6)
    if result.pin is not None:
        told.model.CopyFrom(_model_pin(result.pin))
    return told


def _model_pin(pin: Pin) -> inference_pb2.ModelPin:
    return inference_pb2.ModelPin(
        name=pin.name,
        version=pin.version,
        sha256=pin.sha256,
        preprocessing=pin.preprocessing,
        preprocessed_sha256=pin.preprocessed_sha256,
        execution_provider=pin.execution_provider,
        output_sha256=pin.output_sha256,
        calibration_sha256=pin.calibration_sha256,
    )


def pins(sha256: str, assessment: inference_pb2.Assessment) -> audit_pb2.Pins:
    """What the assessment of the object with this digest was bound to."""
    found = audit_pb2.Pins(deidentified_sha256=sha256, software_build=software_build())
    if assessment.HasField("model"):
        model = assessment.model
        found.MergeFrom(
            audit_pb2.Pins(
                model_sha256=model.sha256,
                model=f"{model.name}/{model.version}",
                preprocessing=model.preprocessing,
                preprocessed_sha256=model.preprocessed_sha256,
                calibration_sha256=model.calibration_sha256,
                execution_provider=model.execution_provider,
                output_sha256=model.output_sha256,
            )
        )
    return found


def assessed(assessment: inference_pb2.Assessment) -> audit_pb2.AssessedEvent:
    """The event of an assessment."""
    return audit_pb2.AssessedEvent(
        findings=[audit_pb2.RecordedFinding(code=one.code, outcome=one.outcome) for one in assessment.findings],
        measurements=[
            audit_pb2.RecordedValue(name=one.name, value=decimal(one.value), unit=one.unit)
            for one in assessment.measurements
        ],
        confidence=decimal(assessment.confidence) if assessment.HasField("confidence") else "",
        rungs=[
            audit_pb2.AssessedRung(
                form=one.form,
                model_sha256=one.model_sha256,
                output_sha256=one.output_sha256,
                confidence=decimal(one.confidence),
                used=one.used,
            )
            for one in assessment.rungs
        ],
    )


def key(
    act: str,
    sha256: str,
    model_sha256: str,
    event: audit_pb2.AssessedEvent | audit_pb2.ShadowedEvent,
    pins: audit_pb2.Pins,
) -> str:
    """The idempotency key: act, object, model, and a digest of what was found and with what.

    The same answer again is the same record. Another build, or another class of processor, may find otherwise: that is
    another act, not a conflict with the first.
    """
    content: Mapping[str, Iterable[str]] = {
        "event": [f"{one.code}={one.outcome}" for one in event.findings]
        + [f"{one.name}={one.value}{one.unit}" for one in event.measurements]
        + [event.confidence],
        "pins": [f"{field.name}={value}" for field, value in pins.ListFields()],
    }
    if isinstance(event, audit_pb2.ShadowedEvent):
        content = {**content, "beside": [str(event.assessed_index)]}
    digest = hashlib.sha256(canonical_json({name: list(lines) for name, lines in content.items()})).hexdigest()
    return f"{act}/{sha256}/{model_sha256}/{digest[:32]}"
