"""What a Mesh tells the outside about its calls: `Mesh(observe=Observe(...))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Observe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    """tracing: spans by the globally configured OpenTelemetry provider, or by this one; False: none, and no trace context is
    passed on. Without an SDK in the process there are no spans, but the context still goes on."""

    tracing: bool | TracerProvider = True
