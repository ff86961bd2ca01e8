"""A few hundred of the malformed PDUs of `tests.faults.pdus`, which sends 50,000."""

from pathlib import Path

from tests.faults.pdus import Campaign
from tests.wire.ingest_house import house
from tests.wire.ports import port


def test_malformed_pdus_neither_crash_nor_hang_nor_leave_anything(tmp_path: Path) -> None:
    with house(tmp_path, port, "max_associations = 64") as home:
        campaign = Campaign(home, count=300, seed=2, threads=4)
        campaign.run()
        assert sum(campaign.done.values()) == 300
        assert len(campaign.done) > 8
