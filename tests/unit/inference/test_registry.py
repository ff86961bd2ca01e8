"""What the registry loads, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper

from services.inference import registry
from services.inference.backends import Execution
from services.inference.preprocessing import PREPROCESSING_VERSION
from shared.errors import ErrorCode, StepwedgeError
from shared.model_signatures import DEVELOPMENT_SIGNERS, ROLES, SIGNATURES, public, sign, signed_bytes
from shared.paths import MODEL

MISMATCH = ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH
SELF_TEST = ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED
PROVIDER = ErrorCode.ERROR_CODE_PROVIDER_UNAVAILABLE
KEYS = {role: Ed25519PrivateKey.generate() for role in ROLES}
SIGNERS = {role: [public(key)] for role, key in KEYS.items()}


def _tiny() -> bytes:
    """A model of the released model's face that answers with averages of its input."""
    nodes = [
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["small"] * 4, ["logits"], axis=1),
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["one"]),
        helper.make_node("Concat", ["one"] * 6, ["flags"], axis=1),
        helper.make_node("Concat", ["one"] * 2, ["features"], axis=1),
    ]
    shape: dict[str, list[Any]] = {
        "logits": ["batch", 4, 128, 128],
        "flags": ["batch", 6],
        "features": ["batch", 2],
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 256, 256])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in shape.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


class Release:
    """A release in a folder, and ways to spoil it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "tiny.onnx").write_bytes(_tiny())
        features = {
            "mean": [0.5, 0.5],
            "components": [[1.0, 0.0]],
            "variances": [0.1],
            "residual_variance": 0.1,
        }
        (folder / "calibration.json").write_text(json.dumps({"mask_temperature": 1.5, "features": features}))
        grids = np.random.default_rng(1).integers(0, 255, (3, 256, 256)).astype(np.uint8)
        session = ort.InferenceSession(_tiny(), providers=["CPUExecutionProvider"])
        images = grids[:, None].astype(np.float32) / np.float32(255)
        answers = [session.run(list(registry.OUTPUTS), {"image": image[None]}) for image in images]
        logits, flags, features_out = (np.concatenate(column) for column in zip(*answers, strict=True))
        self.golden: dict[str, Any] = {"grids": grids, "logits": logits, "flags": flags, "features": features_out}
        self.manifest: dict[str, Any] = {
            "schema": 1,
            "name": "tiny",
            "version": "1.2.3",
            "served": "tiny.onnx",
            "outputs": {
                "logits": {"channels": list(registry.CHANNELS)},
                "flags": {"channels": list(registry.FLAGS)},
            },
            "preprocessing_version": PREPROCESSING_VERSION,
            "onnxruntime_version": ort.__version__,
            "golden": {
                "file": "golden.npz",
                "provider": "CPUExecutionProvider",
                "threads": 1,
                "instructions": registry.instructions(),
            },
        }
        self.seal()

    def seal(self) -> None:
        """Write golden tensors and manifest, with the digests of what lies there now."""
        buffer = io.BytesIO()
        np.savez(buffer, **self.golden)
        (self.folder / "golden.npz").write_bytes(buffer.getvalue())
        self.manifest["files"] = {
            name: {"sha256": hashlib.sha256((self.folder / name).read_bytes()).hexdigest()}
            for name in ("tiny.onnx", "calibration.json", "golden.npz")
        }
        self.write(json.dumps(self.manifest).encode())

    def write(self, manifest: bytes) -> None:
        """Write the manifest and sign it, as one who holds both keys could."""
        (self.folder / "manifest.json").write_bytes(manifest)
        (self.folder / SIGNATURES).write_bytes(sign(manifest, KEYS))

    def load(self, **options: Any) -> registry.Model:
        return registry.load(self.folder, **{"signers": SIGNERS, **options})

    def refused(self, **options: Any) -> int:
        """The code with which the release is refused."""
        with pytest.raises(StepwedgeError) as caught:
            self.load(**options)
        return caught.value.code


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release that loads."""
    return Release(tmp_path / "tiny")


def test_a_whole_release_loads_and_says_what_it_is(release: Release) -> None:
    model = release.load()
    assert (model.name, model.version, model.provider) == ("tiny", "1.2.3", "CPUExecutionProvider")
    assert model.sha256 == hashlib.sha256(_tiny()).hexdigest()
    assert model.self_test == "exact"
    assert model.execution_provider.startswith("CPUExecutionProvider;intra_op=1;inter_op=1;optimization=all;spinning=0")
    answer = model.answer(release.golden["grids"][1])
    assert np.array_equal(answer.logits, release.golden["logits"][1])
    model.check()


VNNI, AVX2 = "avx2+avx512f+avx512_vnni", "avx2"


@pytest.mark.parametrize(
    ("provider", "machine", "available", "served"),
    [
        ("CPUExecutionProvider", "x86_64", VNNI, "int8"),
        ("CPUExecutionProvider", "x86_64", "avx2+avx_vnni", "int8"),
        ("CPUExecutionProvider", "x86_64", AVX2, "fp32"),
        ("CPUExecutionProvider", "x86_64", "", "fp32"),
        ("CPUExecutionProvider", "aarch64", "asimddp", "int8"),
        ("CUDAExecutionProvider", "x86_64", VNNI, "fp32"),
    ],
)
def test_a_processor_whose_8_bit_sums_saturate_serves_the_other_form(
    provider: str, machine: str, available: str, served: str
) -> None:
    manifest = {"served": "int8", "served_without_vnni": "fp32"}
    how = Execution(provider=provider)
    assert registry.served_file(manifest, how, machine, available) == served
    assert registry.served_file({"served": "int8"}, how, machine, available) == "int8"


def test_the_other_form_of_the_release_answers_golden_inputs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "instructions", lambda: AVX2)
    monkeypatch.setattr(registry.platform, "machine", lambda: "x86_64")
    model = registry.load(MODEL)
    assert model.sha256 == hashlib.sha256((MODEL / "student.int7.onnx").read_bytes()).hexdigest()
    assert model.self_test in {"exact", "decisions"}


def test_the_released_model_answers_its_golden_inputs() -> None:
    model = registry.load(MODEL)
    assert model.self_test in ("exact", "decisions")
    assert model.name == "chest-student"


def test_no_folder_and_no_manifest_are_no_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StepwedgeError) as caught:
            registry.load(folder)
        assert caught.value.code == ErrorCode.ERROR_CODE_MODEL_NOT_FOUND


@pytest.mark.parametrize("file", ["tiny.onnx", "calibration.json", "golden.npz"])
@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_file_that_differs_by_one_bit_is_refused(release: Release, file: str, position: int) -> None:
    data = bytearray((release.folder / file).read_bytes())
    data[position] ^= 1
    (release.folder / file).write_bytes(data)
    assert release.refused() == MISMATCH


@pytest.mark.parametrize("file", ["tiny.onnx", "calibration.json", "golden.npz"])
def test_a_file_that_is_absent_is_refused(release: Release, file: str) -> None:
    (release.folder / file).unlink()
    assert release.refused() == MISMATCH


def test_another_model_in_the_place_of_the_served_one_is_refused(release: Release) -> None:
    shutil.copyfile(MODEL / "student.int8.onnx", release.folder / "tiny.onnx")
    assert release.refused() == MISMATCH
    # With a manifest that was made to fit, its answers give it away.
    release.seal()
    assert release.refused() == SELF_TEST


SPOILERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "schema": lambda manifest: manifest.update(schema=2),
    "name": lambda manifest: manifest.update(name=""),
    "served": lambda manifest: manifest.update(served="../../etc/passwd"),
    "served absent": lambda manifest: manifest.pop("served"),
    "channels": lambda manifest: manifest["outputs"]["logits"]["channels"].reverse(),
    "flags": lambda manifest: manifest["outputs"]["flags"]["channels"].pop(),
    "preprocessing": lambda manifest: manifest.update(preprocessing_version="0.0.1"),
    "files": lambda manifest: manifest.update(files=[]),
    "path in files": lambda manifest: manifest["files"].update({"../x": {"sha256": "0" * 64}}),
    "digest": lambda manifest: manifest["files"]["tiny.onnx"].update(sha256="0" * 64),
    "golden": lambda manifest: manifest.update(golden={}),
}


@pytest.mark.parametrize("what", SPOILERS)
def test_a_poisoned_manifest_is_refused(release: Release, what: str) -> None:
    SPOILERS[what](release.manifest)
    release.write(json.dumps(release.manifest).encode())
    assert release.refused() == MISMATCH


def test_a_manifest_changed_after_it_was_signed_is_refused(release: Release) -> None:
    manifest = release.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert release.refused() == MISMATCH


def test_a_release_that_nobody_signed_is_refused(release: Release) -> None:
    (release.folder / SIGNATURES).unlink()
    assert release.refused() == MISMATCH


def test_a_release_signed_by_strangers_is_refused(release: Release) -> None:
    assert release.refused(signers=DEVELOPMENT_SIGNERS) == MISMATCH
    assert release.refused(signers={}) == MISMATCH
    for role in ROLES:
        assert release.refused(signers={**SIGNERS, role: []}) == MISMATCH


def test_one_person_cannot_both_train_and_approve(release: Release) -> None:
    manifest = (release.folder / "manifest.json").read_bytes()
    both = [key for keys in SIGNERS.values() for key in keys]
    assert release.refused(signers=dict.fromkeys(ROLES, both)) == MISMATCH
    one = KEYS["trained_by"]
    with pytest.raises(ValueError, match="two different keys"):
        sign(manifest, dict.fromkeys(ROLES, one))
    rows = json.loads((release.folder / SIGNATURES).read_text())
    signature = base64.b64encode(one.sign(signed_bytes("approved_by", manifest))).decode()
    rows["signatures"][1] |= {"key": public(one), "signature": signature}
    (release.folder / SIGNATURES).write_text(json.dumps(rows))
    assert release.refused(signers={role: [public(one)] for role in ROLES}) == MISMATCH


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows.reverse(),
        lambda rows: rows.pop(),
        lambda rows: rows[0].update(rows[1], role="trained_by"),
        lambda rows: rows[1].update(signature=rows[0]["signature"]),
        lambda rows: rows[1].update(signature="AAAA"),
        lambda rows: rows[1].update(signature=None),
        lambda rows: rows[1].update(key="not base64"),
    ],
)
def test_signatures_that_are_not_both_roles_own_are_refused(release: Release, spoil: Callable[[Any], Any]) -> None:
    content = json.loads((release.folder / SIGNATURES).read_text())
    spoil(content["signatures"])
    (release.folder / SIGNATURES).write_text(json.dumps(content))
    assert release.refused() == MISMATCH


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"schema": 1, "signatures": 5}'])
def test_signatures_that_do_not_read_are_refused(release: Release, content: bytes) -> None:
    (release.folder / SIGNATURES).write_bytes(content)
    assert release.refused() == MISMATCH


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 1}'])
def test_a_manifest_that_is_none_is_refused(release: Release, content: bytes) -> None:
    release.write(content)
    assert release.refused() == MISMATCH


def test_a_golden_input_off_by_one_is_refused_though_the_manifest_was_made_to_fit(release: Release) -> None:
    release.golden["grids"][0, 128, 128] += 1
    release.seal()
    assert release.refused() == SELF_TEST


def test_a_golden_answer_off_by_one_bit_is_refused_in_the_same_class_of_machine(release: Release) -> None:
    release.golden["logits"].view(np.uint32)[0, 0, 5, 5] ^= 1
    release.seal()
    assert release.refused() == SELF_TEST


def test_another_class_of_machine_must_come_to_the_same_decisions(release: Release) -> None:
    release.manifest["golden"]["instructions"] = "another"
    release.golden["logits"] += np.float32(1e-4)
    release.seal()
    assert release.load().self_test == "decisions"
    release.golden["flags"] = -release.golden["flags"]
    release.seal()
    assert release.refused() == SELF_TEST


def test_another_class_of_machine_may_be_of_another_mind_where_a_chance_beside_an_edge_is_one_half() -> None:
    logits, features = np.ones((4, 2, 2), np.float32), np.zeros(2, np.float32)
    flags = np.append(np.full(len(registry.FLAGS), -2.0), np.zeros(len(registry.EDGE_FLAGS))).astype(np.float32)
    released = registry.Answer(logits, flags, features)
    for place, change, alike in ((-1, 0.1, True), (-1, 1.5, False), (0, 2.5, False)):
        other = flags.copy()
        other[place] += change
        assert registry._alike(registry.Answer(logits, other, features), released) is alike


def test_a_model_that_does_not_answer_with_the_edges_that_its_manifest_names_is_refused(release: Release) -> None:
    release.manifest["outputs"]["flags"]["channels"] += registry.EDGE_FLAGS
    release.seal()
    assert release.refused() == SELF_TEST


@pytest.mark.parametrize("key", ["grids", *registry.OUTPUTS])
def test_golden_tensors_that_are_not_of_one_number_are_refused(release: Release, key: str) -> None:
    release.golden[key] = release.golden[key][:2]
    release.seal()
    assert release.refused() == SELF_TEST


def test_golden_tensors_that_are_none_are_refused(release: Release) -> None:
    release.golden["grids"] = release.golden["grids"].astype(np.float32)
    release.seal()
    assert release.refused() == SELF_TEST


def test_a_calibration_that_does_not_read_is_refused(release: Release) -> None:
    for content in ("{}", "[]", '{"mask_temperature": 0, "features": {}}', "{"):
        (release.folder / "calibration.json").write_text(content)
        release.seal()
        assert release.refused() == MISMATCH


def test_a_calibration_may_name_each_channel_and_must_name_all_of_them_with_numbers(release: Release) -> None:
    path = release.folder / "calibration.json"
    content = json.loads(path.read_text())
    assert release.load().calibration.temperature.tolist() == [1.5] * 4
    path.write_text(json.dumps({**content, "mask_temperature": [1, 2, 3, 4], "mask_bias": [0, 0, -0.5, 0]}))
    release.seal()
    assert release.load().calibration.bias.tolist() == [0, 0, -0.5, 0]
    for wrong in ([1, 2], [1, 2, 3, float("nan")], [1, 2, 3, 0], "warm"):
        path.write_text(json.dumps({**content, "mask_temperature": wrong}))
        release.seal()
        assert release.refused() == MISMATCH


def test_a_model_of_another_face_is_refused(release: Release) -> None:
    model = onnx.load_from_string(_tiny())
    model.graph.input[0].name = model.graph.node[0].input[0] = model.graph.node[2].input[0] = "other"
    (release.folder / "tiny.onnx").write_bytes(model.SerializeToString())
    release.seal()
    assert release.refused() == MISMATCH


def test_bytes_that_are_no_model_are_refused(release: Release) -> None:
    (release.folder / "tiny.onnx").write_bytes(b"no model")
    release.seal()
    assert release.refused() == MISMATCH


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider", "NoSuchProvider", ""])
def test_a_provider_that_is_absent_is_refused_and_never_replaced(release: Release, provider: str) -> None:
    if provider in ort.get_available_providers():
        pytest.skip("this machine has it")
    assert release.refused(provider=provider) == PROVIDER
