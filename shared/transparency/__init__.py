"""What the log and its witnesses must agree on: the Merkle tree, signed notes, checkpoints, cosignatures."""
