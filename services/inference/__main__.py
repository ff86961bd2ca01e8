"""Start inference: first give up what it has no business with, then load everything else and serve.

Exit status as of `shared.rpc.main`.
"""

import asyncio
import os
import sys

# Before numpy and OpenCV are loaded: pools of threads as large as the machine, and older than the confinement.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


def run() -> None:
    """Confine the process, then serve."""
    from services.inference.confinement import confined

    is_confined = confined()

    from services.inference.serving import build_with
    from shared.identity import Identity
    from shared.rpc import main

    asyncio.run(main(Identity.INFERENCE, build_with(confined=is_confined)))


if __name__ == "__main__":
    run()
    sys.exit(0)
