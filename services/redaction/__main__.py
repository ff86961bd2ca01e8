"""Starts redaction: `python -m services.redaction` serves gRPC, with its workers beside it."""

import asyncio

from services.redaction.pool import Pool, Task
from services.redaction.profile import Option, Profile
from services.redaction.service import SERVICE, RedactionService
from shared import keys
from shared.audit import Recorder
from shared.health import Health
from shared.identity import Identity
from shared.objects import Zone, open_store
from shared.pki import Credentials
from shared.pseudonyms import Pseudonyms
from shared.rpc import Hooks, Server, channel, main, probe
from shared.settings import Settings
from stepwedge.redaction.v1 import redaction_pb2_grpc


async def build(settings: Settings, health: Health, server: Server) -> Hooks:
    """Put the workers behind the server."""
    key = settings.cluster.keys / keys.PSEUDONYMS
    Pseudonyms.load(key)  # a key that is none is a refusal to start, not one to each call
    store = open_store(settings.objects, {Zone.ORIGINAL, Zone.DEIDENTIFIED})
    profile = Profile.file(settings.redaction.profile)
    asked = Profile.load(profile, settings.redaction.profile_sha256)  # as with the key
    if Option.CLEAN_PIXELS in asked.options:
        from services.redaction.clean_pixels import Policy

        Policy.load(asked.pixels).detector()  # asked for and absent, altered, or seeing otherwise: no start
    task = Task(settings.objects, key, profile, log_level=settings.telemetry.log_level)
    pool = Pool(task, settings.redaction.workers)
    await pool.warm()
    to_audit = channel(
        settings.audit.address, Credentials.load(settings.cluster.pki, Identity.REDACTION), server=Identity.AUDIT
    )
    recorder = Recorder(to_audit)
    server.refusals.record_with(recorder)
    server.add(redaction_pb2_grpc.add_RedactionServiceServicer_to_server, RedactionService(pool, recorder), SERVICE)

    async def objects() -> None:
        await asyncio.to_thread(store.check, Zone.DEIDENTIFIED)

    async def stopped() -> None:
        await recorder.close()
        await to_audit.close(None)
        pool.close()

    health.dependency("objects", objects)
    health.dependency("audit", probe(to_audit))
    return Hooks(on_stopped=stopped)


if __name__ == "__main__":
    asyncio.run(main(Identity.REDACTION, build))
