"""`stepwedge up`: the whole cluster on this machine, in the foreground, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli import configuration, terminal
from cli.cluster import SERVICES, Cluster
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from shared.settings import Settings

DOES = {
    "ingest": "receives, decides, delivers",
    "redaction": "takes identity out",
    "inference": "measures pixels",
    "audit": "keeps the log",
}


def up(config: Path | None) -> None:
    """Run until interrupted."""
    settings = configuration.load(config)
    started = time.monotonic()
    with only_one(settings), Cluster(settings, console=True, say=terminal.note) as cluster:
        _print_table(settings, time.monotonic() - started)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            terminal.note("draining: ingest first, the log last")
            cluster.stop()
            terminal.note("drained")


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the lock of the data folder, so that no two clusters share it.

    Raises
    ------
    StepwedgeError
        WRONG_STATE where another holds it.
    """
    folder = settings.cluster.data
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = f"a cluster is already running on the data folder {folder}"
            raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, words) from None
        yield
    finally:
        os.close(descriptor)


def _print_table(settings: Settings, seconds: float) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for title in ("service", "", "gRPC (mutual TLS)", "metrics"):
        table.add_column(title)
    for service in reversed(SERVICES):
        section = settings.for_service(service)
        table.add_row(f"[bold cyan]{service}[/]", DOES[service], section.address, section.metrics or "-")
    out = terminal.out()
    out.print(table)
    out.print()
    secure = settings.ingest.dimse_tls and f"{settings.ingest.dimse_tls} over TLS"
    doors = " and ".join(filter(None, (settings.ingest.dimse, secure)))
    out.print(f"DICOM    {doors}, AE title {settings.ingest.ae_title}", soft_wrap=True)
    out.print(f"console  {settings.console.url}{_first_password(settings)}", soft_wrap=True)
    out.print(f"data     {settings.cluster.data}", soft_wrap=True)
    out.print(f"logs     {settings.cluster.data / 'run' / 'logs'}", soft_wrap=True)
    kind = "production" if settings.cluster.production else "development certificates: not for patients"
    out.print(f"mode     {kind}", soft_wrap=True)
    out.print(f"ready in {terminal.duration(seconds)}; Ctrl-C drains and ends", soft_wrap=True)


def _first_password(settings: Settings) -> str:
    """How to sign in for the first time; nothing once the file is gone."""
    file = settings.console.first_password
    return f", first sign-in as admin with the password in {file}" if file.is_file() else ""
