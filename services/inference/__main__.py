"""Start inference: first give up what it has no business with, then load everything else and serve.

Exit status as of `shared.rpc.main`.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from services.inference import heap

# Before numpy and OpenCV are loaded: pools of threads as large as the machine, and older than the confinement.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
for _variable in ONE_THREAD:
    os.environ.setdefault(_variable, "1")


_UNUSED = ("gdcm", "pylibjpeg", "PIL", "requests", "rich", "psutil", "grpc_tools")
"""What pydicom, structlog, OpenTelemetry and gRPC load where they find it, and nothing here uses: codestreams are
decoded by a process of their own (`shared.pixel_decoder`)."""


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
    heap.keep_one()
    with without(_UNUSED):
        from services.inference.confinement import confined

        is_confined = confined()

        import cv2

        from services.inference.serving import build_with
        from shared.identity import Identity
        from shared.rpc import main

    cv2.setNumThreads(1)  # its workers would run beside ours, which have an image each
    asyncio.run(main(Identity.INFERENCE, build_with(confined=is_confined)))


if __name__ == "__main__":
    run()
    sys.exit(0)
