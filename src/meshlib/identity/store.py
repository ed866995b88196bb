"""All identities of a Mesh, and everything that is made of them.

Material comes from four sides: the configuration itself (inline, or files that it names), secrets (SDS), certificate providers
of the bootstrap, and the workload's default identity (`Mesh(identity=...)`). Whenever one of them changes, on whatever thread
brought it, every security in use is looked at again: material is parsed, contexts are built, and one attribute is swapped. Calls
only read that attribute.

The default identity answers for what nobody else supplies: provider instances that the bootstrap does not have, and secrets
that no SDS server has sent, by the names that SPIRE's agent gives them. So a configuration written for Envoy beside a SPIRE
agent works unchanged with `Mesh(identity="unix:///run/spire/agent.sock")`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from meshlib.identity.client import ClientSecurity
from meshlib.identity.contexts import ContextCache
from meshlib.identity.polling import INTERVAL, Files, Poller
from meshlib.identity.resolve import Memo, Resolved
from meshlib.identity.sds import secret_named
from meshlib.identity.server import ServerSecurity
from meshlib.identity.source import IdentitySource, IdentityUpdate
from meshlib.identity.trust import Trust
from meshlib.resources.secret import Secret
from meshlib.resources.tls import (
    AdsSource,
    DownstreamTls,
    FilePath,
    Material,
    ProviderInstance,
    SecretRef,
    UpstreamTls,
)
from meshlib.runtime import fork
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.threads import Slicer

if TYPE_CHECKING:
    from meshlib.snapshot import Snapshot

__all__ = ["IdentityStore"]

logger = logging.getLogger("meshlib.identity")

BUDGET, REST = 0.0005, 0.004
"""Seconds: OpenSSL takes two or three milliseconds of a CPU for each context, which the calls under way would wait for."""


class IdentityStore:
    """See the module's text. One for each Mesh. Making it starts nothing.

    source: the workload's default identity. providers: of the bootstrap, by instance name. interval: seconds between two looks
    at files that configurations name. slicer: leaves room for calls while contexts are built.
    """

    def __init__(
        self,
        source: IdentitySource | None = None,
        providers: Mapping[str, IdentitySource] | None = None,
        *,
        clock: Clock | None = None,
        interval: float = INTERVAL,
        slicer: Slicer | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._source = source
        self._providers = dict(providers or {})
        self._cache = ContextCache()
        self._memo = Memo()
        self._slicer = slicer or Slicer(budget=BUDGET, rest=REST)
        self._clients: weakref.WeakValueDictionary[UpstreamTls, ClientSecurity] = (
            weakref.WeakValueDictionary()
        )
        self._servers: weakref.WeakValueDictionary[
            tuple[DownstreamTls | None, tuple[str, ...]], ServerSecurity
        ] = weakref.WeakValueDictionary()
        self._default: IdentityUpdate | None = None
        self._updates: dict[str, IdentityUpdate] = {}
        self._secrets: Mapping[str, Secret] = {}
        self._external: Mapping[SecretRef, Secret] = {}
        self._files = Files()
        self._poller = Poller(self._look_at_files, clock=self._clock, interval=interval)
        self._subscribers: dict[object, Callable[[], None]] = {}
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        self._started = False
        self._closed = False
        fork.register(self)

    # What configurations become

    def client(self, tls: UpstreamTls) -> ClientSecurity:
        """TLS to upstreams by this configuration; the same object for an equal one, as long as somebody holds it.

        Never raises for want of material: `handshake` does, until there is some.
        """
        with self._lock:
            found = self._clients.get(tls)
            if found is None:
                found = ClientSecurity(tls, self._cache, self._clock.time, self.start)
                self._slicer.begin()
                found.refresh(self, self._memo, self._warn, self._slicer.pause)
                self._clients[tls] = found
                self._poll()
            return found

    def server(self, tls: DownstreamTls | None = None, *, alpn: tuple[str, ...] = ()) -> ServerSecurity:
        """TLS to callers by this configuration; None: the workload's default identity, and only callers whom its bundles know.

        alpn: what is offered when the configuration names nothing. The same object for equal arguments.
        """
        with self._lock:
            found = self._servers.get((tls, alpn))
            if found is None:
                found = ServerSecurity(tls, self._cache, self._clock.time, self.start, alpn)
                found.refresh(self, self._memo, self._default, self._warn)
                self._servers[tls, alpn] = found
                self._poll()
            return found

    @property
    def default(self) -> IdentityUpdate | None:
        """What the default source has said last; None before that, and without one."""
        return self._default

    def in_use(self) -> list[Resolved]:
        """What every configuration in use has become by now, each once; without any, what the default source has said."""
        with self._lock:
            securities: list[ClientSecurity | ServerSecurity] = []
            securities += self._clients.values()
            securities += self._servers.values()
        found: list[Resolved] = []
        for security in securities:
            if security.material is not None and security.material not in found:
                found.append(security.material)
        if not found and self._default is not None:
            trust = Trust(bundles=self._default.bundles or None, roots=self._default.roots or None)
            found.append(Resolved(svids=self._default.svids[:1], trust=trust))
        return found

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back whenever new handshakes anywhere use something else, on any thread. Returns what ends that."""
        key = object()
        with self._lock:
            self._subscribers[key] = callback
        return lambda: _forget(self._subscribers, key)

    # Where material comes from

    def apply(self, snapshot: Snapshot) -> None:
        """The secrets of a configuration. On the thread that publishes it, before its clusters are in use."""
        if snapshot.secrets is self._secrets and snapshot.external_secrets is self._external:
            return
        with self._lock:
            self._secrets, self._external = snapshot.secrets, snapshot.external_secrets
            changed = self._refresh()
        self._tell(changed)

    def secret(self, ref: SecretRef) -> Secret | None:
        ours = isinstance(ref.source, AdsSource)
        found = self._secrets.get(ref.name) if ours else self._external.get(ref)
        if found is None and self._default is not None:
            return secret_named(self._default, ref.name)
        return found

    def provider(self, instance: ProviderInstance) -> IdentityUpdate | None:
        name = instance.instance_name
        return self._updates.get(name) if name in self._providers else self._default

    def read(self, material: Material) -> bytes:
        return self._files.read(material.path) if isinstance(material, FilePath) else material

    # Life

    def start(self) -> None:
        """Begin to follow sources and files, unless that has been done. Costs one comparison when it has."""
        if not self._started:
            self._begin()

    def _begin(self) -> None:
        with self._lock:
            if self._started or self._closed:
                return
            self._started = True
            self._poll()
        if self._source is not None:
            self._source.start(self._default_update)
        for name, provider in self._providers.items():
            provider.start(partial(self._provider_update, name))

    def close(self) -> None:
        """Follow nothing any longer. What is in use stays so. Idempotent."""
        with self._lock:
            self._closed = True
        self._poller.close()
        for source in (self._source, *self._providers.values()):
            if source is not None:
                source.close()

    def before_fork(self) -> None:
        """Nothing to wait for: what a thread of the parent was doing is done again in the child, from its beginning."""

    def after_fork_in_parent(self) -> None:
        """All goes on."""

    def after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        self._cache.after_fork_in_child()
        self._started = False

    def _default_update(self, update: IdentityUpdate) -> None:
        with self._lock:
            if self._closed or not self._taken("the workload's identity", self._default, update):
                return
            self._default = update
            changed = self._refresh()
        self._tell(changed)

    def _provider_update(self, name: str, update: IdentityUpdate) -> None:
        with self._lock:
            before = self._updates.get(name)
            if self._closed or not self._taken(f"certificate provider {name!r}", before, update):
                return
            self._updates[name] = update
            changed = self._refresh()
        self._tell(changed)

    def _taken(self, whose: str, before: IdentityUpdate | None, update: IdentityUpdate) -> bool:
        """Whether an update takes the place of what there was: one that only says what went wrong does not."""
        if update.error is not None:
            self._warn(f"{whose}: {update.error}")
        return update.has_material or before is None or not before.has_material

    def _look_at_files(self) -> None:
        if not self._files.changed():
            return
        with self._lock:
            changed = self._refresh()
        self._tell(changed)

    def _poll(self) -> None:
        if self._started and not self._closed and self._files:
            self._poller.start()

    def _refresh(self) -> bool:
        """Look at everything in use again; whether new handshakes use something else. The lock is held."""
        self._slicer.begin()
        self._memo.next_pass()
        self._files.next_pass()
        changed = False
        for client in list(self._clients.values()):
            changed |= client.refresh(self, self._memo, self._warn, self._slicer.pause)
        for server in list(self._servers.values()):
            changed |= server.refresh(self, self._memo, self._default, self._warn)
            self._slicer.pause()
        if changed:
            self._warned.clear()
        self._poll()
        return changed

    def _tell(self, changed: bool) -> None:
        if changed:
            for callback in list(self._subscribers.values()):
                callback()

    def _warn(self, text: str) -> None:
        """Once for each cause, until something has changed."""
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)

    def __repr__(self) -> str:
        return (
            f"<IdentityStore with {self._default.svids[0]!r}>"
            if self._default and self._default.svids
            else "<IdentityStore>"
        )


def _forget(subscribers: dict[object, Callable[[], None]], key: object) -> None:
    subscribers.pop(key, None)
