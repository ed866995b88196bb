"""What is known of a resource, for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshlib.errors import ResourceError
from meshlib.snapshot.snapshot import Kind

__all__ = ["ResourceState", "ResourceStatus"]


class ResourceState(Enum):
    """As in CSDS (envoy.admin.v3.ClientResourceStatus)."""

    REQUESTED = "REQUESTED"
    DOES_NOT_EXIST = "DOES_NOT_EXIST"
    ACKED = "ACKED"
    NACKED = "NACKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStatus:
    """What is known of one resource.

    version: `version_info` of the good version, empty when there is none. error, error_version: of the latest version, when
    it was rejected. updated: when any of this changed last, on the clock whose readings the graph was given.
    """

    kind: Kind
    name: str
    state: ResourceState
    version: str
    error: ResourceError | None
    error_version: str
    updated: float
