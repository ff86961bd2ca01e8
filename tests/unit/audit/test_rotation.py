"""The log's signing key changes hands: who signs what, what is destroyed, and what the verifier makes of it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit import record, signing, store
from services.audit.__main__ import write_export
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.proofs import Rotator, proof_of
from services.audit.store import Store
from shared import keys
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.transparency import merkle
from shared.transparency.note import Checkpoint, MalformedNoteError, Note, Signer, VerificationKey
from shared.transparency.rotation import Rotation, signers, terms
from shared.transparency.tlog_proof import TlogProof
from tests.unit.audit.making import ORIGIN, Producer, close, fill
from tests.unit.verifier import forging
from verifier import verify


class House:
    """A log with its folder of keys."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.keys = folder, url, folder / "keys"
        keys.create(self.keys, origin=ORIGIN, development=True)
        self.first = (self.keys / keys.VERIFICATION).read_text().strip()
        self.log = self.open()
        self.rotator = Rotator(self.log, self.keys)
        self.producer = Producer()
        self._made = 0

    def open(self) -> Log:
        the_store = Store.open(self.url)
        with the_store.reading() as connection:
            known = store.keys(connection)
        signer = signing.signer(self.keys, ORIGIN, known[-1].verification_key if known else None)
        log = Log(the_store, signer, HighWater(self.folder / "high-water"))
        log.open()
        return log

    def fill(self, count: int) -> None:
        fill(self.log, count, producer=self.producer, first=self._made)
        self._made += count

    def export(self, name: str) -> Path:
        write_export(self.url, self.folder / name)
        return self.folder / name


@pytest.fixture
def house(tmp_path: Path, database_url: str) -> Iterator[House]:
    made = House(tmp_path, database_url)
    yield made
    close(made.log)


def test_a_rotated_log_is_proved_from_the_first_trusted_key(house: House) -> None:
    house.fill(300)
    before = house.export("before.zip")
    first = house.rotator.rotate()
    house.fill(20)
    second = house.rotator.rotate()
    house.fill(5)
    after = house.export("after.zip")
    assert (first.from_size, second.from_size) == (301, 322)
    report = verify.verify(str(after), key=house.first, older=str(before))
    assert (report.code, report.older_size, report.kinds["KEY_ROTATED"]) == (verify.PROVED, 300, 2), report.problems
    assert [one["new_key"] for one in report.rotations] == [first.new_key, second.new_key]
    assert report.key == second.new_key
    for trusted in (first.new_key, second.new_key):
        assert verify.verify(str(after), key=trusted).code == verify.PROVED
    assert verify.verify(str(before), key=first.new_key).code == verify.BAD_SIGNATURE
    assert (house.keys / keys.VERIFICATION).read_text().split() == [house.first, first.new_key, second.new_key]


def test_the_checkpoint_of_the_change_is_signed_by_both_keys_and_the_next_by_the_new_one_alone(house: House) -> None:
    house.fill(3)
    done = house.rotator.rotate()
    old, new = VerificationKey.parse(done.old_key), VerificationKey.parse(done.new_key)
    both = TlogProof.parse(done.proof.encode())
    assert both.note.verify([old, new]) == [old, new]
    assert Rotation.of(both) == Rotation(old, new, done.from_size)
    house.fill(1)
    assert house.log.head is not None
    assert [one.key_id for one in Note.parse(house.log.head.note.encode()).signatures] == [new.id]
    with pytest.raises(StepwedgeError) as refused:
        house.log.sign(done.from_size - 1, bytes(32))
    assert refused.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST


def test_the_old_key_is_overwritten_and_gone(house: House) -> None:
    old = (house.keys / keys.SIGNING).read_bytes()
    held = (house.keys / keys.SIGNING).open("rb")  # the bytes where they lay, whatever name they bear now
    inode = os.fstat(held.fileno()).st_ino
    done = house.rotator.rotate()
    held.seek(0)
    assert held.read() == bytes(len(old))
    assert os.fstat(held.fileno()).st_ino == inode
    held.close()
    assert [one.name for one in house.keys.iterdir() if old.strip() in one.read_bytes()] == []
    assert str(Signer(ORIGIN, keys.signing_key(house.keys)).key) == done.new_key
    assert (house.keys / keys.SIGNING).stat().st_mode & 0o077 == 0
    assert not (house.keys / signing.NEXT).exists()


def test_a_log_goes_on_after_a_restart_with_its_new_key(house: House) -> None:
    house.fill(3)
    done = house.rotator.rotate()
    close(house.log)
    house.log = house.open()
    assert str(house.log.key) == done.new_key
    house.fill(2)
    assert verify.verify(str(house.export("log.zip")), key=house.first).code == verify.PROVED


def test_a_rotation_that_broke_off_after_its_commit_is_finished_at_the_next_start(house: House) -> None:
    following = signing.make_next(house.keys, ORIGIN)
    house.log.rotate(following).result(10)
    close(house.log)  # and before the files were put in place
    house.log = house.open()
    assert house.log.key == following.key
    assert not (house.keys / signing.NEXT).exists()
    house.fill(1)
    assert verify.verify(str(house.export("log.zip")), key=house.first).code == verify.PROVED


def test_a_rotation_that_broke_off_amid_its_files_is_finished_at_the_next_start(house: House) -> None:
    following = signing.make_next(house.keys, ORIGIN)
    house.log.rotate(following).result(10)
    close(house.log)
    (house.keys / keys.SIGNING).write_bytes(bytes(119))  # overwritten, not yet replaced
    house.log = house.open()
    assert house.log.key == following.key


def test_a_rotation_that_broke_off_before_its_commit_is_forgotten(house: House) -> None:
    stale = signing.make_next(house.keys, ORIGIN)
    close(house.log)
    house.log = house.open()
    assert str(house.log.key) == house.first
    house.rotator = Rotator(house.log, house.keys)
    done = house.rotator.rotate()
    assert done.new_key != str(stale.key)


def test_a_folder_of_keys_that_cannot_be_written_refuses_before_anything_is_done(house: House, tmp_path: Path) -> None:
    away = Rotator(house.log, tmp_path / "nowhere")
    with pytest.raises(StepwedgeError) as refused:
        away.rotate()
    assert refused.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    assert str(house.log.key) == house.first


def _sealed(house: House, files: forging.Files, note: str) -> Path:
    """The files under a checkpoint, with a manifest that fits."""
    manifest = json.loads(files["manifest.json"])
    manifest["size"] = int(note.split("\n", 2)[1])
    whole = {**files, "checkpoint": note.encode(), "manifest.json": record.encode(manifest)}
    return forging.write(house.folder / "forged.zip", forging.with_manifest(whole))


def _forged(house: House, files: forging.Files, signer: Signer, records: list[bytes] | None = None) -> Path:
    changed = forging.rebuilt(files, forging.leaves(files) if records is None else records)
    head = Checkpoint(ORIGIN, len(forging.leaves(changed)), _root(changed))
    return _sealed(house, changed, str(head.sign([signer])))


def _root(files: forging.Files) -> bytes:
    compact = merkle.CompactRange()
    for leaf in forging.leaves(files):
        compact.append(merkle.leaf_hash(leaf))
    return compact.root()


def test_an_old_key_that_signs_after_its_time_and_a_new_one_before_are_refused(house: House) -> None:
    old = Signer(ORIGIN, keys.signing_key(house.keys))  # stolen before it was destroyed
    house.fill(10)
    early = forging.read(house.export("early.zip"))
    done = house.rotator.rotate()
    new = Signer(ORIGIN, keys.signing_key(house.keys))
    house.fill(10)
    files = forging.read(house.export("log.zip"))
    report = verify.verify(str(_forged(house, files, old)), key=house.first)
    assert report.code == verify.BAD_SIGNATURE
    assert "retired" in report.problems[0]["message"]
    # The new key may not speak of trees from before its time.
    report = verify.verify(str(_forged(house, early, new)), key=done.new_key + "\n" + house.first)
    assert report.code == verify.PROVED  # trusted outright, and that export knows of no rotation
    older = house.folder / "older-checkpoint"
    older.write_bytes(forging.read(_forged(house, early, new))["checkpoint"])
    report = verify.verify(str(house.folder / "log.zip"), key=house.first, older=str(older))
    assert report.code == verify.BAD_SIGNATURE
    assert "before its time" in report.problems[0]["message"]


def test_a_thief_of_the_new_key_cannot_rewrite_what_was_before_it(house: House) -> None:
    house.fill(10)
    house.rotator.rotate()
    new = Signer(ORIGIN, keys.signing_key(house.keys))
    house.fill(10)
    files = forging.read(house.export("log.zip"))
    records = forging.leaves(files)
    records[3] = forging.changed(records[3], lambda record: record.update(outcome="MINOR_FAILURE"))
    report = verify.verify(str(_forged(house, files, new, records)), key=house.first)
    assert report.code == verify.FORKED
    records = [one for one in forging.leaves(files) if b"KEY_ROTATED" not in one]
    assert verify.verify(str(_forged(house, files, new, forging.renumbered(records)))).code == verify.ALTERED
    del files["rotation/11"]
    report = verify.verify(str(_forged(house, files, new, forging.renumbered(records))), key=house.first)
    assert report.code == verify.BAD_SIGNATURE


def test_without_the_checkpoint_of_both_keys_nothing_leads_to_the_new_one(house: House) -> None:
    house.fill(10)
    done = house.rotator.rotate()
    new = Signer(ORIGIN, keys.signing_key(house.keys))
    files = forging.read(house.export("log.zip"))
    path = f"rotation/{done.from_size}"
    alone = Checkpoint.parse(Note.parse(files[path]).text).sign([new])
    for change in (None, str(alone).encode(), files[path][:-3]):
        changed = {name: data for name, data in files.items() if name != path}
        if change is not None:
            changed[path] = change
        forged = forging.write(house.folder / "forged.zip", forging.with_manifest(changed))
        report = verify.verify(str(forged), key=house.first)
        assert report.code in (verify.BAD_SIGNATURE, verify.MALFORMED), report.problems


def test_a_rotation_to_a_key_of_the_attackers_own_does_not_convince(house: House) -> None:
    """With every file in hand but not the old key: a record that names another key, signed by that key alone."""
    house.fill(10)
    files = forging.read(house.export("log.zip"))
    stranger = Signer(ORIGIN, Ed25519PrivateKey.generate())
    rotated = Producer(Identity.AUDIT)
    made = rotated.record("key-rotated/x")
    made.key_rotated.old_key, made.key_rotated.new_key, made.key_rotated.from_size = house.first, str(stranger.key), 11
    leaf = record.leaf(
        rotated.prepared(made), index=10, entry_id="x", recorded_at=record.timestamp(2_000_000_000, 0), repeats=[]
    )
    forged = forging.rebuilt(files, [*forging.leaves(files), leaf])
    note = str(Checkpoint(ORIGIN, 11, _root(forged)).sign([stranger]))
    forged |= {"rotation/11": note.encode(), "vkey": f"{house.first}\n{stranger.key}\n".encode()}
    place = _sealed(house, forged, note)
    assert verify.verify(str(place), key=house.first).code == verify.BAD_SIGNATURE


def test_terms_bind_keys_to_sizes_and_refuse_what_contradicts(house: House) -> None:
    house.fill(3)
    done = house.rotator.rotate()
    proof = TlogProof.parse(done.proof.encode())
    rotation = Rotation.of(proof)
    known = terms([rotation.old], [rotation])
    assert [(term.key, term.from_size, term.until_size) for term in known] == [
        (rotation.old, 0, 4),
        (rotation.new, 4, None),
    ]
    assert signers(proof.note, known, 4) == [rotation.old, rotation.new]
    with pytest.raises(MalformedNoteError):
        terms([], [rotation])
    with pytest.raises(MalformedNoteError):
        terms([rotation.old], [rotation, rotation])
    other = proof_of(house.log.store, 0, 4)
    with pytest.raises(MalformedNoteError):
        Rotation.of(other)
    with pytest.raises(MalformedNoteError):
        Rotation.of(TlogProof(proof.index, proof.path, proof.note, None))


def test_a_proof_is_of_a_stored_checkpoint_only(house: House) -> None:
    house.fill(3)
    assert proof_of(house.log.store, 2).checkpoint.size == 3
    for index, size, code in (
        (3, 0, ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND),
        (0, 2**40, ErrorCode.ERROR_CODE_INVALID_REQUEST),
    ):
        with pytest.raises(StepwedgeError) as refused:
            proof_of(house.log.store, index, size)
        assert refused.value.code == code


def test_keys_are_made_around_a_signing_key_that_was_being_replaced(house: House) -> None:
    """`stepwedge up` makes what is absent before the log starts, which then finishes the change of its key."""
    Rotator(house.log, house.keys).rotate()
    new = (house.keys / keys.SIGNING).read_bytes()
    house.log.close()
    (house.keys / signing.NEXT).write_bytes(new)
    (house.keys / keys.SIGNING).write_bytes(bytes(len(new)))  # killed after the old key was overwritten
    keys.create(house.keys, origin=ORIGIN, development=True)
    house.log = house.open()
    assert (house.keys / keys.SIGNING).read_bytes() == new
    assert not (house.keys / signing.NEXT).exists()
