"""`stepwedge redact`: identity out of files, without a cluster; a receipt for each."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cli import configuration, files, terminal
from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from services.redaction.profile import Profile
    from shared.pseudonyms import Pseudonyms

SUFFIXES = (".dcm", ".dicom", ".ima")


def redact(
    source: Path,
    target: Path,
    key: Path | None,
    config: Path | None,
    *,
    json: bool,
    profile: str = "",
    project: str = "",
    key_id: str = "",
    paths: bool = True,
) -> Exit:
    """Redact a file to a file, or a folder to a folder; NEGATIVE where one was refused.

    profile: name of one that ships, or a file of one; default the basic one with clean pixels. project, key_id: see
    `shared.pseudonyms.Pseudonyms`. paths: name files by their paths; else by their number in the order of the paths.
    """
    from services.redaction.profile import Profile

    compiled = Profile.load(Profile.file(profile or "basic-pixels"))
    try:
        if not source.exists():
            raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{source}: no such file or folder")
        work = _Work(source, target, compiled, _pseudonyms(key, config, key_id).project(project), json, paths)
        found = _of_folder(source, target, work.skipped) if source.is_dir() else [source]
    except OSError as error:  # a folder above it may not be searched
        where, why = files.shown(Path(error.filename or source)), (error.strerror or "cannot be read").lower()
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{where}: {why}") from None
    with terminal.progress("redacting", len(found)) as advance:
        for path in found:
            work.tell(work.one(path), alone=len(found) == 1)
            advance(1)
    done, all_files = work.done, work.done + work.failed
    if not json and all_files > 1:
        terminal.out().print(f"{done} of {all_files} redacted into {target}", markup=False, soft_wrap=True)
    return Exit.NEGATIVE if work.failed else Exit.OK


def _of_folder(source: Path, target: Path, skipped: files.Skipped) -> list[Path]:
    """Every file below `source`, if what becomes of them may lie in `target`."""
    if target.exists() and not target.is_dir():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{target}: a folder is redacted to a folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{target}: may not lie inside {source}")
    return files.named([source], skipped)


class _Work:
    """One run of the command: what is the same for each of its files, and how many came out how."""

    def __init__(
        self, source: Path, target: Path, profile: Profile, pseudonyms: Pseudonyms, json: bool, paths: bool
    ) -> None:
        self.root = source if source.is_dir() else source.parent
        self.folder = target if source.is_dir() or target.is_dir() else None  # else the user named the file
        self.target = target
        self.profile = profile
        self.pseudonyms = pseudonyms
        self.json = json
        self.paths = paths
        self.done = self.failed = 0

    def one(self, path: Path) -> dict[str, Any]:
        """Redact one file to `target`, or into it by a name that names nobody; its receipt, or why there is none."""
        from services.redaction.engine import RefusedError
        from services.redaction.files import redact_file

        place = self.target
        try:
            if self.folder is not None:
                place = self.folder / safe_name(path.relative_to(self.root), path, self.pseudonyms)
            receipt = redact_file(path, place, self.pseudonyms, self.profile)
        except StepwedgeError as error:
            done = error.receipt.as_json() if isinstance(error, RefusedError) else {}
            return self.refused(path, error.name, error.message, done)
        self.done += 1
        return {"file": self.name(path), **receipt, "output": files.shown(place) if self.paths else receipt["instance"]}

    def refused(self, path: Path, code: str, message: str, receipt: dict[str, Any]) -> dict[str, Any]:
        """What to tell of a file that was not redacted."""
        self.failed += 1
        return {"file": self.name(path), "error": code, "message": message, **receipt}

    def skipped(self, path: Path, why: str) -> None:
        """Tell of a folder, or a file, that could not be read at all."""
        self.tell(self.refused(path, "FILE", why, {}), alone=False)

    def name(self, path: Path) -> str:
        """How to call a file: by its path, which may name a patient, or by its place among the files of this run."""
        return files.shown(path) if self.paths else f"#{self.done + self.failed}"

    def tell(self, receipt: dict[str, Any], *, alone: bool) -> None:
        """Print a receipt, or why there is none."""
        if self.json:
            terminal.emit(receipt)
        elif "error" in receipt:
            terminal.error(receipt["error"], f"{receipt['file']}: {receipt['message']}")
        elif alone:
            _print(receipt)


ACTIONS = {
    "X": "removed", "Z": "emptied", "D": "replaced by a dummy", "U": "UIDs replaced", "C": "cleaned",
    "PRIVATE": "private, removed", "UNKNOWN": "unknown, removed", "CURVE": "curves removed",
    "OVERLAY": "overlays removed", "DATE": "dates and times", "META": "meta information", "PREAMBLE": "preamble",
    "PIXELS": "beside the image, in its pixel data",
}  # fmt: skip
"""The actions of a receipt in words."""


def _print(receipt: dict[str, Any]) -> None:
    """A receipt for a person."""
    out = terminal.out()

    def line(text: str, style: str = "") -> None:
        out.print(terminal.printable(text), style=style, markup=False, soft_wrap=True)

    actions = receipt["actions"]
    line(f"{receipt['output']}: {sum(actions.values())} attributes changed")
    options = ", ".join(receipt["options"]) or "no options"
    line(f"  profile   {receipt['profile']} ({options}), PS3.15 {receipt['edition']}, {receipt['profile_sha256'][:12]}")
    if receipt["key_id"]:
        line(f"  key       {receipt['key_id']}")
    for action, count in actions.items():
        line(f"  {count:>7}   {ACTIONS.get(action, action)}")
    for box in receipt["boxes"][:20]:
        where = f"{box['width']} x {box['height']} at {box['left']}, {box['top']} of frame {box['frame']}"
        line(f"  blanked   {where} ({box['reason']})")
    if len(receipt["boxes"]) > 20:
        line(f"  blanked   {len(receipt['boxes']) - 20} rectangles more; --json lists them")
    line(f"  second opinion: {receipt['residual_hits'] or 'nothing'} found")
    if receipt["burned_in_text_possible"]:
        line(f"  the pixels may still name the patient: {receipt['burned_in_text_detail']}", "yellow")


def _pseudonyms(key: Path | None, config: Path | None, key_id: str) -> Pseudonyms:
    """Of the key given, else of the key of the settings, else of one that nobody will know."""
    from shared import keys
    from shared.pseudonyms import Pseudonyms

    if key is not None:
        if not key.is_file():
            raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{key}: no such file")
        return Pseudonyms.load(key, key_id)
    of_settings = configuration.load(config).cluster.keys / keys.PSEUDONYMS
    if of_settings.is_file():
        return Pseudonyms.load(of_settings, key_id)
    if key_id:
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "there is no key file that could hold this key id")
    terminal.note(
        "note: no pseudonym key given or set: a random one is used, and what is redacted now cannot be linked later"
    )
    return Pseudonyms(secrets.token_bytes(32))


def safe_name(relative: Path, file: Path, pseudonyms: Pseudonyms) -> Path:
    """The path below the input folder, with a pseudonym for each part of it that names the patient or the object.

    Raises as `shared.dicom.read_header`, and FILE where the file cannot be read.
    """
    from services.redaction.echoes import Echoes, names_instance
    from shared.dicom import read_header

    try:
        header = read_header(file.read_bytes())
    except OSError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, "the file cannot be read") from None
    naming = Echoes(_identifiers(header))
    uids = _uids(header)

    def safe(part: str) -> str:
        stem = next((part[: -len(end)] for end in SUFFIXES if part.lower().endswith(end)), part)
        suffix = part[len(stem) :]
        if stem in uids:
            return pseudonyms.uid(stem) + suffix
        if pseudonyms.is_ours(stem):
            return part
        words = re.sub(r"[\W_]+", " ", stem)
        if (
            words in naming
            or words.replace(" ", "") in naming
            or any(uid in part for uid in uids)
            or names_instance(stem)
        ):
            return pseudonyms.text("file name", stem) + suffix
        return part

    return Path(PurePosixPath(*(safe(part) for part in relative.parts)))


def _identifiers(header: Dataset) -> Iterator[tuple[str, str]]:
    from services.redaction.echoes import kinds

    for element in header.iterall():
        kind = kinds().get(int(element.tag)) or ("person" if element.VR == "PN" else None)
        if kind and element.VR != "SQ" and not isinstance(element.value, bytes):
            values = element.value if isinstance(element.value, list) else [element.value]
            yield from ((kind, str(value)) for value in values if value)


def _uids(header: Dataset) -> frozenset[str]:
    """The UIDs of instances, not those of the standard."""
    found = (str(element.value) for element in header if element.VR == "UI" and isinstance(element.value, str))
    return frozenset(uid for uid in found if uid and not uid.startswith("1.2.840.10008."))
