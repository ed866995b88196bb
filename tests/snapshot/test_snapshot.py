from __future__ import annotations

import pytest

from meshlib.errors import ConfigError
from meshlib.snapshot import Kind, from_resources
from tests.snapshot.builders import Item, assignment, cluster, dns_cluster, inline_listener, listener, routes


def test_a_configuration_from_files_is_complete() -> None:
    snapshot = from_resources(
        [
            Item(listener("web", "r")),
            Item(routes("r", "one")),
            Item(cluster("one"), ("lb_subset_config",)),
            Item(assignment("one", "10.0.0.1")),
        ]
    )
    assert not snapshot.pending(Kind.CLUSTER, "two")
    assert not snapshot.pending(Kind.LISTENER, "other:80")
    assert snapshot.unsupported == {(Kind.CLUSTER, "one"): ("lb_subset_config",)}
    assert snapshot.assignment(snapshot.clusters["one"]) is snapshot.endpoints["one"]


def test_the_only_listener_of_files_answers_for_every_name() -> None:
    one = from_resources([Item(inline_listener("web"))])
    assert one.listener("anything:80") is one.listeners["web"]
    two = from_resources([Item(inline_listener("web")), Item(inline_listener("other"))])
    assert two.listener("anything:80") is None
    assert two.listener("other") is two.listeners["other"]


def test_two_resources_with_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="Cluster 'one' is defined twice"):
        from_resources([Item(cluster("one")), Item(cluster("one"))])


def test_endpoints_of_a_dns_cluster_are_pending_until_resolved() -> None:
    before = from_resources([Item(dns_cluster("web", "web.example"))])
    web = before.clusters["web"]
    assert before.pending_endpoints(web)
    assert before.assignment(web) is None
    after = before.with_resolved("web", assignment("web", "10.0.0.1"))
    assert not after.pending_endpoints(web)
    assert after.assignment(web) is after.resolved["web"]
    assert before.resolved == {}
    assert after.clusters is before.clusters


def test_missing_endpoints_of_an_eds_cluster_in_files_are_not_awaited() -> None:
    snapshot = from_resources([Item(cluster("one"))])
    assert snapshot.assignment(snapshot.clusters["one"]) is None
    assert not snapshot.pending_endpoints(snapshot.clusters["one"])
