"""Processes at the price of a fork: one interpreter imports everything once, and its children are killed or traced.

A thousand kills would otherwise be a thousand times a second of imports. A child is a process of its own from its
first instruction of ours: the audit service as `python -m services.audit` runs it, or a function of the tests.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from shared.paths import ROOT

SERVICE = "services.audit"
"""What `spawn` runs as a module, as any name without a colon; anything else is "module:function"."""

_IMPORTED = (
    "services.audit.__main__",
    "alembic.runtime.migration",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "sqlalchemy.dialects.postgresql.psycopg",
    "grpc_reflection.v1alpha.reflection",
    "tests.unit.audit.making",
)


@dataclass(frozen=True)
class Child:
    """A process that was forked, and the file that takes what it says."""

    pid: int
    out: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def lines(self) -> list[str]:
        """The whole lines that it has said so far."""
        return self.out.read_text().split("\n")[:-1]


class Nursery:
    """Forks children; a context manager. They end with it.

    `modules` are imported too, once for all children; `environment` is theirs too; `prefix` is a command that runs it.
    """

    def __init__(self, *modules: str, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        self._modules = modules
        self._prefix = prefix
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*self._prefix, sys.executable, "-m", "tests.faults.nursery", *self._modules],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.living: set[int] = set()
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "it could not import what it must"
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self.living):
            os.kill(pid, signal.SIGKILL)
            self.reap(pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def _ask(self, **request: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def spawn(
        self,
        what: str,
        out: Path,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        traced: bool = False,
    ) -> Child:
        """Fork a child that runs `what`; with `traced` it begins only when somebody traces it."""
        out.write_text("")
        request = {"what": what, "out": str(out), "arguments": list(arguments), "environment": dict(environment or {})}
        pid = self._ask(**request, traced=traced)
        self.living.add(pid)
        return Child(pid, out)

    def reap(self, pid: int) -> int:
        """Wait for the end of a child; its exit status, negative for a signal."""
        status = self._ask(reap=pid)
        self.living.discard(pid)
        return status

    def start_service(self, out: Path, environment: Mapping[str, str]) -> Child:
        """Fork the audit service, without waiting until it is ready."""
        return self.spawn(SERVICE, out, environment=environment)


def until_ready(child: Child, seconds: float = 60.0) -> str:
    """Where the service listens, once it says so. Raises AssertionError with what it said instead."""
    deadline = time.monotonic() + seconds
    while not (lines := child.lines()):
        assert time.monotonic() < deadline, "it did not become ready"
        time.sleep(0.005)
    words = lines[0].split()
    assert words[:2] == ["ready", "audit"], lines
    return words[2]


# In the interpreter that forks.


def _run(request: Mapping[str, Any]) -> int:
    """What the child does; its exit status."""
    file = os.open(request["out"], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.dup2(file, 1)
    errors = os.open(f"{request['out']}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(errors, 2)
    os.environ.update(request["environment"])
    try:
        if request["traced"]:
            _until_traced()
        if ":" not in request["what"]:
            sys.argv = [request["what"]]
            runpy.run_module(request["what"], run_name="__main__", alter_sys=True)
            return 0
        module, _, function = request["what"].partition(":")
        return int(getattr(import_module(module), function)(*request["arguments"]) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def _until_traced() -> None:
    deadline = time.monotonic() + 30
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody traces")
        time.sleep(0.002)
    time.sleep(0.03)  # the tracer takes hold a moment after it is named there


def _main() -> None:
    for name in (*_IMPORTED, *sys.argv[1:]):
        import_module(name)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                status = 1
                try:
                    status = _run(request)
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:  # whatever fails, a child never goes on as the one that forks
                    os._exit(status)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
