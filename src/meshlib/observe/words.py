"""One sentence about what people look at most, for the HELP lines. By family; the rest is said by Envoy's documentation."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["HELP"]

HELP: Mapping[str, str] = {
    "istio_requests_total": "Requests, by who called whom, protocol, status and response flags.",
    "istio_request_duration_milliseconds": "From the beginning of a request to the end of its response.",
    "istio_request_bytes": "Size of request bodies.",
    "istio_response_bytes": "Size of response bodies.",
    "istio_request_messages_total": "Messages that gRPC clients have sent.",
    "istio_response_messages_total": "Messages that gRPC servers have sent.",
    "meshlib_route_requests_total": "Calls, by cluster, route and outcome, with all retries of a call as one.",
    "meshlib_route_duration_milliseconds": "From the beginning of a call to its end, retries and waiting included.",
    "meshlib_saturation": "Share of a limit of the cluster that is in use, 0 to 1, by resource and priority.",
    "meshlib_event_loop_lag_seconds": "How late the slowest event loop with calls ran its callbacks lately.",
    "cluster.upstream_rq_total": "Attempts, retries included.",
    "cluster.upstream_rq_completed": "Attempts with a response.",
    "cluster.upstream_rq_xx": "Responses, by class of the status.",
    "cluster.upstream_rq": "Responses, by status.",
    "cluster.upstream_rq_time": "Milliseconds from an attempt's beginning to the end of its response.",
    "cluster.upstream_rq_active": "Attempts under way.",
    "cluster.upstream_rq_retry": "Retries.",
    "cluster.upstream_cx_total": "Connections that were opened.",
    "cluster.upstream_cx_active": "Connections that are open.",
    "control_plane.connected_state": "1 while there is a connection to the control plane.",
}
