"""The SPIFFE Workload API as an identity source: one stream of X.509-SVIDs, their bundles and the federated ones.

Whatever ends the stream, or can't be used, another one is opened after a back-off; what was given last stays in force meanwhile.
"""

from __future__ import annotations

import ipaddress
import os
import random as _random
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from tenacity.wait import wait_base, wait_exponential

from meshlib import proto
from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.material import BundleSet, Svid, TrustBundle, split_der
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.spiffe import SCHEME
from meshlib.proto import workload
from meshlib.runtime import fork
from meshlib.runtime.backoff import Backoff, wait_spread
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.stream import JOIN, Connection, OpenStream, Stream, StreamTarget, over_grpc
from meshlib.runtime.threads import Executor, Worker

__all__ = ["ENDPOINT", "WorkloadApi"]

ENDPOINT = "SPIFFE_ENDPOINT_SOCKET"
"""The environment variable that names the socket when nothing else does (SPIFFE Workload Endpoint, section 4)."""

INITIAL, MULTIPLIER, LONGEST, JITTER = 0.5, 2.0, 30.0, 0.2


class WorkloadApi:
    """An IdentitySource: all SVIDs of this workload, its own and the federated bundles.

    address: `unix:///run/spire/agent.sock` or `tcp://IP:PORT`; a bare path is one of a socket; None: the environment variable
    SPIFFE_ENDPOINT_SOCKET. wait: the back-off between attempts.

    Raises:
        ConfigError: there is no address, or it is not one of a Workload API.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        clock: Clock | None = None,
        random: _random.Random | None = None,
        wait: wait_base | None = None,
        open_stream: OpenStream = over_grpc,
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        address = address or os.environ.get(ENDPOINT, "")
        if not address:
            raise ConfigError(f"no address of a Workload API is given: pass one, or set {ENDPOINT}")
        self.address = address if ":" in address else f"unix://{address}"
        self._target = StreamTarget(
            target=_target(self.address),
            method=f"/{workload.SERVICE}/FetchX509SVID",
            metadata=(workload.SECURITY_HEADER,),
        )
        self._clock = clock or SystemClock()
        self._open_stream = open_stream
        self._make_executor = executor or (lambda: Worker("meshlib-identity", self._clock))
        draw = (random or _random.Random()).random
        self._backoff = Backoff(
            wait or wait_spread(wait_exponential(INITIAL, LONGEST, MULTIPLIER), JITTER, draw)
        )
        self._on_update: Callable[[IdentityUpdate], None] | None = None
        self._executor: Executor | None = None
        self._connection = Connection(self._open)
        self._last_error: str | None = None
        self._closed = False
        fork.register(self)

    def start(self, on_update: Callable[[IdentityUpdate], None]) -> None:
        if self._closed:
            return
        self._on_update = on_update
        if self._executor is None:
            self._executor = self._make_executor()
            self._executor.post(self._connect)

    def close(self) -> None:
        self._closed = True
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.close()
        stream = self._connection.close()
        if stream is not None:
            stream.join(JOIN)

    # On the background thread

    def _connect(self) -> None:
        try:
            self._connection.open()
        except RuntimeError as error:  # no thread could be started
            self._again(str(error))

    def _open(self) -> Stream:
        stream = self._open_stream(self._target, self._on_message, self._on_closed)
        stream.send(b"")
        stream.done_sending()
        return stream

    def _on_message(self, stream: Stream, data: bytes) -> None:
        self._post(partial(self._received, stream, data))

    def _on_closed(self, stream: Stream, reason: str) -> None:
        self._post(partial(self._lost, stream, reason))

    def _received(self, stream: Stream, data: bytes) -> None:
        try:
            if stream is self._connection.stream:
                self._take(_update(data))
        except (IdentityError, proto.DecodeError) as error:
            self._lost(stream, str(error))
        finally:
            stream.processed()

    def _take(self, update: IdentityUpdate) -> None:
        self._backoff.reset()
        self._last_error = None
        if self._on_update is not None:
            self._on_update(update)

    def _lost(self, stream: Stream, reason: str) -> None:
        if self._connection.ended(stream):
            self._again(reason)

    def _again(self, reason: str) -> None:
        text = f"the Workload API at {self.address}: {reason}"
        if text != self._last_error and self._on_update is not None:
            self._last_error = text
            self._on_update(IdentityUpdate(error=text))
        executor = self._executor
        if executor is not None:
            executor.call_at(self._clock.monotonic() + self._backoff.next(), self._connect)

    def _post(self, task: Callable[[], None]) -> None:
        executor = self._executor
        if executor is not None:
            executor.post(task)

    # Around a fork

    def before_fork(self) -> None:
        if self._executor is not None:
            self._executor.pause(fork.PATIENCE)
        self._connection.before_fork()

    def after_fork_in_parent(self) -> None:
        interrupted = self._connection.after_fork_in_parent()
        if self._executor is not None:
            self._executor.resume()
        if interrupted:
            self._post(self._connect)

    def after_fork_in_child(self) -> None:
        self._connection.after_fork_in_child()
        self._connection = Connection(self._open)
        self._backoff.reset()
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.abandon()

    def __repr__(self) -> str:
        return f"<WorkloadApi {self.address}>"


def _target(address: str) -> str:
    """gRPC's name for a Workload Endpoint. Raises: ConfigError."""
    try:
        parts = urlsplit(address)
        if parts.scheme == "unix" and parts.path and not (parts.netloc or parts.query or parts.fragment):
            return f"unix:{parts.path}"
        if parts.scheme == "tcp" and address == f"tcp://{parts.netloc}" and parts.port and "@" not in address:
            version = ipaddress.ip_address(parts.hostname or "").version
            return f"ipv{version}:{parts.netloc}"
    except ValueError:
        pass
    raise ConfigError(
        f"{address!r} is no address of a Workload API: expected unix:///path/of/the.sock or tcp://IP:PORT"
    )


def _update(data: bytes) -> IdentityUpdate:
    """From an X509SVIDResponse. Raises: IdentityError: something in it is not accepted here; DecodeError: it is none."""
    response = workload.parse("X509SVIDResponse", data)
    svids, bundles = [], []
    for item in response.svids:
        svid = Svid.from_der(item.x509_svid, item.x509_svid_key, hint=item.hint)
        if svid.spiffe_id is None:
            raise IdentityError(
                "an X.509-SVID has no SPIFFE id",
                expected="one URI SAN",
                got=", ".join(svid.uri_sans) or "none",
            )
        svids.append(svid)
        bundles.append(_bundle(svid.spiffe_id.trust_domain, item.bundle))
    if not svids:
        raise IdentityError("there is no X.509-SVID in the answer")
    bundles += [
        _bundle(domain.removeprefix(SCHEME), der) for domain, der in response.federated_bundles.items()
    ]
    return IdentityUpdate(svids=tuple(svids), bundles=BundleSet(bundles))


def _bundle(trust_domain: str, der: bytes) -> TrustBundle:
    if not der:
        raise IdentityError(f"the bundle of {trust_domain} is empty")
    return TrustBundle(trust_domain, split_der(der))
