"""The server's side of one state-of-the-world ADS stream, without I/O.

For each type the stream remembers what the client subscribed to and which resources it was sent. Nothing is queued: a
response is always computed as the difference between the store, now, and what was sent, so that a client that is slow
to answer gets the newest state next and none of those between. Two rules keep the client consistent:

* One response of a type is outstanding at a time; the next waits for its ACK or NACK. A request that carries an older
  nonce is a message that crossed ours on the wire and is passed over.
* Make before break. Listeners and routes are held back until the client has answered the clusters and the endpoints
  that were sent before them, and has asked for and got the endpoints of each new or changed cluster (Envoy uses such
  a cluster only then). A cluster that disappears while routes change stays in the CDS responses until EDS, LDS
  and RDS have been sent and answered. A client that needs no endpoints or answers nothing would be held back for
  ever, so the caller asks again, impatiently, after HOLD seconds.

Listener and Cluster responses hold everything subscribed, because there a missing resource means that it is gone;
responses of other types hold what is new to the client. A changed Cluster makes its endpoints new again, because Envoy
waits for a ClusterLoadAssignment that comes after the change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshlib import proto
from meshlib.controlplane.store import ResourceStore, StoredResource

__all__ = ["FULL_STATE", "HOLD", "ORDER", "Answer", "ServerStream"]

ORDER = (proto.CLUSTER, proto.ENDPOINT, proto.LISTENER, proto.ROUTE)
"""Types in the order in which they are pushed; all others follow."""

FULL_STATE = frozenset({proto.LISTENER, proto.CLUSTER})
"""Types whose responses hold all subscribed resources, and whose subscription may be a wildcard."""

HOLD = 1.0
"""Seconds after which listeners and routes are sent although clusters or endpoints are not settled."""

WILDCARD = "*"
_HELD = frozenset({proto.LISTENER, proto.ROUTE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A client's reply to one response. error: None for an ACK, the text of ``error_detail`` for a NACK."""

    node_id: str
    type_url: str
    version: str
    nonce: str
    error: str | None


@dataclass(slots=True)
class _Subscription:
    names: frozenset[str] = frozenset()
    wildcard: bool = False
    legacy: bool = False
    """The wildcard came as an empty list of names and lasts until names are given."""
    sent: Mapping[str, StoredResource] = field(default_factory=dict)
    nonce: str = ""
    version: str = ""
    outstanding: bool = False
    owed: bool = True
    """A response is due even if nothing changed: the first one of the type, or one after a change of subscription."""


class ServerStream:
    """One client. Feed requests to :meth:`receive`, then send what :meth:`responses` returns; not thread-safe."""

    def __init__(self, store: ResourceStore) -> None:
        self._store = store
        self._subscriptions: dict[str, _Subscription] = {}
        self._nonces = 0
        self._awaited: set[str] = set()
        """Names of endpoints that clusters which were sent need, and that were not sent after them."""
        self.node_id = ""
        self.holding = False
        """Whether the last responses() held something back; ask again, impatiently, after HOLD seconds."""

    def receive(self, request: proto.Message) -> Answer | None:
        """Take a DiscoveryRequest. Returns what it says about our last response, if it says anything."""
        if request.node.id:
            self.node_id = request.node.id
        subscription = self._subscriptions.get(request.type_url)
        if subscription is None:
            subscription = self._subscriptions[request.type_url] = _Subscription()
        if request.response_nonce != subscription.nonce and subscription.nonce:
            return None
        answer = self._answer(request, subscription) if subscription.outstanding else None
        self._subscribe(request, subscription, first=not subscription.nonce)
        return answer

    def responses(self, *, patient: bool = True) -> list[bytes]:
        """The encoded DiscoveryResponses that are due now, in the order in which to send them.

        patient: hold listeners and routes back while clusters or endpoints are not settled.
        """
        if not patient:
            self._awaited.clear()
        self.holding = False
        types = [url for url in ORDER if url in self._subscriptions]
        types += [url for url in self._subscriptions if url not in ORDER]
        return [response for url in types if (response := self._respond(url, patient)) is not None]

    def _answer(self, request: proto.Message, subscription: _Subscription) -> Answer:
        subscription.outstanding = False
        rejected = request.HasField("error_detail")
        if rejected and request.type_url == proto.CLUSTER:
            self._awaited.clear()  # nobody knows which of the clusters the client took
        return Answer(
            node_id=self.node_id,
            type_url=request.type_url,
            version=subscription.version,
            nonce=subscription.nonce,
            error=request.error_detail.message if rejected else None,
        )

    def _subscribe(self, request: proto.Message, subscription: _Subscription, *, first: bool) -> None:
        names = frozenset(request.resource_names)
        if request.type_url in FULL_STATE:
            subscription.legacy = not names and (first or subscription.legacy)
            wildcard = subscription.legacy or WILDCARD in names
            names -= {WILDCARD}
            if not subscription.wildcard and (wildcard or names - subscription.names):
                subscription.owed = True
            subscription.wildcard = wildcard
        subscription.names = names
        if not subscription.wildcard:
            subscription.sent = {name: sent for name, sent in subscription.sent.items() if name in names}

    def _respond(self, type_url: str, patient: bool) -> bytes | None:
        subscription = self._subscriptions[type_url]
        if subscription.outstanding or not self._differs(type_url, subscription):
            return None
        if patient and type_url in _HELD and self._clusters_unsettled():
            self.holding = True
            return None
        if type_url not in FULL_STATE:
            sending = self._news(type_url, subscription)
            subscription.sent = {**subscription.sent, **sending}
            if type_url == proto.ENDPOINT:
                self._awaited -= sending.keys()
            return self._encode(type_url, subscription, sending)
        sending = self._wanted(type_url, subscription)
        if type_url == proto.CLUSTER:
            if self._routes_unsettled():
                sending = {**subscription.sent, **sending}
                if sending == subscription.sent and not subscription.owed:
                    return None
            self._expect_endpoints(sending, subscription.sent)
        subscription.sent = sending
        return self._encode(type_url, subscription, sending)

    def _expect_endpoints(
        self, clusters: Mapping[str, StoredResource], sent: Mapping[str, StoredResource]
    ) -> None:
        """Await the endpoints of new and changed clusters; forget that they were sent before."""
        known = self._store.state(proto.ENDPOINT).resources
        names = {_eds_name(cluster) for name, cluster in clusters.items() if sent.get(name) is not cluster}
        self._awaited |= names & known.keys()
        endpoints = self._subscriptions.get(proto.ENDPOINT)
        if endpoints is not None:
            endpoints.sent = {
                name: resource for name, resource in endpoints.sent.items() if name not in names
            }

    def _wanted(self, type_url: str, subscription: _Subscription) -> dict[str, StoredResource]:
        resources = self._store.state(type_url).resources
        if subscription.wildcard:
            return dict(resources)
        return {name: resources[name] for name in sorted(subscription.names) if name in resources}

    def _news(self, type_url: str, subscription: _Subscription) -> dict[str, StoredResource]:
        wanted = self._wanted(type_url, subscription)
        return {
            name: resource for name, resource in wanted.items() if subscription.sent.get(name) is not resource
        }

    def _routes_unsettled(self) -> bool:
        """Whether EDS, LDS or RDS have something to be sent or to be answered."""
        for type_url in ORDER[1:]:
            subscription = self._subscriptions.get(type_url)
            if subscription is None:
                continue
            if subscription.outstanding or self._differs(type_url, subscription):
                return True
        return False

    def _clusters_unsettled(self) -> bool:
        """Whether CDS or EDS have something to be answered, or endpoints are awaited."""
        types = (self._subscriptions.get(type_url) for type_url in (proto.CLUSTER, proto.ENDPOINT))
        return bool(self._awaited) or any(known is not None and known.outstanding for known in types)

    def _differs(self, type_url: str, subscription: _Subscription) -> bool:
        if type_url in FULL_STATE:
            return subscription.owed or self._wanted(type_url, subscription) != subscription.sent
        return bool(self._news(type_url, subscription))

    def _encode(
        self, type_url: str, subscription: _Subscription, sending: Mapping[str, StoredResource]
    ) -> bytes:
        self._nonces += 1
        subscription.nonce = str(self._nonces)
        subscription.version = self._store.state(type_url).version
        subscription.outstanding = True
        subscription.owed = False
        return encode_response(type_url, subscription.version, subscription.nonce, sending)


def _eds_name(cluster: StoredResource) -> str:
    """The name by which a Cluster asks for its endpoints over ADS; empty if it doesn't, or for broken bytes."""
    try:
        packed = proto.parse("google.protobuf.Any", cluster.encoded)
        message = proto.parse("envoy.config.cluster.v3.Cluster", packed.value)
    except proto.DecodeError:
        return ""
    source = message.eds_cluster_config.eds_config.WhichOneof("config_source_specifier")
    if source not in {"ads", "self"}:
        return ""
    return str(message.eds_cluster_config.service_name or message.name)


def encode_response(
    type_url: str, version: str, nonce: str, resources: Mapping[str, StoredResource]
) -> bytes:
    """A DiscoveryResponse, joined from resources that are encoded already."""
    head = proto.message("envoy.service.discovery.v3.DiscoveryResponse")(
        version_info=version, type_url=type_url, nonce=nonce
    )
    parts = [head.SerializeToString()]
    for resource in resources.values():
        parts += (_RESOURCES_TAG, _varint(len(resource.encoded)), resource.encoded)
    return b"".join(parts)


_RESOURCES_TAG = b"\x12"  # DiscoveryResponse.resources: field 2, length-delimited


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
