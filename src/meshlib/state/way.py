"""How connections to an endpoint are made: one object that can be compared.

A connection that waits in a pool may serve a call only when it was made as a connection would be made now: the same protocol,
the same transport socket (plaintext, or TLS by the same configuration), the same own identity and trust. All of that is the
endpoint's *way*, and one look at an identity (`connection.way is endpoint.way`) answers the question. A configuration that
changes the transport socket, another SPIFFE id of our own, and other rules for whom to trust give the endpoints of a cluster
another way; connections of an earlier one are used no more, and end when what runs on them has ended. What happens on schedule
leaves the way as it is: a certificate is renewed (connections of before are exchanged soon, `policy.rotation`), an authority
comes (they go on) or goes (those go on whose peer it has not vouched for, `Handshake.trusted`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from meshlib.resources.cluster import Cluster, HttpProtocol
from meshlib.resources.metadata import Scalar
from meshlib.resources.tls import UpstreamTls, select_tls

if TYPE_CHECKING:
    import ssl

__all__ = ["HTTP1", "HTTP2", "Handshake", "Secure", "Security", "Way", "Ways"]


class Handshake(Protocol):
    """One TLS handshake of a client. epoch: of the material. not_after: wall seconds, the end of our own certificate's life;
    inf without one. own: the certificate that the server may ask for, DER; empty for none. trusted: False when the authority that
    the peer was verified by has been withdrawn since: its connection is to take no new call."""

    @property
    def context(self) -> ssl.SSLContext: ...
    @property
    def server_hostname(self) -> str | None: ...
    @property
    def epoch(self) -> int: ...
    @property
    def not_after(self) -> float: ...
    @property
    def own(self) -> bytes: ...
    @property
    def trusted(self) -> bool: ...

    def verify(self, tls: ssl.SSLObject | ssl.SSLSocket) -> object:
        """Right after the handshake, before the first byte. Raises IdentityError when this peer can't be trusted."""

    def text(self, error: BaseException, tls: ssl.SSLObject | ssl.SSLSocket | None = None) -> str:
        """Envoy's words for what the handshake failed with. tls: from which the certificate at fault is known."""


class Security(Protocol):
    """What an UpstreamTls has become with the material that there is.

    epoch: grows with each rotation; trust_epoch: only when our own name has changed, or more of what is trusted than that
    authorities came or went. Both are 0 as long as there is none.
    """

    @property
    def epoch(self) -> int: ...
    @property
    def trust_epoch(self) -> int: ...

    def handshake(self, *, authority: str, hostname: str, alpn: tuple[str, ...]) -> Handshake:
        """Begin one. Raises IdentityError when there is no usable material."""


Secure = Callable[[UpstreamTls], Security]
"""Gives the same object for an equal configuration."""


class Way:
    """multiplexed: HTTP/2. epoch: the security's trust_epoch. security: None for plaintext. named: a connection serves only the
    authority that it was made for. name_header: the request header that names it, lower-case; empty: the authority itself.

    Compared by identity.
    """

    __slots__ = ("epoch", "multiplexed", "name_header", "named", "protocol", "security")

    def __init__(
        self,
        protocol: HttpProtocol,
        security: Security | None = None,
        *,
        named: bool = False,
        name_header: str = "",
    ) -> None:
        self.protocol = protocol
        self.multiplexed = protocol is HttpProtocol.HTTP2
        self.security = security
        self.epoch = 0 if security is None else security.trust_epoch
        self.named = named
        self.name_header = name_header

    @property
    def outdated(self) -> bool:
        """We are somebody else, or trust by other rules, since this way was found."""
        return self.security is not None and self.security.trust_epoch != self.epoch

    def renewed(self) -> Way:
        """The way of now; the same when nothing has changed."""
        if not self.outdated:
            return self
        return Way(self.protocol, self.security, named=self.named, name_header=self.name_header)

    def leads_like(self, other: Way) -> bool:
        """Whether connections of the two can't be told apart."""
        return (
            self.protocol is other.protocol
            and self.security == other.security
            and self.epoch == other.epoch
            and self.named == other.named
            and self.name_header == other.name_header
        )

    def __repr__(self) -> str:
        made = "plaintext" if self.security is None else f"TLS, epoch {self.epoch}"
        return f"<Way {self.protocol.name} {made}>"


HTTP1 = Way(HttpProtocol.HTTP1)
HTTP2 = Way(HttpProtocol.HTTP2)
_PLAIN = {HttpProtocol.HTTP1: HTTP1, HttpProtocol.HTTP2: HTTP2}


class Ways:
    """The ways to the endpoints of one version of a cluster. Immutable."""

    __slots__ = ("_by_config", "_cluster", "_uniform")

    def __init__(self, cluster: Cluster, by_config: Mapping[int, Way]) -> None:
        self._cluster = cluster
        self._by_config = by_config
        self._uniform = None if cluster.transport_socket_matches else by_config[id(cluster.tls)]

    @classmethod
    def of(cls, cluster: Cluster, secure: Secure | None, previous: Ways | None = None) -> Ways:
        """previous: those before; a way that leads as it did is taken over. secure: None where there is no TLS to be had.

        Raises:
            ValueError: the cluster asks for TLS, and secure is None.
        """
        known = () if previous is None else tuple(previous._by_config.values())
        configs = [cluster.tls, *(match.tls for match in cluster.transport_socket_matches)]
        by_config = {}
        for tls in configs:
            way = _way(cluster, tls, secure)
            by_config[id(tls)] = next((before for before in known if before.leads_like(way)), way)
        return cls(cluster, by_config)

    def to(self, metadata: Mapping[str, Scalar]) -> Way:
        """To an endpoint with this metadata."""
        return self._uniform or self._by_config[id(select_tls(self._cluster, metadata))]

    @property
    def outdated(self) -> bool:
        """As `Way.outdated`."""
        return any(way.outdated for way in self._by_config.values())

    @property
    def unsecured(self) -> bool:
        """There is no material yet for some of them."""
        return any(way.security is not None and not way.epoch for way in self._by_config.values())

    def renewed(self) -> Ways:
        """The same with what is in force now."""
        return Ways(self._cluster, {key: way.renewed() for key, way in self._by_config.items()})


def _way(cluster: Cluster, tls: UpstreamTls | None, secure: Secure | None) -> Way:
    if tls is None:
        return _PLAIN[cluster.protocol]
    if secure is None:
        raise ValueError(f"cluster {cluster.name!r} asks for TLS, and there is no identity to use it with")
    named = tls.auto_sni or tls.auto_san_validation
    return Way(cluster.protocol, secure(tls), named=named, name_header=tls.override_auto_sni_header.lower())
