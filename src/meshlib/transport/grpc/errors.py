"""What a call raises: classes of grpc and of meshlib at once.

An ending that meshlib made (no route, a limit, a timeout, an endpoint that failed) is a `grpc.RpcError` and `grpc.Call`, as
grpcio raises them, and the engine's error class: `except grpc.RpcError` and `except meshlib.CircuitFull` both catch it. Code and
details are those that a gRPC client gets from Envoy in the same situation. Its trailing metadata has a `google.rpc.Status` with
an `ErrorInfo` (what decided, the attempts) and, where trying again later makes sense, a `RetryInfo`; `grpc_status.rpc_status`
reads it. A status that the endpoint sent is an `RpcFailed`, which is no `MeshError`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from meshlib import errors
from meshlib.engine.call import CallInfo
from meshlib.errors import LocalReply, MeshError
from meshlib.transport.grpc.metadata import Metadata, decode_message, to_metadata
from meshlib.transport.grpc.over import OverCall

if TYPE_CHECKING:
    from meshlib.observe.decision import Decision

__all__ = [
    "CODES",
    "STATUS_KEY",
    "Details",
    "FinishedRpc",
    "RpcFailed",
    "copy_identity",
    "details_of",
    "local_status",
    "reply_failed",
    "rpc_error",
]

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

RETRY_DELAYS: dict[type[MeshError], float] = {
    errors.BreakerOpen: 1.0,
    errors.CircuitFull: 0.1,
    errors.ConfigTimeout: 1.0,
    errors.ConnectFailed: 0.25,
    errors.ConnectTimedOut: 0.25,
    errors.NoHealthyEndpoint: 1.0,
}
"""Seconds of RetryInfo: nothing of these calls reached an endpoint, and the cause may pass."""

STATUS_KEY = "grpc-status-details-bin"


class FinishedRpc(grpc.RpcError, OverCall):  # type: ignore[misc]
    """An RPC that is over, as an exception: the methods of grpc.Call and grpc.Future, none of which waits.

    meshlib: what the mesh did with the call, None on a copy that was pickled.
    """

    _code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    _details = ""
    _debug = ""
    _initial: Metadata = ()
    _trailing: Metadata = ()
    meshlib: CallInfo | None = None

    @property
    def decision(self) -> Decision | None:
        """Why the call went where it went, with every attempt; None on a copy that was pickled."""
        return None if self.meshlib is None else self.meshlib.decision

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def debug_error_string(self) -> str:
        return self._debug

    def initial_metadata(self) -> Metadata:
        return self._initial

    def trailing_metadata(self) -> Metadata:
        return self._trailing

    def result(self, timeout: float | None = None) -> Any:
        raise self

    def exception(self, timeout: float | None = None) -> BaseException:
        return self

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        try:
            raise self
        except grpc.RpcError:
            return sys.exc_info()[2]

    def add_done_callback(self, fn: Callable[[Any], None], timeout: float | None = None) -> None:
        fn(self)

    def __str__(self) -> str:
        return (
            f"<{type(self).__name__} of RPC that terminated with:\n\tstatus = {self.code()}\n"
            f'\tdetails = "{self._details}"\n\tdebug_error_string = "{self.debug_error_string()}"\n>'
        )

    __repr__ = __str__


class RpcFailed(FinishedRpc):
    """The endpoint, or a direct response of the configuration, ended the call with this status."""

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str = "",
        *,
        initial: Metadata = (),
        trailing: Metadata = (),
        debug: str = "",
        info: CallInfo | None = None,
    ) -> None:
        super().__init__(code, details)
        self._code = code
        self._details = details
        self._initial = initial
        self._trailing = trailing
        self._debug = debug
        self.meshlib = info

    def __reduce__(self) -> tuple[Any, ...]:
        state = {**self.__dict__, "meshlib": None}
        return type(self), (self._code, self._details), state


class Details(str):
    """`error.details` is Envoy's response code details, as of every MeshError; `error.details()` the message of the status.

    meshlib and grpc both have the name, one for an attribute and one for a method.
    """

    __slots__ = ("_message",)
    _message: str

    def __new__(cls, details: str, message: str) -> Details:
        self = super().__new__(cls, details)
        self._message = message
        return self

    def __call__(self) -> str:
        return self._message

    def __reduce__(self) -> tuple[Any, ...]:
        return Details, (str(self), self._message)


class MeshRpcError(FinishedRpc):
    """The part of grpc in an error of meshlib. `_finish` gives it its status."""

    def _finish(self, error: MeshError, info: CallInfo | None) -> None:
        code, self._details, self._headers = local_status(error)
        self._code = CODES.get(code, grpc.StatusCode.UNKNOWN)
        self._debug = error.message
        self.meshlib = info
        self._plain = error
        self._place = () if info is None else (info.cluster, info.route, info.virtual_host)

    details: Any  # Details
    _headers: tuple[tuple[str, str], ...] = ()
    _plain: MeshError
    _place: tuple[str | None, ...] = ()
    _built: Metadata | None = None

    def trailing_metadata(self) -> Metadata:
        if self._built is None:
            status = details_of(self._plain, self._code, self._details, self._place)
            self._built = (*to_metadata(self._headers), (STATUS_KEY, status))
        return self._built

    def __reduce__(self) -> tuple[Any, ...]:
        self.trailing_metadata()
        state = {**self.__dict__, "meshlib": None}
        return errors._rebuild, (type(self), self.args, state)


class OtherMeshError(MeshRpcError, errors.MeshError):
    """Any other error of meshlib."""


class ConfigTimeout(MeshRpcError, errors.ConfigTimeout): ...


class MeshClosed(MeshRpcError, errors.MeshClosed): ...


class UnknownHost(MeshRpcError, errors.UnknownHost): ...


class NoRoute(MeshRpcError, errors.NoRoute): ...


class NoCluster(MeshRpcError, errors.NoCluster): ...


class NoHealthyEndpoint(MeshRpcError, errors.NoHealthyEndpoint): ...


class CircuitFull(MeshRpcError, errors.CircuitFull): ...


class BreakerOpen(MeshRpcError, errors.BreakerOpen): ...


class FaultInjected(MeshRpcError, errors.FaultInjected): ...


class ConnectFailed(MeshRpcError, errors.ConnectFailed): ...


class ConnectTimedOut(MeshRpcError, errors.ConnectTimedOut): ...


class IdentityError(MeshRpcError, errors.IdentityError): ...


class StreamReset(MeshRpcError, errors.StreamReset): ...


class ProtocolViolation(MeshRpcError, errors.ProtocolViolation): ...


class DeadlineExceeded(MeshRpcError, errors.DeadlineExceeded): ...


_CLASSES: dict[type[MeshError], type[MeshRpcError]] = {
    errors.ConfigTimeout: ConfigTimeout,
    errors.MeshClosed: MeshClosed,
    errors.UnknownHost: UnknownHost,
    errors.NoRoute: NoRoute,
    errors.NoCluster: NoCluster,
    errors.NoHealthyEndpoint: NoHealthyEndpoint,
    errors.CircuitFull: CircuitFull,
    errors.BreakerOpen: BreakerOpen,
    errors.FaultInjected: FaultInjected,
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimedOut: ConnectTimedOut,
    errors.IdentityError: IdentityError,
    errors.StreamReset: StreamReset,
    errors.ProtocolViolation: ProtocolViolation,
    errors.DeadlineExceeded: DeadlineExceeded,
}


def rpc_error(error: MeshError, info: CallInfo | None, initial: Metadata = ()) -> MeshRpcError:
    """The engine's error in the form that grpc's users know. initial: metadata of the response, if it had begun."""
    cls = _CLASSES.get(type(error), OtherMeshError)
    translated: Any = cls.__new__(cls)
    MeshError.__init__(
        translated,
        error.message,
        flags=error.flags,
        attempts=error.attempts,
        local_reply=error.local_reply,
    )
    copy_identity(error, translated)
    translated._finish(error, info)
    translated.details = Details(error.details, translated._details)
    translated._initial = initial
    result: MeshRpcError = translated
    return result


def copy_identity(error: MeshError, translated: Any) -> None:
    """What an IdentityError says beyond any other error."""
    if isinstance(error, errors.IdentityError):
        for name in ("expected", "got", "trust_domain", "not_after", "reason"):
            setattr(translated, name, getattr(error, name))


def reply_failed(reply: LocalReply, info: CallInfo | None) -> RpcFailed:
    """The configuration answered by itself (a direct response, a redirect), which no gRPC method returns."""
    code, details, headers = _parse(reply)
    return RpcFailed(
        CODES.get(code, grpc.StatusCode.UNKNOWN), details, trailing=to_metadata(headers), info=info
    )


def local_status(error: MeshError) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """Code, details and further headers: those of Envoy's answer; UNAVAILABLE where Envoy has none."""
    reply = error.local_reply
    if reply is None:
        return 14, error.message, ()
    return _parse(reply)


def _parse(reply: LocalReply) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    code, message = 2, ""
    rest = []
    for name, value in reply.headers:
        if name == "grpc-status":
            code = int(value) if value.isdigit() else 2
        elif name == "grpc-message":
            message = decode_message(value)
        else:
            rest.append((name, value))
    return code or 2, message, tuple(rest)


def details_of(
    error: MeshError, code: grpc.StatusCode, message: str, place: tuple[str | None, ...] = ()
) -> bytes:
    """The serialized google.rpc.Status. place: cluster, route, virtual host, as far as they are known.

    ErrorInfo.reason is the error's class in upper case (NO_HEALTHY_ENDPOINT), its domain `meshlib`, its metadata Envoy's
    flags and details, the place, and each attempt as `attempt-1: 10.0.0.1:80 connection timeout`.
    """
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2

    told = {"flags": error.flags, "details": error.details}
    told |= {name: value for name, value in zip(("cluster", "route", "virtual_host"), place) if value}
    for number, attempt in enumerate(error.attempts, 1):
        told[f"attempt-{number}"] = f"{attempt.endpoint} {attempt.failure or attempt.status}"
    reason = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).upper()
    parts: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="meshlib", metadata=told)]
    delay = RETRY_DELAYS.get(type(error))
    if delay is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(round(delay * 1e9))
        parts.append(info)
    status = status_pb2.Status(code=code.value[0], message=message)
    for part in parts:
        packed = any_pb2.Any()
        packed.Pack(part)
        status.details.append(packed)
    serialized: bytes = status.SerializeToString()
    return serialized
