"""`stepwedge send` and `stepwedge submit`: files into a storage SCP or into the cluster, and what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli import files, terminal
from cli.exit_codes import Exit
from cli.send import Sent, parse_peer, send, summary

if TYPE_CHECKING:
    from stepwedge.ingest.v1.ingest_pb2 import SubmitInstanceRequest
    from stepwedge.ingest.v1.ingest_pb2_grpc import IngestServiceStub

CHUNK_BYTES = 1 << 20
"""As large as one piece of `SubmitInstanceRequest` may be."""
SUBMIT_SECONDS = 120.0


def store(paths: Sequence[Path], to: str, called: str, calling: str, *, json: bool) -> Exit:
    """Send files by C-STORE; NEGATIVE if any failed."""
    peer = parse_peer(to, called, calling)
    found = files.named(paths)
    return _tell("sending", len(found), lambda seen: send(found, peer, seen=seen), json=json)


def submit(paths: Sequence[Path], config: Path | None, identity: str, *, json: bool) -> Exit:
    """Hand files to the cluster over gRPC; NEGATIVE if any failed."""
    from cli import configuration, connect
    from shared.identity import Identity
    from stepwedge.ingest.v1 import ingest_pb2_grpc

    found = files.named(paths)
    settings = configuration.load(config)
    with connect.channel(settings, "ingest", Identity(identity)) as link:
        stub = ingest_pb2_grpc.IngestServiceStub(link)

        def hand_in(seen: Callable[[Sent], None]) -> list[Sent]:
            results = []
            for path in found:
                results.append(_submit_one(stub, path))
                seen(results[-1])
            return results

        return _tell("submitting", len(found), hand_in, json=json)


def _submit_one(stub: IngestServiceStub, path: Path) -> Sent:
    """Hand in one file. A failure of the connection, and not of the file, is raised."""
    import grpc

    from shared.errors import ErrorCode, from_rpc

    started = time.monotonic()
    try:
        answer = stub.SubmitInstance(_chunks(path), timeout=SUBMIT_SECONDS)
    except grpc.RpcError as error:
        ours = from_rpc(error)
        if ours.code in (ErrorCode.ERROR_CODE_PERMISSION_DENIED, ErrorCode.ERROR_CODE_UNAUTHENTICATED):
            raise
        if ours.code == ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE:
            raise
        return Sent(path, False, ours.name, ours.message)
    except OSError as error:
        return Sent(path, False, "FILE", (error.strerror or "cannot be read").lower())
    words = "stored; known already" if answer.duplicate else "stored"
    if answer.conflict:
        words = "stored; its SOP Instance UID is known with other content"
    return Sent(path, True, "OK", words, answer.sop_instance_uid, time.monotonic() - started)


def _chunks(path: Path) -> Iterator[SubmitInstanceRequest]:
    from stepwedge.ingest.v1.ingest_pb2 import SubmitInstanceRequest

    with path.open("rb") as stream:
        empty = True
        while piece := stream.read(CHUNK_BYTES):
            empty = False
            yield SubmitInstanceRequest(chunk=piece)
        if empty:
            yield SubmitInstanceRequest()


def _tell(title: str, total: int, work: Callable[[Callable[[Sent], None]], list[Sent]], *, json: bool) -> Exit:
    """Run the work with progress; tell each failure as it happens, then the summary."""
    started = time.monotonic()
    with terminal.progress(title, total) as advance:

        def seen(sent: Sent) -> None:
            advance(1)
            if json:
                terminal.emit(_as_json(sent))
            elif not sent.ok:
                terminal.error(sent.code, f"{sent.path}: {sent.words}")

        results = work(seen)
    if not json:
        _print_summary(results, time.monotonic() - started)
    return Exit.OK if all(sent.ok for sent in results) else Exit.NEGATIVE


def _as_json(sent: Sent) -> dict[str, object]:
    return {
        "file": str(sent.path),
        "ok": sent.ok,
        "status": sent.code,
        "meaning": sent.words,
        "sop_instance_uid": sent.sop_instance,
        "seconds": round(sent.seconds, 4),
    }


def _print_summary(results: Sequence[Sent], seconds: float) -> None:
    out = terminal.out()
    for code, words, count, ok in summary(results):
        out.print(f"{count:>7}  {code:<22} {'[green]' if ok else '[red]'}{words}[/]", soft_wrap=True)
    done = sum(sent.ok for sent in results)
    out.print(f"{done} of {len(results)} stored in {terminal.duration(seconds)}", soft_wrap=True)
