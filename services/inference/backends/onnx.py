"""ONNX Runtime on exactly one execution provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from services.inference.backends import CPU, OUTPUTS, Outputs, no_provider, other_face
from services.inference.preprocessing import GRID
from shared.errors import ErrorCode, StepwedgeError

_OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    # 32-bit products, and the algorithm of the heuristic instead of whichever was fastest when it was tried.
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0", "trt_int8_enable": "0"},
}
"""Options of providers that can change an answer's bits."""


class OnnxRuntime:
    """A session on exactly this provider; ONNX Runtime would go on without it after a warning.

    Raises
    ------
    StepwedgeError
        PROVIDER_UNAVAILABLE where `provider` is absent or does not take all of the model; MODEL_DIGEST_MISMATCH where
        the file does not load, or has another face.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, model: bytes, provider: str = CPU, threads: int = 1) -> None:
        self.provider = provider
        self._session = _session(model, provider, threads)
        chosen = "".join(f";{name}={value}" for name, value in _OPTIONS.get(provider, {}).items())
        options = f"intra_op={threads};inter_op=1;optimization=all;spinning=0{chosen}"
        self.description = f"{provider};{options};onnxruntime={ort.__version__}"
        inputs = {one.name: one.shape[1:] for one in self._session.get_inputs()}
        outputs = {one.name for one in self._session.get_outputs()}
        if inputs != {"image": [1, GRID, GRID]} or not outputs.issuperset(OUTPUTS):
            raise other_face()

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """See `Backend.run`."""
        return Outputs(*self._session.run(list(OUTPUTS), {"image": images}))

    def close(self) -> None:
        """Nothing to give back before the process ends."""


def _session(model: bytes, provider: str, threads: int) -> ort.InferenceSession:
    if provider not in ort.get_available_providers():
        raise no_provider()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False  # else every concurrent call keeps its largest buffers for good
    options.log_severity_level = 4
    if provider != CPU:  # a node that only the processor can run is a reason to refuse
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(model, options, providers=[(provider, dict(_OPTIONS.get(provider, {})))])
    except Exception:  # noqa: BLE001 - the runtime raises types of its own that share no base
        if provider != CPU:
            raise no_provider() from None
        raise StepwedgeError(ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH, "the model file does not load") from None
    session.disable_fallback()
    if session.get_providers()[0] != provider:
        raise no_provider()
    return session
