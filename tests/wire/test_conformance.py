"""What the conformance statement says is what an association really negotiates, and what is really answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.association import Association

from services.ingest import conformance
from services.ingest.conformance_text import Heading, Table
from shared.dicom import STORAGE_SOP_CLASSES
from tests.wire.command import stepwedge
from tests.wire.ingest_house import DX, House, Sender, data_set, dx, house
from tests.wire.ports import port

EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
JPEG_XL = "1.2.840.10008.1.2.4.110"
NOT_SERVED = {
    "1.2.840.10008.5.1.4.1.2.2.1": "Study Root FIND",
    "1.2.840.10008.5.1.4.1.2.2.2": "Study Root MOVE",
    "1.2.840.10008.3.1.2.3.3": "Modality Performed Procedure Step",
    "1.2.840.10008.5.1.4.31": "Modality Worklist FIND",
    "1.2.840.10008.5.1.4.34.4.1": "Unified Procedure Step Push, of the trial",
    "1.2.840.10008.5.1.1.9": "Basic Grayscale Print Management",
}
TOML = """
max_pdu_bytes = 32768
max_associations = 3
check_called_ae_title = true
other_ae_titles = ["ALSO_US", "ANY-SCP"]
calling_ae_titles = ["MODALITY", "PACS"]
[[ingest.destinations]]
name = "archive"
ae_title = "ARCHIVE"
host = "192.0.2.9"
port = 104
"""


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all tests of this file."""
    with house(tmp_path_factory.mktemp("conformance"), port, TOML) as made:
        yield made


@pytest.fixture(scope="module")
def stated(at_home: House) -> dict[str, Table]:
    """The tables of the statement by the number of their section, the first of each."""
    found: dict[str, Table] = {}
    number = ""
    for block in conformance.statement(at_home.settings):
        if isinstance(block, Heading):
            number = block.number
        elif isinstance(block, Table):
            found.setdefault(number, block)
    return found


def associate(
    at_home: House, contexts: Sequence[tuple[str, Sequence[str]]], *, called: str = "STEPWEDGE", calling: str = "PACS"
) -> Association:
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.requested_contexts = [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in contexts]
    return ae.associate(*at_home.dimse, ae_title=called)


def test_every_sop_class_that_is_stated_is_accepted_in_the_syntax_that_is_stated_and_no_other_class_is(
    at_home: House, stated: dict[str, Table]
):
    rows = [row for row in stated["3.2.2"].rows if row[1] != "any"]
    left_out = STORAGE_SOP_CLASSES - {row[1] for row in rows}
    assert "1.2.840.10008.5.1.4.38.1" in left_out, "hanging protocols belong to no study"
    assert len(left_out) < 12
    contexts = [
        (row[1], [JPEG_XL, IMPLICIT] if row[2] == conformance.ANY_SYNTAX else [EXPLICIT, IMPLICIT]) for row in rows
    ]
    contexts += [("1.2.3.4.5.6.7.8", ["1.2.3.4.5"]), *((uid, [IMPLICIT]) for uid in [*NOT_SERVED, *left_out])]
    accepted: dict[str, str] = {}
    for start in range(0, len(contexts), 128):
        association = associate(at_home, contexts[start : start + 128])
        assert association.is_established
        accepted |= {str(one.abstract_syntax): str(one.transfer_syntax[0]) for one in association.accepted_contexts}
        association.release()
    assert accepted.pop("1.2.3.4.5.6.7.8") == "1.2.3.4.5", "a private class in a private transfer syntax"
    assert not set(accepted) & set(NOT_SERVED)
    assert set(accepted) == {row[1] for row in rows}
    for row in rows:
        if row[2] == conformance.ANY_SYNTAX:
            assert accepted[row[1]] == JPEG_XL, row[0]
        else:
            assert UID(accepted[row[1]]).name in row[2]


def test_the_policies_that_are_stated_are_those_of_an_association(at_home: House, stated: dict[str, Table]):
    policies = {row[0]: row[1] for row in stated["3.2.1"].rows}
    association = associate(at_home, [(DX, [EXPLICIT])])
    acceptor = association.acceptor
    assert policies["Implementation Class UID"] == str(acceptor.implementation_class_uid)
    assert policies["Implementation Version Name"] == acceptor.implementation_version_name
    assert policies["Maximum PDU length received"] == f"{acceptor.maximum_length} bytes"
    others = [associate(at_home, [(DX, [EXPLICIT])]) for _ in range(3)]
    assert [one.is_established for one in others] == [True, True, False]
    assert policies["Associations open at once"] == "3"
    rejected = others[2].acceptor.primitive
    assert rejected is not None
    (limit,) = [row for row in stated["3.2.3"].rows if "limit" in row[2]]
    assert limit[2].startswith(f"{rejected.diagnostic}:")
    assert (limit[0], rejected.result) == ("transient", 2)
    for one in (association, *others[:2]):
        one.release()


@pytest.mark.parametrize(("called", "calling", "which"), [("NOT_US", "PACS", "called"), ("ALSO_US", "X", "calling")])
def test_who_is_rejected_and_for_which_reason_is_stated(
    at_home: House, stated: dict[str, Table], called: str, calling: str, which: str
):
    association = associate(at_home, [(DX, [EXPLICIT])], called=called, calling=calling)
    assert association.is_rejected
    rejected = association.acceptor.primitive
    assert rejected is not None
    (row,) = [row for row in stated["3.2.3"].rows if f"{which} AE title not" in row[2]]
    assert row[2].startswith(f"{rejected.diagnostic}:")
    assert (row[0], rejected.result) == ("permanent", 1)


def bad_objects() -> list[tuple[Dataset, bytes, str]]:
    """An object, the bytes that are sent for it, and the code that is behind the refusal."""
    one, two, three, four = dx(), dx(), dx(), dx()
    four.StudyInstanceUID = ""
    return [
        (one, data_set(one)[:-100], "MALFORMED_DICOM"),
        (two, data_set(dx()), "SOP_CLASS_MISMATCH"),
        (three, b"GIF89a" * 50, "NOT_DICOM"),
        (four, data_set(four), "INVALID_UID"),
    ]


def test_the_status_of_each_refusal_is_stated_with_the_code_that_it_bears(at_home: House, stated: dict[str, Table]):
    by_code = {row[2].partition(":")[0]: row[0] for row in stated["3.2.4.2"].rows}
    with Sender(at_home.dimse, [(DX, EXPLICIT)], "MODALITY") as sender:
        for ds, content, code in bad_objects():
            status = sender.store_bytes(content, DX, str(ds.SOPInstanceUID))
            assert f"0x{status.Status:04X}" == by_code[str(status.ErrorComment)]
            assert status.ErrorComment in (code, "MALFORMED_DICOM")
        good = dx()
        assert f"0x{sender.store(good).Status:04X}" == stated["3.2.4.2"].rows[0][0]


def test_the_command_writes_the_statement_of_the_live_settings_in_both_forms(at_home: House, tmp_path: Path):
    page = tmp_path / "statement.html"
    assert stepwedge("conformance", "--config", at_home.config, "-o", page).status == 0
    html = page.read_text()
    for needle in ("<!DOCTYPE html>", "ALSO_US", "192.0.2.9:104", at_home.settings.ingest.dimse, "0xA700"):
        assert needle in html
    assert "<script" not in html
    text = stepwedge("conformance", "--config", at_home.config)
    assert text.status == 0
    assert text.out.startswith("# DICOM Conformance Statement")
    assert "| ARCHIVE |" in text.out
    assert stepwedge("conformance", "--form", "pdf").failed_in_one_line("INVALID_REQUEST")


def test_every_dicomweb_resource_that_answers_is_stated():
    stated = {(method, resource) for method, resource, _ in conformance.web_transactions()}
    assert ("POST", "/studies") in stated
    assert ("GET", "/studies") in stated
    assert ("GET", "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}") in stated
    assert len(stated) == len(conformance.web_transactions())
