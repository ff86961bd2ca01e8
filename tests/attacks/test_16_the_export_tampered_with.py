"""Attack 16: an export is tampered with on its way: files dropped, added, exchanged; paths that lead out of it."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from services.audit import record
from tests.attacks.scene import ALTERED, MALFORMED, ONCE, PROVED, TRUNCATED, UNREADABLE, Scene, judge
from tests.unit.verifier import forging
from tests.unit.verifier.forging import Files


@pytest.fixture(scope="module")
def files(scene: Scene) -> Files:
    return forging.read(scene.export)


def _attachment(files: Files) -> str:
    return next(name for name in files if name.startswith("attachments/"))


@pytest.mark.parametrize("manifest", [False, True], ids=["the manifest as it was", "the manifest made to fit"])
def test_16_a_file_dropped_or_exchanged_is_noticed(scene: Scene, files: Files, manifest: bool) -> None:
    fit = forging.with_manifest if manifest else dict
    names = ["tile/entries/001", "tile/0/000", "tile/1/000.p/2", "checkpoint", "vkey", _attachment(files)]
    for name in names:
        dropped = fit({other: data for other, data in files.items() if other != name})
        told = scene.judge(forging.write(scene.folder / "dropped.zip", dropped))
        assert told.code in (ALTERED, TRUNCATED, MALFORMED), (name, told)
        swapped = fit({**files, name: files["tile/entries/000" if name != "tile/entries/000" else "vkey"]})
        told = scene.judge(forging.write(scene.folder / "swapped.zip", swapped))
        assert told.code in (ALTERED, MALFORMED), (name, told)


@ONCE
@pytest.mark.parametrize("name", ["tile/0/009", "tile/entries/000.p/7", "attachments/" + "0" * 64])
def test_16_a_file_that_the_log_does_not_have_is_altered(scene: Scene, files: Files, name: str) -> None:
    forged = forging.with_manifest({**files, name: b"more"})
    assert scene.judge(forging.write(scene.folder / "more.zip", forged)).code == ALTERED


PATHS = ["../outside", "tile/../../outside", "/etc/cron.d/x", "C:\\x", "tile/0/000/../001", "verify.py", "tile//0"]


@ONCE
@pytest.mark.parametrize("name", PATHS)
def test_16_a_path_that_does_not_belong_in_an_export_is_malformed_and_nothing_is_written(
    scene: Scene, files: Files, name: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    export = forging.write(tmp_path / "in" / "export.zip", files)
    with zipfile.ZipFile(export, "a") as archive:
        archive.writestr(name, b"planted")
    assert scene.judge(export).code == MALFORMED
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["export.zip", "in"]


@ONCE
def test_16_a_link_in_an_unpacked_export_is_malformed(scene: Scene, tmp_path: Path) -> None:
    with zipfile.ZipFile(scene.export) as archive:
        archive.extractall(tmp_path / "export")
    assert scene.judge(tmp_path / "export").code == PROVED
    victim = tmp_path / "export" / "tile" / "entries" / "000"
    shutil.move(victim, tmp_path / "elsewhere")
    victim.symlink_to(tmp_path / "elsewhere")
    assert scene.judge(tmp_path / "export").code == MALFORMED


@ONCE
def test_16_a_manifest_that_lies_about_the_size_is_altered(scene: Scene, files: Files) -> None:
    manifest = json.loads(files["manifest.json"])
    manifest["size"] += 1
    forged = {**files, "manifest.json": record.encode(manifest)}
    assert scene.judge(forging.write(scene.folder / "size.zip", forged)).code == ALTERED


@ONCE
def test_16_an_archive_cut_short_is_truncated_and_one_that_is_away_unreadable(scene: Scene) -> None:
    whole = scene.export.read_bytes()
    cut = scene.folder / "cut.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    assert scene.judge(cut).code == TRUNCATED
    assert scene.judge(scene.folder / "nothing.zip").code == UNREADABLE


@ONCE
def test_16_the_key_that_comes_with_an_export_is_not_taken_for_trust(scene: Scene) -> None:
    """Without a key of the auditor's own the verifier says that it took the export's."""
    told = judge(scene.export, key=None)
    assert (told.code, told.report["key_source"]) == (PROVED, "export")


@ONCE
def test_16_a_zip_that_would_unpack_to_far_more_than_it_is_ends_at_once(scene: Scene, files: Files) -> None:
    bomb = {**files, "tile/entries/000": bytes(200 << 20)}
    assert scene.judge(forging.write(scene.folder / "bomb.zip", bomb)).code == MALFORMED
