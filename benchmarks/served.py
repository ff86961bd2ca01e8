"""The terms on which the inference service works: one heap, and one thread of each library in each of its workers."""

from __future__ import annotations

import os
import sys

import cv2

from services.inference import heap
from services.inference.__main__ import ONE_THREAD

_STARTED = "STEPWEDGE_BENCHMARK_STARTED"


def as_served(module: str) -> None:
    """Hold memory and threads as the service does, so that what it is set beside has no other terms. Numpy reads how
    many threads it may have while it is loaded, so the module is started once more."""
    if not os.environ.get(_STARTED):
        os.environ.update(dict.fromkeys((*ONE_THREAD, _STARTED), "1"))
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
    heap.keep_one()
    cv2.setNumThreads(1)
