"""The watch graph: which resources are wanted, and what is known of each.

A listener names a route configuration (or holds one), a route configuration names clusters, an EDS cluster names its
endpoints; listeners of servers and clusters with TLS name the secrets that come over the same stream. Somebody wants a
listener (a call to its host) or a cluster (named by a request header); everything below follows.
Each resource is counted by its parents: an update compares the names that the old and the new version refer to, and changes
only those counts, so that the cost of an update is that of what changed. A resource that nobody refers to any longer lingers
for a while, still subscribed: a call that was routed before the change may retry, and a change that is taken back costs
nothing.

The last good version and the latest error of a resource stand side by side; an error never takes a good version away. Only
the control plane's word does that: a deletion (for listeners and clusters, whose responses are complete), or no answer within
the time that the client allows. No I/O, no threads, no clock: the time is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from meshlib.errors import ResourceError
from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.inbound import InboundListener
from meshlib.resources.secret import Secret
from meshlib.resources.tls import SecretRef
from meshlib.snapshot.children import children_of
from meshlib.snapshot.secrets import ExternalSecrets
from meshlib.snapshot.snapshot import Accepted, Kind, Ref, Resource, Snapshot
from meshlib.snapshot.status import ResourceState, ResourceStatus
from meshlib.snapshot.table import Table

__all__ = ["Graph"]

LINGER = 30.0
"""Seconds that a resource stays subscribed after the last reference to it is gone."""

ON_DEMAND = 1000
"""How many names of listeners that do not exist stay watched; beyond that, the one asked for longest ago is forgotten."""


class _Entry:
    __slots__ = (
        "absent",
        "children",
        "error",
        "error_version",
        "pinned",
        "refs",
        "updated",
        "value",
        "version",
    )

    def __init__(self, now: float) -> None:
        self.value: Resource | None = None
        self.version = ""
        self.error: ResourceError | None = None
        self.error_version = ""
        self.absent = False
        self.children: frozenset[Ref] = frozenset()
        self.refs = 0
        self.pinned = False
        self.updated = now

    @property
    def state(self) -> ResourceState:
        if self.error is not None:
            return ResourceState.NACKED
        if self.value is not None:
            return ResourceState.ACKED
        return ResourceState.DOES_NOT_EXIST if self.absent else ResourceState.REQUESTED


class Graph:
    """See the module's text. Not thread-safe: it belongs to one thread; the snapshots that it makes belong to everybody."""

    def __init__(self, *, linger: float = LINGER, on_demand: int = ON_DEMAND) -> None:
        self._linger = linger
        self._on_demand = on_demand
        self._entries: dict[Kind, dict[str, _Entry]] = {kind: {} for kind in Kind}
        self._revisions = dict.fromkeys(Kind, 0)
        self._lingering: dict[Ref, float] = {}
        self._absent_pins: dict[str, None] = {}
        self._values: dict[Kind, Table[str, Any]] = {kind: Table() for kind in Kind}
        self._inbound: Table[str, InboundListener] = Table()
        self._secrets = ExternalSecrets()
        self._resolved: Table[str, ClusterLoadAssignment] = Table()
        self._absent: Table[Ref, None] = Table()
        self._awaited: Table[Ref, None] = Table()
        self._errors: Table[Ref, ResourceError] = Table()
        self._unsupported: Table[Ref, tuple[str, ...]] = Table()
        self._versions: Table[Kind, str] = Table()
        self._dns: dict[str, Cluster] = {}
        self._snapshot = Snapshot()

    @classmethod
    def restore(cls, snapshot: Snapshot, wanted: AbstractSet[Ref], now: float, **options: Any) -> Graph:
        """A graph that starts from what a snapshot holds (in a forked child) and wants the same names."""
        graph = cls(**options)
        for kind, name in wanted:
            graph.want(kind, name, now)
        for kind, known in (
            (Kind.LISTENER, snapshot.listeners),
            (Kind.ROUTE, snapshot.routes),
            (Kind.CLUSTER, snapshot.clusters),
            (Kind.ENDPOINT, snapshot.endpoints),
            (Kind.SECRET, snapshot.secrets),
        ):
            for name, entry in graph._entries[kind].copy().items():
                value: Resource | None = known.get(name)
                if value is None and kind is Kind.LISTENER:
                    value = snapshot.inbound.get(name)
                if value is not None:
                    unsupported = snapshot.unsupported.get((kind, name), ())
                    graph._accept(kind, name, entry, value, unsupported, snapshot.versions.get(kind, ""), now)
        for ref, secret in snapshot.external_secrets.items():
            graph.external(ref, secret)
        for name in graph._dns:
            if name in snapshot.resolved:
                graph._resolved.set(name, snapshot.resolved[name])
        for kind, version in snapshot.versions.items():
            graph._versions.set(kind, version)
        graph._snapshot = snapshot
        return graph

    # What is wanted

    def want(self, kind: Kind, name: str, now: float) -> None:
        """Somebody asks for this resource by name. Asking again changes nothing."""
        entry = self._entry(kind, name, now)
        entry.pinned = True
        self._lingering.pop((kind, name), None)

    def unwant(self, kind: Kind, name: str, now: float) -> None:
        entry = self._entries[kind].get(name)
        if entry is not None and entry.pinned:
            entry.pinned = False
            self._absent_pins.pop(name, None)
            self._release(kind, name, entry, now)

    def wanted(self, kind: Kind) -> AbstractSet[str]:
        """The names to subscribe to, in the order in which they were first wanted."""
        return self._entries[kind].keys()

    def revision(self, kind: Kind) -> int:
        """Changes when `wanted` changes."""
        return self._revisions[kind]

    def pinned(self) -> Iterator[Ref]:
        """What was asked for by `want`."""
        for kind in (Kind.LISTENER, Kind.CLUSTER):
            for name, entry in self._entries[kind].items():
                if entry.pinned:
                    yield kind, name

    def known(self, kind: Kind, name: str) -> bool:
        """There is a value, an error or the verdict that it does not exist: no answer is awaited any longer."""
        entry = self._entries[kind].get(name)
        return entry is not None and entry.state is not ResourceState.REQUESTED

    def dns_clusters(self) -> Mapping[str, Cluster]:
        """The wanted clusters whose endpoints come from DNS."""
        return self._dns

    def expire(self, now: float) -> float:
        """Forget what has lingered long enough; the time of the next expiry, infinity when nothing lingers."""
        while due := [ref for ref, deadline in self._lingering.items() if deadline <= now]:
            for ref in due:
                self._forget(ref, now)
        return min(self._lingering.values(), default=math.inf)

    # What is known

    def update(
        self,
        kind: Kind,
        results: Mapping[str, Accepted | ResourceError],
        *,
        version: str,
        now: float,
        present: AbstractSet[str] | None = None,
    ) -> None:
        """Take over a response: each name with its decoded resource or with what is wrong with it.

        present: every name in the response, when the response is complete (state of the world, listeners and clusters):
        what had a value and is not there has been deleted. None: nothing follows from absence. Names that nobody wants are
        ignored.
        """
        entries = self._entries[kind]
        accepted = False
        for name, result in results.items():
            entry = entries.get(name)
            if entry is None:
                continue
            if isinstance(result, ResourceError):
                self._reject(kind, name, entry, result, version, now)
            else:
                accepted = True
                self._accept(kind, name, entry, result.resource, result.unsupported, version, now)
        if present is not None:
            for name in [
                name for name, entry in entries.items() if entry.value is not None and name not in present
            ]:
                self.does_not_exist(kind, name, now)
        if accepted and version != self._versions.current.get(kind):
            self._versions.set(kind, version)

    def does_not_exist(self, kind: Kind, name: str, now: float) -> None:
        """The control plane deleted the resource, or gave no answer in time."""
        entry = self._entries[kind].get(name)
        if entry is None or entry.absent:
            return
        ref = (kind, name)
        entry.absent, entry.value, entry.error = True, None, None
        entry.version = entry.error_version = ""
        entry.updated = now
        self._drop_value(kind, name)
        self._errors.drop(ref)
        self._unsupported.drop(ref)
        self._awaited.drop(ref)
        self._absent.set(ref, None)
        if kind is Kind.CLUSTER:
            self._set_dns(name, None)
        self._link(entry, frozenset(), now)
        if kind is Kind.LISTENER and entry.pinned:
            self._absent_pins[name] = None
            if len(self._absent_pins) > self._on_demand:
                self._forget((kind, next(iter(self._absent_pins))), now)

    def resolved(self, cluster: str, assignment: ClusterLoadAssignment) -> None:
        """DNS gave these endpoints to the cluster."""
        if cluster in self._dns:
            self._resolved.set(cluster, assignment)

    def external_secrets(self) -> AbstractSet[SecretRef]:
        """The secrets that come from elsewhere and that a cluster or a listener in force needs."""
        return self._secrets.wanted

    def external(self, ref: SecretRef, secret: Secret | None) -> None:
        """A secret has come from elsewhere; None: it has not come in time, or was refused at first."""
        self._secrets.take(ref, secret)

    def amend(self, kind: Kind, name: str, old: Resource, new: Accepted) -> bool:
        """Put a corrected form of a resource in its place, if it is still in force."""
        entry = self._entries[kind].get(name)
        if entry is None or entry.value is not old:
            return False
        entry.value = new.resource
        self._values[kind].set(name, new.resource)
        self._unsupported.set((kind, name), new.unsupported)
        return True

    def snapshot(self) -> Snapshot:
        """The configuration as of now; the same object as before when nothing has changed."""
        tables: tuple[Table[Any, Any], ...] = (
            *self._values.values(),
            self._inbound,
            *self._secrets.tables,
            self._resolved,
            self._absent,
            self._awaited,
            self._errors,
            self._unsupported,
            self._versions,
        )
        if sum(table.publish() for table in tables):
            self._snapshot = Snapshot(
                generation=self._snapshot.generation + 1,
                listeners=self._values[Kind.LISTENER].current,
                routes=self._values[Kind.ROUTE].current,
                clusters=self._values[Kind.CLUSTER].current,
                endpoints=self._values[Kind.ENDPOINT].current,
                secrets=self._values[Kind.SECRET].current,
                inbound=self._inbound.current,
                external_secrets=self._secrets.found.current,
                missing_secrets=self._secrets.missing.current.keys(),
                resolved=self._resolved.current,
                absent=self._absent.current.keys(),
                awaited=self._awaited.current.keys(),
                errors=self._errors.current,
                unsupported=self._unsupported.current,
                versions=self._versions.current,
            )
        return self._snapshot

    def status(self) -> tuple[ResourceStatus, ...]:
        """Every wanted resource. May be called from another thread: the copy of each mapping is one step."""
        return tuple(
            ResourceStatus(
                kind=kind,
                name=name,
                state=entry.state,
                version=entry.version,
                error=entry.error,
                error_version=entry.error_version,
                updated=entry.updated,
            )
            for kind, entries in self._entries.items()
            for name, entry in entries.copy().items()
        )

    # How it works

    def _entry(self, kind: Kind, name: str, now: float) -> _Entry:
        entry = self._entries[kind].get(name)
        if entry is None:
            entry = self._entries[kind][name] = _Entry(now)
            self._revisions[kind] += 1
            self._awaited.set((kind, name), None)
        return entry

    def _accept(
        self,
        kind: Kind,
        name: str,
        entry: _Entry,
        value: Resource,
        unsupported: tuple[str, ...],
        version: str,
        now: float,
    ) -> None:
        ref = (kind, name)
        entry.version, entry.updated = version, now
        self._settle(kind, name, entry)
        if entry.error is not None:
            entry.error, entry.error_version = None, ""
            self._errors.drop(ref)
        if value is entry.value:
            return
        entry.value = value
        self._set_value(kind, name, value)
        if unsupported:
            self._unsupported.set(ref, unsupported)
        else:
            self._unsupported.drop(ref)
        if isinstance(value, Cluster):
            self._set_dns(name, value)
        self._link(entry, children_of(value), now)

    def _set_value(self, kind: Kind, name: str, value: Resource) -> None:
        """A listener stands in one of two tables; it may move when it changes."""
        if isinstance(value, InboundListener):
            self._values[kind].drop(name)
            self._inbound.set(name, value)
        else:
            self._values[kind].set(name, value)
            if kind is Kind.LISTENER:
                self._inbound.drop(name)
        if isinstance(value, Cluster | InboundListener):
            self._secrets.need((kind, name), value.secrets)

    def _drop_value(self, kind: Kind, name: str) -> None:
        self._values[kind].drop(name)
        if kind is Kind.LISTENER:
            self._inbound.drop(name)
        self._secrets.need((kind, name), ())

    def _reject(
        self, kind: Kind, name: str, entry: _Entry, error: ResourceError, version: str, now: float
    ) -> None:
        entry.error_version, entry.updated = version, now
        self._settle(kind, name, entry)
        if error is not entry.error:
            entry.error = error
            self._errors.set((kind, name), error)

    def _settle(self, kind: Kind, name: str, entry: _Entry) -> None:
        """The control plane has spoken of the resource: it is neither awaited nor absent."""
        ref = (kind, name)
        if entry.absent:
            entry.absent = False
            self._absent.drop(ref)
            if kind is Kind.LISTENER:
                self._absent_pins.pop(name, None)
        elif entry.state is ResourceState.REQUESTED:
            self._awaited.drop(ref)

    def _set_dns(self, name: str, cluster: Cluster | None) -> None:
        if cluster is not None and cluster.discovery in (DiscoveryType.STRICT_DNS, DiscoveryType.LOGICAL_DNS):
            self._dns[name] = cluster
        elif self._dns.pop(name, None) is not None:
            self._resolved.drop(name)

    def _link(self, entry: _Entry, children: frozenset[Ref], now: float) -> None:
        before, entry.children = entry.children, children
        for kind, name in children - before:
            self._entry(kind, name, now).refs += 1
            self._lingering.pop((kind, name), None)
        for kind, name in before - children:
            child = self._entries[kind][name]
            child.refs -= 1
            self._release(kind, name, child, now)

    def _release(self, kind: Kind, name: str, entry: _Entry, now: float) -> None:
        if not entry.pinned and entry.refs == 0:
            self._lingering[kind, name] = now + self._linger

    def _forget(self, ref: Ref, now: float) -> None:
        kind, name = ref
        entry = self._entries[kind].pop(name)
        self._revisions[kind] += 1
        self._lingering.pop(ref, None)
        if kind is Kind.LISTENER:
            self._absent_pins.pop(name, None)
        self._drop_value(kind, name)
        for table in (self._absent, self._awaited, self._errors, self._unsupported):
            table.drop(ref)
        if kind is Kind.CLUSTER:
            self._set_dns(name, None)
        self._link(entry, frozenset(), now)
