"""Objects a second through the DICOM door: ours beside a bare server that only writes and fsyncs, and beside Orthanc.

`python -m benchmarks.ingest [--ct 300] [--cr 20] [--senders 1 4 8] [--rounds 3] [--sides ours bare] [--json FILE]`

All sides run in the same run, one after the other, on loopback with TCP_NODELAY, from the same sender processes with
the same number of objects: CT slices of 512 x 512 and CR images of 2500 x 2048, 16 bits, explicit little endian. What
success means on each side:

* ours: the bytes fsynced, file and folder; a row committed; a record committed in the log and its high-water mark
  synced. Ingest, its DICOM workers and the log are processes of their own, with mutual TLS between them and SQLite.
  Redaction and inference are left out: reception alone is measured, as on the other sides.
* bare: pynetdicom as its documentation shows it, writing each object to a file and fsyncing file and folder.
* orthanc: `SyncStorageArea` (file and folder fsynced) and a row in its index, whose commit it does not wait to be
  durable. Left out where Orthanc is not installed.
* null: reads the bytes, keeps nothing and says success. What senders and machine leave to any server: no side can be
  faster, so a ratio between two sides beyond null's is out of reach there.

Numbers go to stdout as a table, and as JSON where asked; "ours to it" is the ratio of objects a second, of each round,
the median of all rounds. "CPU ms" is what the processes of a side spent on an object, user and system together, which
a loaded machine changes less than it changes the time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when the module is read

from services.ingest import store_command
from shared import keys, pki
from shared.identity import Identity
from shared.paths import ROOT

CT, CR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1"
_SYNTAX = str(ExplicitVRLittleEndian)
ORTHANC = shutil.which("Orthanc", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")


def made_object(sop_class: str, modality: str, rows: int, columns: int, study: str, number: int) -> tuple[str, bytes]:
    """SOP Instance UID and encoded data set of an image of noise."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid(None)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, study + ".1"
    ds.Modality, ds.PatientID, ds.PatientName, ds.InstanceNumber = modality, "BENCHMARK", "Bench^Mark", number
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = rows, columns, 16, 12, 11
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    ds.PixelData = np.random.default_rng(number).integers(0, 4096, (rows, columns), dtype=np.uint16).tobytes()
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return str(ds.SOPInstanceUID), buffer.getvalue()


def send(address: tuple[str, int], ct: int, cr: int, ready: Any, go: Any, results: Any) -> None:
    """One sender: an association, then every object one after the other."""
    study = generate_uid(None)[:60]
    objects = [(CT, *made_object(CT, "CT", 512, 512, study, number)) for number in range(ct)]
    objects += [(CR, *made_object(CR, "CR", 2500, 2048, study, number)) for number in range(cr)]
    ae = AE("BENCH")
    ae.add_requested_context(CT, _SYNTAX)
    ae.add_requested_context(CR, _SYNTAX)
    association = ae.associate(*address, max_pdu=0)
    assert association.is_established
    connection: Any = association.dul.socket
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    contexts = {str(cx.abstract_syntax): int(cx.context_id or 0) for cx in association.accepted_contexts}
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    ready.release()
    go.wait()
    taken = []
    for number, (sop_class, uid, data) in enumerate(objects):
        request = C_STORE()
        request.MessageID, request.Priority = number % 65535 + 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, uid
        request.DataSet = BytesIO(data)
        began = time.perf_counter()
        association.dimse.send_msg(request, contexts[sop_class])
        _, response = association.dimse.get_msg(block=True)
        taken.append(time.perf_counter() - began)
        assert isinstance(response, C_STORE), "no response"
        assert response.Status == 0, hex(response.Status or 0)
    association._reactor_checkpoint.set()
    association.release()
    results.put((sum(len(data) for _, _, data in objects), taken))


@dataclass(frozen=True, slots=True)
class Server:
    """A side that runs."""

    port: int
    processes: Mapping[str, psutil.Process]
    parent: psutil.Process | None = None
    """Whose descendants are its workers."""

    def seconds(self) -> dict[str, float]:
        """CPU time of its processes so far, user and system; of all workers together."""
        spent = {name: _cpu(process) for name, process in self.processes.items()}
        if self.parent is not None:
            spent["workers"] = sum(_cpu(one) for one in self.parent.children(recursive=True))
        return spent


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def bare_server(folder: str, port: int) -> None:
    """A server that writes what it gets to a file, fsyncs, and says success."""

    def on_store(event: evt.Event) -> int:
        request: Any = event.request
        path = Path(folder) / str(request.AffectedSOPInstanceUID)
        with path.open("wb") as file:
            file.write(event.encoded_dataset())
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return 0x0000

    ae = AE("BARE")
    ae.add_supported_context(CT, _SYNTAX)
    ae.add_supported_context(CR, _SYNTAX)
    ae.add_supported_context(Verification)
    ae.maximum_pdu_size = 1 << 18
    ae.maximum_associations = 64
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, on_store)])


def null_server(port: int) -> None:
    """A server that lets every object fall and says success, a thread for each association."""
    with socket.create_server(("127.0.0.1", port)) as door:
        while True:
            connection, _ = door.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_let_fall, args=(connection,), daemon=True).start()


def _let_fall(connection: socket.socket) -> None:
    """One association (PS3.8 9.3): accepted, each C-STORE answered with success once its data set ended, released."""
    request: store_command.StoreRequest | None = None
    with connection, connection.makefile("rb", buffering=1 << 20) as stream:
        while head := stream.read(6):
            body = stream.read(int.from_bytes(head[2:], "big"))
            if head[0] == 0x01:
                connection.sendall(_accepted(head + body))
            elif head[0] == 0x04 and body[5] == 0x03:  # a whole command set
                request = store_command.read(body[6:])
            elif head[0] == 0x04 and body[5] == 0x02 and request is not None:  # a data set's last fragment
                for value in store_command.values(store_command.answer(request, 0x0000), 0):
                    connection.sendall(store_command.pdu(body[4], value))
            elif head[0] == 0x05:
                connection.sendall(struct.pack(">BxII", 0x06, 4, 0))


def _accepted(request: bytes) -> bytes:
    asked = A_ASSOCIATE_RQ()
    asked.decode(request)
    told: Any = asked.to_primitive()
    told.result, told.presentation_context_definition_results_list = 0, told.presentation_context_definition_list
    for context in told.presentation_context_definition_results_list:
        context.result, context.transfer_syntax = 0, context.transfer_syntax[:1]
    answer = A_ASSOCIATE_AC()
    answer.from_primitive(told)
    return answer.encode()


@contextmanager
def _beside(serve: Callable[..., None], *arguments: Any) -> Iterator[psutil.Process]:
    """A server in a process of its own."""
    server = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
    server.start()
    try:
        yield psutil.Process(server.pid)
    finally:
        server.terminate()
        server.join()


@contextmanager
def null(folder: Path) -> Iterator[Server]:
    """The server that keeps nothing."""
    port = free_port()
    with _beside(null_server, port) as process:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)
        yield Server(port, {"server": process})


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def bare(folder: Path) -> Iterator[Server]:
    """The bare server."""
    port = free_port()
    (folder / "objects").mkdir()
    with _beside(bare_server, str(folder / "objects"), port) as process:
        answering(port)
        yield Server(port, {"server": process})


@contextmanager
def orthanc(folder: Path) -> Iterator[Server]:
    """Orthanc, told to make each object durable, with as many threads as senders and the longest PDU that it takes."""
    assert ORTHANC is not None
    port, http = free_port(), free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "SyncStorageArea": True,
        "DicomPort": port,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
        "DicomThreadsCount": 16,
        "MaximumPduLength": 131072,
        "TcpNoDelay": True,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [ORTHANC, str(folder / "orthanc.json")],
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1", "LC_ALL": "C.UTF-8"},  # the first is DCMTK's
        )
    try:
        answering(port)
        yield Server(port, {"server": psutil.Process(process.pid)})
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def ours(folder: Path) -> Iterator[Server]:
    """The log and ingest; redaction and inference are left out, so that the front door alone is measured."""
    processes, port = start_ours(folder)
    audit, ingest = (psutil.Process(process.pid) for process in processes)
    try:
        yield Server(port, {"log": audit, "ingest": ingest}, ingest)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(60)


def answering(port: int) -> None:
    """Wait until a server says success to a C-ECHO, which ours says once a C-STORE would succeed."""
    ae = AE("BENCH")
    ae.add_requested_context(Verification)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        association = ae.associate("127.0.0.1", port)
        if association.is_established:
            status = association.send_c_echo()
            association.release()
            if status and status.Status == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the server does not answer")


def start_ours(folder: Path) -> tuple[list[subprocess.Popen[str]], int]:
    """The log and ingest, ready; redaction and inference are left out, so that the front door alone is measured."""
    config = folder / "stepwedge.toml"
    dimse = free_port()
    ports = [free_port() for _ in range(4)]
    config.write_text(
        f'[cluster]\ndata = "{folder}/data"\n'
        f'[ingest]\nlisten = "127.0.0.1:{ports[0]}"\nmetrics = ""\ndimse = "127.0.0.1:{dimse}"\nquiet_seconds = 3600\n'
        f"max_associations = 64\n"
        f'[audit]\nlisten = "127.0.0.1:{ports[1]}"\nmetrics = ""\n'
        f'[redaction]\nlisten = "127.0.0.1:{ports[2]}"\n[inference]\nlisten = "127.0.0.1:{ports[3]}"\n'
    )
    pki.create(folder / "data" / "pki", Identity, development=True)
    keys.create(folder / "data" / "keys", development=True)
    processes = []
    for service in ("audit", "ingest"):
        process = subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"],
            cwd=ROOT,
            env={**os.environ, "STEPWEDGE_CONFIG": str(config)},
            stdout=subprocess.PIPE,
            stderr=(folder / f"{service}.stderr").open("w"),
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready"), (folder / f"{service}.stderr").read_text()
        processes.append(process)
    answering(dimse)
    return processes, dimse


def measured(server: Server, senders: int, ct: int, cr: int) -> dict[str, float]:
    """Run so many senders at once against a server."""
    context = multiprocessing.get_context("spawn")
    ready, go, results = context.Semaphore(0), context.Event(), context.Queue()
    processes = [
        context.Process(target=send, args=(("127.0.0.1", server.port), ct, cr, ready, go, results))
        for _ in range(senders)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=120)
    before, began = server.seconds(), time.perf_counter()
    go.set()
    gathered = [results.get(timeout=600) for _ in processes]
    seconds = time.perf_counter() - began
    spent = {name: after - before[name] for name, after in server.seconds().items()}
    for process in processes:
        process.join()
    taken = sorted(one for _, each in gathered for one in each)
    return {
        "objects_per_second": len(taken) / seconds,
        "megabytes_per_second": sum(size for size, _ in gathered) / seconds / 1e6,
        "p50_ms": taken[len(taken) // 2] * 1e3,
        "p95_ms": taken[int(len(taken) * 0.95)] * 1e3,
        "cpu_ms": sum(spent.values()) / len(taken) * 1e3,
        **{f"cpu_ms_{name}": each / len(taken) * 1e3 for name, each in spent.items()},
    }


def once(side: str, senders: int, ct: int, cr: int) -> dict[str, float]:
    """Start a side afresh and measure it."""
    with tempfile.TemporaryDirectory() as name, SIDES[side](Path(name)) as server:
        return measured(server, senders, ct, cr)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ct", type=int, default=300, help="CT slices, of all senders together")
    parser.add_argument("--cr", type=int, default=20, help="CR images, of all senders together")
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=1, help="measure every side so often, in turn; medians are told")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    sides = [side for side in arguments.sides if side != "orthanc" or ORTHANC is not None]
    if ORTHANC is None:
        print("without Orthanc, which is not here: apt-get install orthanc")
    figures: dict[str, dict[int, dict[str, float]]] = {side: {} for side in sides}
    print(
        f"{'senders':>7} {'side':>8} {'objects/s':>10} {'MB/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>7}"
        f" {'ours to it':>11}"
        f"   load average {os.getloadavg()[0]:.1f}"
    )
    for senders in arguments.senders:
        # Every side gets the same objects, as good as it goes: each sender its share.
        share = (-(-arguments.ct // senders), -(-arguments.cr // senders))
        rounds = [{side: once(side, senders, *share) for side in sides} for _ in range(arguments.rounds)]
        for side in sides:
            every = [one[side] for one in rounds]
            one = figures[side][senders] = {key: statistics.median(each[key] for each in every) for key in every[0]}
            one["ours_to_it"] = statistics.median(
                each.get("ours", each[side])["objects_per_second"] / each[side]["objects_per_second"] for each in rounds
            )
            print(
                f"{senders:>7} {side:>8} {one['objects_per_second']:>10.1f} {one['megabytes_per_second']:>8.1f}"
                f" {one['p50_ms']:>8.1f} {one['p95_ms']:>8.1f} {one['cpu_ms']:>7.2f} {one['ours_to_it']:>11.2f}"
                + "".join(f"   {key[7:]} {value:.2f}" for key, value in one.items() if key.startswith("cpu_ms_")),
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


SIDES: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
    "null": null,
    "bare": bare,
    "orthanc": orthanc,
    "ours": ours,
}

if __name__ == "__main__":
    main()
