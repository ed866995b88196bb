"""What an inner channel connects to, and with which options of grpcio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from meshlib.engine.actions import Start
from meshlib.resources.cluster import Cluster
from meshlib.state import EndpointState, Way
from meshlib.transport.grpc.tunnel import Tunnel

if TYPE_CHECKING:
    from meshlib.transport.grpc.relay import Relayed

__all__ = ["Options", "Passage", "inner_options", "target_of", "tunnel_to"]

Passage: TypeAlias = "Tunnel | Relayed"

Options = Sequence[tuple[str, Any]]

LEAST_BACKOFF = 100
"""Milliseconds: the least that C-core accepts."""

SLACK = 1000
"""Milliseconds by which C-core's own limit of an attempt to connect is longer than ours, which says what passed."""


def target_of(endpoint: EndpointState) -> str:
    """The target that C-core connects to without resolving anything."""
    address = endpoint.address
    if address.startswith(("/", "@")):
        return f"unix-abstract:{address[1:]}" if address[0] == "@" else f"unix:{address}"
    if ":" in address:
        return f"ipv6:[{address}]:{endpoint.port}"
    return f"ipv4:{address}:{endpoint.port}"


def tunnel_to(start: Start, way: Way, tls: str) -> Passage | None:
    """What stands between an inner channel and an endpoint that is connected to with TLS; None in plaintext.

    way: to start's endpoint. tls: as for `meshlib.grpc.channel`. A child that was forked from a process with a relay uses the
    tunnel.
    """
    if way.security is None:
        return None
    if tls == "relay":
        from meshlib.transport.grpc import relay, relay_hub  # with `cryptography`: only where it is asked for

        if not relay_hub.elsewhere():
            return relay.Relayed(start.endpoint, way, start.authority)
    return Tunnel(start.endpoint, way.security, start.authority, start.state.count_tls, way.name_header)


def inner_options(cluster: Cluster, authority: str, own: Options) -> list[tuple[str, Any]]:
    """The options of an inner channel. own: the application's, which win where they do not undo what the mesh needs."""
    connect_timeout = round(cluster.connect_timeout * 1000)
    defaults: list[tuple[str, Any]] = [
        ("grpc.initial_reconnect_backoff_ms", LEAST_BACKOFF),
        ("grpc.max_reconnect_backoff_ms", 2 * LEAST_BACKOFF),
    ]
    if cluster.idle_timeout:
        defaults.append(("grpc.client_idle_timeout_ms", min(round(cluster.idle_timeout * 1000), 2**31 - 1)))
    keepalive = cluster.keepalive
    if keepalive is not None:
        defaults += [
            ("grpc.keepalive_time_ms", round(keepalive.interval * 1000)),
            ("grpc.keepalive_timeout_ms", round(keepalive.timeout * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    return [
        *defaults,
        *own,
        ("grpc.min_reconnect_backoff_ms", connect_timeout + SLACK),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.default_authority", authority),
    ]
