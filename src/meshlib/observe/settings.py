"""What a Mesh tells the outside about its calls: `Mesh(observe=Observe(...))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from meshlib.observe.access_log.settings import AccessLog

__all__ = ["Observe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    """tracing: spans by the globally configured OpenTelemetry provider, or by this one; False: none, and no trace context is
    passed on. Without an SDK in the process there are no spans, but the context still goes on.

    access_log: one log of calls, or several; a text is the format of one to the logger `meshlib.access`. listener_access_log:
    those that the configuration asks for (`access_log` of the HttpConnectionManager) are written.

    metrics: calls are counted as Istio's proxies count them, and by route, beside what the engine counts as Envoy does.
    otel_metrics: all that is counted is also exported by OpenTelemetry's global meter provider, or by this one.

    recent_calls: how many of the last calls are remembered, with why each went where it went, and as many of those that failed,
    were tried again or took a second; of requests that are served as many; 0: none. None: 256 from the moment on when somebody
    can ask for them, which is with `admin`, or at the first `Mesh.admin()`; before, none. admin: what
    `Mesh.admin()` shows is served on this `host:port` of the loopback interface, True: on a port that is free, and to
    `meshlib status` and its like. The environment variable MESHLIB_ADMIN says the same without code.
    """

    tracing: bool | TracerProvider = True
    metrics: bool = True
    otel_metrics: bool | MeterProvider = False
    access_log: Sequence[AccessLog | str] | AccessLog | str = ()
    listener_access_log: bool = True
    recent_calls: int | None = None
    admin: bool | str = False
