# ruff: noqa: N802 - the names of the methods are the contract's
"""The gRPC face of inference: an object by reference in, its assessment out, and between the two its record."""

import asyncio
import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from pydicom.dataset import Dataset

from services.inference import bilevel, meters, recording, releases, rendering
from services.inference.assess import AssessmentResult, Assessor
from services.inference.registry import CHANNELS, Model
from services.inference.shadow import Shadow
from shared import dicom
from shared.audit import Recorder
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import caller
from shared.model_signatures import DEVELOPMENT_SIGNERS
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
    signers
        Public keys trusted in each role of a release.
    beside
        Models that are served over the Open Inference Protocol only.
    shadow
        Where a candidate looks at what was answered.
    """

    def __init__(
        self,
        assessor: Assessor,
        store: ObjectStore,
        recorder: Recorder,
        workers: Executor,
        *,
        signers: Mapping[str, Collection[str]] = DEVELOPMENT_SIGNERS,
        beside: Sequence[Model] = (),
        shadow: Shadow | None = None,
    ) -> None:
        self._signers = signers
        self._beside = beside
        self._shadow = shadow
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
        instance, result, assessment, pictures = await loop.run_in_executor(self._workers, self._assess, reference)
        # Outside the workers: a disk that makes them durable keeps no image waiting.
        assessment.masks.extend(await asyncio.to_thread(self._stored, pictures))
        meters.DURATION.observe(time.perf_counter() - began)
        index = await self._record(reference.sha256, instance, assessment, context.time_remaining())
        meters.count(assessment.findings)
        if self._shadow is not None:
            self._shadow.offer(reference.sha256, index, instance, result)
        return inference_pb2.AssessInstanceResponse(
            assessment=assessment, instance=instance.sop_instance, record_index=index
        )

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: Any
    ) -> inference_pb2.ListModelsResponse:
        """The models that are loaded."""
        shadow = [(self._shadow.model, "shadow")] if self._shadow else []
        found = [(self._assessor.model, "served"), *((one, "beside") for one in self._beside), *shadow]
        models = [
            inference_pb2.Model(
                name=model.name,
                version=model.version,
                sha256=model.sha256,
                execution_provider=model.execution_provider,
                structures=CHANNELS.values(),
                self_test_passed=True,  # a model whose test fails is never loaded
                role=role,
                release_sha256=model.release_sha256,
                subgroups=[inference_pb2.Subgroup(**vars(one)) for one in model.subgroups],
            )
            for model, role in found
        ]
        return inference_pb2.ListModelsResponse(models=sorted(models, key=lambda one: (one.name, one.version)))

    async def RecordRelease(
        self, request: inference_pb2.RecordReleaseRequest, context: Any
    ) -> inference_pb2.RecordReleaseResponse:
        """Record that two people released a model; the same release again is the same record."""
        event, pins = releases.released(request.manifest, request.signatures, self._signers, caller().value)
        key = f"model_released/{event.release_sha256}/{_commitment(event)}"
        index = await self._recorder.record(key=key, outcome=audit_pb2.EVENT_OUTCOME_SUCCESS, event=event, pins=pins)
        return inference_pb2.RecordReleaseResponse(
            record_index=index, model=pins.model, release_sha256=event.release_sha256
        )

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
        event, pins = recording.assessed(assessment), recording.pins(sha256, assessment)
        try:
            async with asyncio.timeout(None if seconds is None else max(0.0, seconds - _TO_ANSWER_SECONDS)):
                return await self._recorder.record(
                    key=recording.key("assessed", sha256, self._assessor.model.sha256, event, pins),
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

    def _assess(
        self, reference: common_pb2.ObjectReference
    ) -> tuple[dicom.Uids, AssessmentResult, inference_pb2.Assessment, dict[str, bytes]]:
        """The part that computes: read, assess, and make a picture of each channel's mask."""
        dataset = self._read(reference)
        instance = dicom.uids(dataset)
        result = self._assessor.assess_dataset(dataset)
        pictures = {channel: bilevel.png(bits, result.columns) for channel, bits in result.bits.items()}
        return instance, result, recording.message(result), pictures

    def _read(self, reference: common_pb2.ObjectReference) -> Dataset:
        """The data set of an object; its file is in memory no longer than this."""
        data = self._store.get(Zone.DEIDENTIFIED, reference.sha256)
        if reference.size_bytes not in (0, len(data)):
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the object has another length than was said")
        return dicom.read(data)

    def _stored(self, pictures: Mapping[str, bytes]) -> list[inference_pb2.Mask]:
        masks = []
        for channel, picture in pictures.items():
            stored = self._store.put(Zone.DEIDENTIFIED, picture)
            reference = common_pb2.ObjectReference(
                zone=common_pb2.ZONE_DEIDENTIFIED, sha256=stored.sha256, size_bytes=stored.size
            )
            masks.append(inference_pb2.Mask(structure=CHANNELS[channel], png=reference))
        return masks


def _commitment(event: audit_pb2.ModelReleasedEvent) -> str:
    """Of who signed and who asked: another signature, or another who asks, is another act."""
    return hashlib.sha256(event.SerializeToString(deterministic=True)).hexdigest()[:32]


def _check(reference: common_pb2.ObjectReference) -> None:
    if reference.zone == common_pb2.ZONE_ORIGINAL:
        raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, "inference reads de-identified objects only")
    if reference.zone != common_pb2.ZONE_DEIDENTIFIED:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the reference names no zone")
    if reference.size_bytes > MAX_OBJECT_BYTES:
        raise StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE, "the object is larger than 1 GiB")
