"""Redaction in processes of their own: an object that brings one down takes nothing else with it.

A worker opens the object store and the key itself; only digests and receipts travel between the processes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final

from services.redaction.engine import Names, Redacted, RefusedError, redact
from services.redaction.profile import Option, Profile
from services.redaction.receipt import Receipt
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone, open_store
from shared.pseudonyms import Pseudonyms
from shared.settings import Objects

OBJECT_SECONDS: Final = 120.0
"""An object that takes longer is given up, and its worker with it."""

_log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs to start."""

    objects: Objects
    key: Path
    profile: Path
    service: str = "redaction"
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True)
class Done:
    """What came of one object. refusal: None where it was redacted; then sha256 and size are those of the result."""

    receipt: Receipt
    names: Names
    sha256: str = ""
    size: int = 0
    refusal: ErrorCode.ValueType | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """An error other than a refusal: of the store, of the configuration, or of ours."""

    code: ErrorCode.ValueType
    message: str
    permanent: bool


class Pool:
    """Worker processes; belongs to one event loop, in the main thread."""

    def __init__(self, task: Task, workers: int) -> None:
        self._task = task
        self._workers = workers
        self._executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(self._task,)
        )

    async def warm(self) -> None:
        """Return once a worker is up; CONFIGURATION where it cannot start."""
        executor = self._executor
        try:
            async with asyncio.timeout(OBJECT_SECONDS):
                await asyncio.get_running_loop().run_in_executor(executor, os.getpid)
        except (BrokenProcessPool, TimeoutError):
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the workers of redaction do not start") from None

    async def redact(self, sha256: str, study: str = "") -> Done:
        """Redact the object of the zone `original` with this digest into the zone `deidentified`; study: as `redact`.

        Raises OBJECT_NOT_FOUND and what else the store raises; INTERNAL, transient, where the worker dies or hangs.
        """
        executor = self._executor
        try:
            async with asyncio.timeout(OBJECT_SECONDS):
                result = await asyncio.get_running_loop().run_in_executor(executor, _redact, sha256, study)
        except BrokenProcessPool:
            self._replace(executor)
            raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "a worker of redaction died", permanent=False) from None
        except TimeoutError:
            self._replace(executor)
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_INTERNAL, "an object took too long to redact", permanent=False
            ) from None
        if isinstance(result, Failed):
            raise StepwedgeError(result.code, result.message, permanent=result.permanent)
        return result

    def _replace(self, executor: ProcessPoolExecutor) -> None:
        """New workers for a pool that broke; whoever comes second finds it done."""
        if executor is self._executor:
            _log.warning("the workers are replaced")
            self._executor = self._start()
            _kill(executor)

    def close(self) -> None:
        """End the workers."""
        _kill(self._executor)


def _kill(executor: ProcessPoolExecutor) -> None:
    processes = list((executor._processes or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


class _Worker:
    """What one worker process holds."""

    store: ObjectStore
    pseudonyms: Pseudonyms
    profile: Profile


def _begin(task: Task) -> None:
    logs.configure(task.service, task.log_level)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the service drains, and then ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Worker.store = open_store(task.objects, {Zone.ORIGINAL, Zone.DEIDENTIFIED})
    _Worker.pseudonyms = Pseudonyms.load(task.key)
    _Worker.profile = Profile.load(task.profile)
    if Option.CLEAN_PIXELS in _Worker.profile.options:  # now, not while an object waits
        from services.redaction.clean_pixels import Policy

        Policy.load(_Worker.profile.pixels).detector()


def _end_with_parent() -> None:
    """A service that is killed leaves no worker behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _redact(sha256: str, study: str) -> Done | Failed:
    try:
        data = _Worker.store.get(Zone.ORIGINAL, sha256)
        try:
            redacted: Redacted = redact(data, _Worker.pseudonyms, _Worker.profile, study)
        except RefusedError as error:
            return Done(error.receipt, error.names, refusal=error.code, message=error.message)
        stored = _Worker.store.put(Zone.DEIDENTIFIED, redacted.data)
    except StepwedgeError as error:
        return Failed(error.code, error.message, error.permanent)
    except Exception as error:  # noqa: BLE001 - its text may quote the object; it stays here, with its type alone
        _log.error("redaction failed", error_type=type(error).__name__)
        return Failed(ErrorCode.ERROR_CODE_INTERNAL, "redaction failed", False)
    names = Names(redacted.study, redacted.series, redacted.instance, redacted.subject)
    return Done(redacted.receipt, names, stored.sha256, stored.size)
