"""Put the engine behind the server: model, object store, record, health."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.inference import meters, open_inference
from services.inference.assess import Assessor
from services.inference.backends import REMOTE, Execution
from services.inference.execution import batching, execution
from services.inference.open_inference import OpenInferenceService
from services.inference.registry import Model, load
from services.inference.service import InferenceService
from shared import logs
from shared.audit import Recorder
from shared.errors import ErrorCode, StepwedgeError
from shared.health import Health
from shared.identity import Identity
from shared.objects import Zone, open_store
from shared.pki import Credentials
from shared.rpc import Hooks, Server, channel, probe
from shared.settings import Inference, Settings
from stepwedge.inference.v1 import inference_pb2_grpc
from stepwedge.open_inference.v2 import open_inference_pb2_grpc

SERVICE = "stepwedge.inference.v1.InferenceService"
AUDIT = "stepwedge.audit.v1.AuditService"

_log = logs.get_logger(__name__)

Build = Callable[[Settings, Health, Server], Awaitable[Hooks]]


def build_with(*, confined: bool) -> Build:
    """What `shared.rpc.main` calls; `confined` says whether the kernel keeps this process from the originals."""

    async def build(settings: Settings, health: Health, server: Server) -> Hooks:
        refuse_originals(settings, confined=confined)
        section = settings.inference
        assessor = await asyncio.to_thread(
            Assessor, section.model, signers=section.model_signers.by_role, execution=execution(section)
        )
        beside = [await asyncio.to_thread(_beside, folder, section) for folder in section.open_inference.models]
        store = await asyncio.to_thread(open_store, settings.objects, {Zone.DEIDENTIFIED})
        credentials = Credentials.load(settings.cluster.pki, Identity.INFERENCE)
        audit = channel(settings.audit.address, credentials, server=Identity.AUDIT)
        recorder = Recorder(audit)
        server.refusals.record_with(recorder)
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
            await recorder.close()
            await audit.close(None)
            for pool in (workers, askers):
                await asyncio.to_thread(pool.shutdown, cancel_futures=True)
            for one in (model, *beside):
                await asyncio.to_thread(one.close)

        health.dependency("audit", probe(audit, AUDIT))
        health.dependency("objects", objects)
        health.dependency("model", model_answers)
        service = InferenceService(assessor, store, recorder, workers)
        server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, service, SERVICE)
        # Threads of its own: whoever asks the models keeps no image waiting, and a batch needs as many callers.
        askers = ThreadPoolExecutor(max(section.workers, section.batching.max_batch_size), thread_name_prefix="ask")
        models = OpenInferenceService([model, *beside], askers, batching(section.batching))
        server.add(open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, models, open_inference.SERVICE)
        server.narrow(open_inference.SERVICE, section.open_inference.callers)
        return Hooks(on_stopped=close)

    return build


def _beside(folder: Path, section: Inference) -> Model:
    """A further release, on this machine's own processor or device: another server holds one model only."""
    how = execution(section)
    return load(folder, signers=section.model_signers.by_role, execution=how if how.backend != REMOTE else Execution())


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
