"""What it costs to observe a call: the same call through the same engine, with nothing, and with one observer at a time.

No socket is involved: the events that a transport would report of a small answer over an idle connection are given to the engine
directly, so that a microsecond can be seen. Variants take turns in random order, by the CPU time of the thread; what one costs is
the median over the rounds of its turn less that of `nothing`. `told` has an observer that does nothing: that anybody hears of
calls at all, which all observers share. A part of meshlib that observes calls has a row in VARIANTS.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import meshlib
from benchmarks.configuration import AUTHORITY, PATH, mesh_resources
from meshlib.engine.actions import Start
from meshlib.engine.call import Call
from meshlib.engine.engine import Engine
from meshlib.engine.events import Begin, Headers
from meshlib.engine.observer import CallObserver
from meshlib.routing.request import RequestView

__all__ = ["VARIANTS", "Variant", "run"]

CALLS = 500
"""In one turn."""

NOTHING = meshlib.Observe(tracing=False, metrics=False, listener_access_log=False, recent_calls=0)


def _metrics() -> meshlib.Observe:
    return meshlib.Observe(tracing=False, metrics=True, listener_access_log=False, recent_calls=0)


def _traced(sampler: Any = None, *, sdk: bool = True) -> meshlib.Observe:
    """Spans by an SDK whose finished spans are dropped in batches, or the context alone. sampler: None records all."""
    tracing: Any = True
    if sdk:
        tracing = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        tracing.add_span_processor(BatchSpanProcessor(_Nowhere()))
    return meshlib.Observe(tracing=tracing, metrics=False, listener_access_log=False, recent_calls=0)


def _never() -> meshlib.Observe:
    return _traced(ALWAYS_OFF)


def _logged() -> meshlib.Observe:
    """Envoy's default format, into a file that keeps nothing."""
    log = meshlib.AccessLog(to=os.devnull, calls="outbound")
    return meshlib.Observe(
        tracing=False, metrics=False, access_log=[log], listener_access_log=False, recent_calls=0
    )


class _Nowhere(SpanExporter):
    """Exports nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def _recent() -> meshlib.Observe:
    return meshlib.Observe(tracing=False, metrics=False, listener_access_log=False, recent_calls=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """settings: made when it is measured. observer: a further one. most: microseconds that it may cost by itself, None
    where nothing was promised."""

    name: str
    settings: Callable[[], meshlib.Observe] = lambda: NOTHING
    observer: Callable[[], CallObserver] | None = None
    most: float | None = None


class _Silent(CallObserver):
    def over(self, call: Call, now: float) -> None:
        """Does nothing."""


VARIANTS: tuple[Variant, ...] = (
    Variant(name="told", observer=_Silent),
    Variant(name="metrics", settings=_metrics, most=3.0),
    Variant(name="recent", settings=_recent),
    Variant(name="tracing without an sdk", settings=lambda: _traced(sdk=False), most=4.0),
    Variant(name="tracing not recording", settings=_never, most=4.0),
    Variant(name="tracing recording", settings=_traced, most=40.0),
    Variant(name="access log", settings=_logged, most=12.0),
)


def run(rounds: int, order: random.Random, variants: Iterable[Variant] = VARIANTS) -> list[dict[str, Any]]:
    """One row for each variant: microseconds of a call, how many more than with nothing and than with `told`, and what is allowed
    of the latter."""
    with ExitStack() as stack:
        every = (Variant(name="nothing"), *variants)
        engines = {variant.name: _engine(stack, variant) for variant in every}
        gc.freeze()
        stack.callback(gc.unfreeze)
        turns: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name in order.sample(sorted(engines), len(engines)):
                turns[name].append(_turn(engines[name]))
    return [_row(variant, turns) for variant in every]


def _row(variant: Variant, turns: Mapping[str, list[float]]) -> dict[str, Any]:
    mine = turns[variant.name]

    def more(than: str) -> float | None:
        return round(statistics.median(map(float.__sub__, mine, turns[than])), 2) if than in turns else None

    return {
        "case": f"observe/{variant.name}",
        "us_call": round(statistics.median(mine), 2),
        "us_more": more("nothing"),
        "us_more_than_told": None if variant.observer else more("told"),
        "at_most": variant.most,
    }


def _engine(stack: ExitStack, variant: Variant) -> Engine:
    resources = mesh_resources([("127.0.0.1", 9), ("127.0.0.1", 10)])
    mesh = stack.enter_context(meshlib.Mesh(config=[resources], observe=variant.settings()))
    mesh.start()
    if variant.observer is not None:
        mesh.engine.observe(variant.observer())
    _turn(mesh.engine)
    return mesh.engine


def _turn(engine: Engine) -> float:
    """Microseconds of one call."""
    clock = engine.clock.monotonic
    before = time.thread_time()
    for _ in range(CALLS):
        request = RequestView("GET", "http", AUTHORITY, PATH, [("accept", "*/*")], f"{AUTHORITY}:80")
        call = engine.call(request, wake=_wake)
        (start,) = call.handle(Begin(), clock())
        assert isinstance(start, Start)
        if call.observed:
            call.account(0, 1024)
        call.handle(Headers(start.attempt, 200, _HEADERS, True), clock())
    return (time.thread_time() - before) / CALLS * 1e6


_HEADERS = [("content-type", "text/plain"), ("content-length", "1024")]


def _wake() -> None:
    """Nothing here waits."""
