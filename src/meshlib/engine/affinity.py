"""The hash of one call, for clusters that balance by hash, and the cookies that are made for it.

A cookie of the route is there when the response's headers are edited, and only on an endpoint's response; one of the
cluster's own policy comes after the edits, the last one alone, and on local replies too. Each is made again for each
attempt that looks for an endpoint, so that a retried call sets it several times. All this is Envoy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from meshlib.balance.balancer import LoadBalancer
from meshlib.errors import LocalReply
from meshlib.resources.hash_policy import CookieHash
from meshlib.routing.hash_policy import set_cookie
from meshlib.routing.plan import ForwardPlan
from meshlib.routing.request import Headers, RequestView

__all__ = ["Affinity"]

SET_COOKIE = "set-cookie"


class Affinity:
    """Made for a call that hashes. The value of its new cookies is random, and one and the same for the whole call."""

    __slots__ = ("_last", "_made", "_random", "_value")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._value = ""
        self._made: Headers = []
        self._last: Headers = []

    def hash_of(self, request: RequestView, plan: ForwardPlan, balancer: LoadBalancer) -> int | None:
        """The hash for the next attempt: by the cluster's own policy, else by the route's. None: it has none."""
        if balancer.hash_of is not None:
            return balancer.hash_of(request, self._cookie_of_policy)
        return None if plan.hash_of is None else plan.hash_of(request, self._cookie_of_route)

    def before_edits(self, headers: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """The endpoint's response headers with the route's cookies."""
        return [*headers, *self._made] if self._made else headers

    def after_edits(self, received: Sequence[tuple[str, str]], edited: Headers | None) -> Headers | None:
        """The headers to pass on: received as `before_edits` gave them, and edited; None for both unchanged."""
        if not self._made and not self._last:
            return edited
        return [*(received if edited is None else edited), *self._last]

    def local_reply(self, reply: LocalReply) -> LocalReply:
        return replace(reply, headers=(*reply.headers, *self._last)) if self._last else reply

    def _cookie_of_route(self, cookie: CookieHash) -> str:
        value = self._new_value()
        self._made.append((SET_COOKIE, set_cookie(cookie, value)))
        return value

    def _cookie_of_policy(self, cookie: CookieHash) -> str:
        value = self._new_value()
        self._last = [(SET_COOKIE, set_cookie(cookie, value))]
        return value

    def _new_value(self) -> str:
        if not self._value:
            self._value = f"{self._random.getrandbits(64):016x}"
        return self._value
