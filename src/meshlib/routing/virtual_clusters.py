"""VirtualHost.virtual_clusters: under which name a request is counted."""

from __future__ import annotations

from collections.abc import Callable

from meshlib.resources.route import VirtualHost
from meshlib.routing.matchers.header import compile_headers
from meshlib.routing.request import RequestView
from meshlib.runtime.memo import Memo

__all__ = ["OTHER", "virtual_cluster_of"]

OTHER = "other"
"""The virtual cluster of the requests that none of a virtual host's matches."""


def _compile(host: VirtualHost) -> Callable[[RequestView], str]:
    clusters = [(compile_headers(cluster.headers), cluster.name) for cluster in host.virtual_clusters]

    def find(request: RequestView) -> str:
        for matches, name in clusters:
            if matches is None or matches(request):
                return name
        return OTHER

    return find


virtual_cluster_of: Memo[VirtualHost, Callable[[RequestView], str]] = Memo(_compile)
"""For a virtual host that has some: the name of the first that a request matches, or OTHER."""
