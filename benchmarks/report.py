"""The ratios by name, and the tables that a person reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import samples
from benchmarks.samples import Ratio, Sample, Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One named ratio: `metric` of `case` divided by that of `base`."""

    name: str
    metric: Callable[[Sample], float]
    case: str
    base: str


def _comparison(name: str, metric: Callable[[Sample], float], case: str, base: str) -> Comparison:
    return Comparison(name=name, metric=metric, case=case, base=base)


_SYNC, _ASYNC, _64 = "sync/httpx/meshlib", "async/httpx/meshlib", "async64/httpx/meshlib"
COMPARISONS = (
    _comparison("sync_p50_vs_httpx", samples.p50, _SYNC, "sync/httpx/direct"),
    _comparison("async_p50_vs_httpx", samples.p50, _ASYNC, "async/httpx/direct"),
    _comparison("rps64_vs_httpx", samples.rps, _64, "async64/httpx/direct"),
    _comparison("rps64_vs_httpx2", samples.rps, _64, "async64/httpx2/direct"),
    _comparison("cpu_vs_httpx2_two_envoys", samples.cpu, _64, "async64/httpx2/two_envoys"),
    _comparison("rps512_vs_rps16", samples.rps, "async512/httpx/meshlib", "async16/httpx/meshlib"),
)
_GRPC, _STREAM = "grpc/meshlib", "grpc-stream/meshlib"
GRPC_COMPARISONS = (
    _comparison("grpc_sync_p50_vs_grpcio", samples.p50, f"sync/{_GRPC}", "sync/grpc/direct"),
    _comparison("grpc_aio_p50_vs_grpcio", samples.p50, f"async/{_GRPC}", "async/grpc/direct"),
    _comparison("grpc_stream_vs_grpcio", samples.rps, f"sync/{_STREAM}", "sync/grpc-stream/direct"),
    _comparison("grpc_segments64_vs_grpcio", samples.segments, f"async64/{_GRPC}", "async64/grpc/direct"),
    _comparison(
        "grpc_segments64_few_of_many_vs_grpcio",
        samples.segments,
        f"async64/{_GRPC}_few_of_many",
        "async64/grpc/direct",
    ),
)
GRPC_FURTHER = (
    _comparison("grpc_rps64_vs_grpcio", samples.rps, f"async64/{_GRPC}", "async64/grpc/direct"),
    _comparison(
        "grpc_rps64_few_of_many_vs_many", samples.rps, f"async64/{_GRPC}_few_of_many", f"async64/{_GRPC}_many"
    ),
    _comparison("grpc_cpu64_vs_grpcio", samples.cpu, f"async64/{_GRPC}", "async64/grpc/direct"),
    _comparison("grpc_cpu64_ccore_vs_grpcio", samples.cpu, "async64/grpc/ccore", "async64/grpc/direct"),
    _comparison("grpc_aio_stream_vs_grpcio", samples.rps, f"async/{_STREAM}", "async/grpc-stream/direct"),
    _comparison("grpc_sync_p50_vs_ccore", samples.p50, f"sync/{_GRPC}", "sync/grpc/ccore"),
    _comparison("grpc_aio_p50_vs_ccore", samples.p50, f"async/{_GRPC}", "async/grpc/ccore"),
    _comparison("grpc_sync_p50_ccore_vs_grpcio", samples.p50, "sync/grpc/ccore", "sync/grpc/direct"),
    _comparison("grpc_aio_p50_ccore_vs_grpcio", samples.p50, "async/grpc/ccore", "async/grpc/direct"),
    _comparison("grpc_rps64_ccore_vs_grpcio", samples.rps, "async64/grpc/ccore", "async64/grpc/direct"),
    _comparison("grpc_sync_p50_envoy_vs_grpcio", samples.p50, "sync/grpc/one_envoy", "sync/grpc/direct"),
    _comparison("grpc_aio_p50_envoy_vs_grpcio", samples.p50, "async/grpc/one_envoy", "async/grpc/direct"),
    _comparison(
        "grpc_stream_envoy_vs_grpcio", samples.rps, "sync/grpc-stream/one_envoy", "sync/grpc-stream/direct"
    ),
    _comparison("grpc_rps64_envoy_vs_grpcio", samples.rps, "async64/grpc/one_envoy", "async64/grpc/direct"),
)
FURTHER = (
    _comparison("sync_cpu_vs_httpx2_two_envoys", samples.cpu, _SYNC, "sync/httpx2/two_envoys"),
    _comparison("async_cpu_vs_httpx2_two_envoys", samples.cpu, _ASYNC, "async/httpx2/two_envoys"),
    _comparison("sync_p50_vs_httpx_two_envoys", samples.p50, _SYNC, "sync/httpx/two_envoys"),
    _comparison("async_p50_vs_httpx_two_envoys", samples.p50, _ASYNC, "async/httpx/two_envoys"),
    _comparison("sync_p50_httpx2_vs_httpx2", samples.p50, "sync/httpx2/meshlib", "sync/httpx2/direct"),
    _comparison("async_p50_httpx2_vs_httpx2", samples.p50, "async/httpx2/meshlib", "async/httpx2/direct"),
    _comparison("rps64_vs_aiohttp", samples.rps, _64, "async64/aiohttp/direct"),
    _comparison("sync_p50_two_envoys_vs_httpx", samples.p50, "sync/httpx/two_envoys", "sync/httpx/direct"),
)
_MTLS_SYNC, _MTLS_ASYNC = "mtls-sync/httpx/meshlib_mtls", "mtls-async/httpx/meshlib_mtls"
MTLS_COMPARISONS = (
    _comparison("mtls_sync_p50_vs_httpx", samples.p50, _MTLS_SYNC, "mtls-sync/httpx/direct"),
    _comparison("mtls_async_p50_vs_httpx", samples.p50, _MTLS_ASYNC, "mtls-async/httpx/direct"),
    _comparison("mtls_sync_p50_vs_two_envoys", samples.p50, _MTLS_SYNC, "mtls-sync/httpx/two_envoys"),
    _comparison("mtls_async_p50_vs_two_envoys", samples.p50, _MTLS_ASYNC, "mtls-async/httpx/two_envoys"),
    _comparison("mtls_handshake_vs_ssl", samples.p50, "handshake/meshlib", "handshake/ssl"),
)
MTLS_FURTHER = (
    _comparison("mtls_sync_cpu_vs_two_envoys", samples.cpu, _MTLS_SYNC, "mtls-sync/httpx/two_envoys"),
    _comparison("mtls_async_cpu_vs_two_envoys", samples.cpu, _MTLS_ASYNC, "mtls-async/httpx/two_envoys"),
    _comparison("mtls_sync_least_vs_httpx", samples.p50, "mtls-sync/httpx/ssl", "mtls-sync/httpx/direct"),
    _comparison(
        "mtls_sync_least_vs_two_envoys", samples.p50, "mtls-sync/httpx/ssl", "mtls-sync/httpx/two_envoys"
    ),
    _comparison("mtls_sync_p50_vs_plaintext", samples.p50, _MTLS_SYNC, "mtls-sync/httpx/meshlib"),
    _comparison("mtls_async_p50_vs_plaintext", samples.p50, _MTLS_ASYNC, "mtls-async/httpx/meshlib"),
)
_MTLS_GRPC_SYNC, _MTLS_GRPC_AIO = "mtls-sync/grpc/meshlib_mtls", "mtls-async/grpc/meshlib_mtls"
_MTLS_GRPC_SYNC_RELAY, _MTLS_GRPC_AIO_RELAY = (
    "mtls-sync/grpc/meshlib_relay",
    "mtls-async/grpc/meshlib_relay",
)
MTLS_GRPC_COMPARISONS = (
    _comparison(
        "mtls_grpc_sync_p50_vs_two_envoys", samples.p50, _MTLS_GRPC_SYNC, "mtls-sync/grpc/two_envoys"
    ),
    _comparison("mtls_grpc_aio_p50_vs_two_envoys", samples.p50, _MTLS_GRPC_AIO, "mtls-async/grpc/two_envoys"),
)
MTLS_GRPC_FURTHER = (
    _comparison("mtls_grpc_sync_p50_vs_plaintext", samples.p50, _MTLS_GRPC_SYNC, "mtls-sync/grpc/meshlib"),
    _comparison("mtls_grpc_aio_p50_vs_plaintext", samples.p50, _MTLS_GRPC_AIO, "mtls-async/grpc/meshlib"),
    _comparison("mtls_grpc_sync_p50_vs_grpcio", samples.p50, _MTLS_GRPC_SYNC, "mtls-sync/grpc/direct"),
    _comparison("mtls_grpc_aio_p50_vs_grpcio", samples.p50, _MTLS_GRPC_AIO, "mtls-async/grpc/direct"),
    _comparison("mtls_grpc_sync_p50_relay_vs_tunnel", samples.p50, _MTLS_GRPC_SYNC_RELAY, _MTLS_GRPC_SYNC),
    _comparison("mtls_grpc_aio_p50_relay_vs_tunnel", samples.p50, _MTLS_GRPC_AIO_RELAY, _MTLS_GRPC_AIO),
    _comparison(
        "mtls_grpc_sync_p50_relay_vs_plaintext", samples.p50, _MTLS_GRPC_SYNC_RELAY, "mtls-sync/grpc/meshlib"
    ),
    _comparison(
        "mtls_grpc_aio_p50_relay_vs_plaintext", samples.p50, _MTLS_GRPC_AIO_RELAY, "mtls-async/grpc/meshlib"
    ),
    _comparison(
        "mtls_grpc_sync_cpu_vs_two_envoys", samples.cpu, _MTLS_GRPC_SYNC, "mtls-sync/grpc/two_envoys"
    ),
    _comparison("mtls_grpc_aio_cpu_vs_two_envoys", samples.cpu, _MTLS_GRPC_AIO, "mtls-async/grpc/two_envoys"),
)
GOALS = {
    "sync_p50_vs_httpx": "<= 0.50",
    "async_p50_vs_httpx": "<= 0.30",
    "rps64_vs_httpx": ">= 10",
    "rps64_vs_httpx2": ">= 2.8",
    "cpu_vs_httpx2_two_envoys": "<= 0.25",
    "rps512_vs_rps16": ">= 0.85",
    "push_1000_vs_envoy": "<= 0.2",
    "push_10000_vs_envoy": "<= 0.2",
    "push_100000_vs_envoy": "<= 0.2",
    "push_delay_ms_10000": "<= 2",
    "push_delay_ms_100000": "<= 20",
    "grpc_sync_p50_vs_grpcio": "<= 1.08",
    "grpc_aio_p50_vs_grpcio": "<= 1.12",
    "grpc_stream_vs_grpcio": ">= 0.97",
    "grpc_segments64_vs_grpcio": "<= 1.05",
    "grpc_segments64_few_of_many_vs_grpcio": "<= 1.05",
    "mtls_sync_p50_vs_httpx": "<= 0.62",
    "mtls_async_p50_vs_httpx": "<= 0.36",
    "mtls_sync_p50_vs_two_envoys": "<= 0.26",
    "mtls_async_p50_vs_two_envoys": "<= 0.22",
    "mtls_handshake_vs_ssl": "<= 1.2",
    "mtls_grpc_sync_p50_vs_two_envoys": "<= 0.55",
    "mtls_grpc_aio_p50_vs_two_envoys": "<= 0.60",
    "import_ms": "< 50",
}


def ratios(measured: Samples, comparisons: tuple[Comparison, ...]) -> dict[str, Ratio]:
    """Each of these ratios whose two cases were measured."""
    found = {}
    for comparison in comparisons:
        ratio = measured.ratio(comparison.case, comparison.base, comparison.metric)
        if ratio is not None:
            found[comparison.name] = ratio
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys, in columns; numbers to the right."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(names))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def ratio_rows(found: dict[str, Ratio], confirmed: dict[str, Ratio]) -> list[dict[str, Any]]:
    """The ratios with quartiles and goal, and what the unpinned rounds gave."""
    return [
        {
            "ratio": name,
            "value": round(ratio.value, 3),
            "quartiles": f"{ratio.low:.3f}..{ratio.high:.3f}",
            "goal": GOALS.get(name, ""),
            "unpinned": f"{confirmed[name].value:.3f}" if name in confirmed else "",
        }
        for name, ratio in found.items()
    ]
