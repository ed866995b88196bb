"""Fault injection: extensions.filters.http.fault.v3.HTTPFault, in the chain and on routes.

Not read, so reported: runtime keys (there is no runtime, so what is configured counts), filter_metadata (there is no dynamic
metadata) and response_rate_limit.
"""

from __future__ import annotations

from meshlib.resources.decode_common import fractional_percent
from meshlib.resources.decode_matching import header_match
from meshlib.resources.fault import FaultAbort, FaultDelay, HttpFault
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.reader import Reader

__all__ = ["decode_fault"]

_NEVER = FractionalPercent(numerator=0)


def decode_fault(reader: Reader) -> HttpFault:
    """HTTPFault. Raises ResourceError."""
    delay, abort = reader.child("delay"), reader.child("abort")
    return HttpFault(
        delay=None if delay is None else _delay(delay),
        abort=None if abort is None else _abort(abort),
        upstream_cluster=reader.text("upstream_cluster"),
        headers=tuple(header_match(each) for each in reader.each("headers")),
        downstream_nodes=frozenset(reader.values("downstream_nodes")),
        max_active_faults=reader.boxed("max_active_faults"),
        downstream_cluster_stats=not reader.flag("disable_downstream_cluster_stats"),
    )


def _delay(reader: Reader) -> FaultDelay:
    milliseconds = None
    if reader.which("fault_delay_secifier") == "fixed_delay":
        seconds = reader.duration("fixed_delay") or 0.0
        milliseconds = round(seconds * 1e9) // 1_000_000
    reader.leave("header_delay")
    return FaultDelay(percentage=_percentage(reader), milliseconds=milliseconds)


def _abort(reader: Reader) -> FaultAbort:
    kind = reader.which("error_type")
    reader.leave("header_abort")
    return FaultAbort(
        percentage=_percentage(reader),
        http_status=reader.number(kind) if kind == "http_status" else None,
        grpc_status=reader.number(kind) if kind == "grpc_status" else None,
    )


def _percentage(reader: Reader) -> FractionalPercent:
    value = reader.child("percentage")
    return _NEVER if value is None else fractional_percent(value)
