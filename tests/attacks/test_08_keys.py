"""Attack 8: a signing key is stolen, and signs on after another took its place; one witness's key bears two names."""

import shutil

import pytest

from shared import keys
from shared.identity import Identity
from shared.transparency.note import Note, Signer
from stepwedge.audit.v1 import audit_pb2
from tests.attacks import insider
from tests.attacks.keys_of_others import STRANGER, TWINS
from tests.attacks.scene import (
    BAD_SIGNATURE,
    FORKED,
    MALFORMED,
    MISSING_WITNESS,
    ORIGIN,
    PROVED,
    TRUNCATED,
    Place,
    Scene,
)
from tests.unit.audit.making import Producer
from tests.unit.verifier import forging


class Rotated:
    """A log whose key was stolen and then replaced; the thief has the old one."""

    def __init__(self, scene: Scene) -> None:
        self.place = scene.copy()
        self.thief = Signer(ORIGIN, keys.signing_key(self.place.folder / "keys"))
        self.first = scene.vkey
        with scene.town.serving(self.place) as service:
            request = audit_pb2.RotateKeyRequest()
            answer = service.stub(Identity.OPERATOR).RotateKey(request, timeout=30)
            self.second = answer.new_key
            service.fill(Producer(), 10, first=100_000)
            self.export = service.export(self.place.folder / "rotated.zip")
        self.records = insider.leaves_of(self.place)


@pytest.fixture(scope="module")
def rotated(scene: Scene) -> Rotated:
    return Rotated(scene)


def _copy(scene: Scene, rotated: Rotated, name: str) -> Place:
    folder = scene.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    return rotated.place.copy(folder)


def test_08_who_trusts_the_first_key_is_led_to_the_second(scene: Scene, rotated: Rotated) -> None:
    assert rotated.second != rotated.first
    for key in (rotated.first, rotated.second):
        told = scene.judge(rotated.export, key=key, older=scene.export)
        assert told.code == PROVED, told.words
    assert keys.signing_key(rotated.place.folder / "keys").public_key() != rotated.thief.key


def test_08_the_stolen_key_does_not_sign_after_it_was_replaced(scene: Scene, rotated: Rotated) -> None:
    """Its signature is right, and of a tree that it may not sign any more: validity is bound to the size."""
    place = _copy(scene, rotated, "old-key")
    last = max(index for index, leaf in enumerate(rotated.records) if b'"size_bytes":' in leaf)
    records = [*rotated.records[:last], insider.flipped(rotated.records[last]), *rotated.records[last + 1 :]]
    insider.put(place, records)
    insider.rebuild_tree(place, records)
    insider.sign_anew(place, records, rotated.thief)
    export = place.export()
    for key in (rotated.first, rotated.second):
        assert scene.judge(export, key=key).code == BAD_SIGNATURE


def test_08_the_stolen_key_can_sign_what_was_before_and_only_the_outside_tells(scene: Scene, rotated: Rotated) -> None:
    """A thief who cuts the log off before the change of the key: no later key, no witness."""
    place = _copy(scene, rotated, "before")
    size = len(insider.leaves_of(scene.place))
    records = rotated.records[: size - 20]
    insider.put(place, records)
    insider.rebuild_tree(place, records)
    insider.sign_anew(place, records, rotated.thief)
    place.sql("DELETE FROM keys WHERE verification_key = :key", key=rotated.second)
    export = place.export()
    scene.uncaught(export)
    assert scene.judge(export, key=rotated.second).code == BAD_SIGNATURE
    assert scene.judge(export, older=rotated.export).code in (TRUNCATED, BAD_SIGNATURE)
    assert scene.judge(export, witness=[scene.witness.vkey]).code == MISSING_WITNESS


def test_08_a_thief_s_own_change_of_the_key_is_a_fork_of_the_log(scene: Scene, rotated: Rotated) -> None:
    """With the stolen key the service itself changes to a key of the thief's: another history from there on."""
    other = Rotated(scene)
    scene.uncaught(other.export)  # who knows the first key only
    assert scene.judge(other.export, key=rotated.second).code in (BAD_SIGNATURE, FORKED)
    assert scene.judge(other.export, key=rotated.first, older=rotated.export).code in (FORKED, BAD_SIGNATURE)


def test_08_a_key_that_only_the_database_names_is_no_key_of_the_log(scene: Scene, copy: Place) -> None:
    copy.sql("UPDATE keys SET verification_key = :key", key=str(STRANGER.key))
    insider.sign_anew(copy, insider.leaves_of(copy), STRANGER)
    assert scene.judge(copy.export()).code == BAD_SIGNATURE


def test_08_one_witness_s_key_under_two_names_does_not_make_a_quorum(scene: Scene) -> None:
    files = forging.read(scene.export)
    note = Note.parse(files["checkpoint"])
    lines = "".join(one.cosign(note.text, 1_790_000_000).line for one in TWINS)
    forged = forging.with_manifest({**files, "checkpoint": files["checkpoint"] + lines.encode()})
    export = forging.write(scene.folder / "twins.zip", forged)
    names = [str(one.key) for one in TWINS]
    assert scene.judge(export, witness=names[:1]).code == PROVED
    told = scene.judge(export, witness=names, more=["--quorum", "2"])
    assert (told.code, "share one key" in told.words) == (MALFORMED, True)


def test_08_a_log_does_not_start_with_one_witness_s_key_under_two_names(scene: Scene, copy: Place) -> None:
    class Named:
        """What the settings say of a witness."""

        def __init__(self, vkey: str) -> None:
            self.url, self.vkey = "http://127.0.0.1:1", vkey

    both = [Named(str(one.key)) for one in TWINS]
    assert "two witnesses have one key" in scene.town.refuses_to_start(copy, both)  # type: ignore[arg-type]
