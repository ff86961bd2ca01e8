"""The model on a real Triton: held to its release over mutual TLS, killed, and exchanged behind our back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from services.inference.backends import REMOTE, Execution, Remote
from services.inference.registry import load
from shared import pki
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.paths import MODEL
from tests.wire.cluster import eventually
from tests.wire.inference_house import House, chest
from tests.wire.triton import Triton, needs_triton, reached, running_triton

pytestmark = needs_triton

NAME = json.loads((MODEL / "manifest.json").read_text())["name"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of the hospital that both servers are of."""
    folder = tmp_path_factory.mktemp("pki")
    pki.create(folder, Identity, development=True)
    return folder


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Iterator[Triton]:
    """One that holds the released file in version 4."""
    with running_triton(tmp_path_factory.mktemp("triton"), NAME, {"4": MODEL / "student.int8.onnx"}, site) as made:
        yield made


def _execution(triton: Triton) -> Execution:
    said = reached(triton)
    ca, certificate, key = (Path(said[name]).read_bytes() for name in ("ca", "certificate", "key"))
    remote = Remote(said["address"], ca=ca, certificate=certificate, key=key, server_name=said["server_name"])
    return Execution(backend=REMOTE, remote=remote)


def test_a_release_that_triton_holds_answers_as_it_does_here(triton: Triton) -> None:
    there, here = load(MODEL, execution=_execution(triton)), load(MODEL)
    try:
        assert there.execution_provider.startswith(f"OpenInference;model={NAME};version=4;server=triton-2.")
        assert there.self_test == here.self_test
        grid = np.random.default_rng(1).integers(0, 255, (256, 256)).astype(np.uint8)
        assert there.answer(grid).sha256() == here.answer(grid).sha256()
        there.check()
    finally:
        there.close()
        here.close()


def _other(folder: Path) -> Path:
    """The released file in fp32 with another first convolution."""
    model = onnx.load(MODEL / "student.fp32.onnx")
    first = next(one for one in model.graph.initializer if len(one.dims) == 4)
    first.CopyFrom(numpy_helper.from_array(-2 * numpy_helper.to_array(first), first.name))
    onnx.save(model, folder / "other.onnx")
    return folder / "other.onnx"


def test_a_service_whose_model_triton_holds_outlives_its_death_and_refuses_what_it_was_not_tested_with(
    site: Path, tmp_path: Path
) -> None:
    with running_triton(tmp_path / "triton", NAME, {"4": MODEL / "student.int8.onnx"}, site) as triton:
        house = House(tmp_path / "house", backend="open-inference", remote=reached(triton))
        try:
            house.start("audit")
            assert house.start("inference").startswith("ready inference "), house.errors.read_text()
            first = house.assess(house.reference(chest()))
            (entry,) = [one for one in house.entries(kind=3) if one.index == first.record_index]
            assert ";version=4;server=triton-2." in json.loads(entry.leaf)["pins"]["execution_provider"]

            triton.stop(at_once=True)
            assert _refusal(house, chest(2)) is grpc.StatusCode.UNAVAILABLE
            triton.start()
            assert eventually(lambda: house.assess(house.reference(chest(2))).record_index) > first.record_index

            triton.put("5", _other(tmp_path))
            triton.load()
            assert _refusal(house, chest(3)) is grpc.StatusCode.FAILED_PRECONDITION
            house.stop("inference")
            assert house.start("inference") == ""
            assert json.loads(house.errors.read_text().splitlines()[-1])["error"] == "MODEL_SELF_TEST_FAILED"
        finally:
            house.close()


def _refusal(house: House, data: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        house.assess(house.reference(data))
    return caught.value.code()


def test_triton_with_another_model_of_the_same_face_is_refused(site: Path, tmp_path: Path) -> None:
    with running_triton(tmp_path / "triton", NAME, {"1": _other(tmp_path)}, site) as triton:
        with pytest.raises(StepwedgeError) as caught:
            load(MODEL, execution=_execution(triton))
        assert caught.value.code == ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED
