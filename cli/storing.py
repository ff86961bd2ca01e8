"""`stepwedge send` and `stepwedge submit`: files into a storage SCP or into the cluster, and what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cli import files, terminal
from cli.exit_codes import Exit
from cli.send import Sent, parse_peer, send, summary


def store(paths: Sequence[Path], to: str, called: str, calling: str, *, json: bool) -> Exit:
    """Send files by C-STORE; NEGATIVE if any failed."""
    peer = parse_peer(to, called, calling)
    found = files.named(paths)
    return _tell("sending", len(found), lambda seen: send(found, peer, seen=seen), json=json)


def submit(paths: Sequence[Path], config: Path | None, identity: str, *, json: bool) -> Exit:
    """Hand files to the cluster over gRPC; NEGATIVE if any failed."""
    from cli import configuration
    from cli.resuming import Submitter
    from shared.identity import Identity

    found = files.named(paths)
    with Submitter(configuration.load(config), Identity(identity)) as line:

        def hand_in(seen: Callable[[Sent], None]) -> list[Sent]:
            results = []
            for path in found:
                results.append(line.submit(path))
                seen(results[-1])
            return results

        return _tell("submitting", len(found), hand_in, json=json)


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
