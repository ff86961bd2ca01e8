"""Start the log; or, beside it and without it, export or check the database of a log.

`python -m services.audit` serves. `python -m services.audit export --database URL --out FILE` writes the archive that
the verifier takes, out of the tables as they are. Exit status: 0, or that of `shared.rpc.main`; 2 for wrong arguments.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from services.audit import export, meters, store
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.reading import newest
from services.audit.service import AuditService
from services.audit.store import Store
from shared import keys
from shared.errors import StepwedgeError
from shared.health import Health
from shared.identity import Identity
from shared.rpc import Hooks, Server, main
from shared.settings import Settings
from shared.transparency.note import Signer
from stepwedge.audit.v1 import audit_pb2_grpc

SERVICE = "stepwedge.audit.v1.AuditService"


def open_log(settings: Settings) -> Log:
    """The log of these settings, verified and open. Raises StepwedgeError."""
    section = settings.audit
    signer = Signer(section.origin, keys.signing_key(settings.cluster.keys))
    log = Log(
        Store.open(section.database),
        signer,
        HighWater(section.high_water),
        group_commit_seconds=section.group_commit_ms / 1000,
        group_commit_records=section.group_commit_records,
        on_commit=meters.committed,
        on_alert=meters.alerted,
    )
    log.open()
    return log


async def build(settings: Settings, health: Health, server: Server) -> Hooks:
    """Put the log behind the server."""
    log = await asyncio.to_thread(open_log, settings)
    server.add(audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditService(log), SERVICE)

    async def writes() -> None:
        meters.WRITER.set(log.writes)
        log.check()

    async def database() -> None:
        await asyncio.to_thread(log.store.ping)

    async def close() -> None:
        await asyncio.to_thread(log.close)
        await asyncio.to_thread(log.store.close)

    health.dependency("database", database)
    health.dependency("log", writes)
    return Hooks(on_stopped=close)


def write_export(url: str, out: Path) -> int:
    """Export the log in a database to a file, all at once or not at all; the size of the log."""
    the_store = Store.open_as_it_is(url)
    try:
        with the_store.reading() as connection:
            head, known = newest(connection), store.keys(connection)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            with temporary.open("xb") as file:
                for piece in export.export(the_store, head, known):
                    file.write(piece)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        return head.size
    finally:
        the_store.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.audit", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    exporting = commands.add_parser("export", help="write the log of a database as an archive")
    exporting.add_argument("--database", required=True, help="SQLAlchemy URL")
    exporting.add_argument("--out", required=True, type=Path, help="file to write")
    return parser.parse_args()


def _run() -> int:
    arguments = _arguments()
    if arguments.command is None:
        # The sequencer must not wait the usual 5 ms for the interpreter whenever it comes back from the disk.
        sys.setswitchinterval(0.0005)
        asyncio.run(main(Identity.AUDIT, build))
        return 0
    try:
        size = write_export(arguments.database, arguments.out)
    except (StepwedgeError, OSError) as error:
        words = str(error) if isinstance(error, StepwedgeError) else "FILE: the archive cannot be written"
        sys.stderr.write(f"{words}\n")
        return 1
    sys.stdout.write(f"exported {size} entries\n")
    return 0


if __name__ == "__main__":
    sys.exit(_run())
