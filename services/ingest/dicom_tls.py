"""The secure transport of the DICOM door (PS3.15 B.9 and B.10, after BCP 195): mutual, TLS 1.2 or later, AEAD only."""

import ssl
from typing import Final

from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Ingest

# RFC 9325 4.2: forward secrecy and authenticated encryption, and nothing else; TLS 1.3 has no others.
_SUITES: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"


def server_context(settings: Ingest) -> ssl.SSLContext:
    """Where both sides prove themselves. Raises CONFIGURATION where a file is absent or will not do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
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
