"""Witnesses as processes of their own, and the HTTP that is spoken with them."""

import http.client
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shared.paths import ROOT


class Said(NamedTuple):
    status: int
    body: str
    headers: dict[str, str]


class House:
    """A witness's folder: key and state; and its process while it runs."""

    def __init__(self, folder: Path, name: str, logs: list[str], *extra: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.logs = logs
        self.extra = extra
        self.address = ""
        self.process: subprocess.Popen[str] | None = None
        made = self.command("--init", "--name", name)
        assert made.returncode == 0, made.stderr
        self.vkey = made.stdout.strip()

    def arguments(self, *more: str) -> list[str]:
        files = ["--key", str(self.folder / "key"), "--state", str(self.folder / "state")]
        return [sys.executable, "-m", "services.witness", *files, *more]

    def command(self, *more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.arguments(*more), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    def start(self) -> None:
        """Start and wait until it serves; the second time at the same address."""
        keys = [part for key in self.logs for part in ("--log", key)]
        arguments = self.arguments("--listen", self.address or "127.0.0.1:0", *keys, *self.extra)
        with (self.folder / "stderr").open("a") as stderr:
            self.process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert self.process.stdout is not None
        ready = self.process.stdout.readline().split()
        assert ready[:2] == ["ready", "witness"], (self.folder / "stderr").read_text()
        self.address = ready[2]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        status = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return status

    @property
    def url(self) -> str:
        scheme = "https" if "--certificate" in self.extra else "http"
        return f"{scheme}://{self.address}"

    def connection(self, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        host, _, port = self.address.rpartition(":")
        if tls is not None:
            return http.client.HTTPSConnection("localhost", int(port), timeout=20, context=tls)
        return http.client.HTTPConnection(host, int(port), timeout=20)

    def ask(self, body: bytes, *, method: str = "POST", path: str = "/add-checkpoint") -> Said:
        """One request on a connection of its own."""
        link = self.connection()
        try:
            return say(link, body, method=method, path=path)
        finally:
            link.close()


def say(link: http.client.HTTPConnection, body: bytes, *, method: str = "POST", path: str = "/add-checkpoint") -> Said:
    link.request(method, path, body=body if method == "POST" else None)
    answer = link.getresponse()
    return Said(answer.status, answer.read().decode(), dict(answer.getheaders()))


@contextmanager
def running(house: House) -> Iterator[House]:
    house.start()
    try:
        yield house
    finally:
        if house.process is not None and house.process.poll() is None:
            house.stop(signal.SIGKILL)


def inode(path: Path) -> int:
    return os.stat(path).st_ino  # noqa: PTH116 - polled
