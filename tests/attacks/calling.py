"""What a call that is refused is refused with."""

from collections.abc import Callable

import grpc
import pytest

from shared.errors import from_rpc


def code_of(call: Callable[[], object]) -> str:
    """Name of the error that the call ends with."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return from_rpc(raised.value).name
