"""`stepwedge assess`: what inference and the policy say of files, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import configuration, files, terminal
from cli.exit_codes import Exit
from cli.studies import outcome_name, reason_name, verdict_name
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.common.v1 import common_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from services.inference.assess import AssessmentResult, Assessor
    from shared.policy import Policy

MAX_BYTES = 2 << 30

# PNG 1.2 12.12, JPEG (T.81 B.1.1.3), TIFF 6.0 section 2, BigTIFF.
RASTER_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def assess(paths: Sequence[Path], masks: Path | None, config: Path | None, *, json: bool) -> Exit:
    """Assess files and folders of them; NEGATIVE where one could not be assessed at all."""
    from services.inference.assess import Assessor
    from shared.policy import Policy

    settings = configuration.load(config)
    found = files.named(paths)
    policy = Policy.load(settings.ingest.policy)
    section = settings.inference
    assessor = Assessor(section.model, provider=section.provider, threads=section.threads)
    writer = MaskWriter(masks) if masks is not None else None
    failed = 0
    with terminal.progress("assessing", len(found)) as advance:
        for path in found:
            answer = _one(path, assessor, policy, writer)
            failed += "error" in answer
            _tell(answer, json=json)
            advance(1)
    return Exit.NEGATIVE if failed else Exit.OK


class MaskWriter:
    """Writes masks as `<file stem>.<channel>.png`, 0 and 255, of the image's own size; no file of this run twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._written: dict[Path, Path] = {}

    def write(self, source: Path, masks: Mapping[Any, NDArray[np.uint8]]) -> dict[str, str]:
        """Write the masks of one file; channel -> path. Raises FILE where another file's mask has that name."""
        import cv2

        written = {}
        for structure, mask in masks.items():
            channel = channel_name(structure)
            path = self.folder / f"{source.stem}.{channel}.png"
            if self._written.setdefault(path, source) != source:
                words = f"its masks would replace those of {self._written[path]}, which has the same stem"
                raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, words)
            done, png = cv2.imencode(".png", (mask > 0).astype("uint8") * 255)
            assert done
            path.write_bytes(png.tobytes())
            written[channel] = str(path)
        return written


def channel_name(structure: common_pb2.Structure.ValueType) -> str:
    """`right_lung_field` and so on."""
    return common_pb2.Structure.Name(structure).removeprefix("STRUCTURE_").lower()


def _one(path: Path, assessor: Assessor, policy: Policy, writer: MaskWriter | None) -> dict[str, Any]:
    """Assess one file; the answer, or why there is none, with the same members."""
    try:
        result, modality = _assessed(path, assessor)
        verdict, reasons = policy.instance_verdict(result.findings, modality=modality)
        masks = writer.write(path, result.masks) if writer is not None else None
    except StepwedgeError as error:
        return _failed(path, error.name, error.message)
    except OSError as error:
        return _failed(path, "FILE", (error.strerror or "cannot be read").lower())
    except Exception as error:  # noqa: BLE001 - one file's defect is not the next one's
        return _failed(path, "INTERNAL", f"a defect of ours ({type(error).__name__})")
    answer: dict[str, Any] = {
        "file": str(path),
        "verdict": verdict_name(verdict),
        "reasons": [reason_name(reason) for reason in reasons],
        "findings": [_finding_as_json(finding) for finding in result.findings],
        "measurements": [_measurement_as_json(measurement) for measurement in result.measurements],
        "confidence": result.confidence,
    }
    return answer if masks is None else {**answer, "masks": masks}


def _failed(path: Path, code: str, message: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"reasons": [], "findings": [], "measurements": [], "confidence": None}
    return {"file": str(path), "verdict": "NOT_ASSESSABLE", **nothing, "error": code, "message": message}


def _assessed(path: Path, assessor: Assessor) -> tuple[AssessmentResult, str]:
    """What inference says of a file, and its modality where it tells one."""
    if path.stat().st_size > MAX_BYTES:
        raise StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE, f"more than {MAX_BYTES} bytes")
    data = path.read_bytes()
    # A DICOM file may begin as a TIFF does (PS3.10 7.1: the preamble is free).
    if data[128:132] != b"DICM" and data.startswith(RASTER_MAGIC):
        return assessor.assess_array(read_raster(data)), ""
    from shared.dicom import read_header

    modality = read_header(data).get("Modality")
    return assessor.assess_dicom(data), modality if isinstance(modality, str) else ""


def read_raster(data: bytes) -> NDArray[Any]:
    """Grey values of a PNG, JPEG or TIFF, [rows, columns], as stored; colour is weighed by ITU-R BT.601.

    Raises
    ------
    StepwedgeError
        PIXELS_UNDECODABLE.
    """
    import cv2
    import numpy as np

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, "the picture does not decode")
    if image.ndim == 3:
        image = image[:, :, 0] if image.shape[2] < 3 else cv2.cvtColor(image[:, :, :3], cv2.COLOR_BGR2GRAY)
    return image


def _finding_as_json(finding: common_pb2.Finding) -> dict[str, Any]:
    answer: dict[str, Any] = {"code": reason_name(finding.code), "outcome": outcome_name(finding.outcome)}
    if finding.HasField("measurement"):
        answer["measurement"] = _measurement_as_json(finding.measurement)
    if finding.HasField("threshold"):
        answer["threshold"] = finding.threshold
    answer["detail"] = finding.detail
    answer["boxes"] = [
        {"frame": box.frame, "left": box.left, "top": box.top, "width": box.width, "height": box.height}
        for box in finding.boxes
    ]
    return answer


def _measurement_as_json(measurement: common_pb2.Measurement) -> dict[str, Any]:
    answer: dict[str, Any] = {"name": measurement.name, "value": measurement.value, "unit": measurement.unit}
    for end in ("low", "high"):
        if measurement.HasField(end):
            answer[end] = getattr(measurement, end)
    return answer


def _tell(answer: dict[str, Any], *, json: bool) -> None:
    if json:
        terminal.emit(answer)
        return
    if "error" in answer:
        terminal.error(answer["error"], f"{answer['file']}: {answer['message']}")
        return
    from rich.markup import escape

    out = terminal.out()
    verdict = answer["verdict"]
    padding = " " * (15 - len(verdict))
    out.print(f"{terminal.verdict(verdict)}{padding}{escape(terminal.printable(answer['file']))}", soft_wrap=True)
    for finding in answer["findings"]:
        if finding["code"] in answer["reasons"]:
            out.print(f"{'':<15}{finding['detail']}", markup=False, soft_wrap=True)
