"""Permits of a cluster: how many connections, pending requests, requests and retries may exist at once.

The rules are Envoy's, for each routing priority (DEFAULT, HIGH):

- A request that finds a free connection needs a *request* permit.
- A request that finds none is *pending* until it has one. It needs a pending permit, also while its own connection opens,
  so `max_pending_requests: 0` fails the first request.
- It may open a connection while `max_connections` is not reached, and always when its endpoint has none. Otherwise it
  waits in its endpoint's queue. A returned connection goes to the head of that queue.
- A retry holds a *retry* permit from the moment it is scheduled until its attempt has a verdict. How many there may be is
  `max_retries`, or the retry budget where the cluster has one.

Permits change under one lock for each cluster: an unlocked `+=` with a call inside loses updates. Those of requests, which
every call takes and returns, change without: in steps that the interpreter does not break (`take_request`). Nothing here blocks
or calls out while the lock is held. A finalizer must not take a lock (its own thread may hold it), so abandoned calls append
what they hold to `abandoned`, and the next call gives it back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum

from meshlib.resources.cluster import CircuitBreakers, Cluster
from meshlib.resources.metadata import NO_METADATA, Scalar
from meshlib.resources.route import Priority
from meshlib.state.cluster_stats import ClusterStats
from meshlib.state.endpoint import EndpointState
from meshlib.state.permits import Permits, publish_limits
from meshlib.state.waiter import Waiter
from meshlib.state.way import Secure, Ways
from meshlib.stats import Gauge, Registry

__all__ = ["Admission", "ClusterState"]


class Admission(Enum):
    """The answer to a request that found no free connection."""

    CONNECT = "connect"
    WAIT = "wait"
    OVERFLOW = "overflow"


class ClusterState:
    """Everything about a cluster that configuration pushes do not reset."""

    __slots__ = (
        "_ways",
        "abandoned",
        "default",
        "endpoints",
        "high",
        "lock",
        "name",
        "scope",
        "stats",
        "subset_seed",
    )

    def __init__(self, name: str, registry: Registry) -> None:
        self.name = name
        self.scope = registry.scope("cluster", ("envoy_cluster_name", name))
        self.lock = threading.Lock()
        self.default = Permits()
        self.high = Permits()
        self.endpoints: dict[str, EndpointState] = {}
        self.stats = ClusterStats(self.scope)
        for name, read in (
            ("upstream_rq_active", lambda: self.default.requests + self.high.requests),
            ("upstream_rq_pending_active", lambda: self.default.pending + self.high.pending),
            ("upstream_cx_active", lambda: self.default.connections + self.high.connections),
        ):
            self.scope.reading(name, read)
        self.abandoned: deque[Callable[[], None]] = deque()
        self._ways: Ways | None = None
        self.subset_seed: int | None = None

    def configure(self, cluster: Cluster, secure: Secure | None = None) -> None:
        """Take over the limits of a new version of the cluster, and how its endpoints are connected to.

        secure: makes of the cluster's TLS configuration what connections use. Raises ValueError when it is None and needed.
        """
        self.limit(cluster.circuit_breakers)
        self._lead(Ways.of(cluster, secure, self._ways))

    @property
    def unsecured(self) -> bool:
        """The configuration asks for TLS, and what TLS needs has not come yet."""
        return self._ways is not None and self._ways.unsecured

    def count_tls(self, what: str) -> None:
        """One more of `cluster.<name>.ssl.<what>`. Only handshakes are counted so, which take a thousand times as long."""
        self.scope.counter(f"ssl.{what}").value += 1

    def rotated(self) -> bool:
        """A certificate or a bundle may have been exchanged. True when connections are made in another way now."""
        ways = self._ways
        if ways is None or not ways.outdated:
            return False
        with self.lock:
            if self._ways is ways:
                self._set_ways(ways.renewed())
        return True

    def _lead(self, ways: Ways) -> None:
        with self.lock:
            self._set_ways(ways)
        self.rotated()  # by another thread, after `ways` were made and before they were in force

    def _set_ways(self, ways: Ways) -> None:
        """The caller holds the lock."""
        self._ways = ways
        for endpoint in self.endpoints.values():
            endpoint.way = ways.to(endpoint.metadata)

    def limit(self, breakers: CircuitBreakers) -> None:
        with self.lock:
            self.default.limit(breakers.default)
            self.high.limit(breakers.high)
        shown = self.scope.scope("circuit_breakers")
        publish_limits(shown.scope("default"), breakers.default, lambda: self.default)
        publish_limits(shown.scope("high"), breakers.high, lambda: self.high)

    def gauge(self, name: str) -> Gauge:
        """`cluster.<this cluster>.<name>`, made when it is asked for the first time."""
        return self.scope.gauge(name)

    def permits(self, priority: Priority) -> Permits:
        return self.high if priority is Priority.HIGH else self.default

    def endpoint(
        self,
        key: str,
        address: str,
        port: int,
        hostname: str = "",
        metadata: Mapping[str, Scalar] = NO_METADATA,
    ) -> EndpointState:
        """The state of the endpoint, made at its first use; a known one keeps all but its hostname and its metadata."""
        known = self.endpoints.get(key)
        if known is None:
            made = EndpointState(key, address, port, hostname)
            with self.lock:
                known = self.endpoints.setdefault(key, made)
                if known is made:
                    self._describe(known, metadata)
        if known.metadata is not metadata:  # equal is not enough: 1 == True
            self.describe(known, metadata)
        if known.hostname != hostname:
            known.hostname = hostname
        known.departed = False
        return known

    def describe(self, endpoint: EndpointState, metadata: Mapping[str, Scalar]) -> None:
        """The endpoint's metadata may have changed, and with it how it is connected to."""
        with self.lock:
            self._describe(endpoint, metadata)

    def _describe(self, endpoint: EndpointState, metadata: Mapping[str, Scalar]) -> None:
        """The caller holds the lock."""
        endpoint.metadata = metadata
        if self._ways is not None:
            endpoint.way = self._ways.to(metadata)

    def depart(self, known: Iterable[EndpointState], present: AbstractSet[str]) -> None:
        """Of the endpoints `known`, the assignment has those with the keys in `present`; the others have left it.

        An endpoint that has left is forgotten once nothing uses it and it is not ejected. Until then, one that comes back
        is found again.
        """
        for endpoint in known:
            gone = endpoint.departed = endpoint.key not in present
            if gone:
                with self.lock:
                    if not endpoint.in_use and not endpoint.ejected:
                        self.endpoints.pop(endpoint.key, None)

    def take_request(self, endpoint: EndpointState, permits: Permits) -> bool:
        """Take the permit of a request that is about to be sent.

        Without the lock, as `return_request`: nothing here calls anything, so no other thread comes in between, and nobody else
        changes these two numbers.
        """
        if permits.requests >= permits.max_requests:
            return False
        permits.requests += 1
        if not permits.inherited:
            endpoint.active += 1
        return True

    def return_request(self, endpoint: EndpointState, permits: Permits) -> None:
        permits.requests -= 1
        if not permits.inherited:
            endpoint.active -= 1

    def take_retry(self, permits: Permits) -> bool:
        with self.lock:
            if permits.retries >= permits.retry_limit:
                return False
            permits.retries += 1
            permits.has_retried = True
        return True

    def return_retry(self, permits: Permits) -> None:
        with self.lock:
            permits.retries -= 1

    def admit(self, endpoint: EndpointState, permits: Permits, waiter: Waiter) -> Admission:
        """A request found no free connection: may it open one, does it wait in line, or is it too much?

        CONNECT and WAIT hold a pending permit until `end_pending`; CONNECT also counts the connection that is about to
        be opened, until `connection_closed`.
        """
        with self.lock:
            if permits.pending >= permits.max_pending:
                return Admission.OVERFLOW
            permits.pending += 1
            self.stats.upstream_rq_pending_total.value += 1
            self._count_overflow(permits)
            if self._may_connect(endpoint, permits):
                return Admission.CONNECT
            waiter.permits = permits
            endpoint.waiters.append(waiter)
            return Admission.WAIT

    def connect_beside(self, endpoint: EndpointState, permits: Permits) -> bool:
        """Count the successor of a connection, which is opened for no request and so waits for nothing, if that is allowed."""
        with self.lock:
            return self._may_connect(endpoint, permits)

    def _count_overflow(self, permits: Permits) -> None:
        """A request waits that could use another connection. Envoy counts it each time that this could change, and does not."""
        if permits.connections >= permits.max_connections:
            self.stats.upstream_cx_overflow.value += 1

    def _may_connect(self, endpoint: EndpointState, permits: Permits) -> bool:
        """Count one more connection if it is allowed. The caller holds the lock."""
        if permits.connections >= permits.max_connections and endpoint.connections > 0:
            return False
        permits.connections += 1
        permits.has_connected = True
        if not permits.inherited:
            endpoint.connections += 1
        return True

    def end_pending(self, permits: Permits) -> None:
        with self.lock:
            permits.pending -= 1

    def withdraw(self, endpoint: EndpointState, waiter: Waiter) -> bool:
        """Leave the queue. False: the waiter was served already and must use or return what it was given."""
        with self.lock:
            try:
                endpoint.waiters.remove(waiter)
            except ValueError:
                return False
        return True

    def next_waiter(self, endpoint: EndpointState, owner: object, connection: object = None) -> Waiter | None:
        """Hand the connection that became free to the head of the queue, if that belongs to `owner`, who then wakes it."""
        if not endpoint.waiters:
            return None
        with self.lock:
            if endpoint.waiters and endpoint.waiters[0].owner is owner:
                waiter = endpoint.waiters.popleft()
                waiter.served = True
                waiter.connection = connection
                if endpoint.waiters and waiter.permits is not None:
                    self._count_overflow(waiter.permits)
                return waiter
        return None

    def connection_closed(self, endpoint: EndpointState, permits: Permits) -> None:
        """A connection that `admit` allowed is gone, or was never opened. The head of the queue may open the next one.

        That one counts against the waiter's own priority; when its limit does not allow it, the queue goes on waiting for
        the connections that the endpoint still has.
        """
        woken = None
        with self.lock:
            permits.connections -= 1
            if not permits.inherited:
                endpoint.connections -= 1
            waiters = endpoint.waiters
            if waiters and self._may_connect(endpoint, waiters[0].permits or permits):
                woken = waiters.popleft()
                woken.served = True
        if woken is not None:
            woken.wake()

    @property
    def in_use(self) -> bool:
        """Whether anything is under way, or endpoints are still known."""
        held = (self.default, self.high)
        return bool(self.endpoints or self.abandoned) or any(
            each.connections or each.pending or each.requests or each.retries for each in held
        )

    def drain_abandoned(self) -> None:
        """Return what calls held that were dropped without an end."""
        while True:
            try:
                give_back = self.abandoned.popleft()
            except IndexError:  # empty, or another thread was faster
                return
            give_back()

    def renew_lock(self) -> None:
        """In a forked child: a lock that nobody holds, and none of the parent's calls or connections."""
        self.lock = threading.Lock()
        self.default = self._renewed(self.default)
        self.high = self._renewed(self.high)
        for endpoint in self.endpoints.values():
            endpoint.active = endpoint.connections = 0
            endpoint.waiters.clear()
        self.abandoned.clear()

    @staticmethod
    def _renewed(held: Permits) -> Permits:
        held.inherited = True
        fresh = Permits()
        fresh.limit(held.thresholds)
        return fresh
