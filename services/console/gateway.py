"""The four services as the console calls them: in its own identity, with a deadline, and errors in our own words."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.console.accounts import Attempt, Person
from shared import keys
from shared.audit import Recorder, view
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.identification import BlindIndex, Identities, Number
from shared.identity import PERSON, PERSON_KEY, SERVICES, Identity
from shared.pki import Credentials
from shared.rpc import channel
from shared.settings import Settings
from shared.transparency.cosignature import WitnessKey
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.inference.v1 import inference_pb2_grpc
from stepwedge.ingest.v1 import ingest_pb2_grpc

RECORD_SECONDS: Final = 5.0
"""How long a page waits for the log to take the record of the view; without it the page is refused."""
_PROBE_SECONDS: Final = 2.0


class Gateway:
    """Channels to the cluster; belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        credentials = Credentials.load(settings.cluster.pki, Identity.CONSOLE)
        self.addresses = {name.value: settings.for_service(name).address for name in SERVICES}
        self._channels = {
            name: channel(address, credentials, server=Identity(name)) for name, address in self.addresses.items()
        }
        self.credentials = credentials
        self.ingest = ingest_pb2_grpc.IngestServiceStub(self._channels["ingest"])
        self.inference = inference_pb2_grpc.InferenceServiceStub(self._channels["inference"])
        self.audit = audit_pb2_grpc.AuditServiceStub(self._channels["audit"])
        self._recorder = Recorder(self._channels["audit"], deadline_seconds=RECORD_SECONDS)
        self._keys = settings.cluster.keys
        self.witnesses = [WitnessKey.parse(one.vkey) for one in settings.audit.witnesses]
        """Whose cosignatures the site wants to see; of the settings, not of the log."""
        self.quorum = settings.audit.quorum

    async def close(self) -> None:
        """Let go of everything."""
        await self._recorder.close()
        for one in self._channels.values():
            await one.close(None)

    async def viewed(self, person: Person, what: str, *, study: str = "", studies: Iterable[str] = ()) -> int:
        """Record that a person looks at something; nothing is shown before this returns.

        `studies`: pseudonyms of those that a list or a search shows.
        """
        return await self._record("viewed", view(person.name, person.role, what, studies), study=study)

    async def attempted(self, attempt: Attempt, method: str) -> int:
        """Record a sign-in, or its refusal."""
        event = audit_pb2.AuthenticatedEvent(person=attempt.person, role=attempt.role, act=attempt.act, method=method)
        outcome = audit_pb2.EVENT_OUTCOME_SUCCESS
        if attempt.act != "sign_in":
            outcome = audit_pb2.EVENT_OUTCOME_MINOR_FAILURE
        return await self._record("authenticated", event, outcome=outcome)

    async def acted(self, act: str, person: str, *, role: str = "", by: str = "", method: str = "local") -> int:
        """Record what became of an account or a session."""
        event = audit_pb2.AuthenticatedEvent(person=person, role=role, act=act, method=method, by=by)
        return await self._record("authenticated", event)

    def acting(self, act: str, person: str, *, role: str = "", by: str = "") -> Callable[[], int]:
        """`acted` for a thread that works while this loop runs."""
        loop = asyncio.get_running_loop()

        def record() -> int:
            return asyncio.run_coroutine_threadsafe(self.acted(act, person, role=role, by=by), loop).result()

        return record

    async def _record(
        self,
        kind: str,
        event: Message,
        *,
        study: str = "",
        outcome: audit_pb2.EventOutcome.ValueType = audit_pb2.EVENT_OUTCOME_SUCCESS,
    ) -> int:
        return await self._recorder.record(key=f"{kind}/{uuid.uuid4()}", outcome=outcome, event=event, study=study)

    async def health(self) -> dict[str, dict[str, bool] | None]:
        """Service -> what it says of itself and its dependencies; None where it does not answer."""
        found = await asyncio.gather(*(self._health(name) for name in self._channels))
        return dict(zip(self._channels, found, strict=True))

    async def _health(self, name: str) -> dict[str, bool] | None:
        stub = health_pb2_grpc.HealthStub(self._channels[name])
        try:
            answer = await stub.List(health_pb2.HealthListRequest(), timeout=_PROBE_SECONDS)
        except grpc.RpcError:
            return None
        serving = health_pb2.HealthCheckResponse.SERVING
        return {part: status.status == serving for part, status in answer.statuses.items()}

    def token(self, kind: Number, value: str) -> bytes:
        """The token of a number in the blind index; the number itself goes no further."""
        return BlindIndex.load(self._keys).token(kind, value)

    def identities(self) -> Identities | None:
        """What opens sealed identities; None where the site did not give the console their key."""
        try:
            return Identities.load(self._keys)
        except StepwedgeError:
            return None

    def verification_key(self) -> str:
        """The log's key as it lies here, "name+hash+key"; empty where the site did not give it to the console."""
        try:
            return (self._keys / keys.VERIFICATION).read_text("ascii").strip()
        except OSError:
            return ""


def _for_whom() -> tuple[tuple[str, str], ...]:
    """Metadata that names the person whose page this is, so that the log's record of a read names them too."""
    person = PERSON.get()
    return ((PERSON_KEY, person),) if person else ()


async def call(method: Any, request: Message, *, seconds: float = 10.0) -> Any:
    """Call with a deadline. Raises the StepwedgeError that the service answered."""
    try:
        return await method(request, timeout=seconds, metadata=_for_whom())
    except grpc.RpcError as error:
        raise from_rpc(error) from None


async def call_or_none(method: Any, request: Message, *, seconds: float = 5.0) -> Any:
    """`call` for a part of a page that is shown without it where the service does not answer."""
    try:
        return await call(method, request, seconds=seconds)
    except StepwedgeError:
        return None


async def stream(method: Any, request: Message, *, seconds: float = 600.0) -> AsyncIterator[Any]:
    """Call a method that streams. Raises as `call`."""
    try:
        async for message in method(request, timeout=seconds, metadata=_for_whom()):
            yield message
    except grpc.RpcError as error:
        raise from_rpc(error) from None


def not_found(words: str) -> StepwedgeError:
    """What a page answers for something that is not there."""
    return StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, words)
