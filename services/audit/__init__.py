"""The central store: an append-only log of every decision that anybody can verify."""
