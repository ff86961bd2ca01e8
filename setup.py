"""Generate the gRPC stubs from protos/ before the project is installed; all else stands in pyproject.toml.

They must exist before setuptools looks for packages, so this happens when the file is read, and only where a contract
is newer than its stubs: an install reads it several times.
"""

import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
CONTRACTS = [*ROOT.glob("protos/stepwedge/*/v*/*.proto"), ROOT / "protos" / "generate.py"]


def up_to_date() -> bool:
    """Say whether every contract has stubs that are newer than all contracts."""
    stubs = [ROOT / path.relative_to(ROOT / "protos").with_name(f"{path.stem}_pb2_grpc.pyi") for path in CONTRACTS[:-1]]
    if not all(stub.exists() for stub in stubs):
        return False
    return min(stub.stat().st_mtime for stub in stubs) > max(path.stat().st_mtime for path in CONTRACTS)


if not up_to_date():
    sys.path.insert(0, str(ROOT / "protos"))
    from generate import generate

    generate()

setup()
