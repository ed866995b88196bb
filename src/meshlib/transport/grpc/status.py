"""From an inner call that is over to what the application gets; shared by the drivers."""

from __future__ import annotations

from typing import Any

import grpc

from meshlib.engine.call import CallInfo
from meshlib.routing.request import Headers
from meshlib.transport.grpc.errors import CODES, RpcFailed
from meshlib.transport.grpc.judge import Ended
from meshlib.transport.grpc.metadata import Metadata, decode_message, to_metadata

__all__ = ["UnsupportedActionError", "arrived", "ended_of", "status_of"]


class UnsupportedActionError(Exception):
    """The engine asked for something that this transport does not do."""

    def __init__(self, action: object) -> None:
        super().__init__(f"the gRPC transport cannot carry out {type(action).__name__}")


def arrived(rpc: Any) -> Metadata | None:
    """The initial metadata of an inner call if they are here, None if not, or if this grpcio does not tell.

    `initial_metadata()` waits; on grpcio's own thread that would be for ever.
    """
    state = getattr(rpc, "_state", None)
    metadata: Metadata | None = getattr(state, "initial_metadata", None)
    return metadata


def ended_of(error: Any) -> Ended:
    """grpcio's own error, or a call that is over. grpcio makes every RpcError of a call a grpc.Call.

    The debug string of a call that grpcio's Python part ended is never there; asking for it would wait for ever.
    """
    state: Any = getattr(error, "_state", None)
    known = hasattr(state, "debug_error_string")
    debug = state.debug_error_string if known else error.debug_error_string()
    return Ended(
        error.code().value[0],
        error.details() or "",
        debug,
        arrived(error),
        error.trailing_metadata(),
        message=getattr(state, "response", None) is not None,
    )


def status_of(ended: Ended, headers: Headers | None, info: CallInfo, *, apart: bool) -> RpcFailed:
    """The status that the application gets. headers: after the route's edits, None as they came.

    apart: these are the initial metadata; otherwise there was one block of headers, with the status among them.
    """
    code, details = ended.code, ended.details
    initial, trailing = ended.initial, ended.trailing
    if headers is not None and apart:
        initial = to_metadata(headers)
    elif headers is not None:
        edited = dict(headers)
        text = edited.get("grpc-status", "")
        code = int(text) if text.isdigit() else code
        details = decode_message(edited["grpc-message"]) if "grpc-message" in edited else details
        trailing = to_metadata(headers)
    return RpcFailed(
        CODES.get(code, grpc.StatusCode.UNKNOWN),
        details,
        initial=initial,
        trailing=trailing,
        debug=ended.debug or "",
        info=info,
    )
