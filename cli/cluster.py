"""The cluster as child processes of one parent: started, watched over, drained in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cli import configuration
from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from shared.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
TETHER = Path(__file__).with_name("tether.py")

SERVICES = ("audit", "redaction", "inference", "ingest")
"""In the order in which they start; each only needs those before it."""

CONSOLE = "console"
"""The window for people; speaks HTTPS, and nobody waits for it."""

DRAIN_ORDER = (("ingest", CONSOLE), ("redaction", "inference"), ("audit",))
"""The front door closes first, and the log last, so that every record still finds it."""

READY_SECONDS = 60.0
"""How long a cluster may take to come up before that is an error."""
DRAIN_SECONDS = 30.0
"""How long a child may take to end after SIGTERM before it is killed; servers grant calls 20 s."""
FIRST_BACKOFF_SECONDS = 0.2
LAST_BACKOFF_SECONDS = 30.0
READY_BACKOFF_SECONDS = 2.0
"""Longest delay for a child that was ready before it died: it may well be again."""
STEADY_SECONDS = 30.0
"""A child that lived this long starts again with the shortest delay."""
FAILED_STARTS = 3
"""Ends before the first `ready` after which a cluster is given up."""
LOG_BYTES = 32 << 20
"""A child's log is set aside (once, as `.1`) beyond this size."""

ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
"""What every child inherits; all else reaches it through its own settings file or not at all."""
ENVIRONMENT_OF: Mapping[str, tuple[str, ...]] = {
    # Credentials of an S3-compatible store: only for those that open the store.
    "ingest": ("AWS_",),
    "redaction": ("AWS_",),
    "inference": ("AWS_", "CUDA_", "NVIDIA_"),
    "audit": (),
    CONSOLE: (),
}
"""Prefixes of further variables by service."""


@dataclass
class Child:
    """One service as a process, and what is known of it."""

    service: str
    settings_file: Path
    log: Path
    process: subprocess.Popen[str] | None = None
    address: str = ""
    failures: int = 0
    """How often it ended before it was ready, since it last was."""
    last_status: int | None = None
    was_ready: bool = False
    """In its present or last life."""
    held: bool = False
    """Not started again until `Cluster.release`."""
    ready: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        process = self.process
        return process.pid if process is not None and process.returncode is None else None


class Cluster:
    """The four services as child processes.

    `console` starts the window for people too. `say` is told, in a sentence, of everything that a person should know
    (a child that died and starts again). Not to be shared between threads, but for `say`, which is called from a
    thread for each child.
    """

    def __init__(
        self, settings: Settings, *, console: bool = False, say: Callable[[str], None] = lambda sentence: None
    ) -> None:
        self.settings = settings
        self.say = say
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self.folder = configuration.prepare(settings)
        wanted = (*SERVICES, CONSOLE) if console else SERVICES
        self.children = {service: self._child(service) for service in wanted}

    def __enter__(self) -> Cluster:
        """Start every child and wait until all are ready."""
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Drain."""
        self.stop()

    def start(self) -> None:
        """Start every child at once; a service whose dependency is not up yet says so in its health, and waits."""
        for child in self.children.values():
            child.thread = threading.Thread(target=self._keep, args=(child,), name=f"keep-{child.service}", daemon=True)
            child.thread.start()

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when every child has said `ready` and answers SERVING to a health check.

        Raises
        ------
        StepwedgeError
            CONFIGURATION where a child ended before it was ready, DEPENDENCY_UNAVAILABLE after `seconds`; the
            sentence names the service and where its log lies.
        """
        deadline = time.monotonic() + seconds
        for child in self.children.values():
            while not child.ready.wait(0.05):
                self._refuse_hopeless(child)
                if time.monotonic() > deadline:
                    raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, _not_ready(child, seconds))
        from cli import connect

        for child in (self.children[service] for service in SERVICES):
            left = max(deadline - time.monotonic(), 1.0)
            connect.wait_serving(self.settings, child.service, left)

    def stop(self) -> None:
        """SIGTERM in the order of `DRAIN_ORDER`, each group ended before the next; SIGKILL after `DRAIN_SECONDS`."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        try:
            for group in DRAIN_ORDER:
                children = [self.children[service] for service in group if service in self.children]
                for child in children:
                    _signal(child, signal.SIGTERM)
                for child in children:
                    self._wait_end(child)
        except (
            KeyboardInterrupt
        ):  # asked twice: what is acknowledged is durable, the rest is tried again at the next start
            for child in self.children.values():
                _signal(child, signal.SIGKILL)
            raise

    def kill(self, service: str, number: int = signal.SIGKILL, *, hold: bool = False) -> None:
        """Send a signal to a child; it is started again unless held."""
        child = self.children[service]
        child.held = hold
        child.ready.clear()
        _signal(child, number)

    def release(self, service: str) -> None:
        """Let a held child start again."""
        with self._changed:
            self.children[service].held = False
            self._changed.notify_all()

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run."""
        return {name: child.pid for name, child in self.children.items() if child.pid is not None}

    def _child(self, service: str) -> Child:
        file = configuration.write_for_service(self.settings, service, self.folder / f"{service}.toml")
        logs = self.folder / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        return Child(service, file, logs / f"{service}.jsonl")

    def _keep(self, child: Child) -> None:
        """Run the child, and again whenever it ends, until the cluster stops."""
        backoff = FIRST_BACKOFF_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            self._run(child)
            if self._stopping.is_set():
                return
            if time.monotonic() - started > STEADY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            elif child.was_ready:
                backoff = min(backoff, READY_BACKOFF_SECONDS)
            if not child.held:
                self.say(f"{child.service} {_ended(child.last_status)}; starting again in {backoff:.1f} s")
                self._stopping.wait(backoff)
            with self._changed:
                self._changed.wait_for(lambda: not child.held or self._stopping.is_set())
            backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)

    def _run(self, child: Child) -> None:
        """Run the child once, to its end."""
        _set_aside(child.log)
        with open(child.log, "ab", opener=_private) as log:
            child.process = self._spawn(child, log)
        if self._stopping.is_set():  # stop() did not see this process
            _signal(child, signal.SIGTERM)
        child.was_ready = False
        listener = threading.Thread(
            target=_listen, args=(child, child.process), name=f"listen-{child.service}", daemon=True
        )
        listener.start()
        # Worker processes of a child that was killed outright would keep its files and locks: end its whole group,
        # while the unreaped leader still keeps the group's number from being given to anybody else.
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.last_status = child.process.wait()
        listener.join()
        child.failures = 0 if child.was_ready else child.failures + 1
        child.ready.clear()

    def _spawn(self, child: Child, log: IO[bytes]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"services.{child.service}"]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=environment(child.service, child.settings_file),
            start_new_session=True,  # Ctrl-C is for the parent, which drains in order
        )

    def _refuse_hopeless(self, child: Child) -> None:
        if child.failures >= FAILED_STARTS or (child.failures and child.last_status == Exit.CONFIGURATION):
            words = (
                f"{child.service} {_ended(child.last_status)} before it was ready{_reason(child.log)}; log: {child.log}"
            )
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words)

    def _wait_end(self, child: Child) -> None:
        if child.thread is None:
            return
        child.thread.join(DRAIN_SECONDS)
        if child.thread.is_alive():
            self.say(f"{child.service} did not end within {DRAIN_SECONDS:.0f} s and was killed")
            _signal(child, signal.SIGKILL)
            child.thread.join()


def environment(service: str, settings_file: Path) -> dict[str, str]:
    """The whole environment of a child: the few common variables, those of its role, and where its settings lie."""
    prefixes = ENVIRONMENT_OF[service]
    kept = {
        name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith(prefixes or ("\0",))
    }
    return {**kept, "STEPWEDGE_CONFIG": str(settings_file)}


def _listen(child: Child, process: subprocess.Popen[str]) -> None:
    """Read what the child says on stdout; `ready <service> <host:port>` is all that a service ever says there."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            word, _, rest = line.partition(" ")
            if word == "ready" and rest.strip():
                child.address = rest.split()[-1]
                child.was_ready = True
                child.ready.set()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _signal(child: Child, number: int) -> None:
    process = child.process
    if process is not None and process.poll() is None:
        process.send_signal(number)


def _set_aside(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(log.suffix + ".1"))


def _ended(status: int | None) -> str:
    if status is None:
        return "is still starting"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _reason(log: Path) -> str:
    """Code and words of the last line in a service's log that has a code, as `: CODE: words`."""
    try:
        lines = log.read_bytes()[-16384:].decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("error"):
            return f": {entry['error']}: {entry.get('detail') or entry.get('event') or ''}".rstrip(": ")
    return ""


def _not_ready(child: Child, seconds: float) -> str:
    return f"{child.service} was not ready within {seconds:.0f} s{_reason(child.log)}; log: {child.log}"
