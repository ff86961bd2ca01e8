"""For hospital IT: services and their health, the queue, what stands in the dead letter, certificates, models."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from starlette.responses import Response

from services.console import pictures
from services.console.gateway import Gateway, call_or_none
from services.console.web import ADMINISTRATOR, OPERATOR, Call, route
from shared.errors import StepwedgeError
from shared.identity import Identity
from shared.settings import host_and_port
from stepwedge.inference.v1 import inference_pb2
from stepwedge.ingest.v1 import ingest_pb2

HOURS: Final = 24
"""Of throughput and errors that are shown."""
SOON_DAYS: Final = 30
"""Left of a certificate's life from here on, the page warns."""
_SECONDS: Final = 2.0


async def operation(call: Call) -> Response:
    """The state of the cluster, part by part; what does not answer says so, and the rest is shown."""
    gateway = call.house.gateway
    health, summary, dead, models, storage, policy, activity, certificates = await asyncio.gather(
        gateway.health(),
        call_or_none(gateway.ingest.SummarizeDecisions, _states_alone()),
        call_or_none(
            gateway.ingest.ListStudies,
            ingest_pb2.ListStudiesRequest(state=ingest_pb2.STUDY_STATE_DEAD_LETTER, page_size=50),
        ),
        call_or_none(gateway.inference.ListModels, inference_pb2.ListModelsRequest()),
        call_or_none(gateway.ingest.GetStorage, ingest_pb2.GetStorageRequest()),
        call_or_none(gateway.ingest.GetPolicy, ingest_pb2.GetPolicyRequest()),
        call_or_none(gateway.ingest.SummarizeActivity, ingest_pb2.SummarizeActivityRequest(hours=HOURS)),
        asyncio.to_thread(_certificates, gateway),
    )
    shown = [] if dead is None else [one.pseudonym for one in dead.studies]
    if shown and not await _recorded(call, shown):
        dead = None
    hours = [] if activity is None else activity.hours
    series = [
        (call.wording(name), kind, [int(getattr(one, kind_of)) for one in hours])
        for name, kind, kind_of in (("Studies", "accept", "studies"), ("Images", "review", "images"))
    ]
    return call.page(
        "operation.html",
        health=health,
        hours=[one.hour.ToDatetime().strftime("%d. %H:00") for one in hours],
        series=series,
        charts=[pictures.bars(one[0], [f"{hour.hour.ToDatetime():%H}" for hour in hours], [one]) for one in series],
        errors=None if activity is None else activity.errors,
        states=None if summary is None else summary.states,
        dead=None if dead is None else dead.studies,
        models=[] if models is None else models.models,
        storage=storage,
        policy=policy,
        certificates=certificates,
        soon=SOON_DAYS,
        now=datetime.now(UTC),
        addresses=gateway.addresses,
    )


def _states_alone() -> ingest_pb2.SummarizeDecisionsRequest:
    request = ingest_pb2.SummarizeDecisionsRequest(sum_days_of_devices=True)
    getattr(request, "from").GetCurrentTime()
    return request


async def _recorded(call: Call, studies: list[str]) -> bool:
    """Whether the log took it that these are shown: this page must be there above all while the log is away."""
    try:
        await call.listed("dead_letter", studies, always=False)
    except StepwedgeError:
        return False
    return True


def _certificates(gateway: Gateway) -> list[tuple[str, datetime | None, int]]:
    """(whose, its end (UTC), whole days until then) of the certificate that each service shows now."""
    found = [(name, _end_of(gateway, Identity(name))) for name in gateway.addresses]
    own = x509.load_pem_x509_certificate(gateway.credentials.certificate.read_bytes()).not_valid_after_utc
    authority = x509.load_pem_x509_certificate(gateway.credentials.ca.read_bytes()).not_valid_after_utc
    ends = [*found, ("console", own), ("CA", authority)]
    now = datetime.now(UTC)
    return [(name, end, -1 if end is None else (end - now).days) for name, end in ends]


def _end_of(gateway: Gateway, identity: Identity) -> datetime | None:
    import socket

    context = ssl.create_default_context(cafile=str(gateway.credentials.ca))
    context.load_cert_chain(gateway.credentials.certificate, gateway.credentials.key)
    try:
        with (
            socket.create_connection(host_and_port(gateway.addresses[identity.value]), _SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=identity.host) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return None
    return x509.load_der_x509_certificate(shown).not_valid_after_utc if shown else None


ROUTES: Final = [route("/operator", operation, frozenset({OPERATOR, ADMINISTRATOR}))]
