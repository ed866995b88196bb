"""TLS for an inner channel by C-core itself: an opt-in for its speed, where C-core can verify what the configuration asks for.

A stock grpcio client can't check a SPIFFE id, but gRPC's own xDS client can. So the inner channel is for a target of its own,
`xds:///...`, about which a server of this process (`relay_hub`, `relay_server`, `relay_ads`) tells C-core's xDS client: one
endpoint, whom to trust, which names to accept, where the own certificate is. C-core connects to the endpoint by itself.

As a tunnel it is for one connection, which ages with the certificate that it was made with (`aging`). Before C-core is told
anything the own certificate is looked at, and what C-core can't verify is refused (`relay_resources`).
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import grpc

from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.client import ClientHandshake, ClientSecurity
from meshlib.identity.failure import transport_failure
from meshlib.identity.resolve import Resolved
from meshlib.policy.failure import FailureKind
from meshlib.state import EndpointState, Way
from meshlib.transport.grpc.aging import Aging, Held
from meshlib.transport.grpc.relay_hub import Hub, name_of_a_target, the_hub
from meshlib.transport.grpc.relay_resources import peer_of, refused, resources
from meshlib.transport.grpc.tunnel import H2, TunnelFailure
from meshlib.transport.grpc.tunnel_loop import opening_loop

__all__ = ["Relayed"]

_QUESTION = "/meshlib.Relay/Why"
_PATIENCE = 1.0
"""Seconds that C-core has at most to say why it could not connect. It says so at once."""


class Relayed:
    """What `Tunnel` is, with C-core's TLS: see there for its attributes and methods.

    told: whether C-core may connect; it would find nothing before.
    """

    __slots__ = (
        "__weakref__",
        "_aging",
        "_authority",
        "_endpoint",
        "_handshake",
        "_hub",
        "_lock",
        "_name",
        "_name_header",
        "_security",
        "begun",
        "failure",
        "holder",
        "target",
        "told",
    )

    def __init__(self, endpoint: EndpointState, way: Way, authority: str) -> None:
        self._endpoint = endpoint
        self._security = cast(ClientSecurity, way.security)
        self._authority = authority
        self._name_header = way.name_header
        self._name = name_of_a_target()
        self.target = f"xds:///{self._name}"
        self.failure: TunnelFailure | None = None
        self.begun = False
        self.told = False
        self.holder: weakref.ref[Held] | None = None
        self._lock = threading.Lock()
        self._aging: Aging | None = None
        self._handshake: ClientHandshake | None = None
        self._hub: Hub | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For the inner channel. Without a transport socket, which is always given, C-core would trust nobody."""
        return grpc.xds_channel_credentials(grpc.ssl_channel_credentials(b"nobody"))

    def begin(self, _limit: float) -> None:
        """Tell C-core whom to connect to, which it does next. Idempotent; `failure` may be there at once."""
        with self._lock:
            if self.begun or self.failure is not None:
                return
            self.begun = True
        try:
            self._tell()
        except (ConfigError, IdentityError, OSError) as error:
            self._fail(error)
            return
        opening_loop().submit(self._live)

    def _tell(self) -> None:
        endpoint = self._endpoint
        if endpoint.address.startswith(("/", "@")):
            raise refused("an endpoint that is a Unix socket")
        if self._name_header:
            raise refused("override_auto_sni_header")
        handshake, material = self._begin_handshake()
        peer = peer_of(self._security.tls, material)
        own = material.svids[0] if material.svids else None
        make = partial(
            resources,
            self._name,
            (endpoint.address, endpoint.port),
            peer,
            shows=own is not None,
            sni=handshake.server_hostname or "",
        )
        hub = the_hub()
        hub.enter(self._name, (own, peer.roots), make, weakref.WeakMethod(self._rejected))
        self._hub = hub
        self._aging = Aging(opening_loop(), self._security, handshake, self.holder)
        self.told = True

    def _begin_handshake(self) -> tuple[ClientHandshake, Resolved]:
        """With the trust of a moment at which `trusted` is known to whoever withdraws an authority."""
        while True:
            self._handshake = handshake = self._security.handshake(
                authority=self._authority, hostname=self._endpoint.hostname, alpn=(H2,)
            )
            material = handshake.lend()
            if handshake.trusted:
                return handshake, material

    def explain(self, channel: Any) -> None:
        """C-core could not connect: have `failure` say why. The question itself never leaves: its credentials fail."""
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=_PATIENCE, credentials=_silent())
        except grpc.RpcError as error:
            self._say(error)
        except ValueError:
            pass  # closed

    async def explain_aio(self, channel: Any) -> None:
        """The same on a channel of grpc.aio."""
        try:
            await channel.unary_unary(_QUESTION)(b"", timeout=_PATIENCE, credentials=_silent())
        except grpc.RpcError as error:
            self._say(error)

    def _say(self, error: Any) -> None:
        if error.code() is not grpc.StatusCode.UNAVAILABLE or _SILENCE in (error.details() or ""):
            return
        self._give_up(TunnelFailure(kind=FailureKind.CONNECT_FAILED, reason=_words(error.details() or "")))

    def _rejected(self, reason: str) -> None:
        """C-core does not take what it was told, on the thread that has told it."""
        self._give_up(TunnelFailure(kind=FailureKind.CONNECT_FAILED, reason=_words(reason)))

    @property
    def trusted(self) -> bool:
        """No authority has been withdrawn since C-core was told of them: by which of them it has verified, it does not say."""
        return self._handshake is None or self._handshake.trusted

    def exchange(self) -> None:
        """Certificates may have been renewed. From any thread."""
        aging = self._aging
        if aging is not None and aging.outdated:
            opening_loop().submit(aging.look)

    def close(self) -> None:
        """The inner channel is closed. Idempotent."""
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.leave(self._name)
            opening_loop().submit(self._rest)

    def __del__(self) -> None:
        """Its inner channel was dropped."""
        hub = self._hub
        if hub is not None:
            self._rest()
            hub.drop(self._name)

    def _live(self) -> None:
        if self._aging is not None and self._hub is not None:
            self._aging.begin()

    def _rest(self) -> None:
        if self._aging is not None:
            self._aging.end()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        reason = transport_failure(error) if isinstance(error, IdentityError) else _words(str(error))
        self._give_up(TunnelFailure(kind=FailureKind.CONNECT_FAILED, reason=reason, error=error))

    def _give_up(self, failure: TunnelFailure) -> None:
        with self._lock:
            if self.failure is None:
                self.failure = failure


_ADDRESS = re.compile(r"^[A-Z_]+: ipv[46]:\S+: ")

_SILENCE = "nothing is to be sent"


def _refuse(_context: object, callback: Callable[[Any, BaseException | None], None]) -> None:
    callback((), RuntimeError(_SILENCE))


def _silent() -> grpc.CallCredentials:
    return grpc.metadata_call_credentials(_refuse)


def _words(details: str) -> str:
    """Of C-core's text what is about the endpoint, as one word."""
    text = details.rpartition("last error: ")[2].partition(" (xDS node ID:")[0]
    return "_".join(_ADDRESS.sub("", text).split())
