"""Start inference: first give up what it has no business with, then load everything else and serve.

Exit status as of `shared.rpc.main`.
"""

import asyncio
import ctypes
import os
import sys
from contextlib import suppress

# Before numpy and OpenCV are loaded: pools of threads as large as the machine, and older than the confinement.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


_M_MMAP_THRESHOLD, _BYTES = -3, 1 << 20  # mallopt(3)


def return_large_buffers() -> None:
    """Have the C library give each image's buffers back when they are freed, where it is glibc.

    Left to itself it raises the threshold to 32 MiB after the first large image, and keeps as much in every arena.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BYTES)


def run() -> None:
    """Confine the process, then serve."""
    return_large_buffers()
    from services.inference.confinement import confined

    is_confined = confined()

    from services.inference.serving import build_with
    from shared.identity import Identity
    from shared.rpc import main

    asyncio.run(main(Identity.INFERENCE, build_with(confined=is_confined)))


if __name__ == "__main__":
    run()
    sys.exit(0)
