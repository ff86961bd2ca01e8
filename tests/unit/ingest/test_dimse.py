"""What the DICOM door does without a network."""

import subprocess
import sys

from shared.paths import ROOT

_FREED = """
from pathlib import Path
from services.ingest.dimse import Associations

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

pieces = [bytes(1000) for _ in range(100_000)]
last = bytes(1000)  # above them, so that they cannot be given back from the end
del pieces
before = resident()
Associations.tidy()
print(before - resident())
"""


def test_memory_that_was_freed_is_given_back_when_associations_are_tidied_up():
    ended = subprocess.run([sys.executable, "-c", _FREED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(ended.stdout) > 50 << 20
