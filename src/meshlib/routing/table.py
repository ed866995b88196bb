"""A RouteConfiguration made ready for requests: domain search, then the first route that matches.

Compiled once for each resource, on the thread that publishes; nothing here changes afterwards, so any number of threads may
search at the same time.
"""

from __future__ import annotations

from random import Random

from meshlib.resources.route import RouteConfiguration
from meshlib.routing.compiled import CompiledRoute, CompiledVirtualHost
from meshlib.routing.domains import DomainIndex
from meshlib.routing.request import RequestView

__all__ = ["RouteTable"]


class RouteTable:
    """The virtual hosts of one RouteConfiguration."""

    __slots__ = ("_domains", "config", "virtual_hosts")

    def __init__(self, config: RouteConfiguration) -> None:
        self.config = config
        self.virtual_hosts = tuple(CompiledVirtualHost(host, config) for host in config.virtual_hosts)
        self._domains = DomainIndex(
            ((domain, host) for host in self.virtual_hosts for domain in host.resource.domains),
            ignore_port=config.ignore_port_in_host_matching,
        )

    def virtual_host(self, authority: str) -> CompiledVirtualHost | None:
        """The virtual host that an authority belongs to."""
        return self._domains.find(authority)

    def find(self, request: RequestView, random: Random) -> CompiledRoute | None:
        """The route for this request, None when no virtual host or no route matches (NR).

        A virtual host with require_tls gives a route whose reply redirects to https.
        """
        host = self._domains.find(request.authority)
        return None if host is None else host.find(request, random)
