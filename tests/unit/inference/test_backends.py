"""What runs a model: the same file by each backend, and refusal where one is not there."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from services.inference.backends import Execution
from services.inference.backends.onnx import OnnxRuntime
from services.inference.registry import load
from shared.errors import ErrorCode, StepwedgeError
from shared.paths import MODEL, ROOT

WHOLE = (MODEL / "student.fp32.onnx").read_bytes()
ABSENT = ErrorCode.ERROR_CODE_PROVIDER_UNAVAILABLE
IMAGES = np.random.default_rng(3).random((2, 1, 256, 256)).astype(np.float32)


def test_pytorch_runs_the_released_file_like_the_runtime() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from services.inference.backends.torch import Torch

    ours, theirs = Torch(WHOLE, "cpu").run(IMAGES), OnnxRuntime(WHOLE).run(IMAGES)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.dtype == np.float32
        assert np.abs(one - other).max() < 1e-3
    model = load(MODEL, execution=Execution(backend="torch", device="cpu"))
    assert model.self_test in ("exact", "decisions")
    assert model.execution_provider.startswith("TorchCPU;tf32=0;deterministic=1;torch=")
    assert model.sha256 == load(MODEL, whole=True).sha256


def test_a_file_with_nodes_that_pytorch_does_not_run_here_is_refused() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from services.inference.backends.torch import Torch

    with pytest.raises(StepwedgeError) as caught:
        Torch((MODEL / "student.int8.onnx").read_bytes(), "cpu")
    assert caught.value.code == ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH


@pytest.mark.parametrize(
    "execution",
    [
        Execution(provider="CUDAExecutionProvider"),
        Execution(provider="TensorrtExecutionProvider"),
        Execution(provider="NoSuchExecutionProvider"),
        Execution(backend="torch"),
    ],
    ids=lambda one: f"{one.backend}-{one.provider}",
)
def test_what_is_asked_for_and_absent_is_refused_and_nothing_else_runs(execution: Execution) -> None:
    import onnxruntime

    if execution.provider in onnxruntime.get_available_providers() and execution.backend == "onnxruntime":
        pytest.skip("it is there")
    if execution.backend == "torch":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("it is there")
    with pytest.raises(StepwedgeError) as caught:
        load(MODEL, execution=execution)
    assert caught.value.code == ABSENT


def test_pytorch_is_not_loaded_unless_it_is_chosen() -> None:
    code = (
        "import sys; from services.inference.registry import load; from shared.paths import MODEL; load(MODEL); "
        "assert not {'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
