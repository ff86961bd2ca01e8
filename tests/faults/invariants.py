"""What must hold of a farm whatever was done to it: asked of its databases, its log, its store and its PACS."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

from cli import recovery
from cli.backup import backup
from cli.recovery import Outcome, Restored
from shared.errors import ErrorCode, StepwedgeError
from tests.faults.farm import Farm, Modality, Violation, until

FINISH_SECONDS = 240.0


def finished(farm: Farm, studies: set[str], seconds: float = FINISH_SECONDS) -> None:
    """Return when each study has ended in a verdict or in the dead letter. Raises Violation."""
    waited = set(studies)

    def done() -> bool:
        nonlocal waited
        waited = farm.unfinished(waited)
        return not waited

    try:
        until(done, seconds, "every study finished")
    except Violation:
        rows = farm.query(
            "ingest",
            "SELECT id, state, attempts, last_error, waiting_for, lease_owner, lease_until, next_action_at, now()"
            " FROM studies WHERE study_instance_uid = ANY(:wanted)",
            wanted=list(waited),
        )
        known = f"{len(waited)} of {len(studies)} studies never ended, {len(rows)} of them known: {rows[:5]}"
        raise Violation(known) from None


def hold(farm: Farm, modalities: list[Modality], *, drill: bool = True) -> Counter[str]:
    """Hold everything that was acknowledged against what there is. Raises Violation; the counts where all held."""
    acknowledged = [one for modality in modalities for one in list(modality.acknowledged)]
    finished(farm, {study for study, _ in acknowledged})
    counts: Counter[str] = Counter(acknowledged=len(acknowledged))
    _rows(farm, acknowledged, counts)
    _records(farm, acknowledged, counts)
    _delivered(farm, counts)
    if drill:
        _drill(farm, counts)
    return counts


def _rows(farm: Farm, acknowledged: list[tuple[str, str]], counts: Counter[str]) -> None:
    """Each acknowledged object is a row with its record, each study has its decisions in a row from 1."""
    held = {
        (study, instance): record
        for study, instance, record in farm.query(
            "ingest",
            "SELECT s.study_instance_uid, i.sop_instance_uid, i.record_index FROM instances i"
            " JOIN studies s ON s.id = i.study_id",
        )
    }
    lost = [one for one in acknowledged if held.get(one) is None]
    if lost:
        raise Violation(f"{len(lost)} acknowledged objects have no row or no record")
    for state, revision, revisions, covered, instances, failures in farm.query(
        "ingest",
        "SELECT s.state, s.revision,"
        " (SELECT array_agg(d.revision ORDER BY d.revision) FROM decisions d WHERE d.study_id = s.id),"
        " (SELECT json_array_length(d.instances) FROM decisions d WHERE d.study_id = s.id"
        " ORDER BY revision DESC LIMIT 1),"
        " (SELECT count(*) FROM instances i WHERE i.study_id = s.id),"
        " (SELECT count(*) FROM failures f WHERE f.study_id = s.id AND f.record_index IS NOT NULL) FROM studies s"
        " WHERE s.study_instance_uid = ANY(:wanted)",
        wanted=[study for study, _ in acknowledged],
    ):
        counts[f"studies {state}"] += 1
        if state == "DEAD_LETTER":
            if not failures:
                raise Violation("a study is in the dead letter and no failure is recorded")
            continue
        if revisions != list(range(1, revision + 1)) or covered != instances:
            raise Violation(f"a study at revision {revision} has decisions {revisions} over {covered} of {instances}")
        counts["decisions"] += len(revisions)
    for step, error, number in farm.query(
        "ingest", "SELECT step, error, count(*) FROM failures WHERE record_index IS NOT NULL GROUP BY 1, 2"
    ):
        counts[f"failures {step} {ErrorCode.Name(error).removeprefix('ERROR_CODE_')}"] += number


def _records(farm: Farm, acknowledged: list[tuple[str, str]], counts: Counter[str]) -> None:
    """Each act is in the log once: one record a received object, one a decision, one a delivery."""
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for (leaf,) in farm.query("audit", 'SELECT leaf FROM entries ORDER BY "index"'):
        members = json.loads(bytes(leaf))
        kind = members["kind"].lower()
        kinds[kind] += 1
        if kind in ("received", "decided", "delivered", "redacted", "assessed"):
            seen[members["key"]] += 1
    again = {key: count for key, count in seen.items() if count > 1}
    if again:
        raise Violation(f"{len(again)} acts are recorded twice: {sorted(again)[:3]}")
    rows = farm.query(
        "ingest",
        "SELECT i.pseudonym, i.commitment, s.pseudonym, s.revision, s.state FROM instances i"
        " JOIN studies s ON s.id = i.study_id WHERE s.study_instance_uid = ANY(:wanted)",
        wanted=[study for study, _ in acknowledged],
    )
    for instance, commitment, study, revision, state in rows:
        needed = [f"received/{instance}/{commitment}"]
        if state == "DONE":
            needed += [f"decided/{study}/{number}" for number in range(1, revision + 1)]
        for key in needed:
            if seen[key] != 1:
                raise Violation(f"{key.split('/')[0]} is recorded {seen[key]} times")
    counts["records"] = sum(kinds.values())
    for kind in ("received", "redacted", "assessed", "decided", "delivered", "failed", "alert"):
        counts[f"records {kind}"] = kinds[kind]


def _delivered(farm: Farm, counts: Counter[str]) -> None:
    """Each object that ingest says it delivered is at the PACS; how many came there more than once."""
    rows = farm.query(
        "ingest",
        "SELECT i.sop_instance_uid FROM delivered_instances d JOIN instances i ON i.id = d.instance_id",
    )
    missing = [uid for (uid,) in rows if uid not in farm.place.receiver.instances]
    if missing:
        raise Violation(f"{len(missing)} objects are said to be delivered and never came")
    twice = farm.query(
        "ingest", "SELECT destination, instance_id FROM delivered_instances GROUP BY 1, 2 HAVING count(*) > 1"
    )
    if twice:
        raise Violation(f"{len(twice)} objects are delivered twice")
    undelivered = farm.query(
        "ingest",
        "SELECT s.id FROM studies s JOIN deliveries d ON d.study_id = s.id WHERE s.state = 'DONE'"
        " AND d.state NOT IN ('DELIVERED', 'SUPERSEDED')",
    )
    if undelivered:
        raise Violation(f"{len(undelivered)} studies are done and a delivery of theirs is not")
    counts["objects delivered"] = len(rows)


def _drill(farm: Farm, counts: Counter[str]) -> None:
    """A backup of the whole, and the drill of it: log, witnesses' marks, rows, decisions and every object."""
    folder = farm.folder / "backup"
    try:
        backup(folder, farm.file, with_objects=False, with_keys=None, json_lines=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        with recovery.scratch() as scratch:
            restored = Restored(folder, manifest, Path(scratch), farm.settings)
            for name, one in manifest["databases"].items():
                shutil.copyfile(folder / one["file"], restored.database(name))
            failed = [one for one in recovery.run(restored) if one.outcome is Outcome.FAIL]
    except StepwedgeError as error:
        raise Violation(f"no backup could be made: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if failed:
        raise Violation("; ".join(f"{one.check}: {one.words} {list(one.missing)[:3]}" for one in failed))
    counts["drills"] += 1
