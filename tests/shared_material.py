"""Where the optional evaluation material lies, and the mark that skips a test where it is absent."""

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_PLACE = Path(os.environ.get("STEPWEDGE_SHARED", _ROOT.parent / "shared"))

SHARED: Path | None = _PLACE if (_PLACE / "data").is_dir() else None
"""Folder with `data/cxr` and `data/dicom`; None where it is not there."""

needs_shared = pytest.mark.skipif(
    SHARED is None,
    reason="needs the evaluation material: set STEPWEDGE_SHARED to a folder that holds data/cxr and data/dicom",
)
