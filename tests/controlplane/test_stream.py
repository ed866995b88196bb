"""The ADS server's protocol, without a network: requests in, responses out."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshlib import proto
from meshlib.controlplane import Answer, ResourceStore
from meshlib.controlplane.stream import ServerStream

C, E, L, R = proto.CLUSTER, proto.ENDPOINT, proto.LISTENER, proto.ROUTE


def resource(type_url: str, name: str, mark: int = 0) -> proto.Message:
    value: dict[str, Any]
    match type_url:
        case proto.CLUSTER:
            source = {"eds_config": {"ads": {}}, "service_name": f"{name}-eds" if name == "named" else ""}
            value = {"name": name, "connect_timeout": f"{mark + 1}s", "eds_cluster_config": source}
        case proto.ENDPOINT:
            value = {"cluster_name": name, "policy": {"overprovisioning_factor": mark + 100}}
        case proto.LISTENER:
            value = {"name": name, "stat_prefix": str(mark)}
        case _:
            value = {"name": name, "max_direct_response_body_size_bytes": mark + 1}
    return proto.from_dict(proto.full_name(type_url), value)


class Client:
    """Subscribes, keeps what it was sent as an xDS client does, and answers when told to."""

    def __init__(self, store: ResourceStore) -> None:
        self.stream = ServerStream(store)
        self.last: dict[str, Any] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self._answer: Answer | None = None
        self.cache: dict[str, dict[str, bytes]] = {}

    def request(
        self, type_url: str, names: tuple[str, ...], nonce: str, error: str = ""
    ) -> list[tuple[str, list[str]]]:
        self.names[type_url] = names
        request = proto.message("envoy.service.discovery.v3.DiscoveryRequest")(
            type_url=type_url, resource_names=names, response_nonce=nonce
        )
        request.node.id = "n"
        if error:
            request.error_detail.message = error
        self._answer = self.stream.receive(request)
        return self.pump()

    def answer(self) -> Answer | None:
        """What the stream made of the last request."""
        return self._answer

    def subscribe(self, type_url: str, *names: str) -> list[tuple[str, list[str]]]:
        last = self.last.get(type_url)
        return self.request(type_url, names, last.nonce if last else "")

    def ack(self, type_url: str, error: str = "") -> list[tuple[str, list[str]]]:
        return self.request(type_url, self.names[type_url], self.last[type_url].nonce, error)

    def pump(self, *, patient: bool = True) -> list[tuple[str, list[str]]]:
        """(type, names of its resources) of each response that came."""
        came = []
        for data in self.stream.responses(patient=patient):
            response = proto.parse("envoy.service.discovery.v3.DiscoveryResponse", data)
            self.last[response.type_url] = response
            messages = [proto.unpack(packed) for packed in response.resources]
            names = [getattr(m, "cluster_name", "") or m.name for m in messages]
            encoded = {n: m.SerializeToString(deterministic=True) for n, m in zip(names, messages)}
            kept = self.cache.get(response.type_url, {}) if response.type_url in {E, R} else {}
            self.cache[response.type_url] = {**kept, **encoded}
            came.append((response.type_url, sorted(names)))
        return came

    def settle(self) -> list[tuple[str, list[str]]]:
        """ACK everything until nothing comes any more."""
        came: list[tuple[str, list[str]]] = []
        due = [url for url in self.last if self.stream._subscriptions[url].outstanding]
        while due:
            for type_url in due:
                came += self.ack(type_url)
            due = [url for url in self.last if self.stream._subscriptions[url].outstanding]
        return came


def store(*resources: tuple[str, str]) -> ResourceStore:
    return ResourceStore(resource(url, name) for url, name in resources)


def test_an_empty_first_request_subscribes_to_all_clusters_and_listeners() -> None:
    client = Client(store((C, "a"), (C, "b"), (L, "l")))
    assert client.subscribe(C) == [(C, ["a", "b"])]
    client.settle()
    assert client.subscribe(L) == [(L, ["l"])]
    assert client.last[C].version_info == "1"


def test_the_first_answer_comes_even_when_there_is_nothing() -> None:
    assert Client(store()).subscribe(C) == [(C, [])]
    assert Client(store()).subscribe(L, "missing") == [(L, [])]


def test_endpoints_and_routes_that_are_missing_are_waited_for() -> None:
    data = store()
    client = Client(data)
    assert client.subscribe(E, "a") == []
    data.update(resource(E, "a"), resource(E, "other"))
    assert client.pump() == [(E, ["a"])]


def test_an_empty_list_of_endpoints_is_nothing() -> None:
    assert Client(store((E, "a"))).subscribe(E) == []


def test_only_what_changed_is_pushed() -> None:
    data = store((C, "a"), (C, "b"), (E, "a"), (E, "b"))
    client = Client(data)
    client.subscribe(C)
    client.subscribe(E, "a", "b")
    client.settle()
    data.update(resource(E, "b", 1))
    assert client.pump() == [(E, ["b"])]
    client.settle()
    data.replace(
        resource(url, name, 1 if name == "b" and url == E else 0)
        for url, name in ((C, "a"), (C, "b"), (E, "a"), (E, "b"))
    )
    assert client.pump() == []


def test_a_listener_response_holds_all_that_is_subscribed() -> None:
    data = store((L, "a"), (L, "b"), (L, "c"))
    client = Client(data)
    client.subscribe(L, "a", "b")
    client.settle()
    data.update(resource(L, "a", 1), resource(L, "c", 1))
    assert client.pump() == [(L, ["a", "b"])]
    client.settle()
    data.remove(L, "b")
    assert client.pump() == [(L, ["a"])]


def test_a_new_name_brings_that_resource_only() -> None:
    client = Client(store((R, "a"), (R, "b")))
    client.subscribe(R, "a")
    client.settle()
    assert client.subscribe(R, "a", "b") == [(R, ["b"])]
    client.settle()
    assert client.subscribe(R, "b") == []
    assert client.subscribe(R, "a", "b") == [(R, ["a"])], "it was unsubscribed and is new again"


def test_one_response_of_a_type_is_outstanding_and_the_next_is_the_newest() -> None:
    data = store((E, "a"))
    client = Client(data)
    client.subscribe(E, "a")
    for mark in (1, 2, 3):
        data.update(resource(E, "a", mark))
        assert client.pump() == []
    assert client.ack(E) == [(E, ["a"])]
    assert client.last[E].version_info == "4"
    assert client.ack(E) == []


def test_ack_and_nack_are_told_apart() -> None:
    client = Client(store((C, "a")))
    client.subscribe(C)
    assert client.answer() is None
    client.ack(C, error="bad field")
    assert client.answer() == Answer(node_id="n", type_url=C, version="1", nonce="1", error="bad field")
    client.ack(C)
    assert client.answer() is None, "the same response is answered once"


def test_a_nacked_resource_is_sent_again_only_when_it_changes() -> None:
    data = store((C, "a"))
    client = Client(data)
    client.subscribe(C)
    assert client.ack(C, error="bad") == []
    data.update(resource(C, "a", 1))
    assert client.pump() == [(C, ["a"])]


def test_a_request_with_an_old_nonce_is_passed_over() -> None:
    data = store((R, "a"), (R, "b"))
    client = Client(data)
    client.subscribe(R, "a")
    old = client.last[R].nonce
    client.settle()
    data.update(resource(R, "a", 1))
    client.pump()
    assert client.request(R, ("a", "b"), old) == []
    assert client.answer() is None
    assert client.ack(R) == [(R, ["b"])]


def test_a_reconnecting_client_gets_everything_again() -> None:
    data = store((C, "a"))
    first = Client(data)
    first.subscribe(C)
    second = Client(data)
    assert second.request(C, (), "from-another-stream") == [(C, ["a"])]


def test_the_wildcard_by_name_and_by_an_empty_list() -> None:
    client = Client(store((C, "a"), (C, "b")))
    client.subscribe(C, "*")
    assert client.settle() == []
    assert client.subscribe(C, "a") == []
    assert client.subscribe(C) == [], "names were given before: an empty list is nothing now"
    assert client.subscribe(C, "*", "a") == [(C, ["a", "b"])]


def everything(mark: int) -> list[proto.Message]:
    return [resource(url, name, mark) for url, name in ((R, "r"), (L, "l"), (E, "c"), (C, "c"))]


def subscribed(data: ResourceStore) -> Client:
    client = Client(data)
    for type_url, name in ((L, "l"), (R, "r"), (C, "*"), (E, "c")):
        client.subscribe(type_url, name)
        client.settle()
    return client


def test_listeners_and_routes_wait_for_clusters_and_endpoints() -> None:
    data = ResourceStore(everything(0))
    client = subscribed(data)
    data.replace(everything(1))
    assert client.pump() == [(C, ["c"]), (E, ["c"])]
    assert client.ack(C) == []
    assert client.stream.holding
    assert client.ack(E) == [(L, ["l"]), (R, ["r"])]
    assert not client.stream.holding


def test_routes_wait_until_the_endpoints_of_a_new_cluster_were_asked_for() -> None:
    data = ResourceStore(everything(0))
    client = subscribed(data)
    data.update(resource(C, "new"), resource(E, "new"), resource(R, "r", 1))
    assert client.pump() == [(C, ["c", "new"])]
    assert client.ack(C) == []
    assert client.subscribe(E, "c", "new") == [(E, ["new"])]
    assert client.ack(E) == [(R, ["r"])]


def test_a_client_that_asks_for_no_endpoints_is_held_back_for_a_while_only() -> None:
    data = ResourceStore(everything(0))
    client = subscribed(data)
    data.update(resource(C, "new"), resource(E, "new"), resource(R, "r", 1))
    client.pump()
    client.ack(C)
    assert client.stream.holding
    assert client.pump(patient=False) == [(R, ["r"])]
    assert not client.stream.holding


def test_after_a_nack_of_clusters_no_endpoints_are_awaited() -> None:
    data = ResourceStore(everything(0))
    client = subscribed(data)
    data.update(resource(C, "new"), resource(E, "new"), resource(R, "r", 1))
    client.pump()
    assert client.ack(C, error="no") == [(R, ["r"])]


def test_a_cluster_is_removed_after_the_routes_that_used_it() -> None:
    data = store((C, "old"), (R, "r"))
    client = Client(data)
    client.subscribe(C)
    client.subscribe(R, "r")
    client.settle()
    data.replace([resource(C, "new"), resource(R, "r", 1)])
    assert client.pump() == [(C, ["new", "old"])]
    assert client.ack(C) == [(R, ["r"])]
    assert client.ack(R) == [(C, ["new"])]


def test_a_cluster_that_is_removed_alone_goes_at_once() -> None:
    data = store((C, "a"), (C, "b"))
    client = Client(data)
    client.subscribe(C)
    client.settle()
    data.remove(C, "a")
    assert client.pump() == [(C, ["b"])]


def test_a_changed_cluster_brings_its_endpoints_again() -> None:
    data = store((C, "a"), (C, "named"), (E, "a"), (E, "named-eds"))
    client = Client(data)
    client.subscribe(C)
    client.subscribe(E, "a", "named-eds")
    client.settle()
    data.update(resource(C, "named", 1))
    assert client.pump() == [(C, ["a", "named"]), (E, ["named-eds"])]


def test_a_cluster_of_broken_bytes_is_passed_on() -> None:
    data = store((C, "a"), (E, "a"))
    client = Client(data)
    client.subscribe(C)
    client.subscribe(E, "a")
    client.settle()
    data.update_encoded(C, "a", b"\xff")
    (response,) = [
        proto.parse("envoy.service.discovery.v3.DiscoveryResponse", d)
        for d in client.stream.responses()
        if C.encode() in d
    ]
    assert response.resources[0].value == b"\xff"


NAMES = st.sets(st.sampled_from("ab"), max_size=2)
TYPES = st.sampled_from([C, E, L, R])


class Sessions(RuleBasedStateMachine):
    """Whatever a client does and the store holds: once all is answered, the client has what it subscribed to."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ResourceStore()
        self.client = Client(self.store)

    @rule(type_url=TYPES, name=st.sampled_from("ab"), mark=st.integers(0, 2))
    def update(self, type_url: str, name: str, mark: int) -> None:
        self.store.update(resource(type_url, name, mark))
        self.client.pump()

    @rule(type_url=TYPES, name=st.sampled_from("ab"))
    def remove(self, type_url: str, name: str) -> None:
        self.store.remove(type_url, name)
        self.client.pump()

    @rule(type_url=TYPES, names=NAMES)
    def subscribe(self, type_url: str, names: set[str]) -> None:
        self.client.subscribe(type_url, *sorted(names) or ["*"])

    @rule(type_url=TYPES, error=st.sampled_from(["", "no"]))
    def answer(self, type_url: str, error: str) -> None:
        if type_url in self.client.last:
            self.client.ack(type_url, error)

    @rule()
    def settle(self) -> None:
        self.client.settle()
        self.client.pump(patient=False)
        self.client.settle()
        for type_url, names in self.client.names.items():
            held = self.store.state(type_url).resources
            wildcard = type_url in {C, L} and "*" in names
            wanted = {n: r for n, r in held.items() if wildcard or n in names}
            cache = self.client.cache.get(type_url, {})
            for name, stored in wanted.items():
                assert proto.parse("google.protobuf.Any", stored.encoded).value == cache.get(name), (
                    type_url,
                    name,
                )
            if type_url in {C, L} and type_url in self.client.last:
                assert set(wanted) == set(cache)

    @invariant()
    def at_most_one_response_is_outstanding(self) -> None:
        assert self.client.pump() == []


Sessions.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestSessions = Sessions.TestCase
