"""The model on another server: asked by the Open Inference Protocol, held to its release before it is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.inference import tensors
from services.inference.backends import OUTPUTS, REMOTE, Execution, Outputs, Remote
from services.inference.backends.onnx import OnnxRuntime
from services.inference.registry import load
from shared import pki
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.paths import MODEL
from shared.pki import Credentials
from stepwedge.open_inference.v2 import open_inference_pb2 as oip
from stepwedge.open_inference.v2 import open_inference_pb2_grpc
from tests.wire.inference_house import House, chest

NAME = json.loads((MODEL / "manifest.json").read_text())["name"]


def _remote(house: House, address: str) -> dict[str, Any]:
    folder = house.settings.cluster.pki
    files = {name: str(folder / file) for name, file in _FILES.items()}
    return {"address": address, "server_name": "inference.stepwedge", **files}


_FILES = {"ca": "ca.crt", "certificate": "inference.crt", "key": "inference.key"}


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A cluster whose inference serves the model to others."""
    built = House(tmp_path_factory.mktemp("holder"))
    assert built.start("audit").startswith("ready audit ")
    assert built.start("inference").startswith("ready inference "), built.errors.read_text()
    try:
        yield built
    finally:
        built.close()


def test_a_service_whose_model_is_elsewhere_answers_and_records_as_usual(holder: House, tmp_path: Path) -> None:
    remote = _remote(holder, holder.settings.inference.address)
    house = House(tmp_path, backend="open-inference", remote=remote)
    try:
        house.start("audit")
        assert house.start("inference").startswith("ready inference "), house.errors.read_text()
        here, there = house.assess(house.reference(chest())), holder.assess(holder.reference(chest()))
        assert here.assessment.findings == there.assessment.findings
        assert here.assessment.masks == there.assessment.masks
        model, other = here.assessment.model, there.assessment.model
        assert (model.sha256, model.output_sha256) == (other.sha256, other.output_sha256)
        assert model.execution_provider.startswith(f"OpenInference;model={NAME};version=")
        assert model.execution_provider.endswith(";file=stated")
        (entry,) = [one for one in house.entries(kind=3) if one.index == here.record_index]
        assert json.loads(entry.leaf)["pins"]["execution_provider"] == model.execution_provider
    finally:
        house.close()


def test_a_service_whose_model_is_nowhere_refuses_to_start(holder: House, tmp_path: Path) -> None:
    house = House(tmp_path, backend="open-inference", remote=_remote(holder, "127.0.0.1:1"))
    try:
        assert house.start("inference") == ""
        assert house.processes["inference"].wait(30) == 1
        refused = json.loads(house.errors.read_text().splitlines()[-1])
        assert (refused["event"], refused["error"]) == ("refused to start", "DEPENDENCY_UNAVAILABLE")
    finally:
        house.close()


class Stranger(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """A server as others write them: it states no file. Its parts can be exchanged."""

    def __init__(self, run: Callable[[np.ndarray[Any, Any]], Outputs]) -> None:
        self.run = run
        self.name, self.version, self.parameters = NAME, "1", dict[str, str]()
        self.datatype, self.shape, self.outputs = "FP32", [-1, 1, 256, 256], list(OUTPUTS)
        self.as_lists = False

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return oip.ServerMetadataResponse(name="triton", version="2.60.0")

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        if request.name != NAME:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=NAME,
            versions=["1"],
            platform="onnxruntime_onnx",
            inputs=[tensor(name="image", datatype=self.datatype, shape=self.shape)],
            outputs=[tensor(name=name, datatype="FP32", shape=[-1, -1]) for name in self.outputs],
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:
        images = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(tuple(request.inputs[0].shape))
        found = self.run(images)
        response = tensors.response_of(self.name, self.version, request, found._asdict())
        for name, value in self.parameters.items():
            response.parameters[name].string_param = value
        if self.as_lists:
            for output, values in zip(response.outputs, found, strict=True):
                output.contents.fp32_contents.extend(values.ravel().tolist())
            response.ClearField("raw_output_contents")
        return response


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Of the stranger's site."""
    folder = tmp_path_factory.mktemp("pki")
    pki.create(folder, Identity, development=True)
    return Credentials.load(folder, Identity.INFERENCE)


@pytest.fixture
def stranger(credentials: Credentials) -> Iterator[tuple[Stranger, Execution]]:
    """A server that holds the very model, and how it is reached."""
    ca, certificate, key = credentials.read()
    servicer = Stranger(OnnxRuntime((MODEL / "student.fp32.onnx").read_bytes()).run)
    server = grpc.server(ThreadPoolExecutor(2))
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    tls = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", tls)
    server.start()
    remote = Remote(f"127.0.0.1:{port}", ca=ca, certificate=certificate, key=key, server_name="inference.stepwedge")
    try:
        yield servicer, Execution(backend=REMOTE, remote=remote)
    finally:
        server.stop(0).wait()


def _refused(execution: Execution) -> int:
    with pytest.raises(StepwedgeError) as caught:
        load(MODEL, execution=execution)
    return caught.value.code


@pytest.mark.parametrize("as_lists", [False, True])
def test_a_server_that_states_no_file_is_believed_by_its_golden_answers(
    stranger: tuple[Stranger, Execution], as_lists: bool
) -> None:
    servicer, execution = stranger
    servicer.as_lists = as_lists
    model = load(MODEL, execution=execution)
    assert model.self_test in ("exact", "decisions")
    assert model.sha256 == load(MODEL, whole=True).sha256
    assert model.execution_provider == (
        f"OpenInference;model={NAME};version=1;server=triton-2.60.0;platform=onnxruntime_onnx;file=unstated"
    )
    grid = np.random.default_rng(1).integers(0, 255, (256, 256)).astype(np.uint8)
    assert model.answer(grid).sha256() == load(MODEL, whole=True).answer(grid).sha256()
    model.check()
    model.close()


def _noise(servicer: Stranger) -> None:
    rng, right = np.random.default_rng(1), servicer.run
    servicer.run = lambda images: Outputs(*(rng.normal(size=one.shape).astype("f4") for one in right(images)))


def _one_output_less(servicer: Stranger) -> None:
    servicer.outputs = ["logits", "flags"]


STRANGE: dict[str, tuple[Callable[[Stranger], Any], ErrorCode.ValueType]] = {
    "another model": (_noise, ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED),
    "another input type": (lambda one: setattr(one, "datatype", "FP16"), ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH),
    "another input size": (
        lambda one: setattr(one, "shape", [-1, 3, 224, 224]),
        ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH,
    ),
    "an output less": (_one_output_less, ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH),
    "another name": (lambda one: setattr(one, "name", "other"), ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH),
    "another file": (
        lambda one: one.parameters.update(model_sha256="0" * 64),
        ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH,
    ),
    "answers of another size": (
        lambda one: setattr(one, "run", lambda _: Outputs(*[np.zeros((2, 2), np.float32)] * 3)),
        ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH,
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_server_that_holds_another_model_is_refused(stranger: tuple[Stranger, Execution], what: str) -> None:
    servicer, execution = stranger
    change, code = STRANGE[what]
    change(servicer)
    assert _refused(execution) == code


def test_a_model_that_the_server_does_not_have_is_not_found(stranger: tuple[Stranger, Execution]) -> None:
    _, execution = stranger
    assert execution.remote is not None
    other = replace(execution, remote=replace(execution.remote, model="other"))
    assert _refused(other) == ErrorCode.ERROR_CODE_MODEL_NOT_FOUND


def test_a_model_that_is_exchanged_on_the_way_is_refused_until_it_is_tested(
    stranger: tuple[Stranger, Execution],
) -> None:
    servicer, execution = stranger
    model = load(MODEL, execution=execution)
    servicer.version = "2"
    with pytest.raises(StepwedgeError) as caught:
        model.check()
    assert caught.value.code == ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH
    model.close()
    assert "version=2" in load(MODEL, execution=execution).execution_provider


@pytest.mark.parametrize("what", ["no number", "infinite", "another size"])
def test_an_answer_that_is_no_answer_is_never_taken_for_one(stranger: tuple[Stranger, Execution], what: str) -> None:
    servicer, execution = stranger
    model, right = load(MODEL, execution=execution), servicer.run

    def run(images: np.ndarray[Any, Any]) -> Outputs:
        logits, flags, features = right(images)
        if what == "another size":
            return Outputs(logits[:, :, :64, :64], flags, features)
        flags = flags.copy()
        flags[0, 0] = np.nan if what == "no number" else np.inf
        return Outputs(logits, flags, features)

    servicer.run = run
    with pytest.raises(StepwedgeError) as caught:
        model.answer(np.zeros((256, 256), np.uint8))
    assert caught.value.code == ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED
    model.close()


def test_a_server_of_another_site_is_not_talked_to(stranger: tuple[Stranger, Execution], tmp_path: Path) -> None:
    _, execution = stranger
    assert execution.remote is not None
    pki.create(tmp_path, Identity, development=True)
    ca = (tmp_path / "ca.crt").read_bytes()
    for changed in (replace(execution.remote, ca=ca), replace(execution.remote, server_name="audit.stepwedge")):
        quick = replace(changed, timeout_seconds=1.0)
        assert _refused(replace(execution, remote=quick)) == ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE
