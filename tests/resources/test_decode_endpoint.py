"""ClusterLoadAssignment: the fast way gives what the messages say, and large ones are checked afterwards."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import decode, decode_any, decode_endpoint
from meshlib.resources.decode_endpoint import (
    EndpointProblem,
    check_addresses,
    decode_load_assignment,
    without,
)
from meshlib.resources.endpoint import OUT, ClusterLoadAssignment, Endpoint, Health, Locality
from meshlib.resources.endpoint_address import identity, ip_text
from meshlib.resources.endpoint_keys import keys_of
from meshlib.resources.endpoint_wire import BAD
from meshlib.resources.metadata import NO_METADATA, SocketMetadata
from meshlib.resources.reader import Reading
from tests.resources.building import assignment, decode_assignment, decoded, endpoint, locality, refused

ASSIGNMENT = "envoy.config.endpoint.v3.ClusterLoadAssignment"
ITEM = "endpoints[0].lb_endpoints[0]"


def test_an_empty_assignment() -> None:
    assert decode_assignment(assignment()) == ClusterLoadAssignment(cluster_name="c")


def test_everything_that_is_read() -> None:
    made = decode_assignment(
        assignment(
            locality(
                endpoint("10.0.0.1", 80),
                endpoint("10.0.0.2", 65535, health_status="UNHEALTHY", load_balancing_weight=3),
                endpoint("10.0.0.3", 1, health_status="DEGRADED"),
                endpoint("10.0.0.4", 128, health_status="DRAINING", metadata={}),
                endpoint("10.0.0.5", 300, health_status="TIMEOUT"),
                endpoint("10.0.0.6", 16384, health_status="HEALTHY"),
                locality={"region": "r", "zone": "z", "sub_zone": "s"},
                load_balancing_weight=7,
            ),
            locality(endpoint("10.0.0.7"), priority=1),
            policy={"overprovisioning_factor": 100, "weighted_priority_health": True},
        )
    )
    first, second = made.localities
    assert made.size == 7
    assert (made.overprovisioning_factor, made.weighted_priority_health) == (100, True)
    assert first.locality == Locality(region="r", zone="z", sub_zone="s")
    assert (first.weight, first.priority, second.priority, second.weight) == (7, 0, 1, None)
    assert list(first.unhealthy) == [1, 3, 4]
    assert list(first.draining) == [3]
    assert list(first.degraded) == [2]
    assert first.weights == (1, 3, 1, 1, 1, 1)
    assert second.weights is None
    assert list(first.endpoints) == [
        Endpoint("10.0.0.1", 80),
        Endpoint("10.0.0.2", 65535, 3, Health.UNHEALTHY),
        Endpoint("10.0.0.3", 1, 1, Health.DEGRADED),
        Endpoint("10.0.0.4", 128, 1, Health.DRAINING),
        Endpoint("10.0.0.5", 300, 1, Health.UNHEALTHY),
        Endpoint("10.0.0.6", 16384),
    ]
    assert first.endpoints[-1] is first.endpoints[5]
    assert first.endpoints[1:3] == (first.endpoints[1], first.endpoints[2])
    with pytest.raises(IndexError):
        first.endpoints[6]


def test_an_assignment_can_be_hashed() -> None:
    value = assignment(
        locality(endpoint(load_balancing_weight=2, health_status="UNHEALTHY"), endpoint("::1"))
    )
    assert hash(decode_assignment(value)) == hash(decode_assignment(value))
    assert decode_assignment(value) == decode_assignment(value)
    assert decode_assignment(value) != decode_assignment(assignment(locality(endpoint())))


def test_equal_weights_need_no_list() -> None:
    made = decode_assignment(
        assignment(locality(endpoint(load_balancing_weight=5), endpoint(port=81, load_balancing_weight=5)))
    )
    assert made.localities[0].weights is None
    assert made.localities[0].endpoints[1].weight == 5


def test_ipv6_and_hostnames() -> None:
    long = {"hostname": "h" * 200}
    items = [
        endpoint("FE80::A", 80),
        endpoint("::ffff:1.2.3.4"),
        endpoint("fe80::1%eth0"),
        endpoint("1.1.1.1"),
    ]
    items[3]["endpoint"].update(long)
    endpoints = decode_assignment(assignment(locality(*items))).localities[0].endpoints
    assert [each.key for each in endpoints] == [
        "[fe80::a]:80",
        "[::ffff:1.2.3.4]:80",
        "[fe80::1%eth0]:80",
        "1.1.1.1:80",
    ]
    assert endpoints[3].hostname == "h" * 200


def test_a_priority_that_is_missing_is_empty() -> None:
    made = decode_assignment(assignment(locality(endpoint(), priority=2), locality(endpoint("1.1.1.1"))))
    assert [(each.priority, len(each.endpoints)) for each in made.localities] == [(2, 1), (0, 1), (1, 0)]


def test_the_first_of_endpoints_with_one_address_counts() -> None:
    found = decoded(
        proto.ENDPOINT,
        assignment(
            locality(
                endpoint("1.1.1.1"), endpoint("2.2.2.2"), endpoint("1.1.1.1", health_status="UNHEALTHY")
            ),
            locality(endpoint("2.2.2.2"), endpoint("::1"), endpoint("0:0::1"), priority=1),
        ),
    )
    made = found.resource
    assert isinstance(made, ClusterLoadAssignment)
    assert [[each.address for each in place.endpoints] for place in made.localities] == [
        ["1.1.1.1", "2.2.2.2"],
        ["::1"],
    ]
    assert made.localities[0].unhealthy == ()
    assert len(found.warnings) == 1
    assert "3 endpoints" in found.warnings[0]


def test_an_unknown_health_status_is_healthy_and_reported() -> None:
    found = decoded(proto.ENDPOINT, assignment(locality(endpoint(), endpoint(port=81, health_status=9))))
    assert found.unsupported == ("endpoints[0].lb_endpoints[1].health_status",)


def test_what_is_not_applied_is_reported_once() -> None:
    items = [endpoint(f"10.0.0.{n}") for n in range(3)]
    for item in items[1:]:
        item["endpoint"]["health_check_config"] = {"port_value": 1}
        item["endpoint"]["address"]["socket_address"]["protocol"] = "UDP"
    found = decoded(
        proto.ENDPOINT,
        assignment(
            locality(*items, proximity=1, metadata={}),
            policy={"drop_overloads": [{"category": "x"}], "endpoint_stale_after": "1s"},
        ),
    )
    assert set(found.unsupported) == {
        "endpoints[0].lb_endpoints[1].endpoint.health_check_config",
        "endpoints[0].lb_endpoints[1].endpoint.address.socket_address.protocol",
        "endpoints[0].proximity",
        "policy.drop_overloads",
        "policy.endpoint_stale_after",
    }


ADDRESS = "endpoint.address.socket_address"


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ({}, "endpoint"),
        ({"endpoint": {}}, "endpoint.address"),
        ({"endpoint_name": "n"}, "endpoint_name"),
        ({"endpoint": {"address": {}}}, "endpoint.address"),
        ({"endpoint": {"address": {"pipe": {"path": "/" + 107 * "p"}}}}, "endpoint.address.pipe.path"),
        ({"endpoint": {"address": {"socket_address": {"address": "1.1.1.1"}}}}, ADDRESS),
        (
            {"endpoint": {"address": {"socket_address": {"address": "1.1.1.1", "named_port": "http"}}}},
            ADDRESS,
        ),
        (endpoint(""), f"{ADDRESS}.address"),
        (endpoint("example.com"), f"{ADDRESS}.address"),
        (endpoint("256.1.1.1"), f"{ADDRESS}.address"),
        (endpoint("01.1.1.1"), f"{ADDRESS}.address"),
        (endpoint("1.1.1"), f"{ADDRESS}.address"),
        (endpoint("1.1.1.1 "), f"{ADDRESS}.address"),
        (endpoint("[::1]"), f"{ADDRESS}.address"),
        (endpoint(port=65536), f"{ADDRESS}.port_value"),
        (endpoint(port=2**32 - 1), f"{ADDRESS}.port_value"),
        (endpoint(load_balancing_weight=0), "load_balancing_weight"),
    ],
)
def test_errors_in_an_endpoint(item: dict[str, Any], path: str) -> None:
    error = refused(proto.ENDPOINT, assignment(locality(item)))
    assert error.path == f"{ITEM}.{path}"
    assert error.name == "c"
    later = refused(
        proto.ENDPOINT, assignment(locality(endpoint("9.9.9.9")), locality(endpoint("8.8.8.8"), item))
    )
    assert later.path == f"endpoints[1].lb_endpoints[1].{path}"


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"endpoints": []}, "cluster_name"),
        (assignment(locality(endpoint(), priority=129)), "endpoints[0].priority"),
        (assignment(policy={"overprovisioning_factor": 0}), "policy.overprovisioning_factor"),
        (assignment(policy={"endpoint_stale_after": "-1s"}), "policy.endpoint_stale_after"),
        (
            assignment(policy={"drop_overloads": [{"category": "x"}, {"category": "y"}]}),
            "policy.drop_overloads",
        ),
        (
            assignment(
                {"leds_cluster_locality_config": {"leds_collection_name": "x", "leds_config": {"ads": {}}}}
            ),
            "endpoints[0].leds_cluster_locality_config",
        ),
    ],
)
def test_errors_elsewhere(value: dict[str, Any], path: str) -> None:
    assert refused(proto.ENDPOINT, value).path == path


def big(size: int, **changes: dict[str, Any]) -> bytes:
    items = [endpoint(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 8080) for n in range(size)]
    for place, change in changes.items():
        items[int(place[1:])] = change
    message = proto.from_dict(ASSIGNMENT, assignment(locality(*items)))
    return bytes(message.SerializeToString())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an assignment of a hundred endpoints is a large one."""
    monkeypatch.setattr(decode_endpoint, "CHECKED", 50)
    monkeypatch.setattr(decode_endpoint, "SLICE", 16)


@pytest.mark.usefixtures("few")
def test_the_first_of_endpoints_with_one_address_counts_in_whichever_slice_it_stands() -> None:
    again = {3: 1, 20: 2, 21: 20, 40: 39, 41: 2, 45: 44}
    changes = {f"_{place}": endpoint(f"10.0.0.{first}", 8080) for place, first in again.items()}
    changes |= {"_47": endpoint("10.0.0.47", 8080, health_status="UNHEALTHY")}
    made = decode_any(proto.ENDPOINT, big(48, **changes))
    assert isinstance(made.resource, ClusterLoadAssignment)
    place = made.resource.localities[0]
    # 20 stood for 2 and is left out, so the 20 of place 21 is the first of its address.
    kept = [number for number in range(48) if number not in (3, 20, 40, 41, 45)]
    expected = [f"10.0.0.{20 if number == 21 else number}" for number in kept]
    assert [each.address for each in place.endpoints] == expected
    assert list(place.unhealthy) == [len(kept) - 1]


@pytest.mark.usefixtures("few")
def test_a_large_assignment_is_checked_afterwards() -> None:
    data = big(
        100,
        _5=endpoint("not an address"),
        _30=endpoint("10.0.0.1", 8080),
        _31=endpoint("10.0.0.40", 8080, health_status="UNHEALTHY"),
        _99={},
    )
    made = decode_any(proto.ENDPOINT, data).resource
    assert isinstance(made, ClusterLoadAssignment)
    place = made.localities[0]
    assert list(place.unhealthy) == [31]
    assert place.endpoints[5] is BAD
    pauses: list[None] = []
    problems = check_addresses(made, lambda: pauses.append(None))
    assert [problem.index for problem in problems] == [5, 30, 40, 99]
    assert problems[0].reason.startswith("endpoint.address.socket_address.address: ")
    assert "stood before" in problems[1].reason
    assert len(pauses) == 7
    clean = without(made, problems)
    assert clean.size == 96
    assert check_addresses(clean) == []
    assert list(clean.localities[0].unhealthy) == [29]
    assert clean.localities[0].endpoints[29].address == "10.0.0.40"
    assert without(made, []) is made


@pytest.mark.usefixtures("few")
def test_dropping_keeps_weights_in_step() -> None:
    data = big(
        60, _1=endpoint("1.1.1.1", load_balancing_weight=9), _3=endpoint("2.2.2.2", health_status="DEGRADED")
    )
    made = decode_any(proto.ENDPOINT, data).resource
    assert isinstance(made, ClusterLoadAssignment)
    place = without(made, [EndpointProblem(locality=0, index=0, reason="x")]).localities[0]
    assert place.weights is not None
    assert (place.weights[0], len(place.weights), list(place.degraded)) == (9, 59, [2])


def test_pauses_are_offered() -> None:
    pauses: list[None] = []
    decode_any(proto.ENDPOINT, big(3000), pause=lambda: pauses.append(None))
    assert len(pauses) >= 2  # between slices, not after the last one


octets = st.integers(0, 255)
addresses = st.builds("{}.{}.{}.{}".format, octets, octets, octets, octets) | st.sampled_from(
    ["::1", "fe80::1", "2001:db8::1:2"]
)
healths = st.sampled_from(["UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED"])
MEANING = {
    "UNKNOWN": Health.HEALTHY,
    "HEALTHY": Health.HEALTHY,
    "DEGRADED": Health.DEGRADED,
    "DRAINING": Health.DRAINING,
}


@given(
    st.lists(
        st.tuples(
            addresses,
            st.integers(0, 65535),
            healths,
            st.none() | st.integers(1, 2**32 - 1),
            st.sampled_from(["", "host", "h" * 130]),
        ),
        max_size=8,
        unique_by=lambda each: (each[0], each[1]),
    )
)
def test_endpoints_are_what_their_messages_say(rows: list[tuple[str, int, str, int | None, str]]) -> None:
    items = []
    for address, port, health, weight, hostname in rows:
        item = endpoint(address, port, health_status=health)
        item["endpoint"]["hostname"] = hostname
        if weight is not None:
            item["load_balancing_weight"] = weight
        items.append(item)
    made = decode_assignment(assignment(locality(*items))).localities[0]
    expected = [
        Endpoint(address, port, weight or 1, MEANING.get(health, Health.UNHEALTHY), hostname)
        for address, port, health, weight, hostname in rows
    ]
    assert list(made.endpoints) == expected
    assert list(made.unhealthy) == [i for i, each in enumerate(expected) if each.health in OUT]
    assert list(made.draining) == [i for i, each in enumerate(expected) if each.health is Health.DRAINING]
    assert list(made.degraded) == [i for i, each in enumerate(expected) if each.health is Health.DEGRADED]
    weights = [each.weight for each in expected]
    assert (list(made.weights) if made.weights is not None else weights) == weights
    assert (made.weights is None) == (len(set(weights)) <= 1)


@given(st.binary(max_size=40), st.randoms(use_true_random=False))
def test_the_plain_layout_is_never_misread(noise: bytes, source: random.Random) -> None:
    """Damage to one endpoint gives either an error or what the message parser reads."""
    item = bytearray(
        proto.from_dict("envoy.config.endpoint.v3.LbEndpoint", endpoint("10.1.2.3", 8080)).SerializeToString()
    )
    for octet in noise[:3]:
        item[source.randrange(len(item))] = octet
    shadow = proto.message("meshlib.shadow.ClusterLoadAssignment")(cluster_name="c")
    shadow.endpoints.add().lb_endpoints.append(bytes(item))
    try:
        made = decode_load_assignment(shadow.SerializeToString(), Reading())
    except ResourceError:
        return
    message: Any = proto.parse("envoy.config.endpoint.v3.LbEndpoint", bytes(item))
    found = made.localities[0].endpoints[0]
    address = message.endpoint.address.socket_address
    assert (found.address, found.port) == (ip_text(address.address), address.port_value)
    assert found.weight == (message.load_balancing_weight.value or 1)


@given(addresses, st.integers(0, 65535))
def test_identity_is_the_key_on_the_wire(address: str, port: int) -> None:
    item = proto.from_dict("envoy.config.endpoint.v3.LbEndpoint", endpoint(address, port)).SerializeToString()
    assert identity(address, port) == item
    if ":" not in address:
        assert keys_of([item, item]) == [item, item]


def test_fields_in_another_order() -> None:
    message: Any = proto.from_dict("envoy.config.endpoint.v3.LbEndpoint", endpoint("10.1.2.3", 8080))
    item = b"\x10\x02" + message.SerializeToString() + b"\x22\x02\x08\x05"
    shadow = proto.message("meshlib.shadow.ClusterLoadAssignment")(cluster_name="c")
    shadow.endpoints.add().lb_endpoints.append(item)
    made = decode_load_assignment(shadow.SerializeToString(), Reading()).localities[0]
    assert made.endpoints[0] == Endpoint("10.1.2.3", 8080, 5, Health.UNHEALTHY)
    assert list(made.unhealthy) == [0]


def test_an_endpoint_in_two_pieces_is_refused() -> None:
    item = proto.from_dict(
        "envoy.config.endpoint.v3.LbEndpoint", endpoint("10.1.2.3", 8080)
    ).SerializeToString()
    other = proto.from_dict(
        "envoy.config.endpoint.v3.LbEndpoint", endpoint("10.9.9.9", 8080)
    ).SerializeToString()
    shadow = proto.message("meshlib.shadow.ClusterLoadAssignment")(cluster_name="c")
    shadow.endpoints.add().lb_endpoints.append(item + other)
    with pytest.raises(ResourceError, match="two pieces"):
        decode_load_assignment(shadow.SerializeToString(), Reading())


def test_a_message_and_its_bytes_decode_alike() -> None:
    message = proto.from_dict(ASSIGNMENT, assignment(locality(endpoint(), endpoint("::1"))))
    assert decode(proto.ENDPOINT, message) == decode_any(proto.ENDPOINT, message.SerializeToString())


@pytest.mark.parametrize(
    ("path", "address"),
    [("/run/x.sock", "/run/x.sock"), ("@name", "@name"), ("x.sock", str(Path.cwd() / "x.sock"))],
)
def test_unix_sockets(path: str, address: str) -> None:
    pipe = {"endpoint": {"address": {"pipe": {"path": path}}, "hostname": "h"}}
    found = decoded(proto.ENDPOINT, assignment(locality(pipe, endpoint())))
    assert found.unsupported == ()
    first, second = decode_assignment(assignment(locality(pipe, endpoint()))).localities[0].endpoints
    assert (first.address, first.port, first.key, first.hostname) == (address, 0, address, "h")
    assert second.key == "127.0.0.1:80"


def test_metadata_for_the_choice_of_a_transport_socket() -> None:
    def labels(**fields: Any) -> dict[str, Any]:
        return {
            "metadata": {"filter_metadata": {"envoy.transport_socket_match": fields, "other": {"a": "b"}}}
        }

    found = decode_assignment(
        assignment(
            locality(endpoint("10.0.0.1", **labels(mode="tls")), endpoint("10.0.0.2"), **labels(zone="z")),
            locality(endpoint("10.0.0.3", **labels(mode="tls", n=1)), endpoint("10.0.0.4")),
            locality(endpoint("10.0.0.5")),
        )
    )
    near, plain = found.localities[0].endpoints
    assert near.transport_socket_metadata == SocketMetadata({"mode": "tls"}, {"zone": "z"})
    assert plain.transport_socket_metadata == SocketMetadata({}, {"zone": "z"})
    assert plain.transport_socket_metadata != SocketMetadata({}, {"zone": "y"})
    assert plain.transport_socket_metadata != NO_METADATA
    assert plain.transport_socket_metadata != NO_METADATA
    assert plain.transport_socket_metadata
    assert not SocketMetadata({})
    assert SocketMetadata({"a": "b"}) == {"a": "b"}
    assert found.localities[1].endpoints[0].transport_socket_metadata == {"mode": "tls", "n": 1.0}
    assert found.localities[1].endpoints[1].transport_socket_metadata is NO_METADATA
    assert [place.has_metadata for place in found.localities] == [True, True, False]


def test_the_workload_of_an_endpoint() -> None:
    def istio(**fields: Any) -> dict[str, Any]:
        return {"metadata": {"filter_metadata": {"istio": fields}}}

    workload = "ratings-v1;default;ratings;v1;east"
    named = endpoint("10.0.0.2", **istio(workload=workload))
    named["endpoint"]["hostname"] = "h"
    found = decode_assignment(
        assignment(
            locality(
                endpoint("10.0.0.1", **istio(workload=workload)),
                named,
                endpoint("10.0.0.3", **istio(workload=3)),
            ),
            locality(endpoint("10.0.0.4", **istio(other="x"))),
        )
    )
    assert [each.workload for each in found.localities[0].endpoints] == [workload, workload, ""]
    assert [each.workload for each in found.localities[1].endpoints] == [""]
    assert [place.has_metadata for place in found.localities] == [True, False]
