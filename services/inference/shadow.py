"""A candidate beside the model that is served: it looks at images once they are answered, and only the log learns what
it saw.

What it costs is bounded: one thread of low priority, a share of the images, and a queue that leaves out what does not
fit. It holds no object while it waits, and its failures are counted and touch nothing else.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference import ladder, meters, recording
from services.inference.assess import AssessmentResult, Assessor
from shared import dicom, logs
from shared.audit import Recorder
from shared.canonical import decimal
from shared.errors import StepwedgeError
from shared.objects import ObjectStore, Zone
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1.common_pb2 import Finding

_NICE = 10
_log = logs.get_logger(__name__)


@dataclass(frozen=True)
class _Seen:
    """What the served model said of an object, as far as a candidate is compared with it."""

    sha256: str
    index: int
    instance: dicom.Uids
    findings: Sequence[Finding]
    lungs: NDArray[np.bool_] | None


class Shadow:
    """The candidate's place; made inside a running event loop.

    Parameters
    ----------
    candidate
        The engine with the candidate.
    store, recorder
        Of the service.
    share
        Share of the images that it looks at, above 0 to 1: the same images for the same candidate, whichever process
        answers.
    waiting
        Images that may wait.
    """

    def __init__(
        self, candidate: Assessor, store: ObjectStore, recorder: Recorder, *, share: float, waiting: int
    ) -> None:
        self.model = candidate.model
        self._candidate = candidate
        self._store = store
        self._recorder = recorder
        self._share = share
        self._queue: asyncio.Queue[_Seen] = asyncio.Queue(waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=_low_priority)
        self._task = asyncio.create_task(self._work(), name="shadow")

    def offer(self, sha256: str, index: int, instance: dicom.Uids, result: AssessmentResult) -> None:
        """Let the candidate look at an object whose assessment is record `index`, if it is its turn and there is room.

        Returns at once.
        """
        if int(sha256[:8], 16) >= self._share * 2**32:
            return
        try:
            self._queue.put_nowait(_Seen(sha256, index, instance, tuple(result.findings), result.lungs))
        except asyncio.QueueFull:
            meters.SHADOWED.labels("left_out").inc()

    async def close(self) -> None:
        """Stop looking; what waits is left out."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            seen = await self._queue.get()
            try:
                result = await loop.run_in_executor(self._thread, self._look, seen.sha256)
                await self._record(seen, result)
            except StepwedgeError as error:
                meters.SHADOWED.labels("failed").inc()
                _log.warning("the candidate failed", error=error.name)
            except Exception as error:  # noqa: BLE001 - a candidate's defect is not the service's
                meters.SHADOWED.labels("failed").inc()
                _log.warning("the candidate failed", **logs.describe(error))
            else:
                meters.SHADOWED.labels("recorded").inc()

    def _look(self, sha256: str) -> AssessmentResult:
        return self._candidate.assess_dicom(self._store.get(Zone.DEIDENTIFIED, sha256))

    async def _record(self, seen: _Seen, result: AssessmentResult) -> None:
        told = recording.message(result)
        assessed = recording.assessed(told)
        before = {one.code: one.outcome for one in seen.findings}
        after = {one.code: one.outcome for one in result.findings}
        event = audit_pb2.ShadowedEvent(
            assessed_index=seen.index,
            findings=assessed.findings,
            measurements=assessed.measurements,
            confidence=assessed.confidence,
            changed=sum(before.get(code) != after.get(code) for code in before.keys() | after.keys()),
        )
        if seen.lungs is not None and result.lungs is not None:
            event.agreement = decimal(ladder.agreement(seen.lungs, result.lungs))
        pins = recording.pins(seen.sha256, told)
        pins.model = f"{self.model.name}/{self.model.version}"
        pins.model_sha256 = self.model.sha256
        await self._recorder.record(
            key=recording.key("shadowed", seen.sha256, self.model.sha256, event, pins),
            outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
            event=event,
            study=seen.instance.study,
            series=seen.instance.series,
            instance=seen.instance.sop_instance,
            pins=pins,
        )


def _low_priority() -> None:
    """Let everything else on this machine go first (Linux: of this thread alone)."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
