"""The student as it is served: one onnxruntime session, one thread, no spinning; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from services.inference.preprocessing import GRID

OUTPUTS = ("logits", "flags", "features")


@dataclass
class Answer:
    """logits float32 [N, 4, 128, 128]; flags float32 [N, 34] (logits of the six, then of the edges, which students
    before 0.5.0 have not); features float32 [N, 160]."""

    logits: NDArray[np.float32]
    flags: NDArray[np.float32]
    features: NDArray[np.float32]


def session(model: Path | bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def answer(model: ort.InferenceSession, grids: NDArray[np.uint8], batch: int = 16) -> Answer:
    """The model's answers to grids uint8 [N, 256, 256]."""
    parts = []
    for start in range(0, len(grids), batch):
        images = grids[start : start + batch, None].astype(np.float32) / np.float32(255.0)
        parts.append(model.run(list(OUTPUTS), {"image": images}))
    return Answer(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def upsampled(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[C, h, w] -> [C, 256, 256], bilinear."""
    return np.stack([cv2.resize(plane, (GRID, GRID), interpolation=cv2.INTER_LINEAR) for plane in logits])


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)
