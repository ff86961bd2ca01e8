"""A short run of the malformed STOW-RS requests; the long one is `python -m tests.faults.stow_fuzz`."""

from pathlib import Path

from tests.faults import stow_fuzz
from tests.wire.dicomweb_house import dicomweb_house
from tests.wire.ports import port


def test_malformed_store_requests_are_answered_and_leave_nothing(tmp_path: Path):
    with dicomweb_house(tmp_path, port, tls=False) as web:
        report = stow_fuzz.run(web, 300, seed=20261122)
    assert report.wrong == []
