"""The SPIFFE Workload API as an identity source, by the `spiffe` package (extra `spiffe`).

The package's stream ends for good at the first fatal error (an answer that can't be parsed, INVALID_ARGUMENT, a socket that is
not there), has no hold on a fork, and calls back on a thread of its own. So it gets one attempt at a time here: whatever
ends it, another client is made after a back-off, and what was given last stays in force meanwhile.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random as _random
from collections.abc import Callable
from typing import Any, Protocol

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tenacity.wait import wait_base, wait_exponential

from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.material import BundleSet, Svid, TrustBundle
from meshlib.identity.source import IdentityUpdate
from meshlib.runtime import fork
from meshlib.runtime.backoff import Backoff, wait_spread
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.grpc_core import FORK_WAIT, await_shutdown, let_fork_guard_come_first
from meshlib.runtime.threads import Executor, Worker

__all__ = ["ENDPOINT", "Client", "WorkloadApi"]

ENDPOINT = "SPIFFE_ENDPOINT_SOCKET"
"""The environment variable that names the socket when nothing else does (SPIFFE Workload Endpoint, section 4)."""

INITIAL, MULTIPLIER, LONGEST, JITTER = 0.5, 2.0, 30.0, 0.2

logger = logging.getLogger("meshlib.identity")

OnContext = Callable[[Any], None]
OnError = Callable[[Exception], None]


class Client(Protocol):
    """What is used of `spiffe.WorkloadApiClient`."""

    def stream_x509_contexts(
        self, on_success: OnContext, on_error: OnError, retry_connect: bool = ...
    ) -> Any:
        """Returns what has a `cancel`."""

    def close(self) -> None: ...


class WorkloadApi:
    """An IdentitySource: all SVIDs of this workload, its own and the federated bundles.

    address: `unix:///run/spire/agent.sock` or `tcp://IP:PORT`; a bare path is one of a socket; None: the environment variable
    SPIFFE_ENDPOINT_SOCKET. wait: the back-off between attempts.

    Raises:
        ConfigError: the `spiffe` package is not installed, or there is no address.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        clock: Clock | None = None,
        random: _random.Random | None = None,
        wait: wait_base | None = None,
        open_client: Callable[[str], Client] | None = None,
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        if open_client is None and importlib.util.find_spec("spiffe") is None:
            raise ConfigError(
                "the SPIFFE Workload API needs the `spiffe` package: install meshlib-xds[spiffe]"
            )
        address = address or os.environ.get(ENDPOINT, "")
        if not address:
            raise ConfigError(f"no address of a Workload API is given: pass one, or set {ENDPOINT}")
        self.address = address if ":" in address else f"unix://{address}"
        self._clock = clock or SystemClock()
        self._open_client = open_client or _open
        self._make_executor = executor or (lambda: Worker("meshlib-identity", self._clock))
        draw = (random or _random.Random()).random
        self._backoff = Backoff(
            wait or wait_spread(wait_exponential(INITIAL, LONGEST, MULTIPLIER), JITTER, draw)
        )
        self._on_update: Callable[[IdentityUpdate], None] | None = None
        self._executor: Executor | None = None
        self._client: Client | None = None
        self._handle: Any = None
        self._attempt = 0
        self._last_error: str | None = None
        self._interrupted = False
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
        self._disconnect()

    # On the background thread

    def _connect(self) -> None:
        if self._closed or self._client is not None:
            return
        self._attempt += 1
        attempt = self._attempt
        try:
            client = self._client = self._open_client(self.address)
            self._handle = client.stream_x509_contexts(
                lambda context: self._post(lambda: self._arrived(attempt, context)),
                lambda error: self._post(lambda: self._failed(attempt, error)),
                retry_connect=False,
            )
        except (IdentityError, OSError, RuntimeError, ValueError) as error:
            self._failed(attempt, error)

    def _arrived(self, attempt: int, context: Any) -> None:
        if attempt != self._attempt or self._on_update is None:
            return
        try:
            update = _update(context)
        except IdentityError as error:
            self._failed(attempt, error)
            return
        self._backoff.reset()
        self._last_error = None
        self._on_update(update)

    def _failed(self, attempt: int, error: Exception) -> None:
        if attempt != self._attempt or self._closed:
            return
        self._attempt += 1
        self._disconnect()
        text = f"the Workload API at {self.address}: {error}"
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

    def _disconnect(self) -> None:
        handle, self._handle = self._handle, None
        client, self._client = self._client, None
        if handle is not None:
            handle.cancel()
        if client is not None:
            client.close()

    # Around a fork

    def before_fork(self) -> None:
        executor = self._executor
        if executor is None:
            return
        executor.pause(fork.PATIENCE)
        self._interrupted = self._client is not None
        self._attempt += 1
        self._disconnect()
        if self._interrupted:
            await_shutdown(FORK_WAIT)

    def after_fork_in_parent(self) -> None:
        executor = self._executor
        if executor is None:
            return
        executor.resume()
        if self._interrupted:
            self._interrupted = False
            executor.post(self._connect)

    def after_fork_in_child(self) -> None:
        executor, self._executor = self._executor, None
        self._interrupted = False
        self._backoff.reset()
        if executor is not None:
            executor.abandon()

    def __repr__(self) -> str:
        return f"<WorkloadApi {self.address}>"


def _open(address: str) -> Client:
    from spiffe import WorkloadApiClient
    from spiffe.errors import PySpiffeError

    try:
        client: Client = WorkloadApiClient(socket_path=address)
    except PySpiffeError as error:
        raise IdentityError(str(error)) from None
    let_fork_guard_come_first()
    return client


def _update(context: Any) -> IdentityUpdate:
    """From spiffe's X509Context. Raises: IdentityError: something in it is not accepted here."""
    svids = tuple(_svid(item) for item in context.x509_svids)
    return IdentityUpdate(
        svids=svids, bundles=BundleSet(_bundle(item) for item in context.x509_bundle_set.bundles)
    )


def _svid(item: Any) -> Svid:
    key = item.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return Svid.from_der([each.public_bytes(Encoding.DER) for each in item.cert_chain], key)


def _bundle(item: Any) -> TrustBundle:
    # A set there: the order would differ from one update to the next.
    authorities = sorted(each.public_bytes(Encoding.DER) for each in item.x509_authorities)
    return TrustBundle(item.trust_domain.name, authorities)
