"""A real Triton inference server as a plain process on free loopback ports, with a model of ours in its repository.

    with running_triton(tmp_path, "chest-student", {"4": MODEL / "student.int8.onnx"}, pki) as triton:
        Remote(triton.address, ...)

The server is that of the package nvidia-pytriton, which has no backend for ONNX files: its Python backend runs ONNX
Runtime on the file, as `onnxruntime_onnx` would. Tests that need it are marked `needs_triton`.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from shared.identity import Identity
from shared.paths import MODEL
from tests.wire.ports import port


def _package() -> Path | None:
    """Where the package keeps the server, without importing it; None where it does not run here."""
    found = importlib.util.find_spec("pytriton")
    home = Path(found.origin).parent / "tritonserver" if found is not None and found.origin else None
    if home is None or not (home / "python_backend_stubs" / _PYTHON).is_dir():
        return None
    try:
        told = subprocess.run([home / "bin" / "tritonserver", "--help"], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return home if b"--grpc-use-ssl-mutual" in told.stdout + told.stderr else None


_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
HOME: Final = _package()
needs_triton = pytest.mark.skipif(
    HOME is None, reason="needs Triton: pip install --no-deps nvidia-pytriton==0.7.0 (Linux x86-64, glibc 2.35)"
)

_START_SECONDS: Final = 60.0

_OUTPUTS: Final = "".join(
    f'\noutput {{ name: "{name}" data_type: TYPE_FP32 dims: {one["shape"][1:]} }}'
    for name, one in json.loads((MODEL / "manifest.json").read_text())["outputs"].items()
)
_CONFIG: Final = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [ {{ name: "image" data_type: TYPE_FP32 dims: [ 1, 256, 256 ] }} ]
{outputs}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""

_MODEL: Final = '''
"""Runs the ONNX file beside it, on one thread. Tensors pass by DLPack: the backend was built for numpy 1, and of an
array of numpy 2 it takes no bytes."""

from pathlib import Path

import numpy
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.outputs = [one.name for one in self.session.get_outputs()]

    def execute(self, requests):
        return [self.answer(numpy.from_dlpack(triton.get_input_tensor_by_name(one, "image"))) for one in requests]

    def answer(self, images):
        found = self.session.run(self.outputs, {"image": images})
        return triton.InferenceResponse([triton.Tensor.from_dlpack(*pair) for pair in zip(self.outputs, found)])
'''


class Triton:
    """One that runs; it loads models when it is told to."""

    def __init__(self, folder: Path, name: str, pki: Path) -> None:
        self.folder, self.name, self.pki = folder, name, pki
        self.grpc, self.http = port(), port()
        self.log = folder / "triton.log"
        self._region = f"stepwedge-triton-{self.grpc}-"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Of its GRPCInferenceService."""
        return f"127.0.0.1:{self.grpc}"

    def put(self, version: str, file: Path) -> None:
        """A version of the model into the repository; the latest one answers once it is loaded."""
        place = self.folder / "models" / self.name / version
        place.mkdir(parents=True)
        shutil.copy(file, place / "model.onnx")
        (place / "model.py").write_text(_MODEL)
        (place.parent / "config.pbtxt").write_text(_CONFIG.format(name=self.name, outputs=_OUTPUTS))

    def start(self) -> None:
        """Returns when it is ready."""
        assert HOME is not None
        backends = self.folder / "backends"
        if not backends.exists():
            shutil.copytree(HOME / "backends", backends)
            stub = shutil.copy(
                HOME / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub", backends / "python"
            )
            Path(stub).chmod(0o700)
        certificate = {"server-cert": "inference.crt", "server-key": "inference.key", "root-cert": "ca.crt"}
        words = [
            str(HOME / "bin" / "tritonserver"),
            f"--model-repository={self.folder / 'models'}",
            f"--backend-directory={backends}",
            "--model-control-mode=explicit",
            f"--load-model={self.name}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.grpc}",
            "--http-address=127.0.0.1",
            f"--http-port={self.http}",
            "--allow-metrics=false",
            f"--backend-config=python,shm-region-prefix-name={self._region}",
            "--grpc-use-ssl-mutual=true",
            *(f"--grpc-{option}={self.pki / file}" for option, file in certificate.items()),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(site.getsitepackages())}
        environment["LD_LIBRARY_PATH"] = str(HOME.parents[1] / "nvidia_pytriton.libs")  # of its Python backend
        environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment["PATH"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while self._status("GET", "/v2/health/ready") != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def load(self) -> None:
        """Have it look at its repository again."""
        assert self._status("POST", f"/v2/repository/models/{self.name}/load") == 200, self.log.read_text()

    def stop(self, *, at_once: bool = False) -> None:
        """End it, `at_once` as a power cut does."""
        if self.process is not None:
            (self.process.kill if at_once else self.process.terminate)()
            self.process.wait(60)
            self.process = None
        for left in Path("/dev/shm").glob(f"{self._region}*"):
            left.unlink(missing_ok=True)

    def _status(self, method: str, path: str) -> int:
        """Status of a call by HTTP; 0 where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        try:
            connection.request(method, path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()


@contextmanager
def running_triton(folder: Path, name: str, versions: Mapping[str, Path], pki: Path) -> Iterator[Triton]:
    """A server that holds `versions` (number -> ONNX file) of the model, with the certificate of inference in `pki`."""
    folder.mkdir(parents=True, exist_ok=True)
    triton = Triton(folder, name, pki)
    for version, file in versions.items():
        triton.put(version, file)
    try:
        triton.start()
        yield triton
    finally:
        triton.stop()


def reached(triton: Triton) -> dict[str, str]:
    """The settings `inference.remote` with which inference reaches it."""
    files = {"ca": "ca.crt", "certificate": "inference.crt", "key": "inference.key"}
    return {
        "address": triton.address,
        "server_name": f"{Identity.INFERENCE.value}.stepwedge",
        **{name: str(triton.pki / file) for name, file in files.items()},
    }
