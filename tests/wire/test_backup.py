"""A backup of a cluster at work, drilled, damaged in every way that matters, and put back on another machine."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from cli import configuration
from cli.restore import restore
from shared import keys
from tests.wire.cluster import RunningCluster, eventually, running_cluster
from tests.wire.command import Ran, stepwedge
from tests.wire.ingest_house import CANARY_WORDS, DX, Sender, dx
from tests.wire.witness_house import House

EXPLICIT = "1.2.840.10008.1.2.1"


class Made(NamedTuple):
    """Two backups of one cluster: after two studies, and after a third."""

    cluster: RunningCluster
    witness: House
    old: Path
    new: Path
    studies: list[str]
    said: Ran


def store(cluster: RunningCluster, count: int = 1) -> list[str]:
    """Send studies of one image and wait for their decisions."""
    sent = []
    for _ in range(count):
        ds = dx(seed=len(sent))
        with Sender((cluster.dimse.host, cluster.dimse.port), [(DX, EXPLICIT)]) as sender:
            assert sender.store(ds).Status == 0
        sent.append(str(ds.StudyInstanceUID))
    for uid in sent:
        cluster.decided(uid)
    return sent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("backup")
    keys.create(folder / "keys", development=True)
    witness = House(
        folder / "witness", "hospital.example/w", [(folder / "keys" / keys.VERIFICATION).read_text().strip()]
    )
    witness.start()
    (folder / "passphrase").write_text("correct horse battery\n")
    told = {"witnesses": [{"url": f"http://{witness.address}", "vkey": witness.vkey}], "quorum": 1}
    try:
        with running_cluster(
            folder, cluster={"data": str(folder / "cluster"), "keys": str(folder / "keys")}, audit=told
        ) as cluster:
            studies = store(cluster, 2)
            said = stepwedge("backup", folder / "old", "--config", cluster.file)
            assert said.status == 0, said.err
            studies += store(cluster)
            arguments = ("--objects", "--keys", folder / "passphrase", "--config", cluster.file)
            again = stepwedge("backup", folder / "new", *arguments)
            assert again.status == 0, again.err
            made = Made(cluster, witness, folder / "old", folder / "new", studies, said)
            eventually(lambda: mark(cluster) > json.loads((folder / "old/manifest.json").read_text())["log"]["size"])
            yield made
    finally:
        witness.stop()


def mark(cluster: RunningCluster) -> int:
    """The high-water mark of the log."""
    data = (cluster.data / "audit.high-water").read_bytes()
    return max(int(data[at : at + 256].split()[0]) for at in (0, 256) if data[at : at + 256].strip())


def drill(
    made: Made, backup: Path, *checkpoints: Path, passphrase: Path | None = None
) -> tuple[int, dict[str, list[dict[str, object]]]]:
    """Exit status and findings by check."""
    said = io.StringIO()
    options = {"drill": True, "accept_missing": False, "json_lines": True}
    with redirect_stdout(said):
        status = restore(backup, made.cluster.file, checkpoints, passphrase, **options)
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert lines[-1]["status"] == status
    found: dict[str, list[dict[str, object]]] = {}
    for line in lines[:-1]:
        found.setdefault(line["check"], []).append(line)
    return status, found


def failed(found: dict[str, list[dict[str, object]]]) -> set[str]:
    return {check for check, lines in found.items() if any(line["outcome"] == "fail" for line in lines)}


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """The newer backup, to do with as one likes."""
    shutil.copytree(made.new, tmp_path / "copy")
    return tmp_path / "copy"


def forge(backup: Path, name: str, *statements: str) -> None:
    """Alter a database of a backup, and its manifest with it: what somebody would do who means it."""
    with closing(sqlite3.connect(backup / f"{name}.db")) as opened:
        for statement in statements:
            opened.execute(statement)
        opened.commit()
    seal(backup)


def seal(backup: Path) -> None:
    from cli.backup import _described

    manifest = json.loads((backup / "manifest.json").read_text())
    for kind in ("databases", "objects"):
        for one in manifest[kind].values():
            one.update(_described(backup / one["file"]))
    (backup / "manifest.json").write_text(json.dumps(manifest))


def test_a_backup_tells_what_it_holds_names_the_keys_and_includes_none_that_was_not_asked_for(made: Made) -> None:
    assert "NOT included" in made.said.out
    assert "keep its newest state elsewhere" in made.said.out
    manifest = json.loads((made.old / "manifest.json").read_text())
    assert manifest["keys"]["included"] is False
    assert "keys/pseudonyms.key" in manifest["keys"]["files"]
    secret = (made.cluster.settings.cluster.keys / "pseudonyms.key").read_bytes().strip()
    master = made.cluster.settings.audit.master_key.read_bytes().strip()
    for backup in (made.old, made.new):
        for file in backup.rglob("*"):
            if file.is_file():
                assert file.stat().st_mode & 0o077 == 0, file.name
                assert secret not in file.read_bytes()
                assert master not in file.read_bytes()
    assert not (made.old / "keys.sealed").exists()


def test_the_drill_of_a_good_backup_checks_everything_and_ends_with_zero(made: Made) -> None:
    # Whatever was recorded since (the backup itself is not an act of the log) would make the backup an older one.
    status, found = drill(made, made.new, passphrase=made.new.parent / "passphrase")
    assert (status, failed(found)) == (0, set())
    assert found["decisions"][0]["words"] == "each of 3 decisions has its record, with its verdict"
    assert found["digests in the log"][0]["words"] == "the log is of these very 3 digests"
    assert "3 objects in the backup" in str(found["objects original"][0]["words"])
    assert found["high-water mark"][0]["outcome"] == "ok"
    assert found["witness hospital.example/w"][0]["outcome"] == "ok"
    shown = stepwedge("restore", made.new, "--drill", "--config", made.cluster.file)
    assert shown.status == 0
    assert "this backup can be relied on" in shown.out
    for word in CANARY_WORDS:
        assert word not in shown.out


def test_a_backup_older_than_the_high_water_mark_and_the_witness_is_told_not_silently_opened(made: Made) -> None:
    status, found = drill(made, made.old)
    assert status == 4
    assert failed(found) == {"high-water mark", "witness hospital.example/w"}
    assert "THE BACKUP IS OLDER" in str(found["high-water mark"][0]["words"])
    shown = stepwedge("restore", made.old, "--drill", "--config", made.cluster.file)
    assert "DO NOT RELY ON THIS BACKUP" in shown.out


def test_a_log_shorter_than_what_the_witness_remembers_is_told_without_asking_it(made: Made) -> None:
    status, found = drill(made, made.old, made.witness.folder / "state")
    assert status == 4
    assert "log against state" in failed(found)
    status, found = drill(made, made.new, made.witness.folder / "state")
    assert (status, found["log against state"][0]["outcome"]) == (0, "ok")


def test_an_altered_file_is_told(made: Made, copy: Path) -> None:
    with (copy / "ingest.db").open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    status, found = drill(made, copy)
    assert status == 1
    assert found["files"][0]["missing"] == ["ingest.db"]


@pytest.mark.parametrize("how", ["missing", "altered"])
def test_a_missing_or_altered_object_is_named(made: Made, copy: Path, how: str) -> None:
    victim = next((copy / "objects" / "original").glob("??/*"))
    if how == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    status, found = drill(made, copy)
    assert status == 1
    assert failed(found) == {"objects original"}
    [line] = found["objects original"]
    [named] = line["missing"]  # type: ignore[misc]
    assert str(named).startswith(f"{victim.name} is {'missing' if how == 'missing' else 'damaged'}, instance 2.25.")


def test_an_object_that_is_gone_from_the_store_itself_is_named(made: Made, tmp_path: Path) -> None:
    zone = Path(made.cluster.settings.objects.original)
    with closing(sqlite3.connect(made.old / "ingest.db")) as opened:
        digest = opened.execute("SELECT sha256 FROM instances").fetchone()[0]
    victim = zone / digest[:2] / digest
    victim.rename(tmp_path / "away")
    try:
        _, found = drill(made, made.old)
    finally:
        (tmp_path / "away").rename(victim)
    assert "objects original" in failed(found)
    assert f"{digest} is missing" in str(found["objects original"][0]["missing"])


def test_a_row_that_is_gone_from_ingest_is_named_by_the_log(made: Made, copy: Path) -> None:
    forge(
        copy,
        "ingest",
        "PRAGMA foreign_keys=OFF",
        "DELETE FROM instances WHERE id = 1",
        "DELETE FROM decisions WHERE id = 1",
    )
    status, found = drill(made, copy)
    assert status == 1
    assert failed(found) == {"the log's received", "the log's decided"}
    assert "received/2.25." in str(found["the log's received"][0]["missing"])


def test_a_decision_whose_record_says_something_else_is_named(made: Made, copy: Path) -> None:
    forge(copy, "ingest", "UPDATE decisions SET verdict = CASE verdict WHEN 1 THEN 2 ELSE 1 END WHERE id = 2")
    status, found = drill(made, copy)
    assert (status, failed(found)) == (1, {"decisions"})
    assert str(found["decisions"][0]["missing"]).startswith("['decision 1 of study 2.25.")


def test_another_digest_in_a_row_is_not_what_the_log_committed_to(made: Made, copy: Path) -> None:
    forge(copy, "ingest", f"UPDATE instances SET sha256 = '{'0' * 64}' WHERE id = 1")
    status, found = drill(made, copy)
    assert status == 1
    assert failed(found) == {"digests in the log", "objects original"}


def test_an_altered_record_does_not_verify(made: Made, copy: Path) -> None:
    forge(
        copy,
        "audit",
        """UPDATE entries SET leaf = replace(CAST(leaf AS TEXT), 'SUCCESS', 'SUCCESZ') WHERE "index" = 2""",
    )
    status, found = drill(made, copy)
    assert status == 3
    assert "log" in failed(found)


def test_a_log_with_its_end_cut_off_does_not_verify_even_with_its_own_manifest(made: Made, copy: Path) -> None:
    forge(copy, "audit", 'DELETE FROM entries WHERE "index" > 3')
    status, found = drill(made, copy)
    assert status >= 3
    assert "log" in failed(found)


def test_the_keys_open_with_the_passphrase_and_with_nothing_else(made: Made, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("another passphrase")
    ran = stepwedge("restore", made.new, "--drill", "--keys", tmp_path / "wrong", "--config", made.cluster.file)
    assert ran.failed_in_one_line("INVALID_REQUEST")
    (tmp_path / "short").write_text("short")
    ran = stepwedge("backup", tmp_path / "x", "--keys", tmp_path / "short", "--config", made.cluster.file)
    assert ran.failed_in_one_line("INVALID_REQUEST")
    assert not (tmp_path / "x").exists()


def test_nothing_is_restored_over_what_is_there(made: Made) -> None:
    ran = stepwedge("restore", made.new, "--config", made.cluster.file)
    assert ran.failed_in_one_line("WRONG_STATE")


def test_what_is_no_backup_is_told(made: Made, tmp_path: Path) -> None:
    assert stepwedge("restore", tmp_path, "--drill", "--config", made.cluster.file).failed_in_one_line("FILE")
    (tmp_path / "manifest.json").write_text('{"format": "another"}')
    assert stepwedge("restore", tmp_path, "--drill", "--config", made.cluster.file).failed_in_one_line("FILE")
    ran = stepwedge("backup", made.old, "--config", made.cluster.file)
    assert ran.failed_in_one_line("FILE")


@pytest.mark.timeout(180)
def test_a_cluster_goes_on_from_a_backup_on_another_machine(made: Made, tmp_path: Path) -> None:
    file = configuration.on_free_ports(tmp_path / "other", ingest={"quiet_seconds": 0.5})
    passphrase = made.new.parent / "passphrase"
    ran = stepwedge("restore", made.new, "--keys", passphrase, "--config", file)
    assert ran.status == 0, ran.out + ran.err
    assert "its newest state" in ran.out  # the master key is kept apart
    shutil.copyfile(made.cluster.settings.audit.master_key, tmp_path / "other" / "keys" / keys.MASTER)
    (tmp_path / "other" / "keys" / keys.MASTER).chmod(0o600)
    other = RunningCluster(file)
    try:
        other.children.start()
        other.wait_ready()
        for uid in made.studies:
            study = other.study(uid)
            assert study is not None
            assert [decision.revision for decision in study.decisions] == [1]
        before = len(other.entries())
        store(other)
        assert len(other.entries()) > before
        (tmp_path / "checkpoint").write_text(json.loads((made.new / "manifest.json").read_text())["log"]["checkpoint"])
        verified = stepwedge("verify", "--config", file, "--older", tmp_path / "checkpoint")
        assert verified.status == 0, verified.err
    finally:
        other.close()
