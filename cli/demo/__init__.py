"""`stepwedge demo`: the whole product on this machine in under a minute, ending in a proof and a forger caught."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.uid import ComprehensiveSRStorage, SegmentationStorage
from rich.markup import escape

from cli import configuration, connect, files, log, terminal
from cli.cluster import ROOT, SERVICES, Cluster
from cli.demo.board import Board
from cli.demo.forgery import forge
from cli.demo.material import Material, built_in, of_user
from cli.exit_codes import Exit
from cli.receiver import Receiver, receiver
from cli.send import Peer, Sent, send
from cli.studies import reason_name, verdict_name
from cli.up import DOES
from shared.build import VERSION
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

if TYPE_CHECKING:
    from shared.settings import Settings
    from stepwedge.ingest.v1.ingest_pb2_grpc import IngestServiceStub

QUIET_SECONDS = 1.0
"""How long nothing may arrive for a study before it counts as complete; ten times that is usual."""
VERDICT_SECONDS = 45.0
"""Patience with the studies after the last one was sent, and again for each fifty files."""
POLL_SECONDS = 0.2
PACS = "DEMO_PACS"
ROUTES = (
    {"name": "accepted", "verdicts": ["ACCEPT"], "send": ["original"], "destinations": ["demo-pacs"]},
    {
        "name": "radiographs",
        "verdicts": ["ACCEPT"],
        "modalities": ["CR", "DX"],
        "send": ["seg", "sr"],
        "destinations": ["demo-pacs"],
    },
)
"""What the PACS gets: the images of accepted studies and, of radiographs, the outlines and the measurements beside
them."""
RESULTS = {str(SegmentationStorage): "segmentations (SEG)", str(ComprehensiveSRStorage): "measurement reports (SR)"}
VERIFIER = ROOT / "verifier" / "verify.py"


class Demo:
    """One run: what it found, and what it did not expect."""

    def __init__(self, folder: Path, material: Material, *, own: bool) -> None:
        self.folder = folder
        self.material = material
        self.own = own
        """Whether the files are the user's."""
        self.sent: list[Sent] = []
        self.board = Board()
        self.surprises: list[str] = []
        self.started = time.monotonic()
        self._step = 0

    def step(self, title: str, words: str = "") -> None:
        """Begin a step."""
        self._step += 1
        padding = " " * (16 - len(title)) if words else ""
        terminal.out().print(f"\n[bold cyan]{self._step}[/]  [bold]{title}[/]{padding}{words}", soft_wrap=True)

    def say(self, words: str) -> None:
        """A line of the present step, in Rich markup."""
        terminal.paragraph(words, 3)

    def point(self, path: Path, words: str = "") -> None:
        """A path of the present step, on one line so that it can be copied."""
        terminal.out().print(f"   [dim]{escape(terminal.printable(path))}{words}[/]", soft_wrap=True)

    def expect(self, holds: bool, words: str) -> None:
        """Note what went otherwise than it must."""
        if not holds:
            self.surprises.append(words)


def demo(own: Path | None, data: Path | None) -> Exit:
    """Run it; NEGATIVE where anything went otherwise than it must."""
    folder = _folder(data)
    terminal.out().print(
        f"[bold]Stepwedge {VERSION}[/]  DICOM in, four services, a verdict out, every step provable", soft_wrap=True
    )
    material = of_user(files.named([own])) if own is not None else built_in(folder / "images")
    run = Demo(folder, material, own=own is not None)
    with receiver(PACS) as pacs:
        destination = {"name": "demo-pacs", "ae_title": PACS, "host": "127.0.0.1", "port": pacs.port}
        ingest = {"quiet_seconds": QUIET_SECONDS, "destinations": [destination], "routes": list(ROUTES)}
        settings_file = configuration.on_free_ports(folder / "cluster", ingest=ingest)
        settings = configuration.load(settings_file)
        with _cluster(run, settings) as cluster:
            _send_and_watch(run, settings)
            _conclude(run, pacs)
            export = _prove(run, settings)
            _catch_a_forger(run, settings, export)
            memory = _resident(cluster)
    return _end(run, settings, settings_file, memory)


def _folder(data: Path | None) -> Path:
    if data is None:
        return Path(tempfile.mkdtemp(prefix="stepwedge-demo-"))
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{data}: must be a new or empty folder")
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    return data.resolve()


@contextmanager
def _cluster(run: Demo, settings: Settings) -> Iterator[Cluster]:
    run.step("Start", "four services over mutual TLS, with SQLite and a folder")
    began = time.monotonic()
    with Cluster(settings, say=run.say) as cluster:
        for service in reversed(SERVICES):
            run.say(f"[cyan]{service:<10}[/] {DOES[service]:<30} {settings.for_service(service).address}")
        run.say(f"ready in {terminal.duration(time.monotonic() - began)}")
        yield cluster
        began = time.monotonic()
    run.step("Stop", f"drained in {terminal.duration(time.monotonic() - began)}, ingest first and the log last")


def _send_and_watch(run: Demo, settings: Settings) -> None:
    host, _, port = settings.ingest.dimse.rpartition(":")
    peer = Peer(host, int(port), settings.ingest.ae_title, "DEMO_MODALITY")
    what = "files of yours" if run.own else "studies: real objects, and radiographs of a chest phantom"
    run.step("Send", f"{run.material.count} {what}")
    run.say(f"by C-STORE to {settings.ingest.dimse}; a study is complete when nothing came for {QUIET_SECONDS:.0f} s")
    failed: list[StepwedgeError] = []

    def hand_in() -> None:
        try:
            for batch in run.material.batches:
                send(batch, peer, seen=run.sent.append)
        except StepwedgeError as error:
            failed.append(error)

    sender = threading.Thread(target=hand_in, name="modality", daemon=True)
    sender.start()
    with connect.channel(settings, "ingest", Identity.OPERATOR) as link, run.board.shown():
        _watch(run, ingest_pb2_grpc.IngestServiceStub(link), sender)
    if failed:
        raise failed[0]


def _watch(run: Demo, stub: IngestServiceStub, sender: threading.Thread) -> None:
    """Follow every study until all that was stored is decided, or patience ends."""
    deadline = time.monotonic() + VERDICT_SECONDS * (1 + run.material.count / 50)
    while time.monotonic() < deadline:
        over = not sender.is_alive()
        for study in _studies(stub):
            row = run.board.rows.get(study.study_instance_uid)
            if (
                row is None
                or row.study is None
                or not (row.ended and row.study.last_received_at == study.last_received_at)
            ):
                key = ingest_pb2.StudyKey(study_instance_uid=study.study_instance_uid)
                whole = stub.GetStudy(ingest_pb2.GetStudyRequest(study=key), timeout=10).study
                run.board.update(whole, _label(run, whole))
        if over and all(row.ended for row in run.board.rows.values()):
            return
        time.sleep(POLL_SECONDS)


def _studies(stub: IngestServiceStub) -> Iterator[ingest_pb2.Study]:
    token = ""
    while True:
        page = stub.ListStudies(ingest_pb2.ListStudiesRequest(page_size=1000, page_token=token), timeout=10)
        yield from reversed(page.studies)
        token = page.next_page_token
        if not token:
            return


def _label(run: Demo, study: ingest_pb2.Study) -> str:
    """What the study is called here: by its case, else by its files."""
    names = {sent.sop_instance: sent.path for sent in list(run.sent)}
    paths = list(dict.fromkeys(names[i.sop_instance_uid] for i in study.instances if i.sop_instance_uid in names))
    if not paths:
        return "(arriving)"
    case = run.material.cases.get(paths[0])
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return (case.label if case else terminal.printable(paths[0].name)) + more


def _conclude(run: Demo, pacs: Receiver) -> None:
    run.step("Verdicts")
    terminal.paragraph(run.board.summary(), 3)
    for sent in run.sent:
        if not sent.ok:
            run.say(f"not taken: {escape(terminal.printable(sent.path.name))}: {sent.code} {sent.words}")
            run.expect(run.own, f"{sent.path.name} was not stored: {sent.code} {sent.words}")
    run.expect(any(sent.ok for sent in run.sent), "not one file was stored")
    accepted = 0
    for row in run.board.rows.values():
        decision = row.decision
        run.expect(decision is not None and row.ended, f"{row.label}: no verdict")
        if decision is not None and row.study is not None and verdict_name(decision.verdict) == "ACCEPT":
            accepted += len(row.study.instances)
    _compare_with_cases(run)
    own = {sent.sop_instance for sent in run.sent}
    images = len(own & set(pacs.instances))
    made = Counter(RESULTS.get(kind, "others") for uid, kind in pacs.instances.items() if uid not in own)
    run.say(f"delivered to the PACS of the demo: {images} images, those of the accepted studies")
    if made:
        results = ", ".join(f"{count} {words}" for words, count in sorted(made.items()))
        run.say(f"and, for their viewers, beside the radiographs: {results}")
    run.expect(images == accepted, f"the PACS received {images} images and not {accepted}")
    run.expect(pacs.repeats == 0, "the PACS received an image twice")


def _compare_with_cases(run: Demo) -> None:
    rows = {row.label: row for row in run.board.rows.values()}
    for case in run.material.cases.values():
        row = rows.get(case.label)
        decision = row.decision if row is not None else None
        if decision is None:
            run.expect(row is not None, f"{case.label}: the study did not appear")
            continue
        verdict = verdict_name(decision.verdict)
        reasons = {reason_name(reason) for reason in decision.reasons}
        run.expect(verdict in case.verdicts, f"{case.label}: {verdict}, expected {' or '.join(sorted(case.verdicts))}")
        run.expect(not case.reason or case.reason in reasons, f"{case.label}: without the reason {case.reason}")


def _prove(run: Demo, settings: Settings) -> Path:
    export = run.folder / "log.zip"
    run.step("Prove the log", "export it; verifier/verify.py, one file that needs nothing else, checks it")
    size = log.fetch(settings, Identity.AUDITOR.value, export)
    status, words = _run_verifier(settings, export)
    for line in words:
        run.say(line)
    run.point(export, f" ({terminal.size(size)}); exit status {status}")
    run.expect(status == 0, f"the log did not verify: exit status {status}")
    return export


def _catch_a_forger(run: Demo, settings: Settings, export: Path) -> None:
    copy = run.folder / "log-forged.zip"
    run.step("Catch a forger", "change one verdict in a copy, mend every digest that can be mended, check again")
    forged = forge(export, copy)
    if forged is None:
        run.expect(False, "the log holds no decision to forge")
        return
    run.say(f"record {forged.record}: [bold]{forged.before}[/] made into [bold]{forged.after}[/]")
    status, words = _run_verifier(settings, copy)
    for line in words:
        run.say(f"[red]{line}[/]")
    run.point(copy, f"; exit status {status}")
    run.expect(status not in (0, 2), f"the forged copy was not refused: exit status {status}")
    run.expect(str(forged.record) in " ".join(words), "the verifier did not name the forged record")


def _run_verifier(settings: Settings, export: Path) -> tuple[int, list[str]]:
    """The stand-alone verifier as a stranger runs it: isolated, and with the public key alone."""
    command = [sys.executable, "-I", str(VERIFIER), str(export), "--key", log.key_of(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, [escape(line) for line in (done.stdout + done.stderr).splitlines()]


def _resident(cluster: Cluster) -> int:
    """Resident memory of the cluster's processes and their workers, bytes; 0 where the system does not tell."""
    page = os.sysconf("SC_PAGE_SIZE")
    groups = set(cluster.pids().values())
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) in groups:
                total += int(stat.with_name("statm").read_text().split()[1]) * page
        except (OSError, ValueError, IndexError):
            continue
    return total


def _end(run: Demo, settings: Settings, settings_file: Path, memory: int) -> Exit:
    run.step("What is left")
    run.point(run.folder)
    shown = shutil.which("stepwedge") or "stepwedge"
    command = f"{Path(shown).name} up --config {settings_file}"
    run.say("log.zip, log-forged.zip   the log, and the forged copy")
    run.say("cluster/                  settings, keys, objects, databases, the services' own logs")
    run.say(f"to start this cluster again, and to see its studies at {settings.console.url}:")
    terminal.out().print(f"   [dim]{escape(command)}[/]", soft_wrap=True)
    run.say("which says where the first password lies")
    if memory:
        run.say(f"memory of the four services and their workers: {terminal.size(memory)}")
    seconds = terminal.duration(time.monotonic() - run.started)
    out = terminal.out()
    out.print()
    if not run.surprises:
        out.print(f"[bold green]Everything went as it must[/], in {seconds}.", soft_wrap=True)
        return Exit.OK
    for words in run.surprises:
        terminal.error("UNEXPECTED", words)
    out.print(f"[bold red]{len(run.surprises)} things went otherwise than they must[/], in {seconds}.", soft_wrap=True)
    return Exit.NEGATIVE


__all__ = ["demo"]
