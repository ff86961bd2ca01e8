"""The digest of an object's content is the digest that it has in our own wrapping.

It was that of the transfer syntax and the data set. What C-STORE brought lies in our wrapping, so that its two digests
are one now. What came in another wrapping would have to be read anew; it keeps the digest that it has, and is known
again by its bytes (`services.ingest.store`).

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Put the digests of what came by C-STORE into their new form."""
    op.execute("UPDATE instances SET content_sha256 = sha256 WHERE channel = 'DIMSE'")


def downgrade() -> None:
    """Nothing: the digests from before are not kept, and these tell two objects apart as well."""
