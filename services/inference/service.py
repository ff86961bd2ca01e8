# ruff: noqa: N802 - the names of the methods are the contract's
"""The gRPC face of inference: an object by reference in, its assessment out, and between the two its record."""

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from services.inference import meters, rendering
from services.inference.assess import AssessmentResult, Assessor, Pin
from services.inference.registry import CHANNELS
from shared import dicom
from shared.audit import Recorder
from shared.build import software_build
from shared.canonical import canonical_json, decimal
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2, inference_pb2_grpc

MAX_OBJECT_BYTES = 1 << 30
"""Longest object that is taken into memory."""

_TO_ANSWER_SECONDS = 0.5
"""Kept back of a call's deadline, so that its caller learns why there is no answer."""


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """stepwedge.inference.v1.InferenceService.

    Parameters
    ----------
    assessor
        The engine.
    store
        Object store that opened the zone `deidentified` and no other.
    recorder
        This process's hand in the log.
    workers
        Threads in which objects are read, decoded and assessed; as many objects are in memory at once.
    """

    def __init__(self, assessor: Assessor, store: ObjectStore, recorder: Recorder, workers: Executor) -> None:
        self._assessor = assessor
        self._store = store
        self._recorder = recorder
        self._workers = workers

    async def AssessInstance(
        self, request: inference_pb2.AssessInstanceRequest, context: Any
    ) -> inference_pb2.AssessInstanceResponse:
        """Assess one object; answer when the record is in the log."""
        reference = request.object
        _check(reference)
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        instance, assessment = await loop.run_in_executor(self._workers, self._assess, reference)
        meters.DURATION.observe(time.perf_counter() - began)
        index = await self._record(reference.sha256, instance, assessment, context.time_remaining())
        meters.count(assessment.findings)
        return inference_pb2.AssessInstanceResponse(
            assessment=assessment, instance=instance.sop_instance, record_index=index
        )

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: Any
    ) -> inference_pb2.ListModelsResponse:
        """The models that are loaded."""
        model = self._assessor.model
        one = inference_pb2.Model(
            name=model.name,
            version=model.version,
            sha256=model.sha256,
            execution_provider=model.execution_provider,
            structures=CHANNELS.values(),
            self_test_passed=True,  # a model whose test fails is never loaded
        )
        return inference_pb2.ListModelsResponse(models=[one])

    async def RenderObject(
        self, request: inference_pb2.RenderObjectRequest, context: Any
    ) -> inference_pb2.RenderObjectResponse:
        """One frame, or a mask, for a screen."""
        _check(request.object)
        given = (request.HasField("window_center"), request.HasField("window_width"))
        if any(given) and not all(given):
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "a window has both a centre and a width")
        window = rendering.Window(request.window_center, request.window_width) if all(given) else None

        def drawn() -> rendering.Picture:
            data = self._store.get(Zone.DEIDENTIFIED, request.object.sha256)
            return rendering.render(data, frame=request.frame, window=window, longest_side=request.longest_side)

        shown = await asyncio.get_running_loop().run_in_executor(self._workers, drawn)
        return inference_pb2.RenderObjectResponse(
            png=shown.png, rows=shown.rows, columns=shown.columns, frames=shown.frames
        )

    async def _record(
        self, sha256: str, instance: dicom.Uids, assessment: inference_pb2.Assessment, seconds: float | None
    ) -> int:
        """Record the assessment; AUDIT_UNAVAILABLE just before the caller's patience of `seconds` ends."""
        event, pins = _event(assessment), _pins(sha256, assessment)
        try:
            async with asyncio.timeout(None if seconds is None else max(0.0, seconds - _TO_ANSWER_SECONDS)):
                return await self._recorder.record(
                    key=_key(sha256, self._assessor.model.sha256, event, pins),
                    outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
                    event=event,
                    study=instance.study,
                    series=instance.series,
                    instance=instance.sop_instance,
                    pins=pins,
                )
        except TimeoutError:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "the audit log did not take the record in time"
            ) from None

    def _assess(self, reference: common_pb2.ObjectReference) -> tuple[dicom.Uids, inference_pb2.Assessment]:
        """The blocking part: read, assess, store the masks."""
        data = self._store.get(Zone.DEIDENTIFIED, reference.sha256)
        if reference.size_bytes not in (0, len(data)):
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the object has another length than was said")
        dataset: Dataset = dicom.read(data)
        instance = dicom.uids(dataset)
        result = self._assessor.assess_dataset(dataset)
        return instance, self._message(result)

    def _message(self, result: AssessmentResult) -> inference_pb2.Assessment:
        message = inference_pb2.Assessment(
            findings=result.findings,
            measurements=result.measurements,
            masks=[self._stored(channel, mask) for channel, mask in result.masks.items()],
            rows=result.rows,
            columns=result.columns,
        )
        if result.facts is not None:
            message.facts.CopyFrom(result.facts)
        if result.confidence is not None:
            message.confidence = round(result.confidence, 6)
        if result.pin is not None:
            message.model.CopyFrom(_model_pin(result.pin))
        return message

    def _stored(self, channel: str, mask: NDArray[np.uint8]) -> inference_pb2.Mask:
        stored = self._store.put(Zone.DEIDENTIFIED, png(mask))
        reference = common_pb2.ObjectReference(
            zone=common_pb2.ZONE_DEIDENTIFIED, sha256=stored.sha256, size_bytes=stored.size
        )
        return inference_pb2.Mask(structure=CHANNELS[channel], png=reference)


def png(mask: NDArray[np.uint8]) -> bytes:
    """A mask uint8 [rows, columns] as a PNG, 8-bit grey."""
    whole, data = cv2.imencode(".png", mask)
    if not whole:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "a mask could not be encoded")
    return bytes(data)


def _check(reference: common_pb2.ObjectReference) -> None:
    if reference.zone == common_pb2.ZONE_ORIGINAL:
        raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, "inference reads de-identified objects only")
    if reference.zone != common_pb2.ZONE_DEIDENTIFIED:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the reference names no zone")
    if reference.size_bytes > MAX_OBJECT_BYTES:
        raise StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE, "the object is larger than 1 GiB")


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


def _pins(sha256: str, assessment: inference_pb2.Assessment) -> audit_pb2.Pins:
    pins = audit_pb2.Pins(deidentified_sha256=sha256, software_build=software_build())
    if assessment.HasField("model"):
        model = assessment.model
        pins.MergeFrom(
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
    return pins


def _event(assessment: inference_pb2.Assessment) -> audit_pb2.AssessedEvent:
    return audit_pb2.AssessedEvent(
        findings=[audit_pb2.RecordedFinding(code=one.code, outcome=one.outcome) for one in assessment.findings],
        measurements=[
            audit_pb2.RecordedValue(name=one.name, value=decimal(one.value), unit=one.unit)
            for one in assessment.measurements
        ],
        confidence=decimal(assessment.confidence) if assessment.HasField("confidence") else "",
    )


def _key(sha256: str, model_sha256: str, event: audit_pb2.AssessedEvent, pins: audit_pb2.Pins) -> str:
    """The idempotency key: object, model, and a digest of what was found and with what.

    The same answer again is the same record. Another build, or another class of processor, may find otherwise: that is
    another act, not a conflict with the first.
    """
    content: Mapping[str, Iterable[str]] = {
        "event": [f"{one.code}={one.outcome}" for one in event.findings]
        + [f"{one.name}={one.value}{one.unit}" for one in event.measurements]
        + [event.confidence],
        "pins": [f"{field.name}={value}" for field, value in pins.ListFields()],
    }
    digest = hashlib.sha256(canonical_json({name: list(lines) for name, lines in content.items()})).hexdigest()
    return f"assessed/{sha256}/{model_sha256}/{digest[:32]}"
