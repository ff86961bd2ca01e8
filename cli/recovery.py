"""What is asked of a restored cluster: that its files, its log, its rows and its objects say one and the same.

Each check gives findings; none stops the others. The log is the judge: what it says was acknowledged or decided must be
there, and what is there must be in it.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.exit_codes import Exit
from shared import keys
from shared.errors import StepwedgeError
from shared.objects import ObjectStore, Zone, open_store
from shared.paths import ROOT
from shared.pseudonyms import Pseudonyms, read_keys
from shared.transparency.add_checkpoint import PATH, SIZE_TYPE, encode
from stepwedge.common.v1 import common_pb2
from verifier import verify as verifier

if TYPE_CHECKING:
    from cli.key_archive import KeyArchive
    from shared.settings import Settings, WitnessOfLog

EXPORT_SECONDS = 3600
WITNESS_SECONDS = 10.0
_MOST_OF_AN_ANSWER = 4096
_SLOT = 256  # of the high-water file, which has two
_SHA256 = re.compile("[0-9a-f]{64}")
_PRUNED = "pruned"  # kind of a record that the log does not hold any more


class Outcome(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    """True, and to be known."""
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    outcome: Outcome
    words: str
    missing: Sequence[str] = ()
    """What is not there or wrong, each by a name that tells nothing of a person."""
    status: int = Exit.NEGATIVE
    """Exit status where it failed; of the log that of the verifier."""
    mendable: bool = False
    """Whether a restore may go on all the same when it is told to."""


@dataclass(frozen=True)
class Restored:
    """A backup, put back in a scratch place."""

    backup: Path
    manifest: Mapping[str, Any]
    scratch: Path
    settings: Settings
    checkpoints: Sequence[Path] = ()
    """Checkpoints, exports or states of witnesses that the log must continue."""
    opened: KeyArchive | None = None
    """The keys of the backup, where somebody gave the passphrase."""

    def database(self, name: str) -> Path:
        """The restored database of a service."""
        return self.scratch / f"{name}.db"

    @cached_property
    def records(self) -> sqlite3.Connection:
        """The restored log with a row for each record (position, kind, key, study, verdict), and ingest's beside it."""
        made = sqlite3.connect(self.scratch / "records.db")
        made.execute(
            "CREATE TABLE records (position INTEGER PRIMARY KEY, kind TEXT, key TEXT, study TEXT, verdict TEXT)"
        )
        with closing(sqlite3.connect(self.database("audit"))) as log:
            rows = log.execute('SELECT "index", leaf FROM entries ORDER BY "index"')
            made.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", (_indexed(*row) for row in rows))
        made.execute("CREATE INDEX by_key ON records (key)")
        made.commit()
        made.execute("ATTACH ? AS ingest", (str(self.database("ingest")),))
        return made

    def size(self) -> int:
        """How many records the restored log has."""
        return int(self.manifest["log"]["size"])

    @property
    def objects_copied(self) -> bool:
        """Whether the objects themselves are part of the backup."""
        return all(one["copied"] for one in self.manifest["objects"].values())


Check = Callable[[Restored], Iterator[Finding]]


def _indexed(position: int, leaf: bytes | None) -> tuple[int, str, str, str, str]:
    if leaf is None:
        return position, _PRUNED, "", "", ""
    members = json.loads(leaf)
    verdict = members.get("event", {}).get("verdict", "")
    return position, members["kind"].lower(), members["key"], members.get("study", ""), verdict


def run(restored: Restored) -> Iterator[Finding]:
    """Every check, one after the other; one that breaks is a finding too."""
    for name, check in CHECKS:
        try:
            yield from check(restored)
        except StepwedgeError as error:
            yield Finding(name, Outcome.FAIL, f"{error.name}: {error.message}")
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            yield Finding(name, Outcome.FAIL, f"cannot be checked ({type(error).__name__}): not what a backup holds")


def files(restored: Restored) -> Iterator[Finding]:
    """Every file of the backup is what the manifest says."""
    manifest = restored.manifest
    described = [*manifest["databases"].values(), *manifest["objects"].values()]
    if "sealed" in manifest["keys"]:
        described.append(manifest["keys"]["sealed"])
    wrong = [one["file"] for one in described if _digest(restored.backup / one["file"]) != one["sha256"]]
    if wrong:
        yield Finding("files", Outcome.FAIL, "files of the backup are missing or altered", wrong)
    else:
        yield Finding("files", Outcome.OK, f"{len(described)} files are as they were written")


def _digest(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def databases(restored: Restored) -> Iterator[Finding]:
    """Every database opens and is whole."""
    for name in restored.manifest["databases"]:
        with closing(sqlite3.connect(f"{restored.database(name).as_uri()}?mode=ro", uri=True)) as opened:
            said = opened.execute("PRAGMA integrity_check(1)").fetchone()[0]
            rows = opened.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        outcome = Outcome.OK if said == "ok" else Outcome.FAIL
        yield Finding(f"database {name}", outcome, f"whole, {rows} tables" if said == "ok" else "damaged")


def log(restored: Restored) -> Iterator[Finding]:
    """The log verifies, has the end that the manifest says, and continues every checkpoint that is known of it."""
    export = restored.scratch / "log.zip"
    command = [sys.executable, "-m", "services.audit", "export", "--out", str(export)]
    command += ["--database", f"sqlite:///{restored.database('audit')}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        yield Finding("log", Outcome.FAIL, f"it cannot be read: {said}", status=verifier.ALTERED)
        return
    key, whose = _key(restored)
    report = verifier.verify(str(export), key=key or None)
    expected = restored.manifest["log"]
    if report.code != verifier.PROVED:
        said = report.problems[0]["message"] if report.problems else ""
        yield Finding("log", Outcome.FAIL, f"it does not verify: {said}", status=report.code)
    elif report.size != expected["size"]:
        words = f"{report.size} records are in the copy, {expected['size']} were when it was made"
        yield Finding("log", Outcome.FAIL, words, status=verifier.ALTERED)
    else:
        words = f"{report.size} records prove, root {report.root}, {whose}"
        yield Finding("log", Outcome.OK, words)
    for file in restored.checkpoints:
        yield from _continues(restored, export, key, file)


def _key(restored: Restored) -> tuple[str, str]:
    """The key that the log is verified with, and where it is from: not the backup, if anything else has one."""
    for folder in (restored.settings.audit.keys, restored.settings.cluster.keys):
        if (folder / keys.VERIFICATION).is_file():
            return str(folder / keys.VERIFICATION), "by the key of the settings"
    return restored.manifest["log_key"], "by the key that the backup itself names"


def _continues(restored: Restored, export: Path, key: str, file: Path) -> Iterator[Finding]:
    """Hold the log against an earlier checkpoint, export, or what a witness remembers."""
    older, name = file, f"log against {file.name}"
    try:
        remembered = json.loads(file.read_bytes())["logs"].get(restored.manifest["log"]["origin"])
    except (ValueError, KeyError, TypeError, AttributeError):
        remembered = ""  # no state of a witness
    if remembered is None:
        yield Finding(name, Outcome.NOTE, "this witness has cosigned nothing of this log")
        return
    if remembered:
        older = restored.scratch / "remembered"
        older.write_text(remembered)
    report = verifier.verify(str(export), key=key or None, older=str(older))
    if report.code == verifier.PROVED:
        yield Finding(name, Outcome.OK, f"it continues the {report.older_size} records that were known")
    else:
        said = report.problems[0]["message"] if report.problems else ""
        yield Finding(name, Outcome.FAIL, said, status=report.code)


def marks(restored: Restored) -> Iterator[Finding]:
    """The log is at least as long as it is known to have been: by the high-water file, and by each witness."""
    file = restored.settings.audit.high_water
    mark = _high_water(file)
    if mark is None:
        words = "no high-water file lies where the settings say, so nothing here knows how long the log once was"
        yield Finding("high-water mark", Outcome.NOTE, words)
    else:
        yield _as_long_as(restored, "high-water mark", mark)
    if not restored.settings.audit.witnesses and not restored.checkpoints:
        words = "no witness is set and no --checkpoint is given: nobody outside can say that nothing is missing"
        yield Finding("witnesses", Outcome.NOTE, words)
    for witness in restored.settings.audit.witnesses:
        yield _asked(restored, witness)


def _as_long_as(restored: Restored, check: str, mark: int) -> Finding:
    size = restored.size()
    if mark > size:
        words = (
            f"THE BACKUP IS OLDER: the log once had {mark} records, this copy has {size}; {mark - size} would be lost"
        )
        return Finding(check, Outcome.FAIL, words, status=verifier.TRUNCATED)
    return Finding(check, Outcome.OK, f"the log had {mark} records there, and has {size} here")


def _high_water(file: Path) -> int | None:
    """The newest mark of the file that the log keeps outside its database; None where there is none."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    found = []
    for slot in (data[:_SLOT], data[_SLOT : 2 * _SLOT]):
        words = slot.decode("ascii", "replace").split()
        if len(words) == 3 and hashlib.sha256(f"{words[0]} {words[1]}".encode()).hexdigest() == words[2]:
            base64.b64decode(words[1], validate=True)
            found.append(int(words[0]))
    if not found and data.strip(b" \0"):
        raise ValueError("the high-water file is damaged")
    return max(found, default=None)


def _asked(restored: Restored, witness: WitnessOfLog) -> Finding:
    """Ask a witness how much of the log it has cosigned: a submission from size 0 is answered by the size it holds."""
    check = f"witness {witness.vkey.split('+', maxsplit=1)[0]}"
    body = encode(0, [], restored.manifest["log"]["checkpoint"])
    context = ssl.create_default_context(cafile=witness.ca or None) if witness.url.startswith("https:") else None
    request = urllib.request.Request(witness.url.rstrip("/") + PATH, data=body, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=WITNESS_SECONDS, context=context):  # noqa: S310 - of the settings
            return Finding(check, Outcome.OK, "it had cosigned nothing of this log before")
    except urllib.error.HTTPError as error:
        if error.code == http.client.CONFLICT and error.headers.get_content_type() == SIZE_TYPE:
            return _as_long_as(restored, check, int(error.read(_MOST_OF_AN_ANSWER)))
        return Finding(check, Outcome.FAIL, f"it answers with status {error.code}")
    except (OSError, http.client.HTTPException) as error:
        words = f"it does not answer ({type(error).__name__}), so it cannot say that nothing is missing"
        return Finding(check, Outcome.FAIL, words, status=verifier.MISSING_WITNESS, mendable=True)


_INSTANCE = "SELECT 'instance ' || i.pseudonym FROM ingest.instances i LEFT JOIN records r ON r.position = i."
_OF_STUDY = (
    " of study ' || s.pseudonym FROM ingest.{0} x JOIN ingest.studies s ON s.id = x.study_id LEFT JOIN records r"
    " ON r.position = x.record_index AND r.study IN (s.pseudonym, '')"
    " WHERE x.record_index IS NOT NULL AND r.position IS NULL"
)

ROWS: tuple[str, ...] = (
    f"{_INSTANCE}record_index AND (r.kind = '{_PRUNED}' OR r.key = 'received/' || i.pseudonym || '/' || i.commitment)"
    " WHERE i.record_index IS NOT NULL AND r.position IS NULL",
    f"{_INSTANCE}redacted_index AND r.kind IN ('redacted', '{_PRUNED}')"
    " WHERE i.redacted_index IS NOT NULL AND r.position IS NULL",
    f"{_INSTANCE}assessed_index AND r.kind IN ('assessed', '{_PRUNED}')"
    " WHERE i.assessed_index IS NOT NULL AND r.position IS NULL",
    *(
        f"SELECT '{one}{_OF_STUDY.format(table)}"
        for one, table in (("delivery", "deliveries"), ("failure", "failures"), ("review", "reviews"))
    ),
)
"""Each gives the rows of ingest that name a record which the log does not have, or not of that kind or study."""

DECIDED = (
    "SELECT s.pseudonym, d.revision, d.verdict, r.verdict, r.kind FROM ingest.decisions d JOIN ingest.studies s"
    " ON s.id = d.study_id LEFT JOIN records r ON r.position = d.record_index"
    " AND (r.kind = 'pruned' OR (r.kind = 'decided' AND r.study = s.pseudonym)) WHERE d.record_index IS NOT NULL"
)
RECEIVED_ONLY_IN_THE_LOG = (
    "SELECT r.position, r.key FROM records r WHERE r.kind = 'received' AND NOT EXISTS (SELECT 1 FROM ingest.instances i"
    " WHERE r.key = 'received/' || i.pseudonym || '/' || i.commitment) ORDER BY r.position"
)
DECIDED_ONLY_IN_THE_LOG = (
    "SELECT r.position, r.key FROM records r WHERE r.kind = 'decided' AND NOT EXISTS (SELECT 1 FROM ingest.decisions d"
    " JOIN ingest.studies s ON s.id = d.study_id WHERE r.key = 'decided/' || s.pseudonym || '/' || d.revision)"
    " ORDER BY r.position"
)


def rows(restored: Restored) -> Iterator[Finding]:
    """What ingest's database says was recorded is in the log."""
    lacking = [str(found[0]) for query in ROWS for found in restored.records.execute(query)]
    if lacking:
        yield Finding("rows in the log", Outcome.FAIL, f"{len(lacking)} rows name a record that the log lacks", lacking)
    else:
        count = restored.records.execute("SELECT count(*) FROM ingest.instances").fetchone()[0]
        yield Finding(
            "rows in the log", Outcome.OK, f"every record that ingest names is there; {count} objects received"
        )


def decisions(restored: Restored) -> Iterator[Finding]:
    """Every decision has its record, and it says the same verdict."""
    lacking, count = [], 0
    for study, revision, verdict, recorded, kind in restored.records.execute(DECIDED):
        count += 1
        if kind != _PRUNED and recorded != common_pb2.Verdict.Name(verdict).removeprefix("VERDICT_"):
            lacking.append(f"decision {revision} of study {study}")
    if lacking:
        words = f"{len(lacking)} decisions have no record in the log, or another verdict there"
        yield Finding("decisions", Outcome.FAIL, words, lacking)
    else:
        yield Finding("decisions", Outcome.OK, f"each of {count} decisions has its record, with its verdict")


def acknowledged(restored: Restored) -> Iterator[Finding]:
    """What the log says was received or decided is in ingest's database."""
    begun = int(restored.manifest["log"]["size_at_begin"])
    for what, query in (("received", RECEIVED_ONLY_IN_THE_LOG), ("decided", DECIDED_ONLY_IN_THE_LOG)):
        found = restored.records.execute(query).fetchall()
        lost = [f"record {position}, {key}" for position, key in found if position < begun]
        later = [f"record {position}, {key}" for position, key in found if position >= begun]
        if lost:
            words = f"{len(lost)} objects or decisions that the log holds as {what} are not in ingest's database"
            yield Finding(f"the log's {what}", Outcome.FAIL, words, lost)
        elif later:
            words = (
                f"{len(later)} were {what} while the backup was made and are in its log only: they must be sent again"
            )
            yield Finding(f"the log's {what}", Outcome.NOTE, words, later)
        else:
            yield Finding(f"the log's {what}", Outcome.OK, "all of them are in ingest's database")


def commitments(restored: Restored) -> Iterator[Finding]:
    """The digests of the objects are those that the log holds commitments to."""
    made = _pseudonyms(restored)
    if not made:
        words = "the pseudonym key is not here: that the log is of these very digests is not checked"
        yield Finding("digests in the log", Outcome.NOTE, words)
        return
    wrong, count = [], 0
    for pseudonym, sha256, commitment in restored.records.execute(
        "SELECT pseudonym, sha256, commitment FROM ingest.instances"
    ):
        count += 1
        if all(one.commitment(sha256) != commitment for one in made):
            wrong.append(f"instance {pseudonym}")
    if wrong:
        yield Finding("digests in the log", Outcome.FAIL, "digests that are not those of the log", wrong)
    else:
        yield Finding("digests in the log", Outcome.OK, f"the log is of these very {count} digests")


def _pseudonyms(restored: Restored) -> list[Pseudonyms]:
    """Those under each key of the key file, of the settings or of the backup."""
    file = restored.settings.cluster.keys / keys.PSEUDONYMS
    if not file.is_file() and restored.opened is not None:
        data = restored.opened.files.get(f"keys/{keys.PSEUDONYMS}")
        if data is not None:
            file = restored.scratch / keys.PSEUDONYMS
            file.touch(mode=0o600)
            file.write_bytes(data)
    return [Pseudonyms(key) for key in read_keys(file)] if file.is_file() else []


def objects(restored: Restored) -> Iterator[Finding]:
    """Every object that a row names is listed, and every one that is listed is there, byte for byte."""
    get = _reader(restored)
    for zone in Zone:
        listed = set(_listed(restored, zone))
        column = {Zone.ORIGINAL: "sha256", Zone.DEIDENTIFIED: "deidentified_sha256"}[zone]
        named = {
            sha256: pseudonym
            for pseudonym, sha256 in restored.records.execute(
                f"SELECT pseudonym, {column} FROM ingest.instances WHERE {column} != ''"  # noqa: S608 - of the two above
            )
        }
        bad = [f"{sha256} is not listed" for sha256 in sorted(named.keys() - listed)]
        for sha256 in sorted(listed):
            problem = get(zone, sha256)
            if problem:
                bad.append(f"{sha256} {problem}")
        bad = [f"{one}, instance {named[one[:64]]}" if one[:64] in named else f"{one}, no row names it" for one in bad]
        if bad:
            words = f"{len(bad)} of {len(listed | named.keys())} objects are missing or damaged"
            yield Finding(f"objects {zone.value}", Outcome.FAIL, words, bad, mendable=True)
            continue
        place = "in the backup" if restored.objects_copied else "in the store of the settings"
        yield Finding(f"objects {zone.value}", Outcome.OK, f"{len(listed)} objects {place}, each read and hashed")
        unknown = sorted(listed - named.keys()) if zone is Zone.ORIGINAL else []
        if unknown:
            words = f"{len(unknown)} objects are of no row: not acknowledged, or while the backup was made"
            yield Finding(f"objects {zone.value}", Outcome.NOTE, words, unknown)


def _listed(restored: Restored, zone: Zone) -> Iterator[str]:
    with (restored.backup / restored.manifest["objects"][zone.value]["file"]).open(encoding="ascii") as lines:
        for line in lines:
            sha256, _, size = line.rstrip("\n").partition(" ")
            if not (_SHA256.fullmatch(sha256) and size.isdigit()):
                raise ValueError("a line of the list names no object")  # a name becomes a path
            yield sha256


def _reader(restored: Restored) -> Callable[[Zone, str], str]:
    """What is wrong with an object; "" for nothing."""
    if restored.objects_copied:

        def in_the_backup(zone: Zone, sha256: str) -> str:
            file = restored.backup / "objects" / zone.value / sha256[:2] / sha256
            if not file.is_file():
                return "is missing"
            return "" if _digest(file) == sha256 else "is damaged"

        return in_the_backup
    store: ObjectStore = open_store(restored.settings.objects, set(Zone))

    def in_the_store(zone: Zone, sha256: str) -> str:
        try:
            store.get(zone, sha256)
        except StepwedgeError as error:
            return {"OBJECT_NOT_FOUND": "is missing", "OBJECT_CORRUPT": "is damaged"}.get(error.name, error.name)
        return ""

    return in_the_store


def secrets(restored: Restored) -> Iterator[Finding]:
    """The keys that the cluster ran with are at hand, here or in the backup."""
    from cli.key_archive import KeyArchive

    wanted: Mapping[str, str] = restored.manifest["keys"]["files"]
    here = KeyArchive.of(restored.settings).named()
    there = {} if restored.opened is None else restored.opened.named()
    lacking = sorted(place for place, name in wanted.items() if name not in (here.get(place), there.get(place)))
    if not lacking:
        source = "in the backup" if here.keys().isdisjoint(wanted) else "where the settings say"
        yield Finding("keys", Outcome.OK, f"{len(wanted)} keys and certificates are {source}")
    elif restored.manifest["keys"]["included"] and restored.opened is None:
        words = "sealed in the backup, not opened: give --keys with the file of the passphrase"
        yield Finding("keys", Outcome.NOTE, words, lacking)
    else:
        words = (
            "keys or certificates are neither in the backup nor here as they were: bring them from where they are kept"
        )
        yield Finding("keys", Outcome.NOTE, words, lacking)
    if not restored.settings.audit.master_key.is_file():
        words = "it is kept apart from every backup: bring its newest state, without it the log does not start"
        yield Finding("master key", Outcome.NOTE, words, [restored.settings.audit.master_key.name])


CHECKS: tuple[tuple[str, Check], ...] = (
    ("files", files),
    ("databases", databases),
    ("log", log),
    ("marks", marks),
    ("rows in the log", rows),
    ("decisions", decisions),
    ("the log's received", acknowledged),
    ("digests in the log", commitments),
    ("objects", objects),
    ("keys", secrets),
)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A place that is gone when it is left."""
    return tempfile.TemporaryDirectory(prefix="stepwedge-restore-")
