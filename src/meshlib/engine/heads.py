"""What is done to the headers of one call that needs it: the plan's edits and rewrites, and Envoy's own headers.

Not made for a call whose route edits nothing and that leaves Envoy's headers alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshlib.engine.attempt import Attempt
from meshlib.engine.headers import (
    ATTEMPT_COUNT,
    CONSUMED,
    EXPECTED_TIMEOUT,
    HOP_BY_HOP,
    IS_TIMEOUT_RETRY,
    SERVICE_TIME,
    set_header,
)
from meshlib.errors import LocalReply
from meshlib.routing.compiled import CompiledRoute, ForwardPlan, Prepared
from meshlib.routing.format import FormatContext
from meshlib.routing.request import Headers, RequestView, ResponseView

__all__ = ["Heads"]


class Heads:
    """The request head of each attempt, and the response head, of one call.

    envoy: headers="envoy". suppressed: the router's suppress_envoy_headers. started: seconds since the epoch. echoed: headers
    that every response gets (x-request-id, where the listener asks for it).
    """

    __slots__ = (
        "_attempt",
        "_consume",
        "_context",
        "_echoed",
        "_envoy",
        "_plan",
        "_prepared",
        "_prepared_for",
        "_request",
    )

    def __init__(
        self,
        request: RequestView,
        route: CompiledRoute,
        plan: ForwardPlan,
        *,
        started: float,
        envoy: bool,
        suppressed: bool,
        echoed: Headers,
    ) -> None:
        self._echoed = echoed
        self._request = request
        self._plan = plan
        self._consume = envoy
        self._envoy = envoy and not suppressed
        self._attempt: Attempt | None = None
        self._prepared: Prepared | None = None
        self._prepared_for = 0
        self._context = FormatContext(
            request,
            started=started,
            cluster=plan.cluster,
            route_name=route.resource.name,
            stream_id=request.first("x-request-id"),
            suppress_envoy_headers=not self._envoy,
        )

    def prepare(self, number: int, timeout_ms: int | None, *, after_timeout: bool) -> RequestView:
        """The request of attempt `number` before its endpoint is known, which is what is hashed. Arguments as for `upstream`."""
        self._prepared, self._prepared_for = self._make(number, timeout_ms, after_timeout), number
        return self._context.request

    def upstream(self, attempt: Attempt, timeout_ms: int | None, *, after_timeout: bool = False) -> Prepared:
        """Authority, path and headers as the endpoint of this attempt sees them.

        timeout_ms: what the attempt may take, None for no limit. after_timeout: the attempt before ended by its timeout.
        """
        self._attempt = attempt
        prepared = self._prepared
        if prepared is None or self._prepared_for != attempt.number:
            prepared = self._make(attempt.number, timeout_ms, after_timeout)
        self._context.endpoint = attempt.endpoint.key
        if self._plan.auto_host_rewrite:
            prepared = self._plan.for_endpoint(prepared, attempt.endpoint.hostname, self._context)
        self._prepared = prepared
        return prepared

    def _make(self, number: int, timeout_ms: int | None, after_timeout: bool) -> Prepared:
        plan = self._plan
        changing: list[tuple[str, str]] = []
        if self._envoy and timeout_ms is not None:
            changing.append((EXPECTED_TIMEOUT, str(timeout_ms)))
        if plan.virtual_host.include_request_attempt_count:
            changing.append((ATTEMPT_COUNT, str(number)))
        if plan.virtual_host.include_is_timeout_retry_header and number > 1:
            changing.append((IS_TIMEOUT_RETRY, "true" if after_timeout else "false"))
        context = self._context
        context.attempts = number
        prepared = self._prepared
        if prepared is None:
            return plan.prepare(self._without_consumed(changing), context, tuple(changing))
        headers = list(prepared.headers)
        for name, value in changing:
            set_header(headers, name, value)
        return prepared._replace(headers=headers)

    def response(
        self, status: int, headers: Sequence[tuple[str, str]], attempt: Attempt, flags: str, now: float
    ) -> Headers | None:
        """The response headers after the edits; None when they stay as they came. flags: Envoy's, `-` for none."""
        counted = self._plan.virtual_host.include_attempt_count_in_response
        if self._plan.response_plain and not counted and not self._envoy:
            return None
        edited = [pair for pair in headers if pair[0] not in HOP_BY_HOP] if self._consume else list(headers)
        if self._envoy:
            set_header(edited, SERVICE_TIME, str(int((now - attempt.started) * 1000)))
        self._context.flags = flags
        self._context.details = "via_upstream"
        self._context.endpoint = attempt.endpoint.key
        self._context.response = ResponseView(status, edited)
        edited = self._plan.edit_response(edited, self._context)
        self._complete(edited, self._attempt)
        return edited

    def local_reply(self, reply: LocalReply, flags: str, details: str) -> LocalReply:
        """The reply after the edits that Envoy makes to its own answers too."""
        self._context.flags = flags
        self._context.details = details
        edited = self._plan.edit_local_reply(reply, self._context)
        headers = list(edited.headers)
        self._complete(headers, self._attempt)
        return LocalReply(edited.status, tuple(headers), edited.body)

    def _complete(self, headers: Headers, attempt: Attempt | None) -> None:
        """What comes after the edits: x-envoy-attempt-count, which is that of the last attempt, and what every response gets."""
        for name, value in self._echoed:
            set_header(headers, name, value)
        if attempt is not None and self._plan.virtual_host.include_attempt_count_in_response:
            set_header(headers, ATTEMPT_COUNT, str(attempt.number))

    def _without_consumed(self, changing: Sequence[tuple[str, str]]) -> RequestView:
        """The request without what the router reads and does not pass on, and what it is about to set itself."""
        request = self._request
        dropped = {name for name, _ in changing}
        if self._consume:
            dropped |= CONSUMED
        if not any(name in dropped for name, _ in request.headers):
            return request
        return RequestView(
            method=request.method,
            scheme=request.scheme,
            authority=request.authority,
            path=request.path,
            headers=[pair for pair in request.headers if pair[0] not in dropped],
            target=request.target,
            channel_id=request.channel_id,
        )
