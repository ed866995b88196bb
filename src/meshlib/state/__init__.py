"""What outlives a snapshot: permits, active counts, ejections and queues, by cluster and by (cluster, address)."""

from __future__ import annotations

from meshlib.state.cluster import Admission, ClusterState
from meshlib.state.cluster_stats import ClusterStats
from meshlib.state.endpoint import EndpointState
from meshlib.state.faults import ActiveFault, ActiveFaults
from meshlib.state.http_stats import HttpStats
from meshlib.state.permits import Permits
from meshlib.state.request_stats import RequestStats
from meshlib.state.responses import ResponseCodes
from meshlib.state.store import StateStore
from meshlib.state.waiter import Waiter
from meshlib.state.way import Handshake, Secure, Security, Way

__all__ = [
    "ActiveFault",
    "ActiveFaults",
    "Admission",
    "ClusterState",
    "ClusterStats",
    "EndpointState",
    "Handshake",
    "HttpStats",
    "Permits",
    "RequestStats",
    "ResponseCodes",
    "Secure",
    "Security",
    "StateStore",
    "Waiter",
    "Way",
]
