"""The run: every case through Envoy, then through each runner, against the same upstreams."""

from __future__ import annotations

import contextlib
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conformance.compare import Difference, differences, unexpected
from conformance.counters import compared, differing
from conformance.envoy_process import EnvoyError
from conformance.lateness import Lateness
from conformance.outcome import Run
from conformance.report import CaseResult, Report, Verdict
from conformance.resources import Compiled, compile_case, with_addresses
from conformance.runners.envoy import Envoy
from conformance.runners.registry import RUNNERS
from conformance.upstream.server import UpstreamThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from conformance.case import Case
    from conformance.listed import Listed
    from conformance.outcome import Outcome
    from conformance.runners.registry import Runner
    from conformance.upstream.server import Upstreams


LOOKS = 2
"""How often a case is looked at again that differed while the machine was late."""

SOME = 0.05
"""The share of cases that lateness may be blamed for. Where more differ, it is not lateness."""


def run_suite(
    cases: list[Case], runners: tuple[str, ...], listed: list[Listed], suite: Sequence[Case] = ()
) -> Report:
    """Run ``cases``. Raises :class:`~conformance.envoy_process.EnvoyError` when Envoy does not serve them.

    suite: all cases there are, from which these were chosen; none: these are all.
    """
    with UpstreamThread() as thread, Lateness() as lateness:
        upstreams = {case.name: thread.start(case.upstreams) for case in cases}
        compiled = {case.name: compile_case(case, upstreams[case.name].ports) for case in cases}
        world = _World(thread=thread, upstreams=upstreams, compiled=compiled, lateness=lateness)
        lanes = [
            _Lane([case for case in cases if case.protocol == protocol], runners, listed, world)
            for protocol in sorted({case.protocol for case in cases})
        ]
        with ThreadPoolExecutor(len(lanes)) as pool:
            for done in [pool.submit(lane.run) for lane in lanes]:
                done.result()
        for _ in range(LOOKS):
            for lane in lanes:
                lane.look_again()
    results = {name: result for lane in lanes for name, result in lane.results.items()}
    used = {entry for lane in lanes for entry in lane.used}
    applying = [entry for entry in listed if _must_show(entry, cases, runners, suite or cases)]
    return Report(results=[results[case.name] for case in cases], runners=runners, listed=applying, used=used)


def _must_show(entry: Listed, cases: Sequence[Case], runners: tuple[str, ...], suite: Sequence[Case]) -> bool:
    """Whether the entry is stale when this run does not show its difference."""
    run = {case.name for case in cases}
    for name in runners:
        kind = RUNNERS[name]
        if not (kind.oracle or kind.beside):
            given = {case.name for case in suite if case.protocol == kind.protocol}
            if entry.applies(name, run, given):
                return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """What all cases of a run have in common."""

    thread: UpstreamThread
    upstreams: Mapping[str, Upstreams]
    compiled: Mapping[str, Compiled]
    lateness: Lateness


class _Lane:
    """The cases of one protocol, one after the other, with an Envoy of their own. Two lanes hardly notice each other: cases wait
    most of the time.
    """

    def __init__(
        self, cases: list[Case], runners: tuple[str, ...], listed: list[Listed], world: _World
    ) -> None:
        self._cases = cases
        self._protocol = cases[0].protocol
        self._runners = [name for name in runners if RUNNERS[name].protocol == self._protocol]
        self._listed = listed
        self._world = world
        self.results: dict[str, CaseResult] = {}
        self.used: set[Listed] = set()

    def run(self) -> None:
        """Fill ``results`` and ``used``."""
        for result in self._results(self._cases, self._runners):
            self.results[result.name] = result

    def look_again(self) -> None:
        """At what differs and may be the machine's fault: with a new Envoy, since the counters of the old one are not at zero.

        A behaviour that is wrong is so again.
        """
        doubtful = [case for case in self._cases if self.results[case.name].doubtful]
        if len(doubtful) > max(1, SOME * len(self._cases)):
            return
        runners = [name for name in self._runners if not RUNNERS[name].beside]
        for result in self._results(doubtful, runners) if doubtful else ():
            before = self.results[result.name]
            informing = {name: verdict for name, verdict in before.runners.items() if verdict.informs}
            result.runners = informing | result.runners
            result.before = [*before.before, before.in_short]
            self.results[result.name] = result

    def _results(self, cases: list[Case], runners: Sequence[str]) -> Iterator[CaseResult]:
        world = self._world
        loaded = {case.name: (case, world.compiled[case.name]) for case in cases}
        with contextlib.ExitStack() as stack:
            envoy = stack.enter_context(Envoy(loaded))
            made = {name: RUNNERS[name].make(loaded, stack) for name in runners}
            for case in cases:
                start, waited = time.monotonic(), envoy.kept_waiting
                case = with_addresses(case, world.upstreams[case.name].ports)
                run = _CaseRun(case, world.compiled[case.name], world.upstreams[case.name], world.thread)
                result = run.with_envoy(envoy)
                for name, runner in made.items():
                    if not result.error:
                        result.runners[name] = run.with_runner(runner, name, self._listed, self.used)
                result.seconds = time.monotonic() - start
                result.late = max(world.lateness.worst(start), envoy.kept_waiting - waited)
                yield result


class _CaseRun:
    """One case on its way through the runners."""

    def __init__(self, case: Case, compiled: Compiled, upstreams: Upstreams, thread: UpstreamThread) -> None:
        self._case = case
        self._compiled = compiled
        self._upstreams = upstreams
        self._thread = thread
        self._envoy = Run(outcomes=[])
        self._ask_envoy: Callable[[], Run] = lambda: self._envoy
        self._rejected = False

    def with_envoy(self, envoy: Envoy) -> CaseResult:
        case = self._case
        if case.rejected:
            complaint = envoy.rejection(case, self._compiled)
            self._rejected = complaint is not None
            result = CaseResult(name=case.name, envoy="rejected" if complaint else "accepted")
            if not complaint:
                result.error = "Envoy accepts this configuration, the case says that it is rejected"
            return result
        self._ask_envoy = lambda: self._observed(lambda: envoy.run(case, self._compiled))
        self._envoy = self._ask_envoy()
        wrong = unexpected(case, self._envoy.outcomes)
        if _unlucky(wrong):
            self._draw_again()
            wrong = unexpected(case, self._envoy.outcomes)
        return CaseResult(name=case.name, envoy=_word(self._envoy.outcomes), wrong_expectation=wrong)

    def with_runner(self, runner: Runner, name: str, listed: list[Listed], used: set[Listed]) -> Verdict:
        verdict = Verdict(informs=RUNNERS[name].beside)
        try:
            found = self._compare(runner, verdict)
        except Exception:  # noqa: BLE001  whatever breaks in a runner is that runner's result, not the end of the run
            verdict.error = traceback.format_exc(limit=-3).strip()
            return verdict
        kind = RUNNERS[name]
        for difference in found:
            if kind.beside:
                if kind.says(difference.field):
                    verdict.beside.append(difference)
                continue
            covering = [entry for entry in listed if entry.covers(self._case.name, name, difference)]
            used.update(covering)
            if not covering:
                verdict.unexplained.append(difference)
            else:
                about_counters = covering[0].about_counters
                (verdict.miscounted if about_counters else verdict.explained).append(difference)
        return verdict

    def _compare(self, runner: Runner, verdict: Verdict) -> list[Difference]:
        """What differs. The verdict gets the runner's own outcome in a word, and how many counters were compared."""
        if self._case.rejected:
            rejected = runner.rejection(self._case, self._compiled) is not None
            verdict.word = "rejected" if rejected else "accepted"
            if rejected == self._rejected:
                return []
            return [Difference(field="rejected", where="", envoy=self._rejected, other=rejected)]
        run = self._observed(lambda: runner.run(self._case, self._compiled))
        found = differences(self._case, self._envoy.outcomes, run.outcomes)
        if _unlucky(found):
            self._draw_again()
            run = self._observed(lambda: runner.run(self._case, self._compiled))
            found = differences(self._case, self._envoy.outcomes, run.outcomes)
        errors = {
            outcome.error
            for outcome in run.outcomes
            if outcome.error and not (outcome.status or outcome.code)
        }
        found += [Difference(field="error", where="", envoy="", other=error) for error in sorted(errors)]
        if run.counters is not None and self._envoy.counters is not None:
            found += differing(self._case, self._envoy.counters, run.counters)
            verdict.counters = compared(self._envoy.counters, run.counters)
        verdict.word = _word(run.outcomes)
        return found

    def _draw_again(self) -> None:
        """Ask Envoy once more. Its connections are there by then, so the counters stay those of the first time."""
        self._envoy = replace(self._ask_envoy(), counters=self._envoy.counters)

    def _observed(self, run: Callable[[], Run]) -> Run:
        self._upstreams.record.reset()
        done = run()
        self._thread.settle(self._upstreams.record)
        hits = self._upstreams.record.by_request()
        return replace(
            done, outcomes=[outcome.with_hits(hits.get(outcome.id, [])) for outcome in done.outcomes]
        )


def _unlucky(found: list[Difference]) -> bool:
    """Whether a distribution is off. It is drawn once more then, on both sides.

    A suite makes some hundred tests at z = 3.5, so one run in ten would fail by chance; a real bias fails twice.
    """
    return any(difference.field.endswith("distribution") for difference in found)


def _word(outcomes: list[Outcome]) -> str:
    """Statuses and flags, each combination once."""
    seen: dict[str, int] = {}
    for outcome in outcomes:
        what = outcome.code or str(outcome.status)
        word = f"{what} {outcome.flags}" if outcome.flags != "-" else what
        seen[word] = seen.get(word, 0) + 1
    return ", ".join(word if count == 1 else f"{count}x {word}" for word, count in seen.items())


__all__ = ["EnvoyError", "run_suite"]
