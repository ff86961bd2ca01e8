"""Lets torchvision be imported where its compiled part cannot load: import this instead of torchvision.

The wheels of torchvision link against CUDA; beside a CPU build of torch their extension does not load, and
`import torchvision` fails with "operator torchvision::nms does not exist" (pytorch/vision issues 8985, 9077). The
operators' schemas are then declared here without a body: models and transforms work, `ops.nms` and `io` do not.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # a library that is collected takes its operators with it


def torchvision() -> ModuleType:
    """The module torchvision; raises ModuleNotFoundError where it is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed: pip install -e '.[train]'")
    if not _declared:
        try:
            torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))  # type: ignore[no-untyped-call]
        except OSError:
            library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for schema in _SCHEMAS:
                library.define(schema)  # type: ignore[no-untyped-call]
            _declared.append(library)
    return importlib.import_module("torchvision")
