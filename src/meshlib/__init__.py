"""meshlib: a service mesh that is an import.

Importing it starts no thread and opens no socket, and loads neither httpx nor grpc: names are resolved when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.engine.call import CallInfo
    from meshlib.engine.context import in_context
    from meshlib.engine.options import CallOptions, call
    from meshlib.errors import (
        AttemptRecord,
        BreakerOpen,
        CircuitFull,
        ConfigError,
        ConfigTimeout,
        ConnectFailed,
        ConnectTimedOut,
        ControlPlaneError,
        DeadlineExceeded,
        FaultInjected,
        IdentityError,
        LimitError,
        LocalReply,
        MeshClosed,
        MeshError,
        NoCluster,
        NoHealthyEndpoint,
        NoRoute,
        ProtocolViolation,
        ResourceError,
        RoutingError,
        StreamReset,
        UnknownHost,
        UpstreamError,
    )
    from meshlib.mesh import Mesh, default_mesh
    from meshlib.observe.access_log.settings import AccessLog
    from meshlib.observe.decision import AttemptDecision, Decision
    from meshlib.observe.settings import Observe
    from meshlib.policy.breaker import BreakerConfig
    from meshlib.server.peer import InboundPeer, current_peer

__all__ = [
    "AccessLog",
    "AttemptDecision",
    "AttemptRecord",
    "BreakerConfig",
    "BreakerOpen",
    "CallInfo",
    "CallOptions",
    "CircuitFull",
    "ConfigError",
    "ConfigTimeout",
    "ConnectFailed",
    "ConnectTimedOut",
    "ControlPlaneError",
    "DeadlineExceeded",
    "Decision",
    "FaultInjected",
    "IdentityError",
    "InboundPeer",
    "LimitError",
    "LocalReply",
    "Mesh",
    "MeshClosed",
    "MeshError",
    "NoCluster",
    "NoHealthyEndpoint",
    "NoRoute",
    "Observe",
    "ProtocolViolation",
    "ResourceError",
    "RoutingError",
    "StreamReset",
    "UnknownHost",
    "UpstreamError",
    "__version__",
    "call",
    "current_peer",
    "default_mesh",
    "in_context",
]

__version__ = "0.1.0.dev0"

_HOMES = {
    "AccessLog": "meshlib.observe.access_log.settings",
    "BreakerConfig": "meshlib.policy.breaker",
    "CallInfo": "meshlib.engine.call",
    "CallOptions": "meshlib.engine.options",
    "AttemptDecision": "meshlib.observe.decision",
    "Decision": "meshlib.observe.decision",
    "InboundPeer": "meshlib.server.peer",
    "Mesh": "meshlib.mesh",
    "Observe": "meshlib.observe.settings",
    "call": "meshlib.engine.options",
    "current_peer": "meshlib.server.peer",
    "default_mesh": "meshlib.mesh",
    "in_context": "meshlib.engine.context",
}

_MODULES = frozenset(("grpc", "httpx", "httpx2", "testing"))


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"meshlib.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'meshlib' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES.get(name, "meshlib.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
