"""Starts ingest: `python -m services.ingest` serves gRPC and DICOM, and works through the queue of studies."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from services.ingest import metrics
from services.ingest.announcements import Announcements
from services.ingest.commitments import Answers, Commitments
from services.ingest.delivery import Sender
from services.ingest.dicomweb import token_service
from services.ingest.dicomweb.tokens import Tokens
from services.ingest.door import RECORD_SECONDS, Door, record_key, record_received
from services.ingest.drift import Drift
from services.ingest.hallway import AUDIT, INFERENCE, REDACTION, Hallway, Services
from services.ingest.identification import Identifier
from services.ingest.reception import Nursery, Reception
from services.ingest.results.workshop import Task, Workshop, checker
from services.ingest.reviews import Reviews
from services.ingest.service import IngestService
from services.ingest.states import StudyState
from services.ingest.store import MIGRATIONS, StudyStore
from services.ingest.uploads import Uploads
from shared import database, keys, logs
from shared.audit import Recorder
from shared.errors import ErrorCode, StepwedgeError
from shared.health import Health
from shared.identification import BlindIndex, Identities
from shared.identity import Identity
from shared.objects import ObjectStore, Zone, open_store
from shared.pki import Credentials
from shared.policy import Policy
from shared.pseudonyms import Pseudonyms
from shared.rpc import Hooks, Server, channel, main, probe
from shared.settings import Settings
from stepwedge.inference.v1 import inference_pb2_grpc
from stepwedge.ingest.v1 import ingest_pb2_grpc, tokens_pb2_grpc
from stepwedge.redaction.v1 import redaction_pb2_grpc

if TYPE_CHECKING:
    from services.ingest.dicomweb.server import DicomWebServer

SERVICE: Final = "stepwedge.ingest.v1.IngestService"

_DRAIN_SECONDS: Final = 15.0  # for open associations, within the grace of the server
_FIGURES_SECONDS: Final = 5.0
_SWEEP_SECONDS: Final = 60.0

_log = logs.get_logger(__name__)


class Ingest:
    """The parts of the process, made in the order in which they need each other."""

    def __init__(self, settings: Settings, health: Health) -> None:
        section = settings.ingest
        nursery = Nursery()
        credentials = Credentials.load(settings.cluster.pki, Identity.INGEST)
        self._health = health
        # Half of the places: uploads, which last, must not keep out the questions, which do not.
        self._max_uploads = max(1, section.max_concurrent_rpcs // 2)
        self._engine = database.create_engine(section.database)
        database.upgrade(self._engine, MIGRATIONS)
        self._studies = StudyStore(
            self._engine,
            quiet=timedelta(seconds=section.quiet_seconds),
            rooms=section.rooms,
            settings=section.completion,
            sites=section.sites,
        )
        self._objects: ObjectStore = open_store(settings.objects, {Zone.ORIGINAL})
        pseudonyms = Pseudonyms.load(settings.cluster.keys / keys.PSEUDONYMS)
        self._reviews = Reviews(self._engine, commit=pseudonyms.commitment)
        folder = settings.cluster.keys
        identities, index = Identities.load(folder), BlindIndex.load(folder)
        self._identifier = Identifier(self._objects, identities, index, way_back=section.seal_identities)
        self._channels = {
            name: channel(settings.for_service(name).address, credentials, server=Identity(name))
            for name in (REDACTION, INFERENCE, AUDIT)
        }
        self._recorder = Recorder(self._channels[AUDIT], deadline_seconds=RECORD_SECONDS)
        # Its process starts with the first result.
        self._workshop = Workshop(Task(settings.objects, checker(section), settings.telemetry.log_level))
        services = Services(
            redaction_pb2_grpc.RedactionServiceStub(self._channels[REDACTION]),
            inference_pb2_grpc.InferenceServiceStub(self._channels[INFERENCE]),
            self._recorder,
            Sender(section.ae_title, self._objects),
            self._workshop,
            self._identifier,
            settings.audit.origin,
        )
        self._announcements = Announcements(self._engine)
        self._half = Uploads(self._objects, max_bytes=section.max_object_bytes)
        self._hallway = Hallway(section, self._studies, services, Policy.load(section.policy), health)
        self._door = Door(
            self._objects,
            self._studies,
            pseudonyms,
            self._recorder,
            self._identifier,
            max_object_bytes=section.max_object_bytes,
            ready=self._ready,
            confirmed=self._hallway.ring,
        )
        self._reception = Reception(
            section,
            self._door,
            Answers(Commitments(self._engine, self._objects), self._recorder, pseudonyms.commitment),
            self._announcements,
            nursery,
            heard=self._hallway.ring,
            name_of=self._studies.name_of,
            answering=self._answering,
        )
        self._settings = settings
        self._tokens = Tokens(self._engine)
        self._dicomweb: DicomWebServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def attach(self, server: Server) -> None:
        """Put the contract behind the server, and the dependencies into its health."""
        servicer = IngestService(
            self._door,
            self._studies,
            self._reviews,
            Drift(self._engine),
            self._recorder,
            self._hallway.ring,
            max_uploads=self._max_uploads,
            half=self._half,
            announcements=self._announcements,
            objects=self._objects,
        )
        server.add(ingest_pb2_grpc.add_IngestServiceServicer_to_server, servicer, SERVICE)
        server.refusals.record_with(self._recorder)
        tokens = token_service.TokenService(self._tokens, self._recorder)
        server.add(tokens_pb2_grpc.add_TokenServiceServicer_to_server, tokens, token_service.SERVICE)
        if self._settings.ingest.dicomweb.listen:
            self._dicomweb = self._dicomweb_door(server)

        async def objects() -> None:
            await asyncio.to_thread(self._objects.check, Zone.ORIGINAL)

        async def rows() -> None:
            await asyncio.to_thread(self._studies.check)

        self._health.dependency("objects", objects)
        self._health.dependency("database", rows)
        self._health.dependency(AUDIT, probe(self._channels[AUDIT]))
        # Without these two, objects are still received; the work on them waits.
        self._health.dependency(REDACTION, probe(self._channels[REDACTION]), required=False)
        self._health.dependency(INFERENCE, probe(self._channels[INFERENCE]), required=False)

    def _dicomweb_door(self, server: Server) -> "DicomWebServer":
        # Imported here: a web server is loaded only where one is wanted.
        from services.ingest.dicomweb.catalogue import Catalogue
        from services.ingest.dicomweb.holdings import Holdings
        from services.ingest.dicomweb.house import House
        from services.ingest.dicomweb.qido import Search
        from services.ingest.dicomweb.server import DicomWebServer

        catalogue = Catalogue.load(self._engine, self._objects, self._settings.cluster.keys)
        house = House(
            self._settings.ingest.dicomweb,
            self._door,
            self._objects,
            Holdings(self._engine),
            catalogue,
            Search(self._engine, catalogue),
            self._tokens,
            self._recorder,
            server.refusals,
            asyncio.get_running_loop(),
        )
        return DicomWebServer(house)

    async def open(self) -> None:
        """Start the processes that speak DICOM."""
        await self._reception.open()

    def start(self) -> None:
        """Everything is in place: accept associations and go to work."""
        self._reception.start()
        if self._dicomweb is not None:
            self._dicomweb.start()
            _log.info("serving DICOMweb", address=self._dicomweb.address)
        self._hallway.start()
        self._tasks = [
            asyncio.create_task(self._record_the_unconfirmed(), name="recovery"),
            asyncio.create_task(self._keep_figures(), name="figures"),
            asyncio.create_task(self._forget_half_uploads(), name="half uploads"),
        ]
        _log.info("serving DICOM", address=self._reception.address)

    async def drain(self) -> None:
        """Let associations end and workers finish their steps."""
        web = [asyncio.to_thread(self._dicomweb.drain, _DRAIN_SECONDS)] if self._dicomweb is not None else []
        await asyncio.gather(*web, self._reception.drain(_DRAIN_SECONDS), self._hallway.stop())
        await self._door.flush()

    async def close(self) -> None:
        """Let go of everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._workshop.close()
        await self._recorder.close()
        for one in self._channels.values():
            await one.close(None)
        await asyncio.to_thread(self._engine.dispose)

    def _ready(self) -> None:
        """Raise where an object could not be accepted now."""
        self._objects.check(Zone.ORIGINAL)
        self._answering()

    def _answering(self) -> None:
        """Raise where the database or the log is known not to answer."""
        if not self._health.ok("database"):
            raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the database does not answer")
        if not self._health.ok(AUDIT):
            raise StepwedgeError(ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "the audit log does not answer")

    async def _record_the_unconfirmed(self) -> None:
        """Finish what the process before this one stored and did not live to record; its keys make that harmless."""
        try:
            for instance_id in await asyncio.to_thread(self._studies.unconfirmed):
                instance, study = await asyncio.to_thread(self._studies.instance, instance_id)
                sealed = await asyncio.to_thread(self._identifier.again, instance, record_key(instance))
                index = await record_received(self._recorder, instance, study.pseudonym, sealed)
                self._door.confirm(instance_id, index)
        except StepwedgeError as error:
            # The hallway does it when the log is back.
            _log.warning("recovery waits for the log", **logs.describe(error))

    async def _forget_half_uploads(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._half.sweep)
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _keep_figures(self) -> None:
        while True:
            with contextlib.suppress(StepwedgeError):
                by_state, due, age = await asyncio.to_thread(self._studies.figures, datetime.now(UTC))
                for state in StudyState:
                    metrics.STUDIES.labels(state).set(by_state.get(state, 0))
                metrics.DUE.set(due)
                metrics.OLDEST_DUE.set(age)
            await asyncio.sleep(_FIGURES_SECONDS)


async def build(settings: Settings, health: Health, server: Server) -> Hooks:
    """Put ingest behind the server."""
    ingest = Ingest(settings, health)
    ingest.attach(server)
    await ingest.open()
    return Hooks(on_ready=ingest.start, on_drain=ingest.drain, on_stopped=ingest.close)


if __name__ == "__main__":
    asyncio.run(main(Identity.INGEST, build))
