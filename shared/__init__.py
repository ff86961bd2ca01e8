"""The ground floor that every service stands on; imports no service."""

import os

# gRPC's core writes its own unstructured lines to stderr; ours are JSON, and failures reach us as statuses anyway.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Work that needs a process of its own is spawned, never forked, so the core's fork handlers are only a cost.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
