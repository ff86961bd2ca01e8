"""`stepwedge constancy`: the daily test of the whole cluster with phantoms whose values are known."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import configuration, connect, studies, terminal
from cli.exit_codes import Exit
from shared import phantom
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

if TYPE_CHECKING:
    from stepwedge.ingest.v1.ingest_pb2_grpc import IngestServiceStub

CALL_SECONDS = 60.0
POLL_SECONDS = 0.25
CHUNK_BYTES = 1 << 20


def constancy(
    config: Path | None, to: str, called: str, *, set_baseline: bool, seconds: float, everything: bool, json: bool
) -> Exit:
    """Send the phantoms, wait for the verdict, compare; NEGATIVE where a value drifted.

    to, called: address and AE title of the DICOM door; empty to hand the phantoms in over gRPC.
    """
    settings = configuration.load(config)
    study = f"2.25.{uuid.uuid4().int}"
    objects = phantoms(study, date.today())
    with connect.channel(settings, "ingest", Identity.OPERATOR) as link:
        stub = ingest_pb2_grpc.IngestServiceStub(link)
        key = ingest_pb2.StudyKey(study_instance_uid=study)
        began = time.monotonic()
        if to:
            _store(objects, to, called)
        else:
            for data in objects:
                stub.SubmitInstance(iter(_chunks(data)), timeout=CALL_SECONDS)
        _wait(stub, key, len(objects), seconds)
        took = time.monotonic() - began
        request = ingest_pb2.CheckConstancyRequest(study=key, set_baseline=set_baseline)
        answer = stub.CheckConstancy(request, timeout=CALL_SECONDS)
    if json:
        terminal.emit(_as_json(answer, took))
    else:
        _print(answer, took, everything=everything)
    return Exit.NEGATIVE if answer.drifted else Exit.OK


def phantoms(study: str, day: date) -> list[bytes]:
    """The objects of a test: the same pixels each day, under UIDs and a date of their own."""
    made = []
    for number, name in phantom.CONSTANCY_NAMES.items():
        dataset = phantom.to_dicom(
            phantom.constancy(number),
            patient_name=f"Constancy^{name}",
            patient_id="STEPWEDGE-CONSTANCY",
            study_uid=study,
            series_uid=f"2.25.{uuid.uuid4().int}",
            sop_instance_uid=f"2.25.{uuid.uuid4().int}",
            study_date=day,
            station_name="CONSTANCY",
        )
        dataset.DeviceSerialNumber = phantom.CONSTANCY_DEVICE[2]
        dataset.InstanceNumber = str(number)
        dataset.SeriesNumber = str(number)
        dataset.SeriesDescription = name
        dataset.QualityControlImage = "YES"
        written = io.BytesIO()
        dataset.save_as(written, enforce_file_format=True)
        made.append(written.getvalue())
    return made


def _chunks(data: bytes) -> list[ingest_pb2.SubmitInstanceRequest]:
    return [
        ingest_pb2.SubmitInstanceRequest(chunk=data[place : place + CHUNK_BYTES])
        for place in range(0, len(data), CHUNK_BYTES)
    ]


def _store(objects: Sequence[bytes], to: str, called: str) -> None:
    """Send by C-STORE, as a modality does. Raises what the first failure was."""
    import tempfile

    from cli.send import parse_peer, send

    with tempfile.TemporaryDirectory(prefix="stepwedge-constancy-") as folder:
        paths = [Path(folder) / f"{place}.dcm" for place in range(len(objects))]
        for path, data in zip(paths, objects, strict=True):
            path.write_bytes(data)
        for sent in send(paths, parse_peer(to, called, "STEPWEDGE_SCU")):
            if not sent.ok:
                words = f"a phantom was not stored: {sent.words}"
                raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, words)


def _wait(stub: IngestServiceStub, key: ingest_pb2.StudyKey, expected: int, seconds: float) -> None:
    """Until the study is decided as a whole. Raises DEPENDENCY_UNAVAILABLE where that takes too long, or it failed."""
    deadline = time.monotonic() + seconds
    with terminal.counter("waiting for the verdict", "of the phantoms settled") as counted:
        while True:
            study = stub.GetStudy(ingest_pb2.GetStudyRequest(study=key), timeout=CALL_SECONDS).study
            decided = bool(study.decisions) and study.decisions[-1].instances == expected
            if decided:
                return
            if study.state == ingest_pb2.STUDY_STATE_DEAD_LETTER:
                words = "the phantoms were given up: `stepwedge explain` tells why"
                raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, words)
            if time.monotonic() > deadline:
                words = f"no verdict on the phantoms within {seconds:.0f} s; the study is {studies.state_name(study)}"
                raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, words)
            counted(sum(bool(one.findings) for one in study.instances))
            time.sleep(POLL_SECONDS)


# --- words -------------------------------------------------------------------------------------------------------


def _as_json(answer: ingest_pb2.CheckConstancyResponse, took: float) -> dict[str, Any]:
    return {
        "drifted": answer.drifted,
        "compared": len(answer.values),
        "baseline": {
            "version": answer.baseline_version,
            "sha256": answer.baseline_sha256,
            "set_at": studies.iso(answer.baseline_at),
            "set_now": answer.baseline_set,
        },
        "seconds": round(took, 3),
        "record_index": answer.record_index,
        "values": [
            {
                "phantom": one.phantom,
                "name": one.name,
                "value": one.value,
                "expected": one.expected,
                "tolerance": one.tolerance,
                "unit": one.unit,
                "drifted": one.drifted,
            }
            for one in answer.values
        ],
    }


def _print(answer: ingest_pb2.CheckConstancyResponse, took: float, *, everything: bool) -> None:
    from rich.table import Table

    out = terminal.out()
    shown = [one for one in answer.values if one.drifted or everything]
    if shown:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for title in ("phantom", "value", "measured", "baseline", "tolerance", "unit", ""):
            right = title in ("measured", "baseline", "tolerance")
            table.add_column(title, no_wrap=True, justify="right" if right else "left")
        for one in shown:
            mark = "[bold red]DRIFT[/]" if one.drifted else "" if one.expected else "new"
            table.add_row(
                *(one.phantom, one.name, one.value or "-", one.expected or "-", one.tolerance), one.unit, mark
            )
        out.print(table)
    baseline = f"baseline {answer.baseline_version} of {studies.iso(answer.baseline_at)}"
    if answer.baseline_set:
        out.print(f"{len(answer.values)} values are {baseline} from now on")
    elif answer.drifted:
        out.print(f"[bold red]{answer.drifted}[/] of {len(answer.values)} values drifted from {baseline}")
    else:
        out.print(f"[bold green]constant[/]: {len(answer.values)} values as in {baseline}")
    out.print(
        f"from sending to verdict {terminal.duration(took)}; record {answer.record_index} of the log", style="dim"
    )
