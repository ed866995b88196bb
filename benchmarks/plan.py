"""How much of each section a run does, and which sections measure which ratio."""

from __future__ import annotations

from dataclasses import dataclass

SECTIONS = {
    "sync": ("sync_p50_vs_httpx",),
    "async": ("async_p50_vs_httpx",),
    "throughput": ("rps64_vs_httpx", "rps64_vs_httpx2", "cpu_vs_httpx2_two_envoys", "rps512_vs_rps16"),
    "push": (
        "push_1000_vs_envoy",
        "push_10000_vs_envoy",
        "push_100000_vs_envoy",
        "push_delay_ms_10000",
        "push_delay_ms_100000",
    ),
    "mtls": (
        "mtls_sync_p50_vs_httpx",
        "mtls_async_p50_vs_httpx",
        "mtls_sync_p50_vs_two_envoys",
        "mtls_async_p50_vs_two_envoys",
        "mtls_handshake_vs_ssl",
    ),
    "mtls_grpc": ("mtls_grpc_sync_p50_vs_two_envoys", "mtls_grpc_aio_p50_vs_two_envoys"),
    "grpc": (
        "grpc_sync_p50_vs_grpcio",
        "grpc_aio_p50_vs_grpcio",
        "grpc_stream_vs_grpcio",
        "grpc_segments64_vs_grpcio",
        "grpc_segments64_few_of_many_vs_grpcio",
    ),
    "observe": (),
    "page": (),
    "import": ("import_ms",),
    "memory": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Rounds of each section. `calls` are made one by one in a turn, `seconds` is a concurrent turn's length."""

    rounds: int
    calls: int
    concurrent_rounds: int
    seconds: float
    pushes: int
    imports: int
    pages: int

    def part(self, divisor: int) -> Plan:
        """A shorter plan, for the confirmation without pinning."""
        return Plan(
            rounds=max(2, self.rounds // divisor),
            calls=self.calls,
            concurrent_rounds=max(2, self.concurrent_rounds // divisor),
            seconds=self.seconds,
            pushes=self.pushes,
            imports=self.imports,
            pages=self.pages,
        )


FULL = Plan(rounds=21, calls=200, concurrent_rounds=7, seconds=0.7, pushes=7, imports=15, pages=7)
QUICK = Plan(rounds=5, calls=80, concurrent_rounds=2, seconds=0.3, pushes=3, imports=5, pages=3)


def sections(only: list[str]) -> list[str]:
    """The sections that `--only` names, by their own name or by a ratio's; all when it names none.

    ValueError for a name that is neither.
    """
    known = {name: section for section, names in SECTIONS.items() for name in (section, *names)}
    for name in only:
        if name not in known:
            raise ValueError(f"{name!r}: neither a section nor a ratio; known: {', '.join(known)}")
    chosen = {known[name] for name in only}
    return [section for section in SECTIONS if not only or section in chosen]
