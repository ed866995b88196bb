"""`python -m benchmarks [--json FILE] [--quick] [--only NAME]... [--pin same|none]`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks import (
    cases,
    footprint,
    grpc_cases,
    grpc_mtls,
    grpc_run,
    grpc_world,
    mtls,
    observe,
    page,
    plan,
    push,
    report,
    runner,
)
from benchmarks.configuration import mesh_resources
from benchmarks.plan import Plan
from benchmarks.samples import Samples
from benchmarks.world import World, world
from meshlib.engine import call


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write ratios and cases there")
    parser.add_argument("--quick", action="store_true", help="few rounds: an impression in about a minute")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a section or a ratio; may be repeated"
    )
    parser.add_argument(
        "--pin", choices=("same", "none"), default="same",
        help="same: all on one CPU, and a shorter confirmation without pinning (default); none: never pinned",
    )  # fmt: skip
    parser.add_argument("--own-upstream", action="store_true", help="do not use nginx")
    parser.add_argument("--baselines", action="store_true", help="leave meshlib out")
    parser.add_argument("--seed", type=int, default=0, help="of the order inside the rounds")
    arguments = parser.parse_args()
    try:
        arguments.sections = plan.sections(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _throughput_turns(found: list[cases.Case[cases.AsyncFetch]]) -> list[tuple[Any, int]]:
    turns = [(case, level) for case in found for level in (16, 64)]
    return turns + [(case, 512) for case in found if case.name.endswith("/meshlib")]


def _measure(
    here: World, started: dict[str, Any], chosen: list[str], how: Plan, order: random.Random
) -> Samples:
    """The sections that compare clients, in one process, interleaved."""
    measured = Samples()
    if "sync" in chosen:
        with cases.sync_cases(here, started) as found:
            measured.by_case |= runner.run_sync(
                found, here.upstream_pid, rounds=how.rounds, calls=how.calls, order=order
            ).by_case
    if "async" in chosen or "throughput" in chosen:
        asyncio.run(_measure_async(here, started, chosen, how, order, measured))
    return measured


async def _measure_async(
    here: World,
    started: dict[str, Any],
    chosen: list[str],
    how: Plan,
    order: random.Random,
    measured: Samples,
) -> None:
    async with cases.async_cases(here, started) as found:
        if "async" in chosen:
            sequential = await runner.run_async(
                found, here.upstream_pid, rounds=how.rounds, calls=how.calls, order=order
            )
            measured.by_case |= sequential.by_case
        if "throughput" in chosen:
            concurrent = await runner.run_concurrent(
                _throughput_turns(found),
                here.upstream_pid,
                rounds=how.concurrent_rounds,
                seconds=how.seconds,
                order=order,
            )
            measured.by_case |= concurrent.by_case


@contextlib.contextmanager
def _stopwatch(name: str) -> Iterator[None]:
    started = time.perf_counter()
    print(f"{name} ...", file=sys.stderr, flush=True)
    yield
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def _clients(arguments: argparse.Namespace, how: Plan, result: dict[str, Any]) -> None:
    """Latency, throughput and memory; adds to `result` and prints the tables."""
    chosen = arguments.sections
    order = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(world(own_upstream=arguments.own_upstream))
        result["upstream"] = here.server
        started = {}
        if not arguments.baselines:
            started["meshlib"] = stack.enter_context(cases.mesh(mesh_resources(here.upstreams)))
        found = _placed(here, arguments, how, "", lambda how: _measure(here, started, chosen, how, order))
        if "memory" in chosen:
            with _stopwatch("memory"):
                result["memory"] = footprint.memory(here, with_mesh=bool(started))
    _tell(result, found, report.COMPARISONS, report.FURTHER)
    print(f"\n{report.table(result.get('memory', []))}")


def _mtls(arguments: argparse.Namespace, how: Plan, result: dict[str, Any]) -> None:
    """Latency with mTLS, and what a handshake costs; with a world of its own."""
    order = random.Random(arguments.seed)
    with world(own_upstream=arguments.own_upstream) as here, mtls.meshes(here) as started:
        found = _placed(here, arguments, how, "mtls, ", lambda how: mtls.measure(here, started, how, order))
    _tell(result, found, report.MTLS_COMPARISONS, report.MTLS_FURTHER)


def _mtls_grpc(arguments: argparse.Namespace, how: Plan, result: dict[str, Any]) -> None:
    """The same for gRPC calls, one by one."""
    order = random.Random(arguments.seed)
    with grpc_mtls.secure_world() as here:
        found = _placed(here, arguments, how, "mtls_grpc, ", lambda how: grpc_mtls.measure(here, how, order))
    _tell(result, found, report.MTLS_GRPC_COMPARISONS, report.MTLS_GRPC_FURTHER)


def _grpc(arguments: argparse.Namespace, how: Plan, result: dict[str, Any]) -> None:
    """The same for gRPC."""
    order = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(grpc_world.grpc_world())
        started = None if arguments.baselines else stack.enter_context(grpc_cases.mesh(here.upstreams))
        found = _placed(
            here, arguments, how, "grpc, ", lambda how: grpc_run.measure(here, started, how, order)
        )
        _tell(result, found, report.GRPC_COMPARISONS, report.GRPC_FURTHER)
        if started is not None:
            with _stopwatch("grpc, memory"):
                result["grpc_memory"] = grpc_run.memory(here)
            print(f"\n{report.table(result['grpc_memory'])}")


class Place(Protocol):
    """Where the processes of a section run; see `world.World`."""

    def place(self, pin: str, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """What a section has measured: pinned as `pin` says, and, where that is "same", a shorter confirmation without."""

    pin: str
    measured: Samples
    unpinned: Samples


def _placed(
    here: Place, arguments: argparse.Namespace, how: Plan, name: str, measure: Callable[[Plan], Samples]
) -> Found:
    if arguments.pin != "same":
        with _stopwatch(f"{name}unpinned"):
            return Found(arguments.pin, measure(how), Samples())
    here.place("same")
    with _stopwatch(f"{name}pinned to one CPU"):
        measured = measure(how)
    here.place("none")
    with _stopwatch(f"{name}unpinned"):
        return Found(arguments.pin, measured, measure(how.part(3)))


def _tell(
    result: dict[str, Any],
    found: Found,
    named: tuple[report.Comparison, ...],
    further: tuple[report.Comparison, ...],
) -> None:
    """Adds cases and ratios to `result` and prints them."""
    for placement, samples in ((found.pin, found.measured), ("none", found.unpinned)):
        rows = [{**samples.summary(name), "pin": placement} for name in sorted(samples.by_case)]
        result["cases"] += rows
        print(f"\n{report.table(rows)}")
    quoted, others = report.ratios(found.measured, named), report.ratios(found.measured, further)
    confirmed = report.ratios(found.unpinned, named + further)
    for key, those in (("ratios", quoted), ("further_ratios", others), ("unpinned_ratios", confirmed)):
        result.setdefault(key, {}).update({name: ratio.value for name, ratio in those.items()})
    print(f"\n{report.table(report.ratio_rows(quoted | others, confirmed))}")


def _page(how: Plan, result: dict[str, Any]) -> None:
    """The admin's page in a browser, where there is one."""
    missing = page.missing()
    if missing is not None:
        print(f"\npage: skipped, {missing}")
        return
    with _stopwatch("page"):
        result["page"] = page.run(how.pages)
    print(f"\n{report.table(result['page'])}")


def main() -> int:
    arguments = _arguments()
    how = plan.QUICK if arguments.quick else plan.FULL
    result: dict[str, Any] = {
        "ratios": {},
        "cases": [],
        "python": platform.python_version(),
        "build": "interpreted" if (call.__file__ or "").endswith(".py") else "compiled",
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "quick": arguments.quick,
        "pin": arguments.pin,
    }
    print(f"Python {result['python']}, {result['machine']}, meshlib {result['build']}", flush=True)
    if set(arguments.sections) & {"sync", "async", "throughput", "memory"}:
        _clients(arguments, how, result)
    if "mtls" in arguments.sections and not arguments.baselines:
        _mtls(arguments, how, result)
    if "mtls_grpc" in arguments.sections and not arguments.baselines:
        _mtls_grpc(arguments, how, result)
    if "grpc" in arguments.sections:
        _grpc(arguments, how, result)
    if "push" in arguments.sections:
        with _stopwatch("push"):
            rows, ratios = push.run(how.pushes, with_mesh=not arguments.baselines)
        result["push"] = rows
        result["ratios"] |= ratios
        print(f"\n{report.table(rows)}")
    if "observe" in arguments.sections and not arguments.baselines:
        with _stopwatch("observe"):
            result["observe"] = observe.run(how.rounds, random.Random(arguments.seed))
        print(f"\n{report.table(result['observe'])}")
    if "page" in arguments.sections and not arguments.baselines:
        _page(how, result)
    if "import" in arguments.sections and not arguments.baselines:
        with _stopwatch("import"):
            rows = footprint.import_times(how.imports)
        result["imports"] = rows
        result["ratios"]["import_ms"] = next(
            row["import_ms"] for row in rows if row["case"] == "import meshlib"
        )
        print(f"\n{report.table(rows)}")
    print()
    for name, value in result["ratios"].items():
        print(f"{name:28} {value:10.3f}   goal {report.GOALS[name]}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
