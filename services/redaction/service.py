"""The gRPC face of redaction: one object by reference, its record in the log, then the answer."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import grpc

from services.redaction.pool import Done, Pool
from services.redaction.receipt import Receipt, areas
from shared import objects
from shared.audit import Recorder
from shared.build import software_build
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.redaction.v1 import redaction_pb2, redaction_pb2_grpc

SERVICE: Final = "stepwedge.redaction.v1.RedactionService"
MOST_AREAS: Final = 300
"""Areas in a record; `blanked_boxes` tells how many rectangles there were."""


class RedactionService(redaction_pb2_grpc.RedactionServiceServicer):
    """Answers only when the result is durable and its record, or that of the refusal, is in the log."""

    def __init__(self, pool: Pool, recorder: Recorder) -> None:
        self._pool = pool
        self._recorder = recorder

    async def RedactInstance(  # noqa: N802 - the contract's name
        self, request: redaction_pb2.RedactInstanceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> redaction_pb2.RedactInstanceResponse:
        """Redact one object of the zone `original`."""
        if request.object.zone != common_pb2.ZONE_ORIGINAL:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the object must be of the zone original")
        done = await self._pool.redact(objects.validated(request.object.sha256), request.study)
        index = await self._record(done)
        if done.refusal is not None:
            raise StepwedgeError(done.refusal, done.message)
        return redaction_pb2.RedactInstanceResponse(
            object=common_pb2.ObjectReference(
                zone=common_pb2.ZONE_DEIDENTIFIED, sha256=done.sha256, size_bytes=done.size
            ),
            receipt=_receipt(done.receipt),
            study=done.names.study,
            series=done.names.series,
            instance=done.names.instance,
            subject=done.names.subject,
            record_index=index,
        )

    async def _record(self, done: Done) -> int:
        receipt = done.receipt
        event = audit_pb2.RedactedEvent(
            actions=[
                audit_pb2.ActionCount(action=action, count=count) for action, count in sorted(receipt.actions.items())
            ],
            method_codes=receipt.method_codes,
            burned_in_text_possible=receipt.burned_in_text_possible,
            residual_hits=receipt.residual_hits,
            refusal=done.refusal or ErrorCode.ERROR_CODE_UNSPECIFIED,
            key_id=receipt.key_id,
            second_opinion=[
                audit_pb2.ActionCount(action=code, count=count)
                for code, count in sorted(receipt.second_opinion.items())
            ],
            blanked=[audit_pb2.BlankedArea(**area) for area in areas(receipt.boxes)[:MOST_AREAS]],
            blanked_boxes=len(receipt.boxes),
            attributes=[audit_pb2.ActionTags(action=action, tags=tags) for action, tags in receipt.attributes.items()],
        )
        refused = done.refusal is not None
        return await self._recorder.record(
            key=_key(receipt, event),
            outcome=audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE if refused else audit_pb2.EVENT_OUTCOME_SUCCESS,
            event=event,
            subject=done.names.subject,
            study=done.names.study,
            series=done.names.series,
            instance=done.names.instance,
            pins=audit_pb2.Pins(
                input_commitment=receipt.input_commitment,
                deidentified_sha256=receipt.output_sha256,
                profile_sha256=receipt.profile_sha256,
                profile_edition=receipt.edition,
                software_build=software_build(),
            ),
        )


def _key(receipt: Receipt, event: audit_pb2.RedactedEvent) -> str:
    """The idempotency key: object, profile, and a digest of what was done.

    The same result again is the same record. Another build may do otherwise: that is another act, not a conflict with
    the first.
    """
    done = hashlib.sha256(event.SerializeToString(deterministic=True) + receipt.output_sha256.encode()).hexdigest()
    return f"redacted/{receipt.input_commitment}/{receipt.profile_sha256}/{done[:32]}"


def _receipt(receipt: Receipt) -> redaction_pb2.Receipt:
    return redaction_pb2.Receipt(
        profile_sha256=receipt.profile_sha256,
        edition=receipt.edition,
        actions=dict(receipt.actions),
        method_codes=receipt.method_codes,
        input_commitment=receipt.input_commitment,
        output_sha256=receipt.output_sha256,
        residual_hits=receipt.residual_hits,
        burned_in_text_possible=receipt.burned_in_text_possible,
        burned_in_text_detail=receipt.burned_in_text_detail,
        profile=receipt.profile,
        options=receipt.options,
        key_id=receipt.key_id,
        boxes=[redaction_pb2.Box(**box.as_json()) for box in receipt.boxes],
        second_opinion=dict(receipt.second_opinion),
        attributes=[
            redaction_pb2.TouchedAttributes(action=action, tags=tags) for action, tags in receipt.attributes.items()
        ],
    )
