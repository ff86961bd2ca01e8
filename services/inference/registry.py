"""The released model: loaded only if every file is what its manifest says, and it answers as it did when released."""

from __future__ import annotations

import hashlib
import io
import json
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from services.inference.backends import CPU, OUTPUTS, REMOTE, Backend, Execution, Outputs, open_backend
from services.inference.batching import Batched, Batching
from services.inference.preprocessing import GRID, PREPROCESSING_VERSION, to_tensor
from shared.errors import ErrorCode, StepwedgeError
from shared.model_signatures import DEVELOPMENT_SIGNERS, SIGNATURES, lacking
from stepwedge.common.v1.common_pb2 import Structure

CHANNELS: Final[Mapping[str, Structure.ValueType]] = {
    "right_lung_field": Structure.STRUCTURE_RIGHT_LUNG_FIELD,
    "left_lung_field": Structure.STRUCTURE_LEFT_LUNG_FIELD,
    "heart": Structure.STRUCTURE_HEART,
    "lungs_full": Structure.STRUCTURE_LUNGS_FULL,
}
"""Mask channels in the order of the output `logits`, and what each shows."""
FLAGS: Final = ("inverted", "rotated_90", "rotated_180", "rotated_270", "mirrored", "not_a_chest")
"""Flags in the order of the output `flags`."""
EDGES: Final = ("top", "bottom", "right", "left")
"""Edges of the image; the patient's right is on the image's left."""
SHARES: Final = (-0.047, -0.023, -0.010, 0.002, 0.012, 0.020, 0.047)
"""Margins between the lungs and an edge, as shares of the image's height or width; below zero, lung lies beyond it."""
EDGE_FLAGS: Final = tuple(f"{edge} margin below {share:+.3f}" for edge in EDGES for share in SHARES)
"""What stands behind the flags in the output `flags`, of a release that has it."""
MANIFEST: Final = "manifest.json"
EVALUATION: Final = "evaluation.json"

_MAX_MODEL_BYTES: Final = 256 << 20
_LARGEST_DIFFERENCE: Final = 1.0
"""Of a golden logit, in another class of machine; what was measured between an int8 file and its fp32 original."""
_LEAST_AGREEMENT: Final = 0.99
"""Dice of the golden masks in another class of machine."""


class Answer(NamedTuple):
    """What the model says of one grid: logits [4, h, w], flags [6] or, with `EDGE_FLAGS`, [34] (logits), features [d];
    float32."""

    logits: NDArray[np.float32]
    flags: NDArray[np.float32]
    features: NDArray[np.float32]

    def sha256(self) -> str:
        """Digest over the bytes of the three outputs, in this order, little-endian."""
        digest = hashlib.sha256()
        for output in self:
            digest.update(np.ascontiguousarray(output, "<f4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Subgroup:
    """How well the model did on a group of the images that its evaluation kept for the end.

    attribute, group: as the evaluation names them, "sex" and "covid: F". measure: the masks whose Dice is meant. mean,
    low, high: with the ends of the 95 % bootstrap interval, 0 to 1.
    """

    attribute: str
    group: str
    measure: str
    images: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """What was fitted on validation images.

    temperature, bias [4]: by channel, sigmoid(logit / temperature + bias) is a calibrated probability. mean,
    components, variances, residual_variance: of the features of training images.
    """

    sha256: str
    temperature: NDArray[np.float64]
    bias: NDArray[np.float64]
    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    variances: NDArray[np.float64]
    residual_variance: float

    def distance(self, features: NDArray[np.float32]) -> float:
        """How far features [d] lie from the training images': Mahalanobis' distance in the principal components, and
        what these do not explain over its variance."""
        centred = features.astype(np.float64) - self.mean
        along = self.components @ centred
        rest = float(((centred - along @ self.components) ** 2).sum()) / self.residual_variance
        return float(np.sqrt((along**2 / self.variances).sum() + rest))


class Model:
    """One model in memory. `answer` and `run` may be called from several threads."""

    def __init__(
        self, manifest: Mapping[str, Any], backend: Backend, sha256: str, calibration: Calibration, release_sha256: str
    ) -> None:
        self.name: str = manifest["name"]
        self.version: str = manifest["version"]
        self.sha256 = sha256
        self.release_sha256 = release_sha256
        self.calibration = calibration
        self.preprocessing = PREPROCESSING_VERSION
        self.features = len(calibration.mean)
        self.flags = len(manifest["outputs"]["flags"]["channels"])
        self.self_test = "not made"
        self.subgroups: tuple[Subgroup, ...] = ()
        self._check: tuple[NDArray[np.uint8], str] | None = None
        self._backend = backend

    @property
    def provider(self) -> str:
        """What runs it."""
        return self._backend.provider

    @property
    def execution_provider(self) -> str:
        """Provider and the options that can change an answer's bits: "CPUExecutionProvider;intra_op=1;..."."""
        return self._backend.description

    @property
    def platform(self) -> str:
        """Project and format, as the Open Inference Protocol names them."""
        return self._backend.platform

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """The model's outputs for images float32 [n, 1, 256, 256] in 0..1.

        Raises MODEL_SELF_TEST_FAILED where they are no finite numbers of the sizes a release has: thresholds would
        take what is no number for an answer.
        """
        found, n, half = self._backend.run(images), len(images), GRID // 2
        sizes = ((n, len(CHANNELS), half, half), (n, self.flags), (n, self.features))
        if any(one.shape != size or not np.isfinite(one).all() for one, size in zip(found, sizes, strict=True)):
            raise _failed("the model answers with other sizes than a release has, or with what is no number")
        return found

    def answer(self, grid: NDArray[np.uint8]) -> Answer:
        """The model's answer to one grid uint8 [256, 256]."""
        logits, flags, features = self.run(to_tensor(grid))
        return Answer(logits[0], flags[0], features[0])

    def wrap(self, around: Callable[[Backend], Backend]) -> None:
        """From now on, have a backend around the one that it has run it."""
        self._backend = around(self._backend)
        if self._check is not None:
            self._check = (self._check[0], self.answer(self._check[0]).sha256())

    def batched(self, batching: Batching) -> None:
        """From now on, run what several threads ask for together."""
        if batching.max_batch_size > 1:
            self.wrap(lambda backend: Batched(backend, batching))

    def tested(self, how: str, grid: NDArray[np.uint8], answered: Answer) -> None:
        """Remember how the self-test went, and one of its inputs for `check`."""
        self.self_test, self._check = how, (grid, answered.sha256())

    def check(self) -> None:
        """Return where a golden input is still answered as at the start; else raise MODEL_SELF_TEST_FAILED."""
        if self._check is None or self.answer(self._check[0]).sha256() != self._check[1]:
            raise _failed("a golden input is no longer answered as at the start")

    def close(self) -> None:
        """Give back what runs it."""
        self._backend.close()


def load(
    folder: Path,
    *,
    provider: str = CPU,
    threads: int = 1,
    signers: Mapping[str, Collection[str]] = DEVELOPMENT_SIGNERS,
    execution: Execution | None = None,
    whole: bool = False,
) -> Model:
    """Load the release in `folder` and put it to its test.

    Parameters
    ----------
    folder
        Of the release.
    provider, threads
        Of ONNX Runtime; `execution` instead says how the model is run in full.
    signers
        The public keys trusted in each role.
    whole
        Load the form of the release in fp32 wherever it runs.

    Raises
    ------
    StepwedgeError
        MODEL_NOT_FOUND where there is no manifest; MODEL_DIGEST_MISMATCH where the manifest is not signed in both
        roles by keys of `signers`, or manifest and files are not of one piece; PROVIDER_UNAVAILABLE where what is to
        run it is absent or does not take the model; DEPENDENCY_UNAVAILABLE where it is another server, which does not
        answer; MODEL_SELF_TEST_FAILED where the golden inputs are answered otherwise than when the model was released.
    """
    how = execution or Execution(provider=provider, threads=threads)
    release, manifest = _manifest(folder, signers)
    served = whole_file(manifest) if whole else served_file(manifest, how, platform.machine(), instructions())
    goldens = _goldens(manifest)
    files = _verified_files(folder, manifest, {served, "calibration.json", EVALUATION, *goldens.values()})
    calibration = _calibration(files["calibration.json"], manifest["files"]["calibration.json"]["sha256"])
    backend = open_backend(files[served], how, manifest)
    try:
        tested: StepwedgeError | None = None
        for form in _forms_of(backend, manifest) if how.backend == REMOTE else [served]:
            model = Model(manifest, backend, manifest["files"][form]["sha256"], calibration, release)
            try:
                _self_test(model, manifest, files[goldens[form]], how.threads)
            except StepwedgeError as error:
                tested = error
            else:
                model.subgroups = _subgroups(files.get(EVALUATION, b"{}"))
                return model
        raise tested or _failed("there are no golden tensors")
    except BaseException:
        backend.close()
        raise


def _forms_of(backend: Backend, manifest: Mapping[str, Any]) -> list[str]:
    """Files of the release that a server elsewhere may be running: the one that it states, else any."""
    stated = getattr(backend, "sha256", "")
    forms = list(_goldens(manifest))
    return [form for form in forms if not stated or manifest["files"][form]["sha256"] == stated]


def served_file(manifest: Mapping[str, Any], how: Execution, machine: str, available: str) -> str:
    """Name of the file that a machine of this kind serves.

    8 bits are for processors: everything else runs the fp32 file. x86 processors without VNNI add pairs of 8-bit
    products in 16 bits, which saturates: there the release's form without that is served, where the manifest names one.
    Which file it was stands in every record, by its digest.
    """
    if how.backend == REMOTE:
        return str(manifest["served"])
    if not how.on_cpu:
        return whole_file(manifest)
    saturates = machine in {"x86_64", "AMD64"} and not any(name in available for name in ("vnni", "amx_int8"))
    if saturates:
        return str(manifest.get("served_without_vnni", manifest["served"]))
    return str(manifest["served"])


def whole_file(manifest: Mapping[str, Any]) -> str:
    """Name of the file in fp32, where the release has one; of what it serves otherwise."""
    return str(manifest.get("whole", manifest.get("served_without_vnni", manifest["served"])))


def _goldens(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File of each form of the release -> file of its golden tensors."""
    forms = {"served": "file", "served_without_vnni": "file_without_vnni", "whole": "file_whole"}
    return {manifest[form]: manifest["golden"][golden] for form, golden in forms.items() if form in manifest}


def _manifest(folder: Path, signers: Mapping[str, Collection[str]]) -> tuple[str, Mapping[str, Any]]:
    """The manifest with its digest, read only once it is known whose it is."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_MODEL_NOT_FOUND, "the model's folder has no manifest") from None
    try:
        reason = lacking(data, (folder / SIGNATURES).read_bytes(), signers)
    except OSError:
        reason = "the release is not signed"
    if reason:
        raise _mismatch(reason)
    try:
        manifest = json.loads(data)
        goldens = _goldens(manifest)
        wanted = {"calibration.json", manifest["served"], *goldens, *goldens.values()}
        ours = (
            manifest["schema"] == 1
            and all(isinstance(manifest[key], str) and manifest[key] for key in ("name", "version"))
            and all(isinstance(manifest["files"][name]["sha256"], str) for name in wanted)
            and all(Path(name).name == name for name in manifest["files"])
            and manifest["outputs"]["logits"]["channels"] == list(CHANNELS)
            and manifest["outputs"]["flags"]["channels"] in ([*FLAGS], [*FLAGS, *EDGE_FLAGS])
        )
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise _mismatch("the manifest is not one of a model that can be served here")
    if manifest.get("preprocessing_version") != PREPROCESSING_VERSION:
        raise _mismatch("the model was trained with another version of the preprocessing")
    return hashlib.sha256(data).hexdigest(), dict(manifest)


def _verified_files(folder: Path, manifest: Mapping[str, Any], used: Collection[str]) -> dict[str, bytes]:
    """The bytes of every file that is used, each checked against the manifest; what is checked is what is used."""
    found: dict[str, bytes] = {}
    for name, said in manifest["files"].items():
        path = folder / name
        try:
            if path.stat().st_size > _MAX_MODEL_BYTES:
                raise _mismatch("a file of the model is larger than any model served here")
            data = path.read_bytes()
        except OSError:
            raise _mismatch("a file that the manifest names is absent") from None
        if hashlib.sha256(data).hexdigest() != said["sha256"]:
            raise _mismatch("a file of the model does not match the manifest")
        if name in used:
            found[name] = data
    return found


def _subgroups(evaluation: bytes) -> tuple[Subgroup, ...]:
    """Of an evaluation that has any; the file is a part of the release, and was checked against the manifest."""
    try:
        found = json.loads(evaluation).get("served", {}).get("subgroups", {})
        return tuple(
            Subgroup(attribute, group, measure, int(of["n"]), float(of["mean"]), float(of["low"]), float(of["high"]))
            for attribute, groups in found.items()
            for group, measures in groups.items()
            for measure, of in measures.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _mismatch("the evaluation of the model does not read") from None


def by_channel(said: Any) -> NDArray[np.float64]:
    """One number for all channels, as releases up to 0.2.0 have it, or one for each."""
    found = np.array(np.broadcast_to(np.asarray(said, np.float64), (len(CHANNELS),)))
    if not np.isfinite(found).all():
        raise ValueError("not a number")
    return found


def _calibration(data: bytes, sha256: str) -> Calibration:
    try:
        content = json.loads(data)
        features = content["features"]
        found = Calibration(
            sha256,
            by_channel(content["mask_temperature"]),
            by_channel(content.get("mask_bias", 0.0)),
            np.asarray(features["mean"], np.float64),
            np.asarray(features["components"], np.float64),
            np.asarray(features["variances"], np.float64),
            float(features["residual_variance"]),
        )
        size, count = len(found.mean), len(found.variances)
        whole = (
            found.components.shape == (count, size) and (found.temperature > 0).all() and found.residual_variance > 0
        )
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise _mismatch("the calibration does not read")
    return found


def _self_test(model: Model, manifest: Mapping[str, Any], data: bytes, threads: int) -> None:
    """Answer the golden inputs: "exact" where all bits are as released, "decisions" in another class of machine."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as golden:
            grids, *outputs = (golden[key] for key in ("grids", *OUTPUTS))
        released = [Answer(*one) for one in zip(*outputs, strict=True)]
        whole = grids.dtype == np.uint8 and grids.shape[1:] == (GRID, GRID) and 0 < len(grids) == len(released)
    except Exception:  # noqa: BLE001 - a damaged archive raises what it likes
        whole = False
    if not whole:
        raise _failed("the golden tensors do not read")
    answers = [model.answer(grid) for grid in grids]
    if all(ours.sha256() == theirs.sha256() for ours, theirs in zip(answers, released, strict=True)):
        model.tested("exact", grids[0], answers[0])
        return
    if _same_class(model, manifest["golden"], manifest, threads):
        raise _failed("the golden inputs are not answered bit for bit as when the model was released")
    if not all(_alike(ours, theirs) for ours, theirs in zip(answers, released, strict=True)):
        raise _failed("the golden inputs lead to other decisions than when the model was released")
    model.tested("decisions", grids[0], answers[0])


def _same_class(model: Model, golden: Mapping[str, Any], manifest: Mapping[str, Any], threads: int) -> bool:
    """Whether this machine must give the very bits of the release: same runtime, provider, threads and instructions."""
    here = (ort.__version__, model.provider, threads, instructions())
    there = (manifest.get("onnxruntime_version"), golden.get("provider"), golden.get("threads"))
    return here == (*there, golden.get("instructions"))


def instructions() -> str:
    """The instruction sets by which ONNX Runtime chooses its kernels, "avx2+avx512f+avx512_vnni"; empty if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines()
    except OSError:
        return ""
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
    return "+".join(flag for flag in known if flag in flags)


def _alike(ours: Answer, theirs: Answer) -> bool:
    if ours.logits.shape != theirs.logits.shape or ours.flags.shape != theirs.flags.shape:
        return False
    one, other = ours.logits > 0, theirs.logits > 0
    total = int(one.sum()) + int(other.sum())
    agreement = 2 * int((one & other).sum()) / total if total else 1.0
    furthest = float(np.abs(ours.flags - theirs.flags).max())
    # Of the edges no chance decides by itself, and each golden input has some near one half, on either side.
    decided = slice(len(FLAGS))
    same_flags = bool(((ours.flags[decided] > 0) == (theirs.flags[decided] > 0)).all())
    return agreement >= _LEAST_AGREEMENT and same_flags and furthest <= _LARGEST_DIFFERENCE


def _mismatch(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH, words)


def _failed(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED, words)
