"""Load reports: what a Mesh counted arrives at the control plane that asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import meshlib
import meshlib.grpc
from meshlib import proto
from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.testing import Reply, Request, Reset, Upstream, messages, service
from tests.mesh.callers import Caller
from tests.transport.grpc.support import backend

LIMIT = 20.0
WITH_REPORTS: dict[str, Any] = {"lrs_server": {"self": {}}}


def configured(*addresses: str, **cluster: Any) -> list[proto.Message]:
    """The service, with each endpoint in a zone of its own."""
    document = service("echo", *addresses)
    for resource in document["resources"]:
        if resource["@type"] == proto.CLUSTER:
            resource.update(cluster)
        if resource["@type"] == proto.ENDPOINT:
            (whole,) = resource["endpoints"]
            resource["endpoints"] = [
                {
                    "lb_endpoints": [endpoint],
                    "locality": {"zone": f"zone-{number}"},
                    "load_balancing_weight": 1,
                }
                for number, endpoint in enumerate(whole["lb_endpoints"])
            ]
    return list(messages(document))


def totals(control_plane: ControlPlane) -> Counter[str]:
    """What all reports add up to, by zone and by number."""
    found: Counter[str] = Counter()
    for report in control_plane.load_reports:
        for cluster in report.clusters:
            found["dropped"] += cluster.total_dropped_requests
            for place in cluster.upstream_locality_stats:
                zone = place.locality.zone
                found[f"{zone} issued"] += place.total_issued_requests
                found[f"{zone} succeeded"] += place.total_successful_requests
                found[f"{zone} failed"] += place.total_error_requests
                for endpoint in place.upstream_endpoint_stats:
                    address = endpoint.address.socket_address
                    found[f"{address.address}:{address.port_value}"] += endpoint.total_issued_requests
    return +found


@pytest.fixture
def answer() -> Callable[[Request], Any]:
    def of(request: Request) -> Any:
        path = request.target.strip("/")
        return Reset() if path == "reset" else Reply(status=int(path))

    return of


def test_calls_are_reported(caller: Callable[..., Caller], answer: Callable[[Request], Any]) -> None:
    with Upstream(answer) as one, Upstream(answer) as two:
        store = ResourceStore(configured(one.address, two.address, **WITH_REPORTS))
        with (
            ControlPlane(store, load_reporting_interval=1.0) as control_plane,
            meshlib.Mesh(bootstrap=control_plane.bootstrap("me")) as mesh,
        ):
            client = caller(mesh, local_reply="response")
            client.get("http://echo/200")
            control_plane.wait_for(lambda each: bool(each.load_reports), LIMIT)
            before = totals(control_plane)
            for path in ("200", "200", "404", "404", "503", "503", "reset", "reset"):
                client.get(f"http://echo/{path}")
            expected = {
                f"zone-{number} {what}": count
                for number in (0, 1)
                for what, count in (("issued", 4), ("succeeded", 2), ("failed", 2))
            }
            expected.update({one.address: 4, two.address: 4})
            control_plane.wait_for(lambda each: totals(each) - before == Counter(expected), LIMIT)
            assert {report.node for report in control_plane.load_reports} == {"me"}


def test_calls_over_grpc_are_reported() -> None:
    with backend() as server:
        server.unary("fine", lambda request, context: request)
        server.unary("missing", lambda request, context: context.abort(grpc.StatusCode.NOT_FOUND, ""))
        server.unary("broken", lambda request, context: context.abort(grpc.StatusCode.INTERNAL, ""))
        store = ResourceStore(configured(server.address, **WITH_REPORTS))
        with (
            ControlPlane(store, load_reporting_interval=1.0) as control_plane,
            meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh,
            meshlib.grpc.channel("echo:80", mesh=mesh) as channel,
        ):
            fine = channel.unary_unary("/test.Echo/fine")
            fine(b"")
            control_plane.wait_for(lambda each: bool(each.load_reports), LIMIT)
            before = totals(control_plane)
            fine(b"")
            for method in ("missing", "broken"):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(f"/test.Echo/{method}")(b"")
            expected = {"zone-0 issued": 3, "zone-0 succeeded": 2, "zone-0 failed": 1, server.address: 3}
            control_plane.wait_for(lambda each: totals(each) - before == Counter(expected), LIMIT)


def test_nobody_is_told_of_clusters_that_do_not_ask(caller: Callable[..., Caller]) -> None:
    with Upstream() as upstream:
        store = ResourceStore(configured(upstream.address))
        with (
            ControlPlane(store, load_reporting_interval=1.0) as control_plane,
            meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh,
        ):
            caller(mesh).get("http://echo/")
            assert mesh.engine.observers.attempt_begun == ()
            store.replace(configured(upstream.address, **WITH_REPORTS))
            control_plane.wait_for(lambda each: bool(each.load_reports), LIMIT)
            assert len(mesh.engine.observers.attempt_begun) == 1
