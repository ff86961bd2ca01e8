"""Whether the log can lead a pseudonym back to a person is a switch."""

from pathlib import Path

import pytest

from services.ingest.identification import Identifier
from shared import keys
from shared.identification import BlindIndex, Identities, Number
from shared.objects import Zone, open_store
from shared.settings import Ingest, Objects

WHO = {"patient_id": "MRN 0042", "name": "DOE^JANE", "accession_number": "A 77"}


@pytest.mark.parametrize("way_back", [False, True])
def test_without_the_switch_the_log_is_handed_no_identity_and_finds_the_record_all_the_same(
    tmp_path: Path, *, way_back: bool
) -> None:
    keys.create(tmp_path / "keys", origin="tests/log", development=True)
    identities, index = Identities.load(tmp_path / "keys"), BlindIndex.load(tmp_path / "keys")
    stored = Objects(original=str(tmp_path / "original"), deidentified=str(tmp_path / "deidentified"))
    identifier = Identifier(open_store(stored, {Zone.ORIGINAL}), identities, index, way_back=way_back)
    given = identifier.seal(WHO, "SW-SUBJECT", "received/1")
    assert identities.open(given.sealed, "SW-SUBJECT", "received/1") == (WHO if way_back else {})
    assert index.token(Number.ACCESSION, "A 77") in list(given.tokens)
    assert len(given.sealed) == len(identities.seal(WHO, "SW-SUBJECT", "received/1"))


def test_there_is_no_way_back_unless_it_is_switched_on() -> None:
    assert Ingest().seal_identities is False
