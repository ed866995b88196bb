"""What a route does with a request that it forwards: one immutable plan for each (route, choice of cluster).

Plans are made when the route table is compiled, so that the hot path only picks one. Envoy's order of work on the request
(seen on 1.40.0): the weighted cluster's header edits; its host_rewrite_literal, without a trace; the header edits of route,
virtual host and route configuration (reversed by most_specific_header_mutations_wins, the weighted cluster stays first);
the route's host rewrite; the path rewrite. With auto_host_rewrite each attempt replaces the authority again, and what the
attempts before left in the headers stays.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from meshlib.errors import LocalReply
from meshlib.resources.route import (
    HostRewriteKind,
    MaxStreamDuration,
    Priority,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    VirtualHost,
    WeightedCluster,
)
from meshlib.routing.format import FormatContext
from meshlib.routing.hash_policy import HashOf
from meshlib.routing.headers import (
    JOINED_IN_REQUEST,
    JOINED_IN_RESPONSE,
    LevelEdits,
    compile_levels,
    set_header,
)
from meshlib.routing.reply import finish_reply
from meshlib.routing.request import Headers, RequestView, ResponseView
from meshlib.routing.rewrite import compile_host, compile_path_rewrite, forward_host

__all__ = ["ForwardPlan", "Prepared", "Timeouts", "response_levels"]


class Timeouts(NamedTuple):
    """Seconds.

    route: from the end of the request to the end of the response, with all retries; None is none. per_try: for each
    attempt, less than route; None is none. max_stream: the whole stream from its start; inf is none, 0 ends it at once, None
    leaves it to the listener's max_stream_duration.
    """

    route: float | None
    per_try: float | None
    max_stream: float | None


class Prepared(NamedTuple):
    """What goes upstream: authority, path with query, headers (lower-case names, without Host)."""

    authority: str
    path: str
    headers: Headers


class ForwardPlan:
    """Where the request goes and what is done to it on the way. Immutable once made, but for what the engine keeps here.

    cluster: may be empty or unknown, which the engine answers with not_found_code and NC. weighted: the chosen entry. retry:
    the policy in force (the route's, else the virtual host's); counted: by its route or by a virtual cluster, too;
    looks_at_success: a response below 500 may be retried or is counted so, looks_at_ok: even a gRPC one with status OK;
    hedges: whether its per-try timeout starts another attempt beside the one that is late. timeout and max_stream_duration:
    seconds, 0 and None are none; timeouts: the same with the per-try timeout, ready for use where nothing overrides them.
    plain: nothing is done to the request, the application's own headers may be sent; response_plain: nothing is done to the
    response; edits: an attempt's headers differ from the application's, on the way there or back. reads_grpc_timeout: the
    timeouts depend on the request's grpc-timeout. hash_of: the route's hash policy, None when it has none. mirrors: its
    request_mirror_policies. grpc_plan: the engine's, of calls that follow the gRFCs.
    """

    __slots__ = (
        "_action",
        "_after",
        "_append_forwarded_host",
        "_before",
        "_host",
        "_host_literal",
        "_path",
        "_response",
        "auto_host_rewrite",
        "cluster",
        "config",
        "counted",
        "edits",
        "grpc_plan",
        "grpc_timeout_offset",
        "hash_of",
        "hedges",
        "looks_at_ok",
        "looks_at_success",
        "max_grpc_timeout",
        "max_stream_duration",
        "mirrors",
        "not_found_code",
        "plain",
        "priority",
        "reads_grpc_timeout",
        "response_plain",
        "retry",
        "route",
        "timeout",
        "timeouts",
        "virtual_host",
        "weighted",
    )

    def __init__(
        self,
        cluster: str,
        *,
        action: RouteAction,
        route: Route,
        virtual_host: VirtualHost,
        config: RouteConfiguration,
        weighted: WeightedCluster | None = None,
        hash_of: HashOf | None = None,
    ) -> None:
        self._action = action
        self.cluster = cluster
        self.grpc_plan: ForwardPlan | None = None
        self.hash_of = hash_of
        self.route = route
        self.virtual_host = virtual_host
        self.config = config
        self.weighted = weighted
        self.priority: Priority = action.priority
        self.mirrors = action.mirrors
        self.not_found_code = action.cluster_not_found_response_code
        self.retry: RetryPolicy | None = action.retry_policy or virtual_host.retry_policy
        self.counted = bool(route.stat_prefix or virtual_host.virtual_clusters)
        self.looks_at_success = self.counted or (self.retry is not None and self.retry.looks_at_success)
        self.looks_at_ok = self.counted or (self.retry is not None and self.retry.looks_at_ok)
        hedging = action.hedge_policy or virtual_host.hedge_policy
        self.hedges = hedging is not None and hedging.hedge_on_per_try_timeout
        self.max_stream_duration: MaxStreamDuration | None = action.max_stream_duration
        self.timeout = action.timeout if self.max_stream_duration is None else 0.0
        self.max_grpc_timeout = action.max_grpc_timeout if self.max_stream_duration is None else None
        self.grpc_timeout_offset = action.grpc_timeout_offset or 0.0
        self.reads_grpc_timeout = self.max_grpc_timeout is not None or (
            self.max_stream_duration is not None
            and self.max_stream_duration.grpc_timeout_header_max is not None
        )
        self.timeouts = self._timeouts()
        self.auto_host_rewrite = (
            action.host_rewrite is not None and action.host_rewrite.kind is HostRewriteKind.AUTO
        )
        self._append_forwarded_host = action.append_x_forwarded_host
        self._host = compile_host(action.host_rewrite)
        self._host_literal = weighted.host_rewrite_literal if weighted is not None else None
        self._path = compile_path_rewrite(action.prefix_rewrite, action.regex_rewrite, route.match.path)
        specific = (weighted.request_headers,) if weighted is not None else ()
        levels = [route.request_headers, virtual_host.request_headers, config.request_headers]
        if config.most_specific_header_mutations_wins:
            levels.reverse()
        self._before = compile_levels(specific, JOINED_IN_REQUEST)
        self._after = compile_levels(levels, JOINED_IN_REQUEST)
        self._response = response_levels(route, virtual_host, config, weighted)
        self.response_plain = not self._response
        self.plain = not (
            self._before
            or self._after
            or self._host_literal
            or self._host
            or self._path
            or self.auto_host_rewrite
        )
        self.edits = not (
            self.plain
            and self.response_plain
            and not virtual_host.include_request_attempt_count
            and not virtual_host.include_is_timeout_retry_header
            and not virtual_host.include_attempt_count_in_response
        )

    def twin(self) -> ForwardPlan:
        """Another one, made of the same."""
        return ForwardPlan(
            self.cluster,
            action=self._action,
            route=self.route,
            virtual_host=self.virtual_host,
            config=self.config,
            weighted=self.weighted,
            hash_of=self.hash_of,
        )

    def prepare(
        self, request: RequestView, context: FormatContext, added: tuple[tuple[str, str], ...] = ()
    ) -> Prepared:
        """The request as it goes upstream; made once for a call, before an endpoint is known. request stays as it is.

        added: headers that the router adds before the configured edits see them. context then shows what goes upstream,
        which is what response edits see.
        """
        authority, path = request.authority, request.path
        endpoint, context.endpoint = context.endpoint, None
        headers: Headers = [*request.headers, *added] if added else list(request.headers)

        def refresh(context: FormatContext, headers: Headers) -> None:
            context.request = _view(request, Prepared(authority, path, headers))

        for level in self._before:
            level.apply(headers, context, refresh)
        authority = self._host_literal or authority
        for level in self._after:
            level.apply(headers, context, refresh)
        if self._host is not None:
            refresh(context, headers)
            host = self._host(context.request)
            if host:
                self._forward_host(headers, authority, context)
                authority = host
        if self._path is not None:
            if not context.suppress_envoy_headers:
                set_header(headers, "x-envoy-original-path", path)
            path = self._path(path)
        refresh(context, headers)
        context.endpoint = endpoint
        return Prepared(authority, path, headers)

    def for_endpoint(self, prepared: Prepared, hostname: str, context: FormatContext) -> Prepared:
        """What an attempt sends with auto_host_rewrite: the endpoint's hostname as authority.

        Give the result of one attempt to the next one, as Envoy does. An endpoint without a hostname changes nothing.
        """
        if not hostname:
            return prepared
        headers = list(prepared.headers)
        self._forward_host(headers, prepared.authority, context)
        sent = Prepared(hostname, prepared.path, headers)
        context.request = _view(context.request, sent)
        return sent

    def edit_response(self, headers: Headers, context: FormatContext) -> Headers:
        """The response headers after the edits of all levels; a new list unless there is nothing to do.

        context.response must show headers and status.
        """
        if self.response_plain:
            return headers
        edited = list(headers)
        edit_response(self._response, edited, context)
        return edited

    def edit_local_reply(self, reply: LocalReply, context: FormatContext) -> LocalReply:
        """One of Envoy's own answers after the response edits. Length and type are added after them, but for gRPC's type."""
        grpc = ("content-type", "application/grpc") in reply.headers
        added = ("content-length",) if grpc else ("content-length", "content-type")
        headers = [pair for pair in reply.headers if pair[0] not in added]
        context.response, context.local_reply = ResponseView(reply.status, headers), True
        edit_response(self._response, headers, context)
        return (
            LocalReply(reply.status, tuple(headers))
            if grpc
            else finish_reply(reply.status, headers, reply.body)
        )

    def _forward_host(self, headers: Headers, authority: str, context: FormatContext) -> None:
        forward_host(
            headers,
            authority,
            append=self._append_forwarded_host,
            keep=not context.suppress_envoy_headers,
        )

    def _timeouts(self) -> Timeouts:
        per_try = self.retry.per_try_timeout if self.retry is not None else None
        if per_try and self.timeout and per_try >= self.timeout:
            per_try = None
        return Timeouts(self.timeout or None, per_try or None, self.longest_stream())

    def longest_stream(self) -> float | None:
        """The route's own max_stream_duration, as `Timeouts.max_stream`."""
        stream = self.max_stream_duration
        if stream is None or stream.max_stream_duration is None:
            return None
        return stream.max_stream_duration or inf


def _view(request: RequestView, prepared: Prepared) -> RequestView:
    authority, path, headers = prepared
    return RequestView(
        method=request.method,
        scheme=request.scheme,
        authority=authority,
        path=path,
        headers=headers,
        channel_id=request.channel_id,
    )


def response_levels(
    route: Route,
    virtual_host: VirtualHost,
    config: RouteConfiguration,
    weighted: WeightedCluster | None = None,
) -> tuple[LevelEdits, ...]:
    """The response edits in Envoy's order, which is the request's."""
    levels = [route.response_headers, virtual_host.response_headers, config.response_headers]
    if config.most_specific_header_mutations_wins:
        levels.reverse()
    if weighted is not None:
        levels.insert(0, weighted.response_headers)
    return compile_levels(levels, JOINED_IN_RESPONSE)


def edit_response(levels: tuple[LevelEdits, ...], headers: Headers, context: FormatContext) -> None:
    """Apply levels to headers in place. context.response must show them."""
    before = context.response
    status = int(before.values(":status")[0]) if before is not None else 0

    def refresh(context: FormatContext, headers: Headers) -> None:
        context.response = ResponseView(status, headers)

    for level in levels:
        level.apply(headers, context, refresh)
    context.response = before
