"""gRPC channels through the mesh: drop-in replacements for `grpc.insecure_channel` and `grpc.aio.insecure_channel`.

    channel = meshlib.grpc.channel("reviews:9080", mesh=mesh)
    stub = reviews_pb2_grpc.ReviewsStub(channel)

Errors that the mesh makes are both `grpc.RpcError` and the class of `meshlib.errors`; see `meshlib.transport.grpc.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import grpc
import grpc.aio

from meshlib.engine.dialect import DIALECTS, Dialect
from meshlib.errors import ConfigError
from meshlib.runtime.threads import refuse_gevent
from meshlib.transport.grpc.aio_channel import AioMeshChannel
from meshlib.transport.grpc.sync_channel import MeshChannel, MeshLike

__all__ = ["aio_channel", "channel"]


def channel(
    target: str,
    *,
    mesh: MeshLike | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    interceptors: Sequence[Any] = (),
    follow: Literal["envoy", "grpc"] = "envoy",
    tls: Literal["tunnel", "relay"] = "tunnel",
) -> grpc.Channel:
    """A channel whose calls the mesh routes, balances, retries and limits.

    target: names the Listener (`reviews:9080`; `xds:///reviews:9080` is the same). mesh: None takes the process's default Mesh
    at the first call. options: of grpcio, for the connections (message sizes, user agent, keep-alive, ...);
    `grpc.default_authority` is also what virtual hosts are searched for. compression: of every call that says nothing.
    interceptors: of grpcio, applied above the mesh: they see one call, whatever it takes. follow: whose rules apply where Envoy
    and gRPC's own xDS clients disagree (docs/differences.md). tls: who speaks TLS where the configuration asks for it: Python's
    `ssl` (`"tunnel"`), or C-core (`"relay"`), which is faster and knows less (docs/grpc.md).

    Raises:
        ConfigError: credentials are given (the cluster's transport socket decides about encryption), gevent has patched
            `threading`, or tls is "relay" and the application has a bootstrap of its own.
    """
    dialect = _checked(credentials, follow, tls)
    made = MeshChannel(target, mesh, options or (), compression, dialect, tls)
    return grpc.intercept_channel(made, *interceptors) if interceptors else made


def aio_channel(
    target: str,
    *,
    mesh: MeshLike | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    interceptors: Sequence[Any] = (),
    follow: Literal["envoy", "grpc"] = "envoy",
    tls: Literal["tunnel", "relay"] = "tunnel",
) -> grpc.aio.Channel:
    """The same for asyncio: a `grpc.aio.Channel`, everything as for `channel`.

    It belongs to no event loop: connections are made on the loop that a call runs on, and one channel may be used on several.
    interceptors: of grpc.aio, of all four kinds.

    Raises:
        ConfigError: as for `channel`. ValueError: something in `interceptors` is no interceptor of grpc.aio.
    """
    dialect = _checked(credentials, follow, tls)
    return AioMeshChannel(target, mesh, options or (), compression, interceptors, dialect, tls)


def _checked(credentials: grpc.ChannelCredentials | None, follow: str, tls: str) -> Dialect:
    if credentials is not None:
        raise ConfigError(
            "a channel of the mesh takes no channel credentials: the cluster's transport socket decides about encryption"
        )
    if follow not in DIALECTS:
        raise ConfigError(f"follow must be one of {', '.join(map(repr, DIALECTS))}, not {follow!r}")
    if tls not in ("tunnel", "relay"):
        raise ConfigError(f"tls must be 'tunnel' or 'relay', not {tls!r}")
    refuse_gevent()
    if tls == "relay":
        from meshlib.transport.grpc import relay_hub  # with `cryptography`: only where it is asked for

        relay_hub.check_environment()
    return DIALECTS[follow]
