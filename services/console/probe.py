"""Ask the console of this machine whether it is well: its container's health check.

Exit status 0 where it answers with the certificate of the settings, 1 where it does not.
"""

import http.client
import ssl
import sys
from typing import Final

from shared import settings
from shared.errors import StepwedgeError
from shared.settings import host_and_port

_SECONDS: Final = 3.0


def main() -> int:
    """Probe."""
    try:
        section = settings.load().console
        own = ssl.PEM_cert_to_DER_cert(
            section.certificate.read_text("ascii").partition("-----END CERTIFICATE-----")[0]
            + "-----END CERTIFICATE-----\n"
        )
        # The site's own certificate names the site, not this loopback: it is the certificate itself that is compared.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        link = http.client.HTTPSConnection(
            "127.0.0.1", host_and_port(section.listen)[1], timeout=_SECONDS, context=context
        )
        link.connect()
        if link.sock.getpeercert(binary_form=True) != own:
            raise OSError("another certificate answers")
        link.request("GET", "/healthz")
        return 0 if link.getresponse().status == 200 else 1
    except (OSError, ValueError, StepwedgeError, http.client.HTTPException) as error:
        sys.stderr.write(f"error: the console does not answer ({type(error).__name__})\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
