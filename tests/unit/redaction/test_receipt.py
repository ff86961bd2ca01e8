"""The receipt: what it says of boxes, and that it is plain JSON."""

import io
import json

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from services.redaction.engine import redact
from services.redaction.profile import Profile
from services.redaction.receipt import Box, Counts, Receipt, areas
from shared import phantom
from shared.pseudonyms import Pseudonyms


def test_equal_boxes_of_consecutive_frames_are_one_area() -> None:
    boxes = [Box(frame, 5, 6, 70, 8, "text") for frame in (1, 2, 3, 7)] + [Box(2, 0, 0, 9, 9, "region")]
    assert areas(boxes) == [
        {"first_frame": 1, "last_frame": 3, "left": 5, "top": 6, "width": 70, "height": 8, "reason": "text"},
        {"first_frame": 2, "last_frame": 2, "left": 0, "top": 0, "width": 9, "height": 9, "reason": "region"},
        {"first_frame": 7, "last_frame": 7, "left": 5, "top": 6, "width": 70, "height": 8, "reason": "text"},
    ]
    assert areas([]) == []


def test_a_receipt_is_json_and_names_key_boxes_and_opinion() -> None:
    receipt = Receipt(
        "basic", "0" * 64, "2026c", {"X": 3}, ("113100",), "1" * 64,
        key_id="ABCDEFGH", boxes=(Box(1, 2, 3, 4, 5, "text"),), second_opinion={"TEXT": 1}, options=("clean-pixels",),
    )  # fmt: skip
    told = json.loads(json.dumps(receipt.as_json()))
    assert told["key_id"] == "ABCDEFGH"
    assert told["boxes"] == [{"frame": 1, "left": 2, "top": 3, "width": 4, "height": 5, "reason": "text"}]
    assert told["second_opinion"] == {"TEXT": 1}
    assert told["options"] == ["clean-pixels"]


def test_the_receipt_names_every_attribute_that_was_touched_nested_and_private_ones_too() -> None:
    item = Dataset()
    item.OperatorsName = "Canary^Olive"
    item.PerformedProcedureStepDescription = "knee of Mr Canary"
    data = phantom.to_dicom(
        phantom.chest(1),
        patient_name="Canary^Conny",
        patient_id="MRN-1",
        accession_number="A-1",
        study_uid="1.2.826.0.1.1",
        series_uid="1.2.826.0.1.2",
        sop_instance_uid="1.2.826.0.1.3",
    )
    data.RequestAttributesSequence = Sequence([item])
    data.add_new(0x00090010, "LO", "MAKER")
    data.add_new(0x00091001, "LO", "Canary^Conny")
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    done = redact(file.getvalue(), Pseudonyms(bytes(32)), Profile.basic())
    touched = done.receipt.attributes
    assert "00100010" in touched["D"]
    assert "00100020" in touched["D"]
    assert {"00090010", "00091001"} <= set(touched["PRIVATE"])
    everything = {tag for tags in touched.values() for tag in tags}
    assert {"00080050", "00400275"} & everything
    for action, tags in touched.items():
        assert tags == sorted(set(tags))
        assert len(tags) <= done.receipt.actions[action]
    assert "Canary" not in json.dumps(done.receipt.as_json())


def test_of_very_many_attributes_the_first_thousand_are_named_and_all_are_counted() -> None:
    counts = Counts()
    for tag in range(1, 5001):
        counts.tag = tag
        counts.add("X")
    receipt = Receipt("basic", "0" * 64, "2026c", counts.by_action, (), "1" * 64, tags=counts.tags)
    assert receipt.actions == {"X": 5000}
    assert len(receipt.attributes["X"]) == 1000
