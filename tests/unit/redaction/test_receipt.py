"""The receipt: what it says of boxes, and that it is plain JSON."""

import json

from services.redaction.receipt import Box, Receipt, areas


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
