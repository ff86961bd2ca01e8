"""`stepwedge doctor`: what stands in the way of a healthy cluster on this machine, a line a check, and what to do."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from cli import configuration, terminal
from cli.exit_codes import Exit
from shared.errors import StepwedgeError
from shared.identity import SERVICES, Identity

if TYPE_CHECKING:
    from shared.settings import Settings

EXPIRY_WARNING_DAYS = 30
COMFORT = 8
"""Free space below so many times the low-water mark is worth a warning."""
NEEDED_PYTHON = (3, 11)


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Line:
    """One finding."""

    level: Level
    check: str
    words: str
    advice: str = ""


Check = Callable[["Settings"], Iterator[Line]]


def doctor(config: Path | None, *, json: bool) -> Exit:
    """Run every check; NEGATIVE where one failed."""
    lines: list[Line] = []

    def tell(line: Line) -> None:
        lines.append(line)
        _tell(line, json=json)

    try:
        settings = configuration.load(config)
    except StepwedgeError as error:
        tell(Line(Level.FAIL, "settings", error.message, "correct the settings file or the STEPWEDGE_* variables"))
        return Exit.NEGATIVE
    for check, run in CHECKS:
        try:
            for line in run(settings):
                tell(line)
        except StepwedgeError as error:
            tell(Line(Level.FAIL, check, f"{error.name}: {error.message}", "mend what it names, and ask again"))
        except Exception as error:  # noqa: BLE001 - a check that breaks must not hide the ones after it
            words = f"the check itself failed ({type(error).__name__})"
            tell(Line(Level.FAIL, check, words, "is the installation whole?"))
    bad = sum(line.level is Level.FAIL for line in lines)
    doubtful = sum(line.level is Level.WARN for line in lines)
    if not json:
        terminal.out().print(f"\n{len(lines)} checks: {bad} failed, {doubtful} to look at")
    return Exit.NEGATIVE if bad else Exit.OK


def _tell(line: Line, *, json: bool) -> None:
    if json:
        terminal.emit({"level": line.level.value, "check": line.check, "what": line.words, "advice": line.advice})
        return
    style = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}[line.level]
    out = terminal.out()
    out.print(f"[{style}]{line.level.value:<5}[/] [bold]{line.check:<13}[/] ", end="")
    out.print(line.words, markup=False, soft_wrap=True)
    if line.advice and line.level is not Level.OK:
        out.print(f"{'':<20}→ {line.advice}", markup=False, soft_wrap=True)


# --- the checks


def _settings(settings: Settings) -> Iterator[Line]:
    mode = "production" if settings.cluster.production else "development"
    yield Line(Level.OK, "settings", f"read; {mode}; data in {settings.cluster.data}")


def _runtime(_: Settings) -> Iterator[Line]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < NEEDED_PYTHON:
        yield Line(Level.FAIL, "python", f"{found} is too old", "install Python 3.11 or newer")
    else:
        yield Line(Level.OK, "python", f"{found} on {platform.system()} {platform.release()}, {os.cpu_count()} cores")


def _certificates(settings: Settings) -> Iterator[Line]:
    from cryptography import x509

    from shared.pki import Credentials

    folder = settings.cluster.pki
    if not folder.is_dir():
        yield Line(
            Level.WARN, "certificates", f"none yet in {folder}", "`stepwedge up` makes those of a development cluster"
        )
        return
    for identity in (*SERVICES, Identity.OPERATOR):
        credentials = Credentials.load(folder, identity)
        certificate = x509.load_pem_x509_certificate(credentials.certificate.read_bytes())
        days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
        name = f"certificate of {identity.value}"
        if days < 0 or certificate.not_valid_before_utc > datetime.now(UTC):
            yield Line(Level.FAIL, "certificates", f"{name} is not valid now", "renew it; is the clock right?")
        elif days < EXPIRY_WARNING_DAYS:
            yield Line(
                Level.WARN,
                "certificates",
                f"{name} ends in {days} days",
                "renew it: `stepwedge up` does in development",
            )
        yield from _private(credentials.key, "certificates")
    if settings.cluster.production and credentials.development():
        yield Line(Level.FAIL, "certificates", "of a development CA, in production", "use those of your own CA")
    kind = "development CA" if credentials.development() else "your CA"
    yield Line(Level.OK, "certificates", f"{len(SERVICES) + 1} of a {kind}, the operator's good for {days} more days")


def _keys(settings: Settings) -> Iterator[Line]:
    from shared import keys

    folder = settings.cluster.keys
    if not folder.is_dir():
        yield Line(Level.WARN, "keys", f"none yet in {folder}", "`stepwedge up` makes those of a development cluster")
        return
    keys.refuse_development(folder, production=settings.cluster.production)
    keys.pseudonym_secret(folder)
    keys.signing_key(folder)
    yield from _private(folder / keys.PSEUDONYMS, "keys")
    yield from _private(folder / keys.SIGNING, "keys")
    yield Line(Level.OK, "keys", "pseudonym key and signing key of the log are there and readable")


def _private(file: Path, check: str) -> Iterator[Line]:
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield Line(Level.FAIL, check, f"{file.name} can be read by others", f"chmod 600 {file}")


def _services(settings: Settings) -> Iterator[Line]:
    from cli import connect

    for identity in SERVICES:
        section = settings.for_service(identity)
        name, address = identity.value, section.address
        if not _answers(address):
            yield from _not_running(name, section.listen, address)
            continue
        try:
            parts = connect.health(settings, name)
        except StepwedgeError as error:
            words = f"something at {address} does not answer as {name}: {error.name}"
            yield Line(Level.FAIL, name, words, "another program on the port, or certificates of another cluster")
            continue
        broken = sorted(part.removeprefix("dependency/") for part, well in parts.items() if "/" in part and not well)
        if parts.get("") and not broken:
            yield Line(Level.OK, name, f"serving at {address}")
        elif parts.get(""):
            yield Line(
                Level.WARN, name, f"serving at {address}, without {', '.join(broken)}", f"look at {', '.join(broken)}"
            )
        else:
            words = f"up at {address} and not serving: waits for {', '.join(broken) or 'its start to end'}"
            yield Line(Level.FAIL, name, words, "mend what it waits for; it goes on by itself")


def _not_running(name: str, listen: str, address: str) -> Iterator[Line]:
    host, _, port = listen.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            words = f"not running, and {listen} cannot be taken ({(error.strerror or 'error').lower()})"
            yield Line(Level.FAIL, name, words, "end the program that holds the port, or set another")
            return
    yield Line(Level.WARN, name, f"not running at {address}; the port is free", "stepwedge up")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _dicom(settings: Settings) -> Iterator[Line]:
    if settings.ingest.dimse:
        yield from _echo(settings, settings.ingest.dimse)
    if secure := settings.ingest.dimse_tls:
        if _answers(secure):
            # Who may call there is for the site's CA to say, and doctor has none of its certificates.
            yield Line(Level.OK, "dicom", f"the secure door listens at {secure}; it was not asked anything")
        else:
            yield Line(Level.WARN, "dicom", f"nobody listens at {secure}", "stepwedge up")


def _echo(settings: Settings, address: str) -> Iterator[Line]:
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    host, _, port = address.rpartition(":")
    if not _answers(address):
        yield Line(Level.WARN, "dicom", f"nobody listens at {address}", "stepwedge up")
        return
    calling = settings.ingest.calling_ae_titles[0] if settings.ingest.calling_ae_titles else "STEPWEDGE_DOC"
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 5
    entity.add_requested_context(Verification)
    association = entity.associate(host.strip("[]"), int(port), ae_title=settings.ingest.ae_title)
    if not association.is_established:
        yield Line(Level.FAIL, "dicom", f"{address} takes no association", "look at ingest and at the AE titles")
        return
    try:
        status = association.send_c_echo()
    finally:
        association.release()
    if "Status" in status and status.Status == 0:
        yield Line(Level.OK, "dicom", f"C-ECHO answered at {address} as {settings.ingest.ae_title}")
    else:
        yield Line(
            Level.FAIL, "dicom", f"{address} answers C-ECHO with a failure", "ingest is not ready; see its line above"
        )


def _disk(settings: Settings) -> Iterator[Line]:
    places = {"data": settings.cluster.data}
    if settings.objects.kind == "directory":
        places |= {"original": Path(settings.objects.original), "deidentified": Path(settings.objects.deidentified)}
    low = settings.objects.low_water_bytes
    seen: dict[int, str] = {}
    for name, folder in places.items():
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if seen.setdefault(there.stat().st_dev, name) != name:
            continue
        free = shutil.disk_usage(there).free
        words = f"{terminal.size(free)} free where {name} lies"
        if free < low:
            words += f", below the low-water mark of {terminal.size(low)}: nothing is taken in"
            yield Line(Level.FAIL, "disk", words, "make room, or move the store")
        elif free < COMFORT * low:
            yield Line(Level.WARN, "disk", words, f"at {terminal.size(low)} nothing more is taken in")
        else:
            yield Line(Level.OK, "disk", words)


def _store(settings: Settings) -> Iterator[Line]:
    if settings.objects.kind == "directory":
        yield Line(Level.OK, "objects", "in a folder: one machine")
        return
    from shared.objects import Zone, open_store

    store = open_store(settings.objects, set(Zone))
    for zone in Zone:
        store.check(zone)
    yield Line(Level.OK, "objects", "in an S3-compatible store, which answers")


def _databases(settings: Settings) -> Iterator[Line]:
    import sqlalchemy

    from shared.database import create_engine

    for name, url in (("ingest", settings.ingest.database), ("audit", settings.audit.database)):
        kind = sqlalchemy.make_url(url).get_backend_name()
        if kind == "sqlite":
            file = Path(sqlalchemy.make_url(url).database or "")
            there = f"in {file.name}" if file.exists() else "not made yet"
            yield Line(Level.OK, "database", f"{name}: SQLite, embedded, {there}: one machine")
            continue
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT 1"))
        finally:
            engine.dispose()
        yield Line(Level.OK, "database", f"{name}: {kind}, which answers")


def _model(settings: Settings) -> Iterator[Line]:
    from services.inference.assess import Assessor
    from services.inference.execution import execution

    folder = settings.inference.model
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if settings.inference.backend == "onnxruntime" and settings.inference.provider not in available:
        words = f"{settings.inference.provider} is not there; there is {', '.join(available)}"
        yield Line(Level.FAIL, "model", words, "install the onnxruntime for it, or set inference.provider")
        return
    section = settings.inference
    Assessor(folder, signers=section.model_signers.by_role, execution=execution(section))
    yield Line(
        Level.OK, "model", f"{folder.parent.name}/{folder.name} is what its manifest says and passes its self-test"
    )


def _policy(settings: Settings) -> Iterator[Line]:
    from shared.policy import Policy

    policy = Policy.load(settings.ingest.policy)
    yield Line(Level.OK, "policy", f"reads; digest {policy.digest[:16]}")


def _confinement(_: Settings) -> Iterator[Line]:
    abi = landlock_abi()
    if abi > 0:
        yield Line(
            Level.OK, "confinement", f"Landlock (ABI {abi}): inference cannot open originals even as the same user"
        )
        return
    words = "this kernel has no Landlock: inference is held off the originals by its settings alone"
    yield Line(Level.WARN, "confinement", words, "run services as different users or in containers, or use Linux 5.13+")


def landlock_abi() -> int:
    """Landlock's version in this kernel (landlock_create_ruleset(2)); 0 or less where there is none."""
    create_ruleset, version_flag = 444, 1
    if sys.platform != "linux":
        return 0
    return int(ctypes.CDLL(None, use_errno=True).syscall(create_ruleset, None, 0, version_flag))


def _clock(settings: Settings) -> Iterator[Line]:
    newest = max((file.stat().st_mtime for file in _written(settings)), default=0.0)
    ahead = newest - datetime.now(UTC).timestamp()
    if ahead > 2:
        words = f"behind the newest file of the cluster by {terminal.duration(ahead)}"
        yield Line(Level.FAIL, "clock", words, "set the clock; records must not go back in time")
    elif not _clock_is_disciplined():
        yield Line(Level.WARN, "clock", "no time service keeps it", "run chrony or systemd-timesyncd")
    else:
        yield Line(Level.OK, "clock", "kept by a time service")


def _written(settings: Settings) -> Iterator[Path]:
    if settings.cluster.data.is_dir():
        yield from (file for file in settings.cluster.data.iterdir() if file.is_file())


class _Timex(ctypes.Structure):
    """The beginning of struct timex (adjtimex(2)); the rest is padding of ours."""

    _fields_ = [("modes", ctypes.c_uint), ("rest", ctypes.c_byte * 512)]


def _clock_is_disciplined() -> bool:
    """Whether the kernel takes its clock for synchronised (adjtimex(2) returns TIME_ERROR where it does not)."""
    time_error = 5
    if sys.platform != "linux":
        return True
    state = int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(_Timex())))
    return state not in (-1, time_error)


CHECKS: Sequence[tuple[str, Check]] = (
    ("settings", _settings),
    ("python", _runtime),
    ("certificates", _certificates),
    ("keys", _keys),
    ("services", _services),
    ("dicom", _dicom),
    ("database", _databases),
    ("objects", _store),
    ("disk", _disk),
    ("model", _model),
    ("policy", _policy),
    ("confinement", _confinement),
    ("clock", _clock),
)
"""In the order in which they are told."""
