"""Tracing with OpenTelemetry: a span for each call, one for each attempt, and the context that goes on with the request."""

from __future__ import annotations

from meshlib.observe.tracing.observer import TracingObserver

__all__ = ["TracingObserver"]
