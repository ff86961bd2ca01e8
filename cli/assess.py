"""`stepwedge assess`: what inference and the policy say of files, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import configuration, files, terminal
from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from services.inference.assess import Assessor
    from shared.policy import Policy


def assess(paths: Sequence[Path], masks: Path | None, config: Path | None, *, json: bool) -> Exit:
    """Assess files and folders of them; NEGATIVE where one could not be assessed at all, or not written."""
    from services.inference.assess import Assessor
    from services.inference.execution import execution
    from shared.policy import Policy

    settings = configuration.load(config)
    failed = 0

    def skipped(path: Path, why: str) -> None:
        nonlocal failed
        failed += 1
        _tell(_nothing(path, {"error": "FILE", "message": why}), json=json)

    found = files.named(paths, skipped)
    policy = Policy.load(settings.ingest.policy)
    section = settings.inference
    signers = section.model_signers.by_role
    assessor = Assessor(section.model, signers=signers, execution=execution(section), ladder=section.ladder)
    writer = MaskWriter(masks) if masks is not None else None
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
        self._written: dict[str, Path] = {}

    def write(self, source: Path, masks: Mapping[str, NDArray[np.uint8]]) -> dict[str, str]:
        """Write the masks of one file; channel -> path. Raises FILE where another file's masks have these names."""
        import cv2

        if masks and self._written.setdefault(source.stem, source) != source:
            words = f"its masks would replace those of {self._written[source.stem]}, which has the same stem"
            raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, words)
        written = {}
        for channel, mask in masks.items():
            done, png = cv2.imencode(".png", mask)
            if not done:
                raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "a mask could not be written as PNG")
            path = self.folder / f"{source.stem}.{channel}.png"
            path.write_bytes(png.tobytes())
            written[channel] = str(path)
        return written


def _one(path: Path, assessor: Assessor, policy: Policy, writer: MaskWriter | None) -> dict[str, Any]:
    """Assess one file; the answer, or why there is none, with the same members."""
    try:
        assessed = assessor.assess_file(path, policy=policy)
    except Exception as error:  # noqa: BLE001 - one file's defect is not the next one's
        return _nothing(path, _why(error))
    answer = {**assessed.as_json(), "file": files.shown(path), "confidence": assessed.result.confidence}
    if writer is None:
        return answer
    try:
        return {**answer, "masks": writer.write(path, assessed.masks)}
    except Exception as error:  # noqa: BLE001 - the verdict stands without the masks
        return {**answer, **_why(error)}


def _nothing(path: Path, why: dict[str, str]) -> dict[str, Any]:
    """The answer for what could not be assessed at all."""
    nothing: dict[str, Any] = {"findings": [], "measurements": [], "confidence": None}
    return {"file": files.shown(path), "verdict": "NOT_ASSESSABLE", "reasons": [why["error"]], **nothing, **why}


def _why(error: Exception) -> dict[str, str]:
    """What to tell of a failure: a code, and words that hold nothing of the object."""
    if isinstance(error, StepwedgeError):
        return {"error": error.name, "message": error.message}
    if isinstance(error, OSError):
        return {"error": "FILE", "message": (error.strerror or "cannot be read or written").lower()}
    return {"error": "INTERNAL", "message": f"a defect of ours ({type(error).__name__})"}


def _tell(answer: dict[str, Any], *, json: bool) -> None:
    if json:
        terminal.emit(answer)
        return
    if "error" in answer:
        terminal.error(answer["error"], f"{answer['file']}: {answer['message']}")
        if not answer["findings"]:
            return
    from rich.markup import escape

    out = terminal.out()
    verdict = answer["verdict"]
    padding = " " * (15 - len(verdict))
    out.print(f"{terminal.verdict(verdict)}{padding}{escape(terminal.printable(answer['file']))}", soft_wrap=True)
    for finding in answer["findings"]:
        if finding["code"] in answer["reasons"]:
            out.print(f"{'':<15}{finding['code']}: {finding['detail']}", markup=False, soft_wrap=True)
