"""Settings as the commands need them: read, completed on the first run, and cut down to what each child may know."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

from cli import tables
from shared import keys, pki
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import SERVICES, Identity
from shared.provision import KEYS_OF

if TYPE_CHECKING:
    from shared.settings import Settings

WITHHELD: Mapping[str, str] = {"directory": "/nonexistent/withheld", "s3": "s3://withheld"}
"""Stands in a child's settings, by kind of store, where a zone is none of its business."""

SEES: Mapping[str, frozenset[str]] = {
    "ingest": frozenset({"original", "deidentified"}),
    "redaction": frozenset({"original", "deidentified"}),
    "inference": frozenset({"deidentified"}),
    "audit": frozenset(),
    "console": frozenset(),
}
"""Which zones of the object store each service is told."""

# Below the range from which the kernel takes ports for outgoing connections, so that none is taken between the choice
# of a port here and its use by the child.
PORTS = range(20000, 32000)


def load(file: Path | None) -> Settings:
    """The settings: of `file`, else of STEPWEDGE_CONFIG, else of `stepwedge.toml` here where it is, else defaults."""
    from shared import settings

    here = Path("stepwedge.toml")
    if file is None and not os.environ.get(settings.FILE_VARIABLE) and here.is_file():
        file = here
    return settings.load(file)


def prepare(settings: Settings) -> Path:
    """Make what a first run needs: folders, certificates and keys; return the folder of the running cluster.

    A cluster in production gets its certificates and keys from its owner: there nothing is made.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where a cluster in production lacks one of them.
    """
    folder = settings.cluster.data / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not settings.cluster.production:
        if not _given_by_site(settings.cluster.pki):
            pki.create(settings.cluster.pki, Identity, names=settings.cluster.names, development=True)
        keys.create(settings.cluster.keys, origin=settings.audit.origin, development=True)
    for identity in SERVICES:
        credentials = pki.Credentials.load(settings.cluster.pki, identity)
        pki.refuse_development(credentials, production=settings.cluster.production)
    keys.refuse_development(settings.cluster.keys, production=settings.cluster.production)
    return folder


def write_for_service(settings: Settings, service: str, file: Path) -> Path:
    """Write the settings of one child; beside them its own certificate and keys and nobody else's. Return the file."""
    identity = Identity(service)
    secrets = file.with_suffix(".secrets")
    own = pki.Credentials.load(settings.cluster.pki, identity)
    wanted = [own.ca, own.certificate, own.key]
    if identity != Identity.AUDIT:  # whose key may be rotated, which is to replace the key itself and no copy of it
        wanted += [settings.cluster.keys / name for name in KEYS_OF[identity]]
    _private_folder(secrets)
    for source in wanted:
        if source.exists():
            _write_private(secrets / source.name, source.read_bytes())
    _write_private(file, tables.dumps(for_service(settings, service, secrets)).encode())
    return file


def for_service(settings: Settings, service: str, secrets: Path) -> dict[str, Any]:
    """The settings as one service may know them: its own secrets, and of the others only where they are reached."""
    whole: dict[str, Any] = settings.model_dump(mode="json")
    witnessed = {name: whole["audit"][name] for name in ("witnesses", "quorum")}
    for other in SERVICES:
        if other != service:
            whole[other] = {"listen": whole[other]["address"]}
    if service == "console":
        whole["audit"].update(witnessed)  # public keys, with which it checks what the log says of its witnesses
    else:
        del whole["console"]
    for name in (pki.CA_CERTIFICATE, f"{service}.crt", f"{service}.key"):  # its own copies, wherever it is told of them
        whole = _with(whole, str(settings.cluster.pki / name), str(secrets / name))
    whole["cluster"].update(pki=str(secrets), keys=str(secrets))
    for zone in {"original", "deidentified"} - SEES[service]:
        whole["objects"][zone] = WITHHELD[settings.objects.kind]
    if "original" not in SEES[service]:  # which could be guessed from the folder of all data
        whole["cluster"]["data"] = str(secrets.with_suffix(".data"))
        whole["objects"]["scratch"] = str(secrets.with_suffix(".data") / "scratch")
    return whole


def _with(value: Any, old: str, new: str) -> Any:
    """The same value with one string in the place of another, however deep."""
    if isinstance(value, dict):
        return {key: _with(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [_with(one, old, new) for one in value]
    return new if value == old else value


def _given_by_site(folder: Path) -> bool:
    """Whether the PKI folder holds certificates of a CA that is not one of development."""
    if not (folder / pki.CA_CERTIFICATE).exists():
        return False
    return not pki.Credentials.load(folder, Identity.INGEST).development()


def free_ports(count: int) -> list[int]:
    """So many different TCP ports of the loopback that are free now.

    Raises
    ------
    StepwedgeError
        DEPENDENCY_UNAVAILABLE where there are not so many.
    """
    found: list[int] = []
    candidates = SystemRandom().sample(PORTS, 2000)
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "no free ports on the loopback")


def on_free_ports(data: Path, **sections: Mapping[str, Any]) -> Path:
    """Write a settings file for a cluster below `data` with every listener on a free loopback port; return the file.

    `sections` adds to the sections of the file: `ingest={"quiet_seconds": 1.0}`.
    """
    ports = iter(free_ports(2 * len(SERVICES) + 2))
    table: dict[str, Any] = {"cluster": {"data": str(data)}}
    for service in SERVICES:
        table[service] = {"listen": f"127.0.0.1:{next(ports)}", "metrics": f"127.0.0.1:{next(ports)}"}
    table["ingest"] |= {"dimse": f"127.0.0.1:{next(ports)}", "seal_identities": True}
    table["console"] = {"listen": f"127.0.0.1:{next(ports)}"}
    for name, section in sections.items():
        table[name] = {**table.get(name, {}), **section}
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = data / "stepwedge.toml"
    _write_private(file, tables.dumps(table).encode())
    return file


def _private_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)


def _write_private(file: Path, data: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    temporary = file.with_name(f".{file.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    temporary.replace(file)
