"""CSDS: what configuration a process holds, over gRPC, for grpcdebug and its like.

    server = grpc.server(...)                # or grpc.aio.server(...)
    meshlib.admin.csds.add_csds(server, mesh)

Each Mesh is one ClientConfig with one GenericXdsConfig for each resource that it has asked for (gRFC A40): its version, state,
when it last changed, and what was wrong with the latest version where that was refused. Keys, tokens and passwords in resources
are replaced. Serve it where only those may connect who may see the configuration.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib import proto
from meshlib.admin.redaction import redact
from meshlib.snapshot import ResourceState, ResourceStatus
from meshlib.xds.messages import describe_node

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["SERVICE", "RequestError", "add_csds", "client_status"]

SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"

_REQUEST = "envoy.service.status.v3.ClientStatusRequest"
_RESPONSE = "envoy.service.status.v3.ClientStatusResponse"


class RequestError(ValueError):
    """The request asks for something that a client can't answer."""


def add_csds(server: Any, *meshes: Mesh) -> None:
    """Serve CSDS for these on a server of grpc or of grpc.aio, before it is started."""
    asynchronous = isinstance(server, grpc.aio.Server)
    serving: Any = (_Asynchronous if asynchronous else _Blocking)(meshes)
    handlers = {
        "FetchClientStatus": grpc.unary_unary_rpc_method_handler(serving.fetch),
        "StreamClientStatus": grpc.stream_stream_rpc_method_handler(serving.stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def client_status(meshes: Iterable[Mesh], request: bytes) -> bytes:
    """The answer to a ClientStatusRequest.

    Raises:
        RequestError: the bytes are no such request, or it has node_matchers, which are for servers that know many nodes.
    """
    try:
        asked = proto.parse(_REQUEST, request)
    except proto.DecodeError:
        raise RequestError("not a ClientStatusRequest") from None
    if asked.node_matchers:
        raise RequestError("node_matchers have no meaning in a client, which knows itself only")
    response = proto.message(_RESPONSE)()
    for mesh in meshes:
        config = response.config.add()
        config.node.CopyFrom(describe_node(mesh.node))
        for status in mesh.status():
            _describe(config, mesh, status, contents=not asked.exclude_resource_contents)
    encoded: bytes = response.SerializeToString()
    return encoded


def _describe(config: Any, mesh: Mesh, status: ResourceStatus, *, contents: bool) -> None:
    updated = round(status.updated * 1000)
    entry = config.generic_xds_configs.add(
        type_url=status.kind.value,
        name=status.name,
        version_info=status.version,
        client_status=status.state.value,
        is_static_resource=mesh.snapshot.complete,
    )
    if status.version or status.state is ResourceState.ACKED:
        entry.last_updated.FromMilliseconds(updated)
        if contents:
            _put(entry, "xds_config", status, mesh.encoded(status.kind, status.name))
    if status.error is not None:
        state = entry.error_state
        state.version_info, state.details = status.error_version, str(status.error)
        state.last_update_attempt.FromMilliseconds(updated)
        if contents:
            _put(state, "failed_configuration", status, mesh.encoded(status.kind, status.name, refused=True))


def _put(message: Any, field: str, status: ResourceStatus, data: bytes | None) -> None:
    """The resource without its secrets; nothing where it can't be read, or its bytes are not kept."""
    if data is None:
        return
    name = proto.full_name(status.kind.value)
    try:
        resource = proto.from_dict(name, redact(proto.to_dict(proto.parse(name, data))))
    except (proto.DecodeError, proto.FieldError):
        return
    getattr(message, field).CopyFrom(proto.pack(resource))


class _Blocking:
    def __init__(self, meshes: Iterable[Mesh]) -> None:
        self._meshes = tuple(meshes)

    def fetch(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return client_status(self._meshes, request)
        except RequestError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    def stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield self.fetch(request, context)


class _Asynchronous:
    def __init__(self, meshes: Iterable[Mesh]) -> None:
        self._meshes = tuple(meshes)

    async def fetch(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return client_status(self._meshes, request)
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self.fetch(request, context)
