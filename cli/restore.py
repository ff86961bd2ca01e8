"""`stepwedge restore`: a backup put back, in a scratch place for a drill or where the cluster is; checked first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import configuration, copies, recovery, terminal
from cli.backup import DATABASES, FORMAT, KEY_ARCHIVE, MANIFEST, inventory_file
from cli.exit_codes import Exit
from cli.key_archive import KeyArchive
from cli.recovery import Finding, Outcome, Restored
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import Zone, open_store

if TYPE_CHECKING:
    from shared.settings import Settings

MOST_NAMED = 20
"""Missing things that are named in a table; with --json all are."""


def restore(
    backup: Path,
    config: Path | None,
    checkpoints: Sequence[Path],
    with_keys: Path | None,
    *,
    drill: bool,
    accept_missing: bool,
    json_lines: bool,
) -> int:
    """Check a backup in a scratch place and, unless it is a drill, put it where the settings say; the exit status.

    Raises
    ------
    StepwedgeError
        FILE where the folder is no backup, WRONG_STATE where the place is taken.
    """
    settings = configuration.load(config)
    manifest = _manifest(backup)
    for file in checkpoints:
        if not file.exists():
            raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: no such file or folder")
    opened = _opened(backup, with_keys)
    if not drill:
        for name in manifest["databases"]:
            copies.may_take(name, getattr(settings, name).database)
    with recovery.scratch() as folder:
        restored = Restored(backup, manifest, Path(folder), settings, checkpoints, opened)
        for name, one in manifest["databases"].items():
            source = backup / one["file"]
            if source.is_file():
                shutil.copyfile(source, restored.database(name))
        findings = []
        for finding in recovery.run(restored):
            findings.append(finding)
            _tell(finding, json_lines=json_lines)
    failed = [one for one in findings if one.outcome is Outcome.FAIL]
    allowed = accept_missing and all(one.mendable for one in failed)
    status = max((one.status for one in failed), default=Exit.OK)
    if drill or (failed and not allowed):
        _conclude(findings, status, drill=drill, json_lines=json_lines)
        return status
    _put_back(backup, manifest, settings, opened)
    terminal.note("restored. Start the cluster, ask `stepwedge doctor`, and send again what is named above as missing.")
    return Exit.OK


def _manifest(backup: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((backup / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise ValueError(manifest["format"])
        _refuse_other_files(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{backup}: is no whole backup of ours") from None
    return dict(manifest)


def _refuse_other_files(manifest: dict[str, Any]) -> None:
    """Raise ValueError where a manifest names files that no backup has: its names become paths that are written to."""
    named = {name: one["file"] for name, one in manifest["databases"].items()}
    if not {"ingest", "audit"} <= named.keys() <= set(DATABASES) or any(
        file != f"{name}.db" for name, file in named.items()
    ):
        raise ValueError("databases")
    if {zone: one["file"] for zone, one in manifest["objects"].items()} != {
        zone.value: inventory_file(zone) for zone in Zone
    }:
        raise ValueError("objects")
    if manifest["keys"].get("sealed", {"file": KEY_ARCHIVE})["file"] != KEY_ARCHIVE:
        raise ValueError("keys")


def _opened(backup: Path, with_keys: Path | None) -> KeyArchive | None:
    if with_keys is None:
        return None
    return KeyArchive.opened((backup / KEY_ARCHIVE).read_bytes(), with_keys.read_bytes().strip())


def _put_back(backup: Path, manifest: dict[str, Any], settings: Settings, opened: KeyArchive | None) -> None:
    """The objects first and ingest's rows last, so that no row names what is not there."""
    if opened is not None:
        terminal.note(f"keys written: {len(opened.put_back(settings))}")
    store = open_store(settings.objects, set(Zone))
    for zone in Zone:
        for file in sorted((backup / "objects" / zone.value).glob("??/*")):
            if not store.exists(zone, file.name):
                stored = store.put(zone, file.read_bytes())
                if stored.sha256 != file.name:
                    raise StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_CORRUPT, "an object of the backup is damaged")
    for name in reversed(manifest["databases"]):
        copies.put_back(name, backup / manifest["databases"][name]["file"], getattr(settings, name).database)


def _tell(finding: Finding, *, json_lines: bool) -> None:
    if json_lines:
        terminal.emit(
            {
                "check": finding.check,
                "outcome": finding.outcome.value,
                "words": finding.words,
                "missing": list(finding.missing),
            }
        )
        return
    from rich.text import Text

    style = {Outcome.OK: "green", Outcome.NOTE: "yellow", Outcome.FAIL: "bold red"}[finding.outcome]
    line = Text()
    line.append(f"{finding.outcome.value:<5}", style=style)
    line.append(f"{finding.check:<20} ")
    line.append(finding.words)
    terminal.out().print(line, soft_wrap=True)
    for one in finding.missing[:MOST_NAMED]:
        terminal.out().print(Text(f"{'':<25} {one}"), soft_wrap=True)
    if len(finding.missing) > MOST_NAMED:
        terminal.out().print(f"{'':<25} and {len(finding.missing) - MOST_NAMED} more (--json names all)")


def _conclude(findings: Sequence[Finding], status: int, *, drill: bool, json_lines: bool) -> None:
    counts = {outcome: sum(one.outcome is outcome for one in findings) for outcome in Outcome}
    if json_lines:
        terminal.emit({"status": status, **{outcome.value: count for outcome, count in counts.items()}})
        return
    verdict = "this backup can be relied on" if status == Exit.OK else "DO NOT RELY ON THIS BACKUP"
    if not drill:
        verdict = "nothing was restored"
    words = f"\n{len(findings)} checks: {counts[Outcome.FAIL]} failed, {counts[Outcome.NOTE]} to know; {verdict}"
    terminal.out().print(words, soft_wrap=True)
