"""Where a stream goes and what it asks: the control plane of the bootstrap, or an SDS server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.tls import FilePath, Material, ServerSource
from meshlib.runtime.stream import ChannelCredentials, StreamTarget
from meshlib.snapshot import Snapshot
from meshlib.xds.bootstrap import XdsServer

__all__ = ["ADS", "LRS", "SDS", "TargetError", "ads_target", "lrs_target", "sds_target"]

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
LRS = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
SDS = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"


class TargetError(ValueError):
    """There is nowhere to connect to, now."""


def ads_target(server: XdsServer) -> StreamTarget:
    """The stream to a control plane."""
    credentials = None if server.credentials.kind == "insecure" else server.credentials
    return StreamTarget(target=server.server_uri, method=ADS, credentials=credentials)


def lrs_target(server: XdsServer) -> StreamTarget:
    """The stream of load reports to a control plane (`lrs_server: {self: {}}`)."""
    return replace(ads_target(server), method=LRS)


def sds_target(source: ServerSource, snapshot: Snapshot, named: Mapping[str, XdsServer]) -> StreamTarget:
    """The stream to an SDS server. named: `Bootstrap.sds_clusters`. Raises TargetError."""
    if not source.cluster:
        return StreamTarget(
            target=source.target,
            method=SDS,
            credentials=_credentials(source) if source.tls else None,
            metadata=source.metadata,
        )
    server = named.get(source.cluster)
    if server is not None:
        return replace(ads_target(server), method=SDS, metadata=source.metadata)
    cluster = snapshot.clusters.get(source.cluster)
    if cluster is None:
        raise TargetError(f"there is no cluster {source.cluster!r}")
    return StreamTarget(target=_addresses(cluster, snapshot), method=SDS, metadata=source.metadata)


def _addresses(cluster: Cluster, snapshot: Snapshot) -> str:
    if cluster.tls is not None or cluster.transport_socket_matches:
        raise TargetError(f"cluster {cluster.name!r} has a transport socket; name the server as google_grpc")
    assignment = snapshot.assignment(cluster)
    found = (
        [] if assignment is None else [each for place in assignment.localities for each in place.endpoints]
    )
    if not found:
        raise TargetError(f"cluster {cluster.name!r} has no endpoint")
    first = found[0].address
    if first.startswith("@"):
        return f"unix-abstract:{first[1:]}"
    if first.startswith("/"):
        return f"unix:{first}"
    if cluster.discovery is DiscoveryType.STRICT_DNS:
        found = found[:1]
    kind = "ipv6" if ":" in first else "ipv4"
    return f"{kind}:" + ",".join(each.key for each in found if (":" in each.address) == (kind == "ipv6"))


def _credentials(source: ServerSource) -> ChannelCredentials:
    return ChannelCredentials(
        kind="tls",
        ca_certificate=_pem(source.root_certificates),
        certificate=_pem(source.certificate_chain),
        private_key=_pem(source.private_key),
    )


def _pem(material: Material | None) -> bytes | None:
    assert not isinstance(material, FilePath)  # the decoder reads what an SDS server is connected to with
    return material
