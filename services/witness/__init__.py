"""A witness of the log (C2SP tlog-witness): remembers the newest checkpoint, and cosigns only what extends it."""
