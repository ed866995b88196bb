"""Which load-balancing policy a cluster has: `load_balancing_policy` (the first one that is known) or the older `lb_policy`.

A policy that Envoy has and meshlib has not is reported, and the cluster is balanced round robin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from meshlib.resources.cluster import (
    HashingConfig,
    LbPolicy,
    LeastRequestConfig,
    LocalityLbConfig,
    RandomConfig,
    RoundRobinConfig,
)
from meshlib.resources.decode_hashing import hashing, maglev, ring_hash
from meshlib.resources.reader import Reader

__all__ = ["decode_lb"]

_PACKAGE = "envoy.extensions.load_balancing_policies."
_MAX_DEPTH = 8
# Only the one that goes with lb_policy counts; Envoy ignores the others.
_LEGACY_CONFIGS = (
    "least_request_lb_config",
    "round_robin_lb_config",
    "ring_hash_lb_config",
    "maglev_lb_config",
)


def decode_lb(reader: Reader) -> tuple[LbPolicy, LocalityLbConfig]:
    """The policy of a Cluster and what applies to all policies. Raises ResourceError."""
    common = reader.child("common_lb_config")
    locality = LocalityLbConfig()
    hashed: Reader | None = None
    specific = False
    if common is not None:
        # It concerns when changed endpoints take effect: here at once.
        common.leave(
            "update_merge_window", "ignore_new_hosts_until_first_hc", "close_connections_on_host_set_change"
        )
        threshold = common.percent("healthy_panic_threshold")
        zone = common.child("zone_aware_lb_config")
        weighted = common.child("locality_weighted_lb_config")
        hashed = common.child("consistent_hashing_lb_config")
        specific = zone is not None or weighted is not None or hashed is not None
        locality = LocalityLbConfig(
            healthy_panic_threshold=50.0 if threshold is None else threshold,
            fail_traffic_on_panic=zone is not None and zone.flag("fail_traffic_on_panic"),
            locality_weighted=weighted is not None,
        )
        if zone is not None:
            _without_local_cluster(zone)
        if hashed is not None and hashed.flag("use_hostname_for_hashing") and reader.number("type") != 1:
            raise hashed.fail("use_hostname_for_hashing", "is only for clusters of type STRICT_DNS")
    listed = reader.child("load_balancing_policy")
    if listed is not None:
        reader.leave("lb_policy", *_LEGACY_CONFIGS)
        if specific:
            reason = "load_balancing_policy can't be combined with zone_aware_lb_config, locality_weighted_lb_config"
            raise reader.fail(
                "load_balancing_policy", f"{reason} or consistent_hashing_lb_config of common_lb_config"
            )
        return _first_known(listed, locality, 0)
    return _legacy(reader, hashing(hashed)), locality


def _without_local_cluster(zone: Reader) -> None:
    """Zone-aware routing needs Envoy's local_cluster_name, which a client has not, so its parameters do nothing."""
    zone.leave("routing_enabled", "min_cluster_size", "force_locality_direct_routing", "force_local_zone")


def _legacy(reader: Reader, shared: HashingConfig) -> LbPolicy:
    """shared: of common_lb_config; it does nothing for policies that do not hash."""
    number = reader.number("lb_policy")
    if number == 0:
        reader.leave("least_request_lb_config", "ring_hash_lb_config", "maglev_lb_config")
        reader.child("round_robin_lb_config")  # nothing in it is applied, so slow_start_config is reported
        return RoundRobinConfig()
    if number == 1:
        reader.leave("round_robin_lb_config", "ring_hash_lb_config", "maglev_lb_config")
        return _least_request(reader.child("least_request_lb_config"))
    if number == 3:
        reader.leave(*_LEGACY_CONFIGS)
        return RandomConfig()
    if number == 2:
        reader.leave("least_request_lb_config", "round_robin_lb_config", "maglev_lb_config")
        return ring_hash(reader.child("ring_hash_lb_config"), shared)
    if number == 5:
        reader.leave("least_request_lb_config", "round_robin_lb_config", "ring_hash_lb_config")
        return maglev(reader.child("maglev_lb_config"), shared)
    if number == 7:
        raise reader.fail("lb_policy", "LOAD_BALANCING_POLICY_CONFIG needs load_balancing_policy")
    if number == 6:
        raise reader.fail("lb_policy", "this type of cluster does not provide a policy of its own")
    raise reader.fail("lb_policy", f"unknown value {number}")


def _least_request(config: Reader | None) -> LeastRequestConfig:
    if config is None:
        return LeastRequestConfig()
    count = config.boxed("choice_count")
    if count == 0:
        raise config.fail("choice_count", "must be at least 1")
    bias = config.child("active_request_bias")
    if bias is not None:
        bias.leave("runtime_key")
    return LeastRequestConfig(
        choice_count=2 if count is None else count,
        active_request_bias=None if bias is None else float(bias.value("default_value")),
    )


def _first_known(listed: Reader, locality: LocalityLbConfig, depth: int) -> tuple[LbPolicy, LocalityLbConfig]:
    if depth > _MAX_DEPTH:
        raise listed.fail("", "policies are nested too deep")
    entries = listed.items("policies")
    for index, entry in enumerate(entries):
        extension = entry.child("typed_extension_config")
        if extension is None:
            continue
        extension.leave("name")
        config = extension.child("typed_config")
        if config is None:
            continue
        kind = config.message.type_url.rpartition("/")[2]
        if kind.endswith("TypedStruct") or kind in _POLICIES:
            policy = config.unpacked(checked=False)
            decoder = _POLICIES.get(policy.type_name)
        elif kind.startswith(_PACKAGE) and kind in _KNOWN:
            policy, decoder = config, _unsupported
        else:
            config.leave("type_url", "value")
            continue
        if decoder is not None:
            for later in entries[index + 1 :]:
                later.leave("typed_extension_config")
            return decoder(policy, locality, depth)
    names = ", ".join(repr(entry.message.typed_extension_config.name) for entry in entries)
    raise listed.fail("policies", f"no known load balancing policy among [{names}]")


Found = tuple[LbPolicy, LocalityLbConfig]


def _round_robin(policy: Reader, locality: LocalityLbConfig, depth: int) -> Found:
    return RoundRobinConfig(), _own_locality(policy, locality)


def _own_least_request(policy: Reader, locality: LocalityLbConfig, depth: int) -> Found:
    return _least_request(policy), _own_locality(policy, locality)


def _random(policy: Reader, locality: LocalityLbConfig, depth: int) -> Found:
    return RandomConfig(), _own_locality(policy, locality)


def _ring_hash(policy: Reader, locality: LocalityLbConfig, depth: int) -> Found:
    shared = policy.child("consistent_hashing_lb_config")
    if shared is not None:  # the policy's own fields of these names are deprecated, and do not count then
        policy.leave("use_hostname_for_hashing", "hash_balance_factor")
    return ring_hash(policy, hashing(shared or policy)), _hashed_locality(policy, locality)


def _maglev(policy: Reader, locality: LocalityLbConfig, depth: int) -> Found:
    shared = hashing(policy.child("consistent_hashing_lb_config"))
    return maglev(policy, shared), _hashed_locality(policy, locality)


def _wrr_locality(policy: Reader, locality: LocalityLbConfig, depth: int) -> Found:
    picking = policy.required("endpoint_picking_policy")
    chosen, within = _first_known(picking, locality, depth + 1)
    return chosen, replace(within, locality_weighted=True, subset_of_locality=within.subset_size is not None)


def _random_subsetting(policy: Reader, locality: LocalityLbConfig, depth: int) -> Found:
    size = policy.boxed("subset_size")
    if not size:
        raise policy.fail("subset_size", "must be at least 1")
    chosen, within = _first_known(policy.required("child_policy"), locality, depth + 1)
    if within.subset_size is not None:  # of the same ranking
        size = min(size, within.subset_size)
    return chosen, replace(within, subset_size=size)


def _unsupported(policy: Reader, locality: LocalityLbConfig, depth: int) -> Found:
    policy.leave("type_url", "value")
    policy.reading.unsupported(policy.path)
    return RoundRobinConfig(), locality


def _hashed_locality(policy: Reader, locality: LocalityLbConfig) -> LocalityLbConfig:
    """RingHash and Maglev have only locality weights."""
    weighted = policy.child("locality_weighted_lb_config") is not None
    return replace(locality, fail_traffic_on_panic=False, locality_weighted=weighted)


def _own_locality(policy: Reader, locality: LocalityLbConfig) -> LocalityLbConfig:
    """The locality_lb_config of a policy's own configuration."""
    own = policy.child("locality_lb_config")
    if own is None:
        return locality
    zone = own.child("zone_aware_lb_config")
    fail = False
    if zone is not None:
        fail = zone.flag("fail_traffic_on_panic")
        _without_local_cluster(zone)
    weighted = own.child("locality_weighted_lb_config") is not None
    return replace(locality, fail_traffic_on_panic=fail, locality_weighted=weighted)


_POLICIES: dict[str, Callable[[Reader, LocalityLbConfig, int], Found]] = {
    _PACKAGE + "round_robin.v3.RoundRobin": _round_robin,
    _PACKAGE + "least_request.v3.LeastRequest": _own_least_request,
    _PACKAGE + "random.v3.Random": _random,
    _PACKAGE + "ring_hash.v3.RingHash": _ring_hash,
    _PACKAGE + "maglev.v3.Maglev": _maglev,
    _PACKAGE + "wrr_locality.v3.WrrLocality": _wrr_locality,
    _PACKAGE + "random_subsetting.v3.RandomSubsetting": _random_subsetting,
}
_KNOWN = frozenset(
    _PACKAGE + name
    for name in (
        "subset.v3.Subset",
        "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
        "pick_first.v3.PickFirst",
        "override_host.v3.OverrideHost",
        "load_aware_locality.v3.LoadAwareLocality",
    )
)
"""Policies of Envoy's (pick_first: of gRPC's) that are not implemented."""
