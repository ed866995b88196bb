"""Thousands of calls with random events, without a socket: nothing is lost, nothing is taken twice, nothing raises.

Each script is a random configuration (limits, retries, hedging, timeouts, mirrors, faults, hashing, outlier detection, two
pools), HTTP and gRPC calls in both dialects, and a random sequence of what a network and an application can do, late and
doubled events among it. After each step the counts are in their limits; at the end everything has been given back.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from random import Random
from typing import Any

import pytest

from meshlib.engine import events as ev
from meshlib.engine.dialect import ENVOY, GRPC
from meshlib.engine.options import CallOptions
from meshlib.policy.breaker import BreakerConfig, BreakerSet
from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import (
    Cluster,
    HttpProtocol,
    LeastRequestConfig,
    MaglevConfig,
    RandomConfig,
    RetryBudget,
    RingHashConfig,
    RoundRobinConfig,
)
from meshlib.resources.fault import FaultAbort, FaultDelay, HttpFault
from meshlib.resources.filters import FAULT
from meshlib.resources.hash_policy import CookieHash, HashPolicy
from meshlib.resources.listener import HttpFilter
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.route import MirrorPolicy, Priority, RouteAction
from tests.engine.builders import (
    HEDGING,
    ROUTER,
    cluster,
    forward,
    listener,
    outlier,
    retry,
    route_config,
    thresholds,
)
from tests.engine.grpc_calls import rpc
from tests.engine.wire import FakeCall, FakeMesh, FakePool

KINDS = [kind for kind in FailureKind if kind not in (FailureKind.LOCAL_RESET, FailureKind.OVERFLOW)]
CONNECT_KINDS = (FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT)
POLICIES = (
    RoundRobinConfig(),
    LeastRequestConfig(),
    RandomConfig(),
    RingHashConfig(minimum_ring_size=16, maximum_ring_size=64),
    MaglevConfig(table_size=31, hash_balance_factor=120),
)
FAULTS = HttpFault(
    delay=FaultDelay(percentage=FractionalPercent(numerator=30), milliseconds=200),
    abort=FaultAbort(percentage=FractionalPercent(numerator=20), http_status=503),
    max_active_faults=3,
)


class Script:
    def __init__(self, seed: int) -> None:
        self.random = chance = Random(seed)
        self.done: Counter[str] = Counter()
        breakers = (
            BreakerSet({"a": BreakerConfig(fail_max=5, reset_timeout=0.2)}) if chance.random() < 0.3 else None
        )
        self.mesh = FakeMesh(
            self.cluster("a"),
            self.cluster("b"),
            listen=listener(route_config(self.action()), self.filters(), stat_prefix="s"),
            breakers=breakers,
            seed=seed,
        )
        self.mesh.slow = True
        self.pools = [self.mesh.pool, FakePool()]
        self.calls: list[FakeCall] = []

    def cluster(self, name: str) -> Cluster:
        chance = self.random
        limits = thresholds(
            max_connections=chance.choice((0, 1, 1, 2, 5)),
            max_pending_requests=chance.choice((0, 1, 2, 3, *[9] * 12)),
            max_requests=chance.choice((0, 1, 2, *[4] * 5, *[9] * 8)),
            max_retries=chance.choice((0, 1, 3)),
            retry_budget=chance.choice(
                (None, None, RetryBudget(budget_percent=40.0, min_retry_concurrency=1))
            ),
        )
        detection = outlier(consecutive_5xx=2, interval=0.5, base_ejection_time=0.7)
        return cluster(
            name,
            hosts=chance.choice((0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4)),
            circuit_breakers=limits,
            outlier_detection=chance.choice((None, detection)),
            max_stream_duration=chance.choice((None, None, 1.5)),
            protocol=chance.choice((HttpProtocol.HTTP1, HttpProtocol.HTTP2)),
            lb_policy=chance.choice(POLICIES),
        )

    def filters(self) -> list[HttpFilter]:
        fault = HttpFilter(name="fault", type_url=FAULT, config=FAULTS)
        return [fault, ROUTER] if self.random.random() < 0.3 else [ROUTER]

    def action(self) -> RouteAction:
        chance = self.random
        policy = retry(
            chance.choice(("5xx", "5xx,retriable-4xx", "connect-failure", "reset", "unavailable")),
            times=chance.randrange(4),
            per_try_timeout=chance.choice((None, 0.3)),
        )
        return forward(
            timeout=chance.choice((0.0, 1.0, 15.0)),
            retry_policy=chance.choice((None, policy, policy)),
            hedge_policy=HEDGING if chance.random() < 0.4 else None,
            mirrors=(MirrorPolicy(cluster="b"),) if chance.random() < 0.3 else (),
            priority=chance.choice((Priority.DEFAULT, Priority.HIGH)),
            hash_policy=(HashPolicy(by=CookieHash(name="c", ttl=0)),) if chance.random() < 0.5 else (),
        )

    # --- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        chance = self.random
        roll = chance.random()
        if roll < 0.2 or not self.calls:
            self.begin()
        elif roll < 0.28:
            self.mesh.clock.advance(chance.random() / 3)
            self.tell_timers()
        elif roll < 0.31:
            self.mesh.publish(self.cluster("a"), *([self.cluster("b")] if chance.random() < 0.7 else []))
            self.done["push"] += 1
        elif roll < 0.33:
            for pool in self.pools:
                pool.close_idle()
        elif roll < 0.35:
            # In a back-off nothing but the engine knows of a call: it is dropped without an end.
            resting = [call for call in self.calls if not call.live and not call.over]
            if resting:
                dropped = chance.choice(resting)
                self.calls.remove(dropped)
                dropped.core = None
                self.done["drop"] += 1
        else:
            self.move(chance.choice(self.calls))
        for call in self.calls:
            if chance.random() < 0.8:
                call.attend()
        self.calls = [call for call in self.calls if not self.forgotten(call)]

    def begin(self) -> None:
        chance = self.random
        options = CallOptions(timeout=chance.choice((None, 0.4)), retries=chance.choice((None, None, 2)))
        call = self.mesh.call(
            complete=chance.random() < 0.7,
            options=chance.choice((None, options)),
            replayable=chance.choice((None, lambda: chance.random() < 0.5)),
            pool=chance.choice(self.pools),
            **(self.rpc() if chance.random() < 0.4 else {}),
        )
        self.calls.append(call)
        self.done["call"] += 1

    def rpc(self) -> dict[str, Any]:
        chance = self.random
        deadline = self.mesh.clock.monotonic() + chance.choice((0.1, 0.5, 2.0))
        self.done["rpc"] += 1
        return {
            "view": rpc(),
            "deadline": chance.choice((None, deadline)),
            "wait_for_ready": chance.random() < 0.4,
            "dialect": chance.choice((ENVOY, GRPC)),
        }

    def tell_timers(self) -> None:
        for call in list(self.calls):
            for _ in range(20):
                if call.core.wake_at > self.mesh.clock.monotonic():
                    break
                call.handle(ev.Timer())
            else:
                pytest.fail("a timer that is always due: the transport would spin")

    def move(self, call: FakeCall) -> None:
        chance = self.random
        what = chance.choice(
            ("network", "network", "network", "network", "late", "complete", "cancel", "timer", "wake")
        )
        if what == "network" and call.live:
            self.network(call, chance.choice(list(call.live)))
        elif what == "late":
            self.late(call)
        elif what == "complete":
            call.handle(ev.RequestComplete())
        elif what == "cancel" and chance.random() < 0.3:
            call.cancel()
            self.done["cancel"] += 1
        elif what == "timer" and call.core.wake_at < self.mesh.clock.monotonic() + 0.5:
            self.mesh.clock.advance_to(call.core.wake_at)
            self.tell_timers()
        elif what == "wake":
            call.handle(ev.Woken())

    def network(self, call: FakeCall, number: int) -> None:
        chance = self.random
        attempt = call.live[number]
        if number < 0:
            call.answer(200, attempt=number, end=True)
        elif attempt.connection is None:
            return  # it stands in a queue
        elif not attempt.sent:
            if chance.random() < 0.8:
                call.connected(number)
            else:
                call.fail(chance.choice(CONNECT_KINDS), attempt=number, sent=False)
        elif call.core.accepted == number:
            if chance.random() < 0.8:
                call.end(number)
                self.done["end"] += 1
            else:
                call.fail(chance.choice(KINDS), attempt=number)
        elif chance.random() < 0.25:
            call.fail(chance.choice(KINDS), attempt=number, sent=chance.random() < 0.7)
            self.done["fail"] += 1
        else:
            status = chance.choice((200, 200, 404, 409, 500, 503))
            headers = [("grpc-status", chance.choice("014"))] if chance.random() < 0.3 else []
            call.answer(status, headers, attempt=number, end=chance.random() < 0.5)
            self.done["answer"] += 1

    def late(self, call: FakeCall) -> None:
        """An event of an attempt that is over, or never was."""
        chance = self.random
        number = chance.choice([each for each in range(-2, 8) if each not in call.live])
        log = list(call.log)
        event: ev.Event = chance.choice(
            (
                ev.Headers(number, chance.choice((200, 503)), (), chance.random() < 0.5),
                ev.Failed(number, chance.choice(KINDS), True),
                ev.End(number),
                ev.Connected(number),
                ev.NeedConnection(number, call.pool),
                ev.Message(number),
                ev.Sent(number, 1),
                ev.SideResult(number),
            )
        )
        call.handle(event)
        assert call.log == log, f"{type(event).__name__}({number}) did something"
        self.done["late"] += 1

    def forgotten(self, call: FakeCall) -> bool:
        return call.over and not call.live

    # --- what must be true -------------------------------------------------------------------------------------------

    def check(self) -> None:
        for state in self.mesh.store:
            for permits in (state.default, state.high):
                counts = (permits.connections, permits.pending, permits.requests, permits.retries)
                assert min(counts) >= 0, (state.name, counts)
            for endpoint in state.endpoints.values():
                assert endpoint.active >= 0
                assert endpoint.connections >= 0
                assert not (endpoint.waiters and endpoint.connections == 0), "it waits for nothing"
        for call in self.calls:
            assert not (call.over and call.core.wake_at < inf and call.error is not None)
            if not call.over:
                parked = call.wake in self.mesh.engine._waiting
                assert call.live or call.woken or parked or call.core.wake_at < inf, (
                    "nothing will ever happen to this call"
                )

    def finish(self) -> None:
        for call in self.calls:
            call.cancel()
            for number in [number for number in call.live if number < 0]:
                call.fail(attempt=number)
            assert not call.live
            assert call.core.wake_at == inf
        self.calls.clear()
        for state in self.mesh.store:
            state.drain_abandoned()
        self.mesh.engine.drain_abandoned()
        for pool in self.pools:
            pool.close_idle()
        assert self.mesh.held() == {}
        assert self.mesh.registry.gauge("http.s.fault.active_faults").value == 0
        for state in self.mesh.store:
            assert state.default.connections == state.high.connections == 0
            for endpoint in state.endpoints.values():
                assert endpoint.connections == 0


@pytest.mark.parametrize("block", range(10))
def test_random_scripts(block: int) -> None:
    total: Counter[str] = Counter()
    for seed in range(block * 100, block * 100 + 100):
        script = Script(seed)
        for _ in range(200):
            script.step()
            script.check()
        script.finish()
        total += script.done
    for what in ("call", "rpc", "answer", "end", "fail", "late", "cancel", "push", "drop"):
        assert total[what] > 10, f"the scripts hardly ever {what}"
