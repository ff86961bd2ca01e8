"""What can run a released model: one interface, chosen in the settings, never exchanged for another in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import ErrorCode, StepwedgeError

OUTPUTS: Final = ("logits", "flags", "features")
"""Outputs of a model, in their order."""

CPU: Final = "CPUExecutionProvider"
ONNX: Final = "onnxruntime"
TORCH: Final = "torch"
REMOTE: Final = "open-inference"


class Outputs(NamedTuple):
    """What a model says of n images: logits [n, 4, h, w], flags [n, 6 or 34] (logits), features [n, d]; float32."""

    logits: NDArray[np.float32]
    flags: NDArray[np.float32]
    features: NDArray[np.float32]


class Backend(Protocol):
    """A model that is ready to run. `run` may be called from several threads."""

    @property
    def provider(self) -> str:
        """What runs it, "CUDAExecutionProvider"; golden tensors hold bit for bit under the provider of their release
        only."""

    @property
    def description(self) -> str:
        """Provider and the options that can change an answer's bits: "CPUExecutionProvider;intra_op=1;..."."""

    @property
    def platform(self) -> str:
        """Project and format, as the Open Inference Protocol names them: "onnxruntime_onnx"."""

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """The outputs for images float32 [n, 1, 256, 256] in 0..1."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Remote:
    """A model that another server holds, reached by the Open Inference Protocol over TLS.

    model, version: as that server names them; empty for the release's name, and for the version it chooses.
    server_name: name that its certificate must hold; empty for the host of `address`. ca, certificate, key: PEM.
    """

    address: str
    model: str = ""
    version: str = ""
    server_name: str = ""
    ca: bytes = field(default=b"", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    timeout_seconds: float = 10.0


@dataclass(frozen=True)
class Execution:
    """How a model is to be run.

    backend: "onnxruntime", "torch" (on CUDA) or "open-inference". provider, threads: of ONNX Runtime. device: of torch.
    """

    backend: str = ONNX
    provider: str = CPU
    threads: int = 1
    device: str = "cuda"
    remote: Remote | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether this machine's own processor runs the model, which then is served in the form made for it."""
        return self.backend == ONNX and self.provider == CPU


def _onnx(model: bytes, execution: Execution, manifest: Mapping[str, Any]) -> Backend:
    from services.inference.backends.onnx import OnnxRuntime

    return OnnxRuntime(model, execution.provider, execution.threads)


def _torch(model: bytes, execution: Execution, manifest: Mapping[str, Any]) -> Backend:
    from services.inference.backends.torch import Torch

    return Torch(model, execution.device)


def _remote(model: bytes, execution: Execution, manifest: Mapping[str, Any]) -> Backend:
    from services.inference.backends.open_inference import OpenInference

    if execution.remote is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "inference.remote.address is not set")
    return OpenInference(execution.remote, manifest)


BACKENDS: Final[Mapping[str, Callable[[bytes, Execution, Mapping[str, Any]], Backend]]] = {
    ONNX: _onnx,
    TORCH: _torch,
    REMOTE: _remote,
}
"""Name in the settings -> how it is opened; what a backend needs is imported only where it is chosen."""


def open_backend(model: bytes, execution: Execution, manifest: Mapping[str, Any]) -> Backend:
    """Open the backend of `execution` for the file `model` of the release `manifest`.

    Raises
    ------
    StepwedgeError
        PROVIDER_UNAVAILABLE where what was chosen is not on this machine or does not take the model;
        MODEL_DIGEST_MISMATCH where the model is of another face; DEPENDENCY_UNAVAILABLE where a remote one does not
        answer.
    """
    return BACKENDS[execution.backend](model, execution, manifest)


def no_provider() -> StepwedgeError:
    """The one answer to what was asked for and is not there."""
    words = "the execution provider of the settings is absent here, or does not take the model"
    return StepwedgeError(ErrorCode.ERROR_CODE_PROVIDER_UNAVAILABLE, words)


def other_face(words: str = "the model file has other inputs or outputs than the manifest says") -> StepwedgeError:
    """The answer to a model that takes or gives other tensors."""
    return StepwedgeError(ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH, words)
