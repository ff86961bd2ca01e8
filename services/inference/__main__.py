"""Start inference: first give up what it has no business with, then load everything else and serve.

Exit status as of `shared.rpc.main`.
"""

import asyncio
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Before numpy and OpenCV are loaded: pools of threads as large as the machine, and older than the confinement.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


# mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_HEAP = {_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}
"""One heap for all threads, which keeps what an image leaves free for the next."""


def keep_one_heap() -> None:
    """Tell the C library how to hold memory, where it is glibc.

    Left to itself it gives every thread a heap of its own, each as large as its largest image. Told to give each large
    buffer back at once, it spends 70 ms of the processor on an image of 5 megapixels to get the pages anew.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for parameter, value in _HEAP.items():
            library.mallopt(parameter, value)


_UNUSED = ("gdcm", "pylibjpeg", "PIL", "requests", "rich", "psutil")
"""What pydicom, structlog and OpenTelemetry load where they find it, and nothing here uses: codestreams are decoded by
a process of their own (`shared.pixel_decoder`)."""


@contextmanager
def without(names: tuple[str, ...]) -> Iterator[None]:
    """As if these modules were not installed; what is imported later finds them again."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None makes an import fail
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def run() -> None:
    """Confine the process, then serve."""
    keep_one_heap()
    from services.inference.confinement import confined

    is_confined = confined()

    with without(_UNUSED):
        from services.inference.serving import build_with
        from shared.identity import Identity
        from shared.rpc import main

    asyncio.run(main(Identity.INFERENCE, build_with(confined=is_confined)))


if __name__ == "__main__":
    run()
    sys.exit(0)
