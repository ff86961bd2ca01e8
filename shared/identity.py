"""Who is at the other end of a connection, by its certificate."""

from contextvars import ContextVar
from enum import StrEnum
from typing import Protocol

from shared.errors import ErrorCode, StepwedgeError

TRUST_DOMAIN = "spiffe://stepwedge/"
"""What the URI subject alternative name of every certificate of a cluster begins with."""


class Identity(StrEnum):
    """Everyone who may take part in a cluster; the value is the last part of the SPIFFE ID."""

    INGEST = "ingest"
    """Receives, keeps, decides and delivers; sees identity."""
    REDACTION = "redaction"
    """Takes identity out; sees it."""
    INFERENCE = "inference"
    """Measures de-identified pixels; never sees identity."""
    AUDIT = "audit"
    """Keeps the log; sees pseudonyms only."""
    OPERATOR = "operator"
    """The command line of hospital IT."""
    AUDITOR = "auditor"
    """Reads and verifies the log."""
    PACS = "pacs"
    """A PACS integrator's client."""
    CONSOLE = "console"
    """The window for people."""

    @property
    def uri(self) -> str:
        """The SPIFFE ID."""
        return TRUST_DOMAIN + self.value

    @property
    def host(self) -> str:
        """The DNS name in the certificate that TLS itself holds a server to; resolvable nowhere."""
        return f"{self.value}.stepwedge"


SERVICES = (Identity.INGEST, Identity.REDACTION, Identity.INFERENCE, Identity.AUDIT)
"""The identities that run as services of the cluster, in the order in which an image meets them."""


CALLER: ContextVar[Identity] = ContextVar("caller")
"""Who made the call that is being handled, once it was let in; set by `shared.guard` for the handler's task."""


PERSON: ContextVar[str] = ContextVar("person", default="")
"""The account of the person for whom the console makes the call that is being handled, or is being made; else empty."""

PERSON_KEY = "stepwedge-person"
"""Name of the metadata that says it. `shared.guard` believes it of the console alone, which signs people in."""

PERSON_NAME = r"(?=.{1,64}\Z)[a-z][a-z0-9]*(?:[._-][a-z0-9]+)*"
"""What an account may be called."""


def caller() -> Identity:
    """Return who made the call that is being handled. Raises LookupError outside any."""
    return CALLER.get()


class _Authenticated(Protocol):
    """What this module needs of a gRPC servicer context."""

    def auth_context(self) -> dict[str, list[bytes]]: ...


def peer(context: _Authenticated) -> Identity:
    """Return the identity in the caller's certificate.

    Raises
    ------
    StepwedgeError
        UNAUTHENTICATED where the certificate names none of this cluster, or more than one.
    """
    # The core fills `peer_spiffe_id` from URI names only, so a DNS name that looks like one does not count.
    uris = [value.decode("utf-8", "replace") for value in context.auth_context().get("peer_spiffe_id", [])]
    if len(uris) == 1 and uris[0].startswith(TRUST_DOMAIN):
        try:
            return Identity(uris[0].removeprefix(TRUST_DOMAIN))
        except ValueError:
            pass
    raise StepwedgeError(
        ErrorCode.ERROR_CODE_UNAUTHENTICATED, "the certificate names no identity of this cluster"
    ) from None
