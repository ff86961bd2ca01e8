"""What a backup's manifest says becomes names of files; one that names others is no backup."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli import configuration, recovery
from cli.backup import FORMAT, MANIFEST
from cli.restore import restore
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import Zone


def manifest() -> dict[str, Any]:
    """As `backup` writes it, as far as it names files."""
    return {
        "format": FORMAT,
        "databases": {name: {"file": f"{name}.db", "sha256": ""} for name in ("ingest", "audit")},
        "objects": {zone.value: {"file": f"objects.{zone.value}.txt", "copied": True} for zone in Zone},
        "keys": {"included": False, "files": {}},
        "log": {"origin": "", "size": 0, "size_at_begin": 0},
        "log_key": "",
    }


def restored(backup: Path, config: Path) -> None:
    restore(backup, config, (), None, drill=True, accept_missing=False, json_lines=True)


def test_a_manifest_that_names_files_elsewhere_is_refused_and_nothing_is_written(tmp_path: Path):
    config = configuration.on_free_ports(tmp_path / "cluster")
    backup, outside = tmp_path / "backup", tmp_path / "victim.db"
    backup.mkdir()
    (backup / "ingest.db").write_bytes(b"what the attacker brings")
    outside.write_bytes(b"what lay there before")
    for change in (
        {"databases": {**manifest()["databases"], str(outside.with_suffix("")): {"file": "ingest.db"}}},
        {"databases": {**manifest()["databases"], "ingest": {"file": "../victim.db"}}},
        {"databases": {}},
        {"objects": {zone.value: {"file": "../victim.db"} for zone in Zone}},
        {"keys": {"sealed": {"file": "../victim.db"}, "files": {}}},
        {"databases": []},
    ):
        (backup / MANIFEST).write_text(json.dumps({**manifest(), **change}))
        with pytest.raises(StepwedgeError) as caught:
            restored(backup, config)
        assert caught.value.code == ErrorCode.ERROR_CODE_FILE, change
        assert outside.read_bytes() == b"what lay there before"


@pytest.mark.parametrize("line", ["../../../etc/passwd 3", "", "ab 1", "A" * 64 + " 1"])
def test_a_list_of_objects_that_names_none_is_a_finding(tmp_path: Path, line: str):
    (tmp_path / f"objects.{Zone.ORIGINAL.value}.txt").write_text(line + "\n")
    of = recovery.Restored(tmp_path, manifest(), tmp_path, None)  # type: ignore[arg-type]  # no settings are asked
    with pytest.raises(ValueError, match="names no object"):
        list(recovery._listed(of, Zone.ORIGINAL))
