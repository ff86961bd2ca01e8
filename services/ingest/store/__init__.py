"""What happens to the rows of ingest's database: `StudyStore`."""

from pathlib import Path
from typing import Final

from services.ingest.arrival import Arrival as Arrival
from services.ingest.store.arriving import CONFIRM_GRACE as CONFIRM_GRACE
from services.ingest.store.arriving import Arriving
from services.ingest.store.claims import Claims
from services.ingest.store.leaving import Leaving
from services.ingest.store.reading import Reading
from services.ingest.store.reading import Snapshot as Snapshot
from services.ingest.store.rows import Claim as Claim
from services.ingest.store.rows import LeaseLostError as LeaseLostError
from services.ingest.store.steps import DAMAGED as DAMAGED
from services.ingest.store.steps import Settled as Settled
from services.ingest.store.steps import Steps

MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"
"""For `shared.database.upgrade`."""


class StudyStore(Arriving, Claims, Steps, Leaving, Reading):
    """The rows of studies, instances, decisions and deliveries, and all that is done to them."""
