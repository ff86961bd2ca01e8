"""The log in the formats that auditors' tools read; each is made of the canonical record and of nothing else."""
