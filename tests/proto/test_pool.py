from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory

from meshlib import proto
from meshlib.proto.pool import descriptor_set, pool

LISTENER = "envoy.config.listener.v3.Listener"
CLA = "envoy.config.endpoint.v3.ClusterLoadAssignment"


@pytest.mark.parametrize(
    "name",
    [
        "envoy.config.listener.v3.Listener",
        "envoy.config.route.v3.RouteConfiguration",
        "envoy.config.cluster.v3.Cluster",
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "envoy.extensions.filters.http.router.v3.Router",
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        "envoy.extensions.filters.http.header_to_metadata.v3.Config",
        "envoy.extensions.filters.http.cors.v3.Cors",
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        "envoy.extensions.load_balancing_policies.random.v3.Random",
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash",
        "envoy.extensions.load_balancing_policies.maglev.v3.Maglev",
        "envoy.extensions.load_balancing_policies.subset.v3.Subset",
        "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
        "envoy.extensions.load_balancing_policies.random_subsetting.v3.RandomSubsetting",
        "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
        "envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst",
        "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided",
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
        "envoy.config.bootstrap.v3.Bootstrap",
        "envoy.config.trace.v3.OpenTelemetryConfig",
        "envoy.data.cluster.v3.OutlierDetectionEvent",
        "envoy.service.discovery.v3.DiscoveryRequest",
        "envoy.service.discovery.v3.DeltaDiscoveryResponse",
        "envoy.service.auth.v3.CheckRequest",
        "envoy.service.ratelimit.v3.RateLimitRequest",
        "envoy.service.status.v3.ClientStatusResponse",
        "envoy.service.load_stats.v3.LoadStatsRequest",
        "envoy.type.matcher.v3.RegexMatcher",
        "xds.type.v3.TypedStruct",
        "xds.type.matcher.v3.Matcher",
        "google.rpc.Status",
    ],
)
def test_a_message_that_meshlib_speaks_is_in_the_set(name: str) -> None:
    assert proto.message(name).DESCRIPTOR.full_name == name
    assert proto.message(name)().SerializeToString() == b""


def test_the_class_is_cached() -> None:
    assert proto.message(LISTENER) is proto.message(LISTENER)


def test_an_unknown_message_is_named() -> None:
    with pytest.raises(proto.UnknownType) as caught:
        proto.message("envoy.config.Nothing")
    assert caught.value.type_url == "envoy.config.Nothing"
    assert str(caught.value) == "unknown type 'envoy.config.Nothing'"


def test_bytes_that_are_no_message_are_a_decode_error() -> None:
    with pytest.raises(proto.DecodeError):
        proto.parse(LISTENER, b"\xff\xff\xff")


def test_type_urls() -> None:
    assert proto.type_url(LISTENER) == proto.LISTENER
    assert proto.full_name(proto.LISTENER) == LISTENER
    assert proto.full_name("example.org/a/b.C") == "b.C"


def test_threads_that_come_first_together_get_the_same_classes() -> None:
    code = """
import sys, threading
from meshlib import proto
from meshlib.proto.pool import pool
sys.setswitchinterval(1e-6)
barrier, seen = threading.Barrier(8), []
def first():
    barrier.wait()
    seen.append((pool(), proto.message("envoy.config.cluster.v3.Cluster")))
threads = [threading.Thread(target=first) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len({id(p) for p, _ in seen}) == 1 and len({id(c) for _, c in seen}) == 1, seen
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_importing_builds_no_pool_and_loads_no_transport() -> None:
    code = """
import sys, threading
from meshlib import proto
from meshlib.proto import pool
assert not pool._pools
assert not {"grpc", "httpx", "asyncio"} & set(sys.modules)
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_the_default_pool_is_left_alone() -> None:
    code = """
from google.protobuf import descriptor_pool
from meshlib import proto
proto.message("opentelemetry.proto.common.v1.AnyValue"), proto.message("google.rpc.Status")
for name in ("opentelemetry.proto.common.v1.AnyValue", "google.rpc.Status", "envoy.config.cluster.v3.Cluster"):
    try:
        descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        continue
    raise SystemExit(name + " is in the default pool")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_messages_of_an_installed_googleapis_do_not_conflict() -> None:
    from google.rpc import status_pb2 as status

    ours = proto.parse("google.rpc.Status", status.Status(code=5, message="gone").SerializeToString())
    assert (ours.code, ours.message) == (5, "gone")
    assert type(ours) is not status.Status


def test_the_provenance_lists_the_files_of_the_blob() -> None:
    folder = Path(proto.__file__).parent
    provenance = json.loads((folder / "descriptors.json").read_text())
    assert provenance["files"] == [file.name for file in descriptor_set().file]
    assert not [name for name in provenance["files"] if name.startswith("google/protobuf/")]
    assert (provenance["package"], provenance["version"]) == ("xds-protos", "1.85.0")


def test_the_blob_is_small() -> None:
    assert (Path(proto.__file__).parent / "descriptors.bin").stat().st_size < 100_000


def test_the_shadow_keeps_endpoints_as_their_bytes() -> None:
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}}
        for p in (1, 2)
    ]
    locality = {
        "locality": {"zone": "a"},
        "priority": 3,
        "load_balancing_weight": 7,
        "lb_endpoints": endpoints,
    }
    real = proto.from_dict(
        CLA, {"cluster_name": "c", "endpoints": [locality], "policy": {"overprovisioning_factor": 140}}
    )
    shadow = proto.parse("meshlib.shadow.ClusterLoadAssignment", real.SerializeToString())
    assert shadow.cluster_name == "c"
    (group,) = shadow.endpoints
    assert group.priority == 3
    assert group.locality == real.endpoints[0].locality.SerializeToString()
    assert group.load_balancing_weight == real.endpoints[0].load_balancing_weight.SerializeToString()
    assert list(group.lb_endpoints) == [e.SerializeToString() for e in real.endpoints[0].lb_endpoints]
    assert shadow.policy == real.policy.SerializeToString()
    assert shadow.SerializeToString() == real.SerializeToString()


def test_the_shadow_knows_every_field_of_the_real_message() -> None:
    for name in ("ClusterLoadAssignment", "LocalityLbEndpoints"):
        real = proto.message(f"envoy.config.endpoint.v3.{name}").DESCRIPTOR
        shadow = proto.message(f"meshlib.shadow.{name}").DESCRIPTOR
        assert {f.name: f.number for f in shadow.fields} == {f.name: f.number for f in real.fields}


def test_use_from_many_threads() -> None:
    done: list[int] = []

    def work() -> None:
        done.append(sum(proto.from_dict(LISTENER, {"name": "x"}).name == "x" for _ in range(50)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [50] * 4


def _classes(descriptors: Iterable[Any]) -> Iterator[type]:
    for descriptor in descriptors:
        yield message_factory.GetMessageClass(descriptor)
        yield from _classes(descriptor.nested_types)


def test_no_class_is_ever_collected() -> None:
    """A thread that meets one while it is collected crashes the process."""
    files = [pool().FindFileByName(file.name) for file in descriptor_set().file]
    files += [
        pool().FindFileByName(f"google/protobuf/{name}.proto") for name in ("any", "struct", "wrappers")
    ]
    made = [
        (found.__name__, weakref.ref(found))
        for file in files
        for found in _classes(file.message_types_by_name.values())
    ]
    del files
    gc.collect()
    assert len(made) > 1000
    assert [name for name, reference in made if reference() is None] == []
