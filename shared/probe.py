"""Ask a service of this machine whether it is well: the health check of containers (`python -m shared.probe audit`).

Proves itself with the service's own certificate. Exit status 0 where it is SERVING, 1 where it is not or does not
answer, 78 where the settings are wrong; one line on stderr says which. With `--alive`, an answer is enough: a service
that waits for another one says NOT_SERVING, and starting it again would help nobody.
"""

import argparse
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared import settings
from shared.calling import sync_channel
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.identity import SERVICES, Identity
from shared.pki import Credentials
from shared.settings import host_and_port

_SECONDS = 3.0


def probe(service: Identity, *, alive: bool = False) -> None:
    """Return where `service` is SERVING on this machine, or only `alive`; raise StepwedgeError where it is not."""
    configuration = settings.load()
    _, port = host_and_port(configuration.for_service(service).listen)
    credentials = Credentials.load(configuration.cluster.pki, service)
    with sync_channel(f"127.0.0.1:{port}", credentials, server=service) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
    if not alive and answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, f"{service.value} says NOT_SERVING")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and probe."""
    parser = argparse.ArgumentParser(prog="python -m shared.probe", description=__doc__)
    parser.add_argument("service", choices=[service.value for service in SERVICES])
    parser.add_argument("--alive", action="store_true", help="any answer will do: for a liveness probe")
    given = parser.parse_args(arguments)
    try:
        probe(Identity(given.service), alive=given.alive)
    except StepwedgeError as error:
        sys.stderr.write(f"error {error.name}: {error.message}\n")
        return 78 if error.code == ErrorCode.ERROR_CODE_CONFIGURATION else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
