"""The secure transport of DICOM (PS3.15 B.9, B.10, after BCP 195): TLS 1.2 or later, AEAD only, at the door mutual."""

import ssl
from pathlib import Path
from typing import Final

from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Ingest

# RFC 9325 4.2: forward secrecy and authenticated encryption, and nothing else; TLS 1.3 has no others.
SUITES: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def client_context(*, ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For what we send: the peer's certificate is checked, with its name; ours is shown where there is one.

    ca: `Path()` for the system's. certificate, key: `Path()` for none. Raises CONFIGURATION where a file will not do.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca == Path():
            context.load_default_certs()
        else:
            context.load_verify_locations(ca)
        if certificate != Path():
            context.load_cert_chain(certificate, key)
    except OSError:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION,
            "certificate, key or CA of a destination cannot be read or do not fit each other",
        ) from None
    return context


def server_context(settings: Ingest) -> ssl.SSLContext:
    """Where both sides prove themselves. Raises CONFIGURATION where a file is absent or will not do."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(settings.dimse_tls_certificate, settings.dimse_tls_key)
        context.load_verify_locations(settings.dimse_tls_ca)
    except OSError:  # of which ssl.SSLError is one; its words may name paths
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION,
            "certificate, key or CA of the secure DICOM door cannot be read or do not fit each other",
        ) from None
    return context
