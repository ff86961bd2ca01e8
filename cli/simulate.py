"""`stepwedge simulate`: a badly behaved PACS, for the acceptance test of a cluster that runs."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli import terminal
from cli.exit_codes import Exit
from cli.send import parse_peer
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from cli.simulate_behaviours import Behaviour, End, Observed
    from stepwedge.ingest.v1.ingest_pb2 import Study
    from stepwedge.ingest.v1.ingest_pb2_grpc import IngestServiceStub


@dataclass(frozen=True)
class Ask:
    """How the cluster is asked where studies ended; `config` None and `check` False for not at all."""

    config: Path | None
    identity: str
    check: bool
    wait: float
    """Seconds that a study may take to be decided."""


def simulate(
    to: str,
    called: str,
    calling: str,
    paths: Sequence[Path],
    ask: Ask,
    *,
    seed: int | None,
    only: Sequence[str],
    huge_mib: int,
    json: bool,
) -> Exit:
    """Misbehave in every way, or in those named; NEGATIVE where one was not answered as it must be."""
    from cli.simulate_behaviours import BEHAVIOURS, Bench, attempt
    from cli.simulate_objects import Material

    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    known = {one.name for one in BEHAVIOURS}
    if unknown := sorted(set(only) - known):
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_INVALID_REQUEST,
            f"no behaviour is called {unknown[0]}; there are {', '.join(one.name for one in BEHAVIOURS)}",
        )
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    chosen = [one for one in BEHAVIOURS if not only or one.name in only]
    with ExitStack() as stack:
        cluster = stack.enter_context(_Cluster(ask))
        material = Material(seed, f"{time.time_ns():x}", paths)
        bench = Bench(parse_peer(to, called, calling), material, huge_bytes=huge_mib << 20, decided=cluster.decided)
        terminal.note(f"seed {seed}; {len(chosen)} behaviours")
        tried = []
        with terminal.progress("misbehaving", len(chosen)) as advance:
            for one in chosen:
                tried.append((one, attempt(one, bench)))
                advance(1)
        results = [(one, observed, cluster.ends(observed.ends)) for one, observed in tried]
    for one, observed, wrong in results:
        if json:
            terminal.emit(_as_json(one, observed, wrong, checked=ask.check))
    if not json:
        _print(results, checked=ask.check)
    return Exit.OK if all(observed.good and not wrong for _, observed, wrong in results) else Exit.NEGATIVE


def names() -> list[tuple[str, str, str]]:
    """Name, what it does, and what is expected, of every behaviour."""
    from cli.simulate_behaviours import BEHAVIOURS

    return [(one.name, one.does, one.expected) for one in BEHAVIOURS]


class _Cluster:
    """The cluster as it is asked over gRPC, or nobody."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._stack = ExitStack()
        self._stub: IngestServiceStub | None = None

    def __enter__(self) -> _Cluster:
        if self._ask.check:
            from cli import configuration, connect
            from shared.identity import Identity
            from stepwedge.ingest.v1 import ingest_pb2_grpc

            settings = configuration.load(self._ask.config)
            link = self._stack.enter_context(connect.channel(settings, "ingest", Identity(self._ask.identity)))
            self._stub = ingest_pb2_grpc.IngestServiceStub(link)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def decided(self, study: str) -> bool:
        """Wait until a study is decided; where nobody can be asked, as long as that usually takes."""
        if self._stub is None:
            time.sleep(min(self._ask.wait, 20.0))
            return True
        from cli.simulate_behaviours import End

        return not self._until(End(study, 1), time.monotonic() + self._ask.wait)

    def ends(self, ends: Sequence[End]) -> list[str]:
        """What is wrong with where studies ended; nothing where nobody can be asked."""
        if self._stub is None:
            return []
        deadline = time.monotonic() + self._ask.wait
        return [words for end in ends if (words := self._until(end, deadline))]

    def _until(self, end: End, deadline: float) -> str:
        """Empty once the study ended as it must; else what it is instead, when the time is over."""
        while True:
            words = _compare(end, self._study(end.study))
            if not words or end.instances == 0 or time.monotonic() > deadline:
                return words
            time.sleep(0.25)

    def _study(self, uid: str) -> Study | None:
        import grpc

        from shared.errors import from_rpc
        from stepwedge.ingest.v1 import ingest_pb2

        assert self._stub is not None
        request = ingest_pb2.GetStudyRequest(study=ingest_pb2.StudyKey(study_instance_uid=uid))
        try:
            return self._stub.GetStudy(request, timeout=10).study
        except grpc.RpcError as error:
            if from_rpc(error).code == ErrorCode.ERROR_CODE_STUDY_NOT_FOUND:
                return None
            raise


def _compare(end: End, study: Study | None) -> str:
    from stepwedge.common.v1.common_pb2 import Reason, Verdict

    if study is None:
        return "" if end.instances == 0 else "the cluster does not know the study"
    if end.instances == 0:
        return "the cluster knows a study that it refused"
    if len(study.instances) != end.instances:
        return f"{len(study.instances)} instances, not {end.instances}"
    newest = study.decisions[-1] if study.decisions else None
    if newest is None or newest.revision < end.revision or newest.instances != end.instances:
        return f"no decision of revision {end.revision} on {end.instances} instances"
    given = [Reason.Name(reason).removeprefix("REASON_") for reason in newest.reasons]
    if end.reason and end.reason not in given:
        return f"decided without {end.reason}"
    if end.never and Verdict.Name(newest.verdict) == f"VERDICT_{end.never}":
        return f"decided as {end.never}"
    return ""


def _as_json(one: Behaviour, observed: Observed, wrong: Sequence[str], *, checked: bool) -> dict[str, object]:
    return {
        "behaviour": one.name,
        "does": one.does,
        "expected": one.expected,
        "observed": observed.words,
        "end_states": "not asked" if not checked else "as expected" if not wrong else "; ".join(wrong),
        "studies": [end.study for end in observed.ends],
        "pass": observed.good and not wrong,
    }


def _print(results: Sequence[tuple[Behaviour, Observed, list[str]]], *, checked: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "behaviour", "expected", "what happened"):
        table.add_column(title, overflow="fold")
    passed = 0
    for one, observed, wrong in results:
        good = observed.good and not wrong
        passed += good
        happened = "; ".join([observed.words, *wrong])
        table.add_row("[green]PASS[/]" if good else "[bold red]FAIL[/]", one.name, one.expected, happened)
    terminal.out().print(table)
    asked = "" if checked else "; where the studies ended was not asked (--no-check)"
    terminal.out().print(f"{passed} of {len(results)} as they must be{asked}", soft_wrap=True)
