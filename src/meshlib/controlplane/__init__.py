"""The embedded control plane: ADS from files or from a store that a program fills."""

from __future__ import annotations

from meshlib.controlplane.feed import FileFeed
from meshlib.controlplane.server import ControlPlane
from meshlib.controlplane.store import ResourceStore, StoredResource, TypeState
from meshlib.controlplane.stream import Answer

__all__ = ["Answer", "ControlPlane", "FileFeed", "ResourceStore", "StoredResource", "TypeState"]
