"""What the control plane, or the files, say right now, as one immutable object, and the graph that keeps it up to date."""

from __future__ import annotations

from meshlib.snapshot.graph import Graph
from meshlib.snapshot.snapshot import Accepted, Kind, Ref, Snapshot, from_resources
from meshlib.snapshot.status import ResourceState, ResourceStatus

__all__ = [
    "Accepted",
    "Graph",
    "Kind",
    "Ref",
    "ResourceState",
    "ResourceStatus",
    "Snapshot",
    "from_resources",
]
