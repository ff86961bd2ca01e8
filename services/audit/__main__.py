"""Start the log; or, beside it and without it, export or check the database of a log.

`python -m services.audit` serves. `python -m services.audit export --database URL --out FILE` writes the archive that
the verifier takes, out of the tables as they are; with `--format csv|fhir|dicom` the records for other tools.
`python -m services.audit forward` sends them to the syslog receiver of the settings until it is told to end. Exit
status: 0, or that of `shared.rpc.main`; 1 for a failure, 2 for wrong arguments.
"""

import argparse
import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

from services.audit import export, meters, publication, retention, signing, store, witnesses
from services.audit.formats.stream import Format
from services.audit.forward import Cursor, Forwarder, Receiver
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.proofs import Rotator
from services.audit.reading import newest
from services.audit.refused import OwnRecorder
from services.audit.scrub import Scrub
from services.audit.service import AuditService
from services.audit.stamping import Stamper
from services.audit.store import Store
from services.audit.subjects import Vault
from services.audit.witnesses import Witnesses
from shared import logs, settings
from shared.errors import ErrorCode, StepwedgeError
from shared.health import Health
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import EXIT_CONFIGURATION, EXIT_FAILURE, Hooks, Server, main
from shared.settings import Settings, host_and_port
from stepwedge.audit.v1 import audit_pb2_grpc

SERVICE = "stepwedge.audit.v1.AuditService"


def open_log(settings: Settings) -> Log:
    """The log of these settings, verified and open. Raises StepwedgeError."""
    section = settings.audit
    the_store = Store.open(section.database)
    with the_store.reading() as connection:
        known = store.keys(connection)
    newest_key = known[-1].verification_key if known else None
    signer = signing.signer(section.keys, section.origin, newest_key)
    log = Log(
        the_store,
        signer,
        HighWater(section.high_water),
        group_commit_seconds=section.group_commit_ms / 1000,
        group_commit_records=section.group_commit_records,
        on_commit=meters.committed,
        on_alert=meters.alerted,
        vault=Vault(section.master_key),
        retention=retention.classes(section.retention_default, section.retention),
    )
    log.open()
    return log


async def build(settings: Settings, health: Health, server: Server) -> Hooks:
    """Put the log behind the server."""
    try:
        ask = witnesses.clients(settings.audit)
    except (OSError, ValueError):
        message = "the URL of a witness, or the file of its CA certificates, cannot be used"
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message) from None
    log = await asyncio.to_thread(open_log, settings)
    asking = Witnesses(log, ask, settings.audit) if ask else None
    if asking is not None:
        await asyncio.to_thread(asking.start)
    published = await asyncio.to_thread(publish, settings, log)
    stamper = Stamper(log, settings.audit.stamping) if settings.audit.stamping.url else None
    if stamper is not None:
        await asyncio.to_thread(stamper.start)
    scrub = Scrub(log, settings.audit.check_per_second)
    await asyncio.to_thread(scrub.start)
    of_kind = retention.classes(settings.audit.retention_default, settings.audit.retention)
    service = AuditService(log, asking, Rotator(log, settings.audit.keys), scrub, of_kind, server.refusals)
    server.add(audit_pb2_grpc.add_AuditServiceServicer_to_server, service, SERVICE)

    server.refusals.record_with(OwnRecorder(log))

    async def writes() -> None:
        meters.WRITER.set(log.writes)
        log.check()

    async def database() -> None:
        await asyncio.to_thread(log.store.ping)

    async def close() -> None:
        if asking is not None:
            await asyncio.to_thread(asking.close)
        if published is not None:
            await asyncio.to_thread(published.stop)
        if stamper is not None:
            await asyncio.to_thread(stamper.close)
        await asyncio.to_thread(scrub.close)
        await asyncio.to_thread(log.close)
        await asyncio.to_thread(log.store.close)

    health.dependency("database", database)
    health.dependency("log", writes)
    return Hooks(on_stopped=close)


def publish(settings: Settings, log: Log) -> publication.Server | None:
    """Serve the log as tiles over HTTPS, where the settings say where. Raises CONFIGURATION, DEPENDENCY_UNAVAILABLE."""
    section = settings.audit.publication
    if not section.listen:
        return None
    host, port = host_and_port(section.listen)
    credentials = Credentials.load(settings.cluster.pki, Identity.AUDIT)
    tls = publication.context(credentials, open_to_anyone=section.anyone)
    resources = publication.Publication(log.store, cosigned=settings.audit.quorum > 0)
    reads = publication.Reads(log)
    try:
        server = publication.Server(host, port, resources, tls, open_to_anyone=section.anyone, on_read=reads.count)
    except OSError:
        message = "the tiles cannot be served at audit.publication.listen"
        raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, message) from None
    server.start()
    return server


def write_export(url: str, out: Path, form: Format | None = None) -> int:
    """Export the log in a database to a file, all at once or not at all; the size of the log."""
    the_store = Store.open_as_it_is(url)
    try:
        with the_store.reading() as connection:
            head, known = newest(connection), store.keys(connection)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            with temporary.open("xb") as file:
                for piece in export.pieces(the_store, head, known, form):
                    file.write(piece)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        return head.size
    finally:
        the_store.close()


def forward(configuration: Settings, stop: threading.Event) -> None:
    """Forward the log to the syslog receiver of the settings until `stop`. Raises StepwedgeError."""
    section = configuration.audit.forward
    if not section.receiver:
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "audit.forward.receiver is not set")
    certificate, key = section.certificate, section.key
    if Path() in (certificate, key):
        own = Credentials.load(configuration.cluster.pki, Identity.AUDIT)
        certificate, key = own.certificate, own.key
    receiver = Receiver(section, certificate, key)
    cursor = Cursor(section.cursor)
    the_store = Store.open_as_it_is(configuration.audit.database)
    try:
        sys.stdout.write(f"ready forward {section.receiver}\n")
        sys.stdout.flush()
        Forwarder(the_store, cursor, receiver.take, section).run(stop)
    finally:
        the_store.close()
        cursor.close()


def _forward() -> int:
    os.umask(0o027)
    logs.configure(Identity.AUDIT.value)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        forward(settings.load(), stop)
    except StepwedgeError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIGURATION if error.code == ErrorCode.ERROR_CODE_CONFIGURATION else EXIT_FAILURE
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.audit", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    exporting = commands.add_parser("export", help="write the log of a database as an archive")
    exporting.add_argument("--database", required=True, help="SQLAlchemy URL")
    exporting.add_argument("--out", required=True, type=Path, help="file to write")
    exporting.add_argument("--format", choices=["bundle", *Format], default="bundle", help="what to write it as")
    commands.add_parser("forward", help="send the log to the syslog receiver of the settings")
    return parser.parse_args()


def _run() -> int:
    arguments = _arguments()
    if arguments.command is None:
        # The sequencer must not wait the usual 5 ms for the interpreter whenever it comes back from the disk.
        sys.setswitchinterval(0.0005)
        asyncio.run(main(Identity.AUDIT, build))
        return 0
    if arguments.command == "forward":
        return _forward()
    form = None if arguments.format == "bundle" else Format(arguments.format)
    try:
        size = write_export(arguments.database, arguments.out, form)
    except (StepwedgeError, OSError) as error:
        words = str(error) if isinstance(error, StepwedgeError) else "FILE: the export cannot be written"
        sys.stderr.write(f"{words}\n")
        return 1
    sys.stdout.write(f"exported {size} entries\n")
    return 0


if __name__ == "__main__":
    sys.exit(_run())
