"""Put the engine behind the server: model, object store, record, health."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.inference import heap, meters, open_inference, releases
from services.inference.assess import Assessor
from services.inference.backends import REMOTE, Execution
from services.inference.execution import batching, execution
from services.inference.open_inference import OpenInferenceService
from services.inference.registry import Model, load
from services.inference.service import InferenceService
from services.inference.shadow import Shadow
from shared import logs
from shared.audit import Recorder
from shared.errors import ErrorCode, StepwedgeError
from shared.health import Health
from shared.identity import Identity
from shared.keys import VERIFICATION
from shared.objects import ObjectStore, Zone, open_store
from shared.pki import Credentials
from shared.rpc import Hooks, Server, channel, probe
from shared.settings import Inference, Settings
from stepwedge.audit.v1 import audit_pb2
from stepwedge.inference.v1 import inference_pb2_grpc
from stepwedge.open_inference.v2 import open_inference_pb2_grpc

SERVICE = "stepwedge.inference.v1.InferenceService"
AUDIT = "stepwedge.audit.v1.AuditService"

_AGAIN_SECONDS = 5.0

_log = logs.get_logger(__name__)

Build = Callable[[Settings, Health, Server], Awaitable[Hooks]]


def build_with(*, confined: bool) -> Build:
    """What `shared.rpc.main` calls; `confined` says whether the kernel keeps this process from the originals."""

    async def build(settings: Settings, health: Health, server: Server) -> Hooks:
        refuse_originals(settings, confined=confined)
        section = settings.inference
        assessor = await asyncio.to_thread(
            Assessor,
            section.model,
            signers=section.model_signers.by_role,
            execution=execution(section),
            ladder=section.ladder,
        )
        index = _released_index(assessor.model, settings)
        beside = [await asyncio.to_thread(_beside, folder, section) for folder in section.open_inference.models]
        store = await asyncio.to_thread(open_store, settings.objects, {Zone.DEIDENTIFIED})
        credentials = Credentials.load(settings.cluster.pki, Identity.INFERENCE)
        audit = channel(settings.audit.address, credentials, server=Identity.AUDIT)
        recorder = Recorder(audit)
        server.refusals.record_with(recorder)
        shadow = await _shadow(section, store, recorder)
        workers = ThreadPoolExecutor(section.workers, thread_name_prefix="assess")
        model = assessor.model
        _log.info("model loaded", model=f"{model.name}/{model.version}", sha256=model.sha256, state=model.self_test)
        for one in (model, *beside):
            one.batched(batching(section.batching))
            meters.MODEL.labels(one.name, one.version, one.provider).set(1)

        async def objects() -> None:
            await asyncio.to_thread(store.check, Zone.DEIDENTIFIED)

        async def model_answers() -> None:
            await asyncio.to_thread(model.check)

        async def close() -> None:
            for task in telling:
                task.cancel()
            if shadow is not None:
                await shadow.close()
            await recorder.close()
            await audit.close(None)
            for pool in (workers, askers):
                await asyncio.to_thread(pool.shutdown, cancel_futures=True)
            for one in (model, *beside):
                await asyncio.to_thread(one.close)

        health.dependency("audit", probe(audit, AUDIT))
        health.dependency("objects", objects)
        health.dependency("model", model_answers)
        service = InferenceService(
            assessor,
            store,
            recorder,
            workers,
            signers=section.model_signers.by_role,
            beside=beside,
            shadow=shadow,
        )
        server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, service, SERVICE)
        # Threads of its own: whoever asks the models keeps no image waiting, and a batch needs as many callers.
        askers = ThreadPoolExecutor(max(section.workers, section.batching.max_batch_size), thread_name_prefix="ask")
        models = OpenInferenceService([model, *beside], askers, batching(section.batching))
        server.add(open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, models, open_inference.SERVICE)
        server.narrow(open_inference.SERVICE, section.open_inference.callers)
        telling: list[asyncio.Task[None]] = []

        def tell() -> None:
            heap.give_back()  # what loading has left: 20 MB
            candidate = shadow.model if shadow else None
            telling.append(asyncio.create_task(_tell(recorder, *releases.served(model, candidate, index))))

        return Hooks(on_ready=tell, on_stopped=close)

    return build


def _beside(folder: Path, section: Inference) -> Model:
    """A further release, on this machine's own processor or device: another server holds one model only."""
    how = execution(section)
    return load(folder, signers=section.model_signers.by_role, execution=how if how.backend != REMOTE else Execution())


async def _shadow(section: Inference, store: ObjectStore, recorder: Recorder) -> Shadow | None:
    """The candidate, if there is one: on this machine, as little as it may take."""
    if section.shadow.model == Path():
        return None
    how = execution(section)
    candidate = await asyncio.to_thread(
        Assessor,
        section.shadow.model,
        signers=section.model_signers.by_role,
        execution=how if how.backend != REMOTE else Execution(),
    )
    meters.MODEL.labels(candidate.model.name, candidate.model.version, candidate.model.provider).set(1)
    return Shadow(candidate, store, recorder, share=section.shadow.share, waiting=section.shadow.waiting)


def _released_index(model: Model, settings: Settings) -> int | None:
    """Index of the record of the model's release; None where that is not proved and need not be."""
    section = settings.inference
    try:
        return releases.proved(section.release_proof, settings.cluster.keys / VERIFICATION, model.release_sha256)
    except StepwedgeError as error:
        if section.require_release_record:
            raise
        _log.warning("the release of the model is not proved to be in the log", detail=logs.Words(error.message))
        return None


async def _tell(recorder: Recorder, event: audit_pb2.ModelServedEvent, pins: audit_pb2.Pins) -> None:
    """Record that a model is served, as soon as the log is there: what it assesses bears its pins in any case."""
    while True:
        try:
            await recorder.record(
                key=f"model_served/{recorder.incarnation}",
                outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
                event=event,
                pins=pins,
            )
        except StepwedgeError as error:
            if error.permanent:
                _log.error("the log refuses to be told which model is served", error=error.name)
                return
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            return


def refuse_originals(settings: Settings, *, confined: bool) -> None:
    """Raise CONFIGURATION where this process could list the zone of originals all the same.

    A kernel without Landlock leaves it to the owner of the files: then the service runs as a user of its own.
    """
    if not confined:
        _log.warning("not confined, the kernel has no Landlock: originals are kept by file permissions alone")
    if settings.objects.kind != "directory":
        return
    original = Path(settings.objects.original)
    try:
        next(original.iterdir(), None)
    except OSError:
        return
    if confined or settings.cluster.production:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION, "inference can read the zone of original objects, which it must not"
        )
