"""Time stamps of an authority (RFC 3161) on checkpoints: asked for, and verified, with rfc3161-client."""

import http.client
import ssl
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

_TYPE = "application/timestamp-query"
_MAX_ANSWER = 256 * 1024


class StampError(Exception):
    """No stamp could be had, or one does not verify."""


def request(url: str, data: bytes, certificates: bytes, *, timeout: float) -> tuple[bytes, datetime]:
    """Have `data` stamped, with a nonce, and verify the answer.

    Parameters
    ----------
    url
        The authority's.
    data
        What is stamped; only its SHA-512 leaves the machine.
    certificates
        PEM: the authority's root, and any between.
    timeout
        Seconds that the authority may take for each step.

    Returns
    -------
    tuple[bytes, datetime]
        The answer (DER TimeStampResp) and the time that it bears.

    Raises
    ------
    StampError
        Also where rfc3161-client is not installed.
    """
    client = _client()
    asked = client.TimestampRequestBuilder().data(data).nonce(nonce=True).cert_request(cert_request=True).build()
    answer = _post(url, asked.as_bytes(), timeout)
    moment = verify(answer, data, certificates, nonce=asked.nonce)
    return answer, moment


def verify(answer: bytes, data: bytes, certificates: bytes, *, nonce: int | None = None) -> datetime:
    """The time at which an authority with these certificates (PEM) saw `data`. Raises StampError where none says so."""
    client = _client()
    try:
        response = client.decode_timestamp_response(answer)
        roots, between = _sorted(certificates)
        builder = client.VerifierBuilder(roots=roots, intermediates=between)
        if nonce is not None:
            builder = builder.nonce(nonce)
        builder.build().verify_message(response, data)
        moment: datetime = response.tst_info.gen_time
    except (ValueError, client.VerificationError) as error:
        raise StampError(f"the time stamp does not verify: {_words(error)}") from None
    return moment


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _client() -> Any:
    """The package, loaded when it is needed: a log without stamps does without it."""
    try:
        import rfc3161_client
    except ImportError:
        raise StampError("the package rfc3161-client is not installed (the extra `stamp`)") from None
    return rfc3161_client


def _sorted(pem: bytes) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """The self-issued certificates of a PEM file, and the others."""
    found = x509.load_pem_x509_certificates(pem)
    return [one for one in found if one.subject == one.issuer], [one for one in found if one.subject != one.issuer]


def _post(url: str, body: bytes, timeout: float) -> bytes:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    link: http.client.HTTPConnection
    if parts.scheme == "https":
        link = http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
    else:
        link = http.client.HTTPConnection(host, port, timeout=timeout)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        link.request("POST", target, body=body, headers={"Content-Type": _TYPE})
        answer = link.getresponse()
        data = answer.read(_MAX_ANSWER + 1)
    except (OSError, http.client.HTTPException) as error:
        raise StampError(f"the authority does not answer: {type(error).__name__}") from None
    finally:
        link.close()
    if answer.status != http.HTTPStatus.OK or len(data) > _MAX_ANSWER:
        raise StampError(f"the authority answers with status {answer.status}")
    return data
