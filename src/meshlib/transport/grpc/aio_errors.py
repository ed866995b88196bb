"""What a call of asyncio raises: `grpc.aio.AioRpcError` and the class of meshlib at once.

As `errors`, which makes the blocking ones: the same code, details, rich status and `.meshlib`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib import errors
from meshlib.engine.call import CallInfo
from meshlib.errors import LocalReply, MeshError
from meshlib.transport.grpc.errors import (
    CODES,
    STATUS_KEY,
    copy_identity,
    details_of,
    local_status,
    reply_failed,
)
from meshlib.transport.grpc.metadata import to_metadata

if TYPE_CHECKING:
    from meshlib.observe.decision import Decision

__all__ = ["AioRpcFailed", "aio_error", "aio_reply"]


class AioRpcFailed(grpc.aio.AioRpcError):  # type: ignore[misc]
    """The endpoint, or a direct response of the configuration, ended the call with this status.

    meshlib: what the mesh did with the call, None on a copy that was pickled.
    """

    meshlib: CallInfo | None = None

    @property
    def decision(self) -> Decision | None:
        """Why the call went where it went, with every attempt; None on a copy that was pickled."""
        return None if self.meshlib is None else self.meshlib.decision


class AioMeshRpcError(grpc.aio.AioRpcError):  # type: ignore[misc]
    """The part of grpc.aio in an error of meshlib."""

    _initial_metadata = grpc.aio.Metadata()
    _trailing_metadata: Any = None
    _headers: tuple[tuple[str, str], ...] = ()
    _plain: MeshError
    _place: tuple[str | None, ...] = ()
    meshlib: CallInfo | None = None

    @property
    def decision(self) -> Decision | None:
        """Why the call went where it went, with every attempt; None on a copy that was pickled."""
        return None if self.meshlib is None else self.meshlib.decision

    def trailing_metadata(self) -> Any:
        if self._trailing_metadata is None:
            status = details_of(self._plain, self._code, self._details, self._place)
            self._trailing_metadata = grpc.aio.Metadata(*to_metadata(self._headers), (STATUS_KEY, status))
        return self._trailing_metadata

    def __reduce__(self) -> tuple[Any, ...]:
        self.trailing_metadata()
        state = {**self.__dict__, "meshlib": None}
        return errors._rebuild, (type(self), self.args, state)


class OtherMeshError(AioMeshRpcError, errors.MeshError):
    """Any other error of meshlib."""


class ConfigTimeout(AioMeshRpcError, errors.ConfigTimeout): ...


class MeshClosed(AioMeshRpcError, errors.MeshClosed): ...


class UnknownHost(AioMeshRpcError, errors.UnknownHost): ...


class NoRoute(AioMeshRpcError, errors.NoRoute): ...


class NoCluster(AioMeshRpcError, errors.NoCluster): ...


class NoHealthyEndpoint(AioMeshRpcError, errors.NoHealthyEndpoint): ...


class CircuitFull(AioMeshRpcError, errors.CircuitFull): ...


class BreakerOpen(AioMeshRpcError, errors.BreakerOpen): ...


class ConnectFailed(AioMeshRpcError, errors.ConnectFailed): ...


class ConnectTimedOut(AioMeshRpcError, errors.ConnectTimedOut): ...


class IdentityError(AioMeshRpcError, errors.IdentityError): ...


class StreamReset(AioMeshRpcError, errors.StreamReset): ...


class ProtocolViolation(AioMeshRpcError, errors.ProtocolViolation): ...


class DeadlineExceeded(AioMeshRpcError, errors.DeadlineExceeded): ...


class FaultInjected(AioMeshRpcError, errors.FaultInjected): ...


_CLASSES: dict[type[MeshError], type[AioMeshRpcError]] = {
    errors.ConfigTimeout: ConfigTimeout,
    errors.MeshClosed: MeshClosed,
    errors.UnknownHost: UnknownHost,
    errors.NoRoute: NoRoute,
    errors.NoCluster: NoCluster,
    errors.NoHealthyEndpoint: NoHealthyEndpoint,
    errors.CircuitFull: CircuitFull,
    errors.BreakerOpen: BreakerOpen,
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimedOut: ConnectTimedOut,
    errors.IdentityError: IdentityError,
    errors.StreamReset: StreamReset,
    errors.ProtocolViolation: ProtocolViolation,
    errors.DeadlineExceeded: DeadlineExceeded,
    errors.FaultInjected: FaultInjected,
}


def aio_error(error: MeshError, info: CallInfo | None) -> AioMeshRpcError:
    """The engine's error in the form that users of grpc.aio know."""
    cls = _CLASSES.get(type(error), OtherMeshError)
    translated: Any = cls.__new__(cls)
    MeshError.__init__(
        translated,
        error.message,
        flags=error.flags,
        details=error.details,
        attempts=error.attempts,
        local_reply=error.local_reply,
    )
    copy_identity(error, translated)
    del translated.details  # grpc's method of that name; Envoy's response code details are in `.meshlib`
    code, translated._details, translated._headers = local_status(error)
    translated._code = CODES.get(code, grpc.StatusCode.UNKNOWN)
    translated._debug_error_string = error.message
    translated._plain = error
    if info is not None:
        translated.meshlib = info
        translated._place = (info.cluster, info.route, info.virtual_host)
    result: AioMeshRpcError = translated
    return result


def aio_reply(reply: LocalReply, info: CallInfo | None) -> AioRpcFailed:
    """The configuration answered by itself (a direct response, a redirect), which no gRPC method returns."""
    told = reply_failed(reply, info)
    error = AioRpcFailed(
        told.code(),
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*told.trailing_metadata()),
        told.details(),
        "",
    )
    error.meshlib = info
    return error
