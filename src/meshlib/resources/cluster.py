"""Cluster and its policies (config.cluster.v3). Durations are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.hash_policy import HashPolicy
from meshlib.resources.tls import SecretRef, TransportSocketMatch, UpstreamTls

__all__ = [
    "CircuitBreakers",
    "Cluster",
    "DiscoveryType",
    "HashFunction",
    "HashingConfig",
    "HttpProtocol",
    "Keepalive",
    "LbPolicy",
    "LeastRequestConfig",
    "LocalityLbConfig",
    "MaglevConfig",
    "OutlierDetection",
    "RandomConfig",
    "RetryBudget",
    "RingHashConfig",
    "RoundRobinConfig",
    "Service",
    "Thresholds",
]


class DiscoveryType(Enum):
    """Where the endpoints come from."""

    STATIC = 0
    STRICT_DNS = 1
    LOGICAL_DNS = 2
    EDS = 3


class HttpProtocol(Enum):
    """What is spoken to the endpoints (extensions.upstreams.http.v3.HttpProtocolOptions, or http2_protocol_options)."""

    HTTP1 = "http/1.1"
    HTTP2 = "h2"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobinConfig:
    """ROUND_ROBIN, by weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastRequestConfig:
    """LEAST_REQUEST. choice_count: how many random hosts are compared (default 2).

    active_request_bias: exponent of weight / (active + 1) ** bias, used when the weights differ; None is 1.0. An explicit
    bias forces the weighted mode (Envoy 1.40).
    """

    choice_count: int = 2
    active_request_bias: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomConfig:
    """RANDOM: uniform, weights are ignored."""


class HashFunction(Enum):
    """How the ring hashes the names of its entries."""

    XX_HASH = 1
    MURMUR_HASH_2 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HashingConfig:
    """What RING_HASH and MAGLEV have in common (ConsistentHashingLbConfig).

    use_hostname_for_hashing: hosts are known by their hostname, not by `ip:port`. hash_balance_factor: percent of the mean
    load beyond which a host is passed over, 0 for no bound, else at least 100. hash_policy: takes the place of the route's.
    """

    use_hostname_for_hashing: bool = False
    hash_balance_factor: int = 0
    hash_policy: tuple[HashPolicy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RingHashConfig(HashingConfig):
    """RING_HASH. minimum_ring_size is never more than maximum_ring_size, which is at most 8388608."""

    minimum_ring_size: int = 1024
    maximum_ring_size: int = 8388608
    hash_function: HashFunction = HashFunction.XX_HASH


@dataclass(frozen=True, slots=True, kw_only=True)
class MaglevConfig(HashingConfig):
    """MAGLEV. table_size is prime, at most 5000011."""

    table_size: int = 65537


LbPolicy = RoundRobinConfig | LeastRequestConfig | RandomConfig | RingHashConfig | MaglevConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityLbConfig:
    """common_lb_config and what goes with it. Percentages are 0 .. 100.

    locality_weighted: locality_weighted_lb_config is set (or the policy is wrr_locality). subset_size: of random_subsetting, at
    least 1; None: all endpoints are used. subset_of_locality: the subset is of each locality, not of each priority.
    """

    healthy_panic_threshold: float = 50.0
    fail_traffic_on_panic: bool = False
    locality_weighted: bool = False
    subset_size: int | None = None
    subset_of_locality: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """circuit_breakers.thresholds.retry_budget: how many retries may be under way at once.

    budget_percent: 0 .. 100, of the requests that are active or pending, retries included. min_retry_concurrency: so many
    at least.
    """

    budget_percent: float = 20.0
    min_retry_concurrency: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """circuit_breakers.thresholds for one priority. retry_budget replaces max_retries. track_remaining only adds gauges."""

    max_connections: int = 1024
    max_pending_requests: int = 1024
    max_requests: int = 1024
    max_retries: int = 3
    retry_budget: RetryBudget | None = None
    track_remaining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakers:
    """The limits of both routing priorities."""

    default: Thresholds = Thresholds()
    high: Thresholds = Thresholds()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """config.cluster.v3.OutlierDetection as far as it is in force here: consecutive_5xx.

    max_ejection_percent 10 means that a cluster of fewer than ten endpoints never ejects any (unless
    always_eject_one_host). max_ejection_time None is max(300, base_ejection_time).
    """

    consecutive_5xx: int = 5
    enforcing_consecutive_5xx: int = 100
    interval: float = 10.0
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejection_time_jitter: float = 0.0
    max_ejection_percent: int = 10
    always_eject_one_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """http2_protocol_options.connection_keepalive: a ping each `interval` seconds; without an answer in `timeout` it is lost."""

    interval: float
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Metadata `istio`, the first of `services`: host `reviews.shop.svc.cluster.local`, name `reviews`, namespace `shop`."""

    host: str
    name: str
    namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """config.cluster.v3.Cluster.

    eds_service_name: the ClusterLoadAssignment to ask for, the cluster's own name when not given; empty unless EDS.
    load_assignment: the endpoints of STATIC, STRICT_DNS (hostnames to resolve) and LOGICAL_DNS (exactly one hostname).
    outlier_detection: None means that no endpoint is ever ejected. idle_timeout: of a pooled connection, None for never.
    max_requests_per_connection: 0 is no limit. keepalive: pings over HTTP/2, None for none.
    tls, transport_socket_matches: how endpoints are connected to, see `tls.select_tls`; tls None is plaintext.
    load_reporting: its control plane wants to hear of its load (LRS). service: whose endpoints these are, for metrics; None when
    its metadata does not say. metadata: see `metadata.packed`.
    """

    name: str
    discovery: DiscoveryType
    eds_service_name: str = ""
    load_assignment: ClusterLoadAssignment | None = None
    lb_policy: LbPolicy = RoundRobinConfig()
    locality: LocalityLbConfig = LocalityLbConfig()
    connect_timeout: float = 5.0
    protocol: HttpProtocol = HttpProtocol.HTTP1
    keepalive: Keepalive | None = None
    circuit_breakers: CircuitBreakers = CircuitBreakers()
    outlier_detection: OutlierDetection | None = None
    idle_timeout: float | None = 3600.0
    max_requests_per_connection: int = 0
    max_stream_duration: float | None = None
    dns_refresh_rate: float = 5.0
    respect_dns_ttl: bool = False
    dns_ipv4_only: bool = False
    dns_ipv6_only: bool = False
    tls: UpstreamTls | None = None
    transport_socket_matches: tuple[TransportSocketMatch, ...] = ()
    load_reporting: bool = False
    service: Service | None = None
    metadata: bytes = b""

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        """Every secret that its transport sockets need, as often as it is named."""
        if self.tls is None and not self.transport_socket_matches:
            return ()
        contexts = (self.tls, *(match.tls for match in self.transport_socket_matches))
        return tuple(ref for tls in contexts if tls is not None for ref in tls.common.secrets)
