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


def redact(source: Path, target: Path, key: Path | None, config: Path | None, *, json: bool) -> Exit:
    """Redact a file to a file, or a folder to a folder; NEGATIVE where one was refused."""
    from services.redaction.profile import Profile

    if not source.exists():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{source}: no such file or folder")
    found = _of_folder(source, target) if source.is_dir() else [source]
    into = target if source.is_dir() or target.is_dir() else None  # else the user named the file
    root = source if source.is_dir() else source.parent
    pseudonyms = _pseudonyms(key, config)
    profile = Profile.basic()
    refused = 0
    with terminal.progress("redacting", len(found)) as advance:
        for path in found:
            receipt = _one(path, root, into, target, pseudonyms, profile)
            refused += "error" in receipt
            _tell(receipt, json=json, alone=len(found) == 1)
            advance(1)
    if not json and len(found) > 1:
        terminal.out().print(f"{len(found) - refused} of {len(found)} redacted into {target}", soft_wrap=True)
    return Exit.NEGATIVE if refused else Exit.OK


def _of_folder(source: Path, target: Path) -> list[Path]:
    """Every file below `source`, if what becomes of them may lie in `target`."""
    if target.exists() and not target.is_dir():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{target}: a folder is redacted to a folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{target}: may not lie inside {source}")
    return files.named([source])


def _one(
    path: Path, root: Path, folder: Path | None, place: Path, pseudonyms: Pseudonyms, profile: Profile
) -> dict[str, Any]:
    """Redact one file to `place`, or into `folder` by a name that names nobody; its receipt, or why there is none."""
    from services.redaction.engine import RefusedError
    from services.redaction.files import redact_file

    try:
        if folder is not None:
            place = folder / safe_name(path.relative_to(root), path, pseudonyms)
        receipt = redact_file(path, place, pseudonyms, profile)
    except StepwedgeError as error:
        done = error.receipt.as_json() if isinstance(error, RefusedError) else {}
        return {"file": str(path), "error": error.name, "message": error.message, **done}
    return {"file": str(path), **receipt, "output": str(place)}


def _tell(receipt: dict[str, Any], *, json: bool, alone: bool) -> None:
    if json:
        terminal.emit(receipt)
    elif "error" in receipt:
        terminal.error(receipt["error"], f"{receipt['file']}: {receipt['message']}")
    elif alone:
        touched = sum(receipt["actions"].values())
        out = terminal.out()
        out.print(
            f"{terminal.printable(receipt['output'])}: {touched} attributes changed", markup=False, soft_wrap=True
        )
        if receipt["burned_in_text_possible"]:
            words = f"the pixels may still name the patient: {receipt['burned_in_text_detail']}"
            out.print(words, style="yellow", markup=False, soft_wrap=True)


def _pseudonyms(key: Path | None, config: Path | None) -> Pseudonyms:
    """Of the key given, else of the key of the settings, else of one that nobody will know."""
    from shared import keys
    from shared.pseudonyms import Pseudonyms

    if key is not None:
        if not key.is_file():
            raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{key}: no such file")
        return Pseudonyms.load(key)
    of_settings = configuration.load(config).cluster.keys / keys.PSEUDONYMS
    if of_settings.is_file():
        return Pseudonyms.load(of_settings)
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
