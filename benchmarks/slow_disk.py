"""Disks as hospitals have them: every fsync and fdatasync of a process and of its children takes so much longer.

A disk that keeps what is not yet written through a loss of power answers in a tenth of a millisecond; one that must
move it to the platter, or across a network, in 2 to 10. A machine with the former measures the latter with this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static int later(const char *name, int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *said = getenv("STEPWEDGE_FSYNC_MICROSECONDS");
    long microseconds = said ? atol(said) : 0;
    struct timespec span = {microseconds / 1000000, (microseconds % 1000000) * 1000};
    int done = real(file);
    nanosleep(&span, 0);
    return done;
}

int fsync(int file) { return later("fsync", file); }
int fdatasync(int file) { return later("fdatasync", file); }
"""


def slow_down(folder: Path, milliseconds: float) -> None:
    """What this process starts from now on waits so long at the end of each fsync. Raises SystemExit without a C
    compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("a slower disk is emulated by a small library: install a C compiler (apt-get install gcc)")
    library = folder / "slow_disk.so"
    ordered = [compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(ordered, input=_SOURCE, text=True, check=True)
    os.environ["LD_PRELOAD"] = str(library)
    os.environ["STEPWEDGE_FSYNC_MICROSECONDS"] = str(round(milliseconds * 1000))
